"""From a method's name to its trainer, table-driven: same prompts, sampler and budget, only the method differs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from datasets import Dataset, concatenate_datasets
from transformers import Trainer
from trl import GRPOConfig

from disa.anchor import Anchor
from disa.errors import DisaError
from disa.lm.fingerprint import take_fingerprint
from disa.lm.sampling_config import SamplingConfig
from disa.runs.records import ScoredTrajectory
from disa.tasks import Task
from disa.training.a_star_po import a_star_po, reference_values, unsolved_prompts
from disa.training.balance_trainer import BalanceTrainer
from disa.training.config import TrainingConfig
from disa.training.disa_config import DISAConfig
from disa.training.flags import flag_plan, with_frozen_log_z
from disa.training.guard import StartGuard
from disa.training.learned_log_z import Learned
from disa.training.log_z import Contrast, Group, LogZ, gflowrl_log_z
from disa.training.max_rl import MaxRLTrainer
from disa.training.methods import METHODS, REUSE
from disa.training.offline_trainer import (
    OfflineConfig,
    OfflineLoss,
    OfflineTrainer,
    balance_batch_loss,
    conservative_log_z,
    forward_loss,
    supervised_batch_loss,
)
from disa.training.shared_prompt_trainer import SharedPromptTrainer
from disa.training.stored import StoredTrajectories
from disa.training.trainer import DISATrainer
from disa.training.trajectory_weights import equal_prompts, supervised_weights, target_weights

FLOWRL_PUBLISHED = {"inverse_temperature": 15.0, "length": "mean", "weight_cap": 10.0}
"""Settings FlowRL was published with, beside rewards normalised within the group."""

GFLOWRL_PUBLISHED = {"inverse_temperature": 8.0, "length": "mean"}
"""Settings GFlowRL was published with, beside log Z from sums."""

GFLOWRL_CLIPS: dict[str, dict[str, Any]] = {
    "none": {},
    "gap": {"clip_low": 0.2, "clip_high": 0.28},
    "ratio": {"ratio_range": (0.8, 1.28)},
}
"""GFlowRL's published thresholds .2 and .28, read as bounds of the residual at sampling time, or of pi / pi_sampler."""

GSPO_PUBLISHED: dict[str, Any] = {
    "importance_sampling_level": "sequence",
    "loss_type": "grpo",
    "epsilon": 3e-4,
    "epsilon_high": 4e-4,
}
"""GSPO's mean over completions and clip range (arXiv 2507.18071)."""

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
    reference: str | Path
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

    @property
    def frozen(self) -> Anchor:
        """The anchor, for methods that are given one."""
        assert self.anchor is not None
        return self.anchor


def build_trainer(method: str, inputs: TrainerInputs) -> Trainer:
    """Make the trainer of one method.

    Raises DisaError where a setting, the anchor or the trajectories do not fit the method.
    """
    return _BUILDERS[method](inputs)


def _disa(inputs: TrainerInputs, *, default_share: float = 0.0) -> Trainer:
    config = inputs.config
    share = config.offline_share or default_share
    args = DISAConfig(
        inverse_temperature=config.inverse_temperature,
        prompts=config.prompts,
        baseline=config.baseline,
        baseline_prior_strength=config.baseline_prior_strength,
        length_scale=config.length_scale,
        residual_clip=config.residual_clip,
        offline_share=share,
        flagged=config.flagged,
        **_reuse(config),
        **inputs.arguments,
        **inputs.generation,
    )
    offline = None
    if share:
        plan = flag_plan(
            inputs.frozen, list(inputs.prompt_ids), config.flagged, prompts_per_step=config.prompts_per_step
        )
        offline = _towards_target(inputs, with_frozen_log_z(inputs.trajectories, plan))
    return DISATrainer(anchor=inputs.frozen, args=args, offline=offline, **_compared(inputs))


def _towards_target(inputs: TrainerInputs, rows: Sequence[ScoredTrajectory]) -> StoredTrajectories:
    config = inputs.config
    weights = target_weights(rows, inputs.frozen, tail=config.offline_weight_tail, cap=config.offline_weight_cap)
    return StoredTrajectories(rows, inputs.prompt_ids, weights * equal_prompts(rows), seed=config.seed)


def _disa_forward(inputs: TrainerInputs) -> Trainer:
    _verify(inputs)
    return _guarded(inputs, _towards_target(inputs, inputs.trajectories), forward_loss)


def _disa_offline_balance(inputs: TrainerInputs) -> Trainer:
    _verify(inputs)
    rows = inputs.trajectories
    log_z = conservative_log_z(inputs.frozen, [row.prompt_id for row in rows])
    stored = StoredTrajectories(rows, inputs.prompt_ids, equal_prompts(rows), seed=inputs.config.seed, log_z=log_z)
    return _guarded(inputs, stored, balance_batch_loss(inputs.config.inverse_temperature))


def _sft(inputs: TrainerInputs, *, kind: Literal["correct", "reward"] = "correct") -> Trainer:
    weights = supervised_weights(inputs.trajectories, kind)
    stored = StoredTrajectories(inputs.trajectories, inputs.prompt_ids, weights, seed=inputs.config.seed)
    return _offline(inputs, stored, supervised_batch_loss("mean"))


def _a2po(inputs: TrainerInputs) -> Trainer:
    config, rows = inputs.config, inputs.trajectories
    beta, samples = config.inverse_temperature, config.value_samples
    values, dropped = reference_values(rows, inverse_temperature=beta, n=samples), unsolved_prompts(rows, n=samples)
    solved = inputs.dataset.filter(lambda row: row["prompt_id"] not in dropped)
    if not len(solved):
        raise DisaError(
            f"none of {len(dropped)} prompts has a reward among its {samples} reference samples",
            where="training: a2po",
            fix="raise training.value_samples and proposals.per_prompt, or use a stronger reference",
        )
    # TRL draws whole batches of distinct rows, so one completion per prompt needs as many rows as completions per step.
    repeats = -(-config.completions_per_step // len(solved))
    inputs = dataclasses.replace(inputs, dataset=concatenate_datasets([solved] * repeats))
    return _balance(inputs, a_star_po(values, beta), num_generations=1)


def _policy_gradient(
    inputs: TrainerInputs, trainer: type[SharedPromptTrainer] = SharedPromptTrainer, **own: Any
) -> Trainer:
    args = GRPOConfig(disable_dropout=True, **inputs.arguments, **inputs.generation, **own)
    return trainer(args=args, **_online(inputs))


def _balance(inputs: TrainerInputs, log_z: LogZ, **own: Any) -> Trainer:
    general = {"inverse_temperature": inputs.config.inverse_temperature, **_reuse(inputs.config)}
    args = DISAConfig(**general | inputs.arguments | inputs.generation | own)
    return BalanceTrainer(log_z=log_z, args=args, **_compared(inputs))


def _reuse(config: TrainingConfig) -> dict[str, Any]:
    return {name: getattr(config, name) for name in REUSE}


_BUILDERS: dict[str, Callable[[TrainerInputs], Trainer]] = {
    "disa": _disa,
    "disa_forward": _disa_forward,
    "disa_both": lambda inputs: _disa(inputs, default_share=BOTH_SHARE),
    "disa_offline_balance": _disa_offline_balance,
    "flowrl": lambda inputs: _balance(inputs, Learned(inputs.config.log_z_learning_rate)),
    "flowrl_published": lambda inputs: _balance(
        inputs, Learned(inputs.config.log_z_learning_rate, normalised_rewards=True), **FLOWRL_PUBLISHED
    ),
    "gflowrl": lambda inputs: _balance(inputs, gflowrl_log_z(**GFLOWRL_CLIPS[inputs.config.gflowrl_clip])),
    "gflowrl_published": lambda inputs: _balance(
        inputs, gflowrl_log_z(sums=True, **GFLOWRL_CLIPS[inputs.config.gflowrl_clip]), **GFLOWRL_PUBLISHED
    ),
    "vargrad": lambda inputs: _balance(inputs, Group()),
    "a2po": _a2po,
    "ctb": lambda inputs: _balance(inputs, Contrast(inputs.prompt_ids), baseline_prior_strength=0.0),
    "max_rl": lambda inputs: _policy_gradient(inputs, MaxRLTrainer, loss_type="grpo"),
    "grpo": _policy_gradient,
    "gspo": lambda inputs: _policy_gradient(inputs, **GSPO_PUBLISHED),
    "sft": _sft,
    "sft_reward": lambda inputs: _sft(inputs, kind="reward"),
    "lora_sft": _sft,
}
assert _BUILDERS.keys() == METHODS.keys()


def _online(inputs: TrainerInputs) -> dict[str, Any]:
    return inputs.shared | {"reward_funcs": [inputs.reward], "train_dataset": inputs.dataset}


def _compared(inputs: TrainerInputs) -> dict[str, Any]:
    """With what a trainer with a reference needs; new adapters leave it behind themselves."""
    return _online(inputs) | ({} if inputs.shared.get("peft_config") else {"reference": inputs.reference})


def _offline(inputs: TrainerInputs, stored: StoredTrajectories, loss: OfflineLoss) -> OfflineTrainer:
    args = OfflineConfig(temperature=inputs.sampling.temperature, **inputs.arguments)
    return OfflineTrainer(args=args, trajectories=stored, loss=loss, **inputs.shared)


def _guarded(inputs: TrainerInputs, stored: StoredTrajectories, loss: OfflineLoss) -> OfflineTrainer:
    """Offline training of a policy that starts at the reference, whose log-probabilities are known."""
    trainer = _offline(inputs, stored, loss)
    trainer.add_callback(StartGuard(trainer, stored, inputs.frozen.probe_bound))
    return trainer


def _verify(inputs: TrainerInputs) -> None:
    """The anchor's conditions that offline training shares with it, as the on-policy trainer checks them."""
    found = take_fingerprint(
        inputs.shared["model"],
        inputs.shared["processing_class"],
        inputs.sampling,
        reward=inputs.task.reward_fingerprint,
        inverse_temperature=inputs.config.inverse_temperature,
        task=inputs.task.fingerprint,
    )
    inputs.frozen.verify(found)
    inputs.frozen.verify_prompts(inputs.prompt_ids)
