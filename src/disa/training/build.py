"""From a method's name to its trainer, table-driven: same prompts, sampler and budget, only the method differs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, concatenate_datasets
from transformers import Trainer
from trl import GRPOConfig

from disa.anchor import Anchor
from disa.errors import DisaError
from disa.lm.fingerprint import take_fingerprint
from disa.lm.hf_trainer import SeededEpochs
from disa.lm.sampling import SamplingConfig
from disa.runs.records import ScoredTrajectory
from disa.tasks import Task
from disa.training.a_star_po_trainer import AStarPOConfig, AStarPOTrainer, reference_values, unsolved
from disa.training.config import TrainingConfig
from disa.training.disa_config import DISAConfig
from disa.training.flags import flag_plan, with_frozen_log_z
from disa.training.flowrl_trainer import FlowRLConfig, FlowRLTrainer
from disa.training.group_trainer import GFlowRLConfig, GFlowRLTrainer, VarGradConfig, VarGradTrainer
from disa.training.methods import METHODS
from disa.training.offline_trainer import (
    OfflineConfig,
    OfflineLoss,
    OfflineTrainer,
    balance,
    conservative_log_z,
    forward_loss,
    supervised,
)
from disa.training.sampling_trainer import SamplingTrainer
from disa.training.stored import StoredTrajectories
from disa.training.trainer import DISATrainer
from disa.training.trajectory_weights import equal_prompts, supervised_weights, target_weights

BOTH_SHARE = 0.5
"""Share of the forward projection in ``disa_both`` where ``offline_share`` is 0."""


@dataclasses.dataclass(frozen=True)
class TrainerInputs:
    """What any method's trainer may be made of."""

    config: TrainingConfig
    sampling: SamplingConfig
    task: Task
    prompt_ids: Mapping[str, Sequence[int]]
    """Token ids of the training prompts."""
    reference: Path
    anchor: Anchor | None
    trajectories: Sequence[ScoredTrajectory]
    """Those of the training prompts."""
    arguments: dict[str, Any]
    """Keyword arguments of every configuration: steps, batch, schedule, learning rate, seed, logs."""
    generation: dict[str, Any]
    """Those of the configurations that generate."""
    shared: dict[str, Any]
    """Keyword arguments of every trainer: model, tokenizer, adapters, callbacks."""
    dataset: Dataset
    reward: Any
    """The task's reward as a TRL reward function."""


def build_trainer(method: str, parts: TrainerInputs) -> Trainer:
    """Make the trainer of one method.

    Raises
    ------
    DisaError
        Where a setting, the anchor or the trajectories do not fit the method.
    """
    return _BUILDERS[method](parts)


def _disa(parts: TrainerInputs, *, default_share: float = 0.0) -> Trainer:
    config = parts.config
    share = config.offline_share or default_share
    args = DISAConfig(
        inverse_temperature=config.inverse_temperature,
        baseline=config.baseline,
        baseline_prior_strength=config.baseline_prior_strength,
        offline_share=share,
        flagged=config.flagged,
        **parts.arguments,
        **parts.generation,
    )
    offline = None
    if share:
        plan = flag_plan(parts.anchor, list(parts.prompt_ids), config.flagged, prompts_per_step=config.prompts_per_step)
        offline = _towards_target(parts, with_frozen_log_z(parts.trajectories, plan))
    return DISATrainer(anchor=parts.anchor, args=args, reference=parts.reference, offline=offline, **_online(parts))


def _towards_target(parts: TrainerInputs, rows: Sequence[ScoredTrajectory]) -> StoredTrajectories:
    config = parts.config
    weights = target_weights(rows, parts.anchor, tail=config.offline_weight_tail, cap=config.offline_weight_cap)
    return StoredTrajectories(rows, parts.prompt_ids, weights * equal_prompts(rows), seed=config.seed)


def _disa_both(parts: TrainerInputs) -> Trainer:
    return _disa(parts, default_share=BOTH_SHARE)


def _disa_forward(parts: TrainerInputs) -> Trainer:
    _verify(parts)
    return _offline(parts, _towards_target(parts, parts.trajectories), forward_loss)


def _disa_offline_balance(parts: TrainerInputs) -> Trainer:
    _verify(parts)
    rows = parts.trajectories
    log_z = conservative_log_z(parts.anchor, [row.prompt_id for row in rows])
    stored = StoredTrajectories(rows, parts.prompt_ids, equal_prompts(rows), seed=parts.config.seed, log_z=log_z)
    return _offline(parts, stored, balance(parts.config.inverse_temperature))


def _sft(parts: TrainerInputs, *, kind: str = "correct") -> Trainer:
    weights = supervised_weights(parts.trajectories, kind)
    stored = StoredTrajectories(parts.trajectories, parts.prompt_ids, weights, seed=parts.config.seed)
    return _offline(parts, stored, supervised("mean"))


def _sft_reward(parts: TrainerInputs) -> Trainer:
    return _sft(parts, kind="reward")


def _a2po(parts: TrainerInputs) -> Trainer:
    config, rows = parts.config, parts.trajectories
    values = reference_values(rows, inverse_temperature=config.inverse_temperature, n=config.value_samples)
    dropped = unsolved(rows, n=config.value_samples)
    solved = parts.dataset.filter(lambda row: row["prompt_id"] not in dropped)
    if not len(solved):
        raise DisaError(
            f"none of {len(dropped)} prompts has a reward among its {config.value_samples} reference samples",
            where="training: a2po",
            fix="raise training.value_samples and proposals.per_prompt, or use a stronger reference",
        )
    # TRL draws whole batches of distinct rows, so one completion a prompt needs as many rows as completions a step.
    repeats = -(-config.completions_per_step // len(solved))
    parts = dataclasses.replace(parts, dataset=concatenate_datasets([solved] * repeats))
    args = AStarPOConfig(
        inverse_temperature=config.inverse_temperature,
        **parts.arguments,
        **parts.generation | {"num_generations": 1},
    )
    return AStarPOTrainer(values=values, args=args, reference=parts.reference, **_online(parts))


def _vargrad(parts: TrainerInputs) -> Trainer:
    args = VarGradConfig(inverse_temperature=parts.config.inverse_temperature, **parts.arguments, **parts.generation)
    return VarGradTrainer(args=args, reference=parts.reference, **_online(parts))


def _gflowrl(parts: TrainerInputs, *, published: bool = False) -> Trainer:
    args = GFlowRLConfig(
        inverse_temperature=parts.config.inverse_temperature,
        published=published,
        **parts.arguments,
        **parts.generation,
    )
    return GFlowRLTrainer(args=args, reference=parts.reference, **_online(parts))


def _gflowrl_published(parts: TrainerInputs) -> Trainer:
    return _gflowrl(parts, published=True)


def _flowrl(parts: TrainerInputs, *, published: bool = False) -> Trainer:
    args = FlowRLConfig(
        inverse_temperature=parts.config.inverse_temperature,
        published=published,
        log_z_learning_rate=parts.config.log_z_learning_rate,
        **parts.arguments,
        **parts.generation,
    )
    return FlowRLTrainer(args=args, reference=parts.reference, **_online(parts))


def _flowrl_published(parts: TrainerInputs) -> Trainer:
    return _flowrl(parts, published=True)


def _grpo(parts: TrainerInputs, **own: Any) -> Trainer:
    trainer = SamplingTrainer(args=GRPOConfig(**parts.arguments, **parts.generation, **own), **_online(parts))
    trainer.add_callback(SeededEpochs())
    return trainer


def _gspo(parts: TrainerInputs) -> Trainer:
    # The mean over completions and the clip range are those of arXiv 2507.18071.
    return _grpo(parts, importance_sampling_level="sequence", loss_type="grpo", epsilon=3e-4, epsilon_high=4e-4)


_BUILDERS = {
    "disa": _disa,
    "disa_forward": _disa_forward,
    "disa_both": _disa_both,
    "disa_offline_balance": _disa_offline_balance,
    "flowrl": _flowrl,
    "flowrl_published": _flowrl_published,
    "gflowrl": _gflowrl,
    "gflowrl_published": _gflowrl_published,
    "vargrad": _vargrad,
    "a2po": _a2po,
    "grpo": _grpo,
    "gspo": _gspo,
    "sft": _sft,
    "sft_reward": _sft_reward,
    "lora_sft": _sft,
}
assert _BUILDERS.keys() == METHODS.keys()


def _online(parts: TrainerInputs) -> dict[str, Any]:
    return parts.shared | {"reward_funcs": [parts.reward], "train_dataset": parts.dataset}


def _offline(parts: TrainerInputs, stored: StoredTrajectories, loss: OfflineLoss) -> Trainer:
    args = OfflineConfig(temperature=parts.sampling.temperature, **parts.arguments)
    return OfflineTrainer(args=args, trajectories=stored, loss=loss, **parts.shared)


def _verify(parts: TrainerInputs) -> None:
    """The anchor's conditions that offline training shares with it, as the on-policy trainer checks them."""
    found = take_fingerprint(
        parts.shared["model"],
        parts.shared["processing_class"],
        parts.sampling,
        reward=parts.task.reward_fingerprint,
        inverse_temperature=parts.config.inverse_temperature,
        task=parts.task.fingerprint,
    )
    parts.anchor.verify(found)
