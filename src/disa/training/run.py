"""Train one method's policy from the reference and save it as an ordinary Hugging Face folder."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets import Dataset
from transformers import PrinterCallback
from trl import GRPOConfig

from disa.anchor import Anchor
from disa.errors import DisaError
from disa.lm.hf_trainer import last_checkpoint, save_trained_model, trainer_arguments
from disa.lm.loading import effective_precision, load_base, load_tokenizer, require_vllm, trainable_model
from disa.lm.sampling_config import SamplingConfig, encode_prompt
from disa.runs import processes
from disa.runs.folders import StageFolder
from disa.runs.records import Prompt, ScoredTrajectory
from disa.runs.step_log import StepLog
from disa.tasks import Task
from disa.tasks.checked_rewards import checked_rewards
from disa.training.balance_trainer import BalanceTrainer
from disa.training.build import TrainerInputs, build_trainer
from disa.training.card import model_card
from disa.training.config import LoRAConfig, TrainingConfig
from disa.training.last_completions import LastCompletions
from disa.training.methods import METHODS
from disa.training.rollouts import free_engine

if TYPE_CHECKING:
    from peft import PeftConfig

VERSION = 6


class TaskReward:
    """A task's reward as a TRL reward function; rows carry the prompt record in the column ``record``."""

    __name__ = "reward"

    def __init__(self, task: Task) -> None:
        self._task = task
        self.fingerprint = task.reward_fingerprint

    def __call__(self, completions: list[Any], **columns: list[Any]) -> list[float | None]:
        """Rewards in the order of the completions, None where one is undecided: the losses leave it out."""
        texts = [c if isinstance(c, str) else c[-1]["content"] for c in completions]
        return checked_rewards(self._task, [Prompt.from_row(row) for row in columns["record"]], texts)


def prompt_rows(prompts: list[Prompt], task: Task, sampling: SamplingConfig) -> Dataset:
    """Rows for TRL: the prompt in the trainer's form, the anchor's key, and the prompt record itself."""
    return Dataset.from_list(
        [
            {
                "prompt": sampling.trainer_prompt(p.prompt),
                "prompt_id": p.prompt_id,
                "task": task.fingerprint,
                "record": p.as_row(),
            }
            for p in prompts
        ]
    )


def run_training(
    stage: StageFolder,
    method: str,
    config: TrainingConfig,
    sampling: SamplingConfig,
    task: Task,
    prompts: list[Prompt],
    reference: str | Path,
    anchor: Anchor | None,
    trajectories: list[ScoredTrajectory],
) -> None:
    """Train ``method`` and write ``model/`` and ``steps.jsonl``; continue from the newest checkpoint.

    The processes of one launch train together: each makes its share of the prompts of a step, and the first one writes.
    ``anchor`` and ``trajectories`` of the training prompts are for the methods that read them
    (:mod:`disa.training.methods`); the others never see them.
    """
    try:
        config.check_prompts([method], len(prompts))
    except ValueError as error:
        raise DisaError(str(error), where="training") from error
    checkpoints, log = stage.path / "checkpoints", StepLog(stage.path / "steps.jsonl", f"training: {method}")
    tokenizer, lora = load_tokenizer(reference), config.method_lora(method)
    inputs = TrainerInputs(
        config=config,
        sampling=sampling,
        task=task,
        prompt_ids={p.prompt_id: encode_prompt(tokenizer, p.prompt, sampling) for p in prompts},
        reference=reference,
        anchor=anchor,
        trajectories=trajectories,
        arguments=_arguments(method, config, reference, checkpoints),
        generation={
            "num_generations": config.completions_per_prompt,
            "num_iterations": config.method_uses(method),
            "max_completion_length": sampling.max_completion_length,
            "temperature": sampling.temperature,
            "log_completions": config.log_completions,
            **_rollouts(config),
        },
        shared={
            "model": load_base(reference, config.compute) if lora else trainable_model(reference),
            "processing_class": tokenizer,
            "peft_config": _peft_config(lora),
            "callbacks": [log],
        },
        dataset=prompt_rows(prompts, task, sampling),
        reward=TaskReward(task),
    )
    trainer = build_trainer(method, inputs)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(LastCompletions(trainer, stage.path / "completions.jsonl"))
    if config.vllm:
        trainer.rollout_bound = config.vllm.parity_bound
    try:
        with closing(log):
            trainer.train(resume_from_checkpoint=last_checkpoint(checkpoints))
    except KeyboardInterrupt as error:
        found = last_checkpoint(checkpoints)
        kept = f"training goes on from {Path(found).name}" if found else "training has no checkpoint yet"
        raise KeyboardInterrupt(f"finished stages are kept, {kept}") from error
    free_engine(trainer)
    save_trained_model(trainer, stage.path / "model")
    if processes.rank() == 0:
        text = _card(trainer, method, task, str(reference), inputs)
        (stage.path / "model" / "README.md").write_text(text, encoding="utf-8")
        rows = config.completions_per_step
        stage.finish(
            method=method,
            completions=rows * config.method_steps(method) if METHODS[method].generates else 0,
            stored=rows * config.optimizer_steps(method) if config.learns_from_stored(method) else 0,
            processes=processes.count(),
            prompts_not_shared=trainer.prompts_not_shared,
        )


def _card(trainer: Any, method: str, task: Task, reference: str, inputs: TrainerInputs) -> str:
    """Of ``model/``; how the policy does on held-out prompts, the report of the run says."""
    steps, logged = trainer.state.global_step, trainer.state.log_history
    return model_card(
        f"{method} on {task.name}",
        method,
        reference,
        paper=trainer.log_z.paper if isinstance(trainer, BalanceTrainer) else None,
        rewards=[f"{task.name}, {task.reward_fingerprint}"],
        anchor=inputs.anchor,
        settings={
            **{name.replace("_", " "): getattr(inputs.config, name) for name in METHODS[method].settings},
            "temperature": inputs.sampling.temperature,
            "max completion length": inputs.sampling.max_completion_length,
            "learning rate": inputs.config.method_learning_rate(method),
            "steps": steps,
            "sequences per step": inputs.config.completions_per_step,
        },
        logged={key: value for line in logged for key, value in line.items()},
        tags=[method],
    )


def _arguments(method: str, config: TrainingConfig, reference: str | Path, output_dir: Path) -> dict[str, Any]:
    # Groups stay whole: a process gets all completions of its prompts.
    own = (
        processes.share_of_process(config.prompts_per_step, "training.prompts_per_step") * config.completions_per_prompt
    )
    micro_batch = min(config.micro_batch or own, own)
    if own % micro_batch:
        raise DisaError(
            f"micro_batch {micro_batch} does not divide the {own} completions per step that each of "
            f"{processes.count()} processes makes",
            where="training.micro_batch",
            fix="choose a divisor, or launch another number of processes",
        )
    return {
        "output_dir": str(output_dir),
        "max_steps": config.optimizer_steps(method),
        "per_device_train_batch_size": micro_batch,
        "gradient_accumulation_steps": own // micro_batch,
        "learning_rate": config.method_learning_rate(method),
        "lr_scheduler_type": config.schedule,
        "warmup_steps": min(config.warmup_steps, config.optimizer_steps(method)),
        "max_grad_norm": config.max_grad_norm,
        **({} if config.optim is None else {"optim": config.optim}),
        "seed": config.seed,
        "save_steps": config.save_every,
        "save_total_limit": 1,
        **trainer_arguments(effective_precision(config.compute, reference) == "bfloat16", config.log_every),
        "report_to": list(config.report_to) or "none",
    }


def _rollouts(config: TrainingConfig) -> dict[str, Any]:
    """TRL's arguments for completions by vLLM."""
    if config.vllm is None:
        return {}
    require_vllm("training.vllm")
    options = {f"vllm_{name}": value for name, value in config.vllm.options.items()}
    known = {name for name in GRPOConfig.__dataclass_fields__ if name.startswith("vllm_")} - {"vllm_mode"}
    if unknown := sorted(options.keys() - known):
        raise DisaError(
            f"TRL has no argument {', '.join(unknown)}",
            where="recipe, field training.vllm.options",
            fix=f"use one of {', '.join(sorted(name.removeprefix('vllm_') for name in known))}",
        )
    return {"use_vllm": True, "vllm_mode": config.vllm.mode, **options}


def _peft_config(lora: LoRAConfig | None) -> PeftConfig | None:
    if lora is None:
        return None
    from peft import LoraConfig

    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        target_modules=lora.target_modules if isinstance(lora.target_modules, str) else list(lora.target_modules),
        task_type="CAUSAL_LM",
    )
