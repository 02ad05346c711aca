"""What every Hugging Face trainer of the project shares: arguments, order of prompts, checkpoints, the saved model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

from disa.runs.files import whole_folder
from disa.runs.processes import rank


def trainer_arguments(bf16: bool, log_every: int) -> dict[str, Any]:
    """Keyword arguments every Hugging Face trainer of the project shares.

    ``bf16`` defaults to true in TRL and fails on a CPU without ``use_cpu``; gradient checkpointing,
    on by default there, trades time for memory that models of a CPU's size do not need.
    """
    cuda = torch.cuda.is_available()
    renamed = "activation_checkpointing" in TrainingArguments.__dataclass_fields__
    return {
        "use_cpu": not cuda,
        "bf16": bf16,
        "activation_checkpointing" if renamed else "gradient_checkpointing": cuda,
        "logging_steps": log_every,
        "logging_first_step": True,
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": cuda,
        # Every trainable weight takes part in every loss here; looking for others costs a walk over the graph.
        "ddp_find_unused_parameters": False,
    }


class SeededEpochs(TrainerCallback):
    """Makes the order of prompts a function of seed and epoch.

    TRL 1.16's sampler draws one permutation after another from one generator, and transformers does not
    replay them: a run resumed in a later epoch would see the first epoch's order again.
    """

    def on_epoch_begin(self, args: Any, state: Any, control: Any, train_dataloader: Any, **kwargs: Any) -> None:
        """Seed the sampler for the epoch that begins."""
        sampler = train_dataloader.batch_sampler
        while inner := getattr(sampler, "batch_sampler", None) or getattr(sampler, "sampler", None):
            sampler = inner
        if hasattr(sampler, "generator"):  # one that does not shuffle has none
            sampler.generator.manual_seed(args.seed + int(state.epoch))
        elif hasattr(sampler, "epoch"):
            sampler.epoch = int(state.epoch)


def save_trained_model(trainer: Trainer, folder: Path) -> None:
    """Save what a trainer trained as a plain model folder in float32, adapters merged into the weights.

    The first process of a launch writes; the others help to gather parameters that are spread over processes.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    if trainer.is_fsdp_enabled:
        state, model = trainer.accelerator.get_state_dict(trainer.model), _like(model)
        if state:  # the other processes are given nothing
            model.load_state_dict(state)
    if rank() > 0:
        return
    if trainer.args.gradient_checkpointing:
        model.gradient_checkpointing_disable()
    model = model.to(torch.float32)  # before adapters are merged: a sum in bfloat16 would round them away
    merged = model.merge_and_unload() if hasattr(model, "merge_and_unload") else model
    with whole_folder(folder) as aside:
        merged.save_pretrained(aside)
        trainer.processing_class.save_pretrained(aside)


def _like(model: Any) -> Any:
    """Make a model of the same architecture and adapters on the CPU, with weights of its own."""
    adapters = getattr(model, "peft_config", {}).get("default")
    base = model.get_base_model() if adapters else model
    plain = AutoModelForCausalLM.from_config(base.config, dtype=torch.float32)
    if not adapters:
        return plain
    from peft import get_peft_model

    return get_peft_model(plain, adapters)


def last_checkpoint(folder: Path) -> str | None:
    """Newest complete checkpoint in a trainer's output folder (the trainer state is written last)."""
    found = [p for p in folder.glob("checkpoint-*") if _is_whole(p / "trainer_state.json")]
    return str(max(found, key=lambda p: int(p.name.split("-")[1]))) if found else None


def _is_whole(path: Path) -> bool:
    """Whether a JSON file is there to its end: transformers writes it in place, and a kill can cut it."""
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True
