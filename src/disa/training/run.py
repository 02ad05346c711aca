"""Train one method's policy from the reference and save it as an ordinary Hugging Face folder."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets import Dataset
from transformers import PrinterCallback, Trainer
from trl import GRPOConfig

from disa.anchor import Anchor
from disa.engine import StepLog, last_checkpoint, load_tokenizer, require_vllm, trainable_model, trainer_arguments
from disa.errors import DisaError
from disa.records import Prompt, ScoredTrajectory
from disa.rundir import StageFolder, replace_folder
from disa.sampling import SamplingConfig, encode_prompt
from disa.scoring.run import task_rewards
from disa.tasks import Task
from disa.training.build import Ingredients, build_trainer
from disa.training.config import LoRAConfig, TrainingConfig
from disa.training.methods import METHODS

if TYPE_CHECKING:
    from peft import PeftConfig

VERSION = 3


class TaskReward:
    """A task's reward as a TRL reward function; rows carry the whole prompt record as columns."""

    __name__ = "reward"

    def __init__(self, task: Task) -> None:
        self._task = task
        self.fingerprint = task.reward_fingerprint

    def __call__(self, completions: list[Any], **columns: list[Any]) -> list[float | None]:
        """Rewards in the order of the completions, None where one is undecided: the losses leave it out."""
        texts = [c if isinstance(c, str) else c[-1]["content"] for c in completions]
        fields = ("prompt_id", "task_name", "split", "prompt_text", "payload", "n_solutions")
        prompts = [Prompt(*row) for row in zip(*(columns[name] for name in fields), strict=True)]
        return task_rewards(self._task, prompts, texts)


def dataset(prompts: list[Prompt], task: Task, law: SamplingConfig) -> Dataset:
    """Rows for TRL: the prompt in the trainer's form, the anchor's key, and the prompt record itself."""
    return Dataset.from_list(
        [
            {
                "prompt": law.trainer_prompt(p.prompt),
                "prompt_id": p.prompt_id,
                "task": task.fingerprint,
                "task_name": p.task,
                "split": p.split,
                "prompt_text": p.prompt,
                "payload": p.payload,
                "n_solutions": p.n_solutions,
            }
            for p in prompts
        ]
    )


def run_training(
    stage: StageFolder,
    method: str,
    config: TrainingConfig,
    law: SamplingConfig,
    task: Task,
    prompts: list[Prompt],
    reference: Path,
    anchor: Anchor | None,
    trajectories: list[ScoredTrajectory],
) -> None:
    """Train ``method`` and write ``model/`` and ``steps.jsonl``; continue from the newest checkpoint.

    Parameters
    ----------
    prompts : list of Prompt
        Training prompts.
    reference : Path
        Frozen reference, from which the policy starts.
    anchor : Anchor or None
        For the methods that read it (:mod:`disa.training.methods`); the others never see it.
    trajectories : list of ScoredTrajectory
        Those of the training prompts, likewise.
    """
    checkpoints, log = stage.path / "checkpoints", StepLog(stage.path / "steps.jsonl", f"training: {method}")
    tokenizer = load_tokenizer(reference)
    parts = Ingredients(
        config=config,
        law=law,
        task=task,
        prompt_ids={p.prompt_id: encode_prompt(tokenizer, p.prompt, law) for p in prompts},
        reference=reference,
        anchor=anchor,
        trajectories=trajectories,
        arguments=_arguments(method, config, checkpoints),
        sampling={
            "num_generations": config.completions_per_prompt,
            "max_completion_length": law.max_completion_length,
            "temperature": law.temperature,
            **_rollouts(config),
        },
        shared={
            "model": trainable_model(reference),
            "processing_class": tokenizer,
            "peft_config": _peft_config(config.method_lora(method)),
            "callbacks": [log],
        },
        dataset=dataset(prompts, task, law),
        reward=TaskReward(task),
    )
    trainer = build_trainer(method, parts)
    trainer.remove_callback(PrinterCallback)
    with closing(log):
        trainer.train(resume_from_checkpoint=last_checkpoint(checkpoints))
    _save(trainer, stage.path)
    seen = config.method_steps(method) * config.completions_per_step
    stage.finish(method=method, completions=seen if METHODS[method].generates else 0, sequences=seen)


def _arguments(method: str, config: TrainingConfig, output_dir: Path) -> dict[str, Any]:
    micro_batch = config.micro_batch or config.completions_per_step
    return {
        "output_dir": str(output_dir),
        "max_steps": config.method_steps(method),
        "per_device_train_batch_size": micro_batch,
        "gradient_accumulation_steps": config.completions_per_step // micro_batch,
        "learning_rate": config.method_learning_rate(method),
        "lr_scheduler_type": config.schedule,
        "warmup_steps": config.warmup_steps,
        "max_grad_norm": config.max_grad_norm,
        "seed": config.seed,
        "save_steps": config.save_every,
        "save_total_limit": 1,
        **trainer_arguments(config.compute, config.log_every),
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
        target_modules=lora.target_modules,
        task_type="CAUSAL_LM",
    )


def _save(trainer: Trainer, folder: Path) -> None:
    """Save the policy as a plain model folder, adapters merged into the weights."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    if trainer.args.gradient_checkpointing:
        model.gradient_checkpointing_disable()
    merged = model.merge_and_unload() if hasattr(model, "merge_and_unload") else model
    aside = folder / "model.tmp"
    merged.save_pretrained(aside)
    trainer.processing_class.save_pretrained(aside)
    replace_folder(aside, folder / "model")
