"""How Hugging Face models and trainers are run on the machine at hand: device, precision, logs.

Weights are float32 everywhere (bfloat16 parameters swallow updates at RL learning rates);
``compute: bfloat16`` is autocast around float32 weights.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from disa.errors import DisaError
from disa.processes import local_rank, rank
from disa.rundir import replace_folder

# Fast tokenizers warn when a process forks after using threads; nothing here is tokenizer-bound.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

_log = logging.getLogger(__name__)


def device() -> torch.device:
    """Return this process's CUDA device where there are any, else the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    # A launcher that shows each process its own device only leaves them one each.
    return torch.device("cuda", local_rank() % torch.cuda.device_count())


def affordable(compute: str) -> str:
    """Return ``compute``, or float32 where a CPU has no bfloat16 arithmetic and would emulate it, tens of times slower.

    The log says so, once a process. Float32 is the more exact of the two, so nothing else changes.
    """
    return "float32" if compute == "bfloat16" and _emulates_bfloat16() else compute


@functools.cache
def _emulates_bfloat16() -> bool:
    capabilities = getattr(torch.cpu, "get_capabilities", None)  # older releases of torch do not tell
    if device().type != "cpu" or not capabilities:
        return False
    if any(there for name, there in capabilities().items() if "bf16" in name):  # avx512_bf16, amx_bf16, bf16, sve_bf16
        return False
    _log.warning("compute: bfloat16, but this CPU has no bfloat16 arithmetic: float32 is used, which is faster here")
    return True


def autocast(compute: str) -> contextlib.AbstractContextManager[None]:
    """Arithmetic of a forward pass: float32 as it stands, or bfloat16 around float32 weights."""
    return torch.autocast(device().type, dtype=torch.bfloat16, enabled=compute == "bfloat16")


def load_model(path: str | Path) -> PreTrainedModel:
    """Load a causal language model in float32, in evaluation mode, frozen, on :func:`device`.

    Raises
    ------
    DisaError
        Where the folder or hub id holds no loadable model.
    """
    with _refuse_unloadable(path):
        model = AutoModelForCausalLM.from_pretrained(str(path), dtype=torch.float32)
    return model.eval().requires_grad_(False).to(device())


def trainable_model(path: str | Path) -> PreTrainedModel:
    """Load a causal language model in float32, in training mode."""
    return load_model(path).requires_grad_(True).train()


def require_vllm(field: str) -> None:
    """Refuse a recipe that asks for vLLM where it is not installed.

    Raises
    ------
    DisaError
        Naming the recipe's field.
    """
    if find_spec("vllm") is None:
        # The versions that TRL 1.16 supports: training and proposals share one.
        fix = "pip install 'vllm>=0.22,<=0.31'"
        raise DisaError("vllm is not installed", where=f"recipe, field {field}", fix=fix)


def load_tokenizer(path: str | Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer beside a model; padding falls back to the end-of-text token.

    Raises
    ------
    DisaError
        Where there is none.
    """
    with _refuse_unloadable(path):
        tokenizer = AutoTokenizer.from_pretrained(str(path), padding_side="left")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


@contextlib.contextmanager
def _refuse_unloadable(path: str | Path) -> Any:
    try:
        yield
    except Exception as error:  # whatever the libraries raise: SafetensorError, for one, is an Exception only
        reason = (str(error) or type(error).__name__).splitlines()[0][:160]
        raise DisaError(
            f"no loadable Hugging Face model or tokenizer ({reason})",
            where=str(path),
            fix="give a folder written by save_pretrained, or a hub id the machine can reach",
        ) from error


@contextlib.contextmanager
def without_own_defaults(model: Any) -> Iterator[None]:
    """Lay a checkpoint's generation defaults aside: ``generate`` fills everything left open from them.

    Parameters
    ----------
    model : PreTrainedModel or PeftModel
        With adapters, the base model's defaults are the ones that count.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    own, base.generation_config = base.generation_config, GenerationConfig()
    try:
        yield
    finally:
        base.generation_config = own


def trainer_arguments(compute: str, log_every: int) -> dict[str, Any]:
    """Keyword arguments every Hugging Face trainer of the project shares.

    ``bf16`` defaults to true in TRL and fails on a CPU without ``use_cpu``; gradient checkpointing,
    on by default there, trades time for memory that models of a CPU's size do not need.
    """
    cuda = torch.cuda.is_available()
    renamed = "activation_checkpointing" in TrainingArguments.__dataclass_fields__
    return {
        "use_cpu": not cuda,
        "bf16": compute == "bfloat16",
        "activation_checkpointing" if renamed else "gradient_checkpointing": cuda,
        "logging_steps": log_every,
        "logging_first_step": True,
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": cuda,
        # Every trainable weight takes part in every loss here; looking for others costs a walk over the graph.
        "ddp_find_unused_parameters": False,
    }


class StepLog(TrainerCallback):
    """Writes a trainer's log lines to a JSONL file and shows a progress bar.

    There is a line at every checkpoint and after the last step, whatever the interval of the log: the last line's
    ``wall_time`` is then that of the whole training, and a resumed one goes on from its checkpoint's.

    On resuming, lines past the checkpoint's step are dropped first, so that no step stands twice. Of the processes of
    one launch, the first one does so.
    """

    def __init__(self, path: Path, title: str) -> None:
        self.path, self.title = path, title
        self._progress = progress_bar()
        self._task: Any = None
        self._earlier_seconds = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Drop lines of steps that will be done again and open the bar."""
        if not state.is_world_process_zero:
            return
        kept = [line for line in read_step_log(self.path) if line["step"] <= state.global_step]
        aside = self.path.with_name(f".{self.path.name}.tmp")
        aside.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        aside.replace(self.path)
        self._earlier_seconds = kept[-1]["wall_time"] if kept else 0.0
        self._started = time.monotonic()
        self._progress.start()
        self._task = self._progress.add_task(self.title, total=state.max_steps, completed=state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Ask for a line where one is due; move the bar."""
        if control.should_save or state.global_step >= state.max_steps:
            control.should_log = True
        if self._task is not None:
            self._progress.update(self._task, completed=state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **kwargs: Any) -> None:
        """Append one line."""
        if "train_runtime" in logs or not state.is_world_process_zero:
            return
        seconds = self._earlier_seconds + time.monotonic() - self._started
        line = {"step": state.global_step, "wall_time": round(seconds, 3), **logs}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def close(self) -> None:
        """Close the bar; transformers calls no callback where training raises, so whoever trains does."""
        if self._progress.live.is_started:
            self._progress.stop()


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
        sampler.generator.manual_seed(args.seed + int(state.epoch))


def read_step_log(path: Path) -> list[dict[str, Any]]:
    """Lines of a step log; a last line cut by a kill is dropped."""
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        with contextlib.suppress(json.JSONDecodeError):
            lines.append(json.loads(text))
    return lines


def progress_bar() -> Progress:
    """The project's progress bar; on a log file instead of a terminal it prints its last state only.

    Of the processes of one launch, one shows it.
    """
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    return Progress(TextColumn("{task.description}"), *columns, disable=rank() > 0)


def save_trained(trainer: Trainer, folder: Path) -> None:
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
    merged = model.merge_and_unload() if hasattr(model, "merge_and_unload") else model
    aside = folder.with_name(f"{folder.name}.tmp")
    merged.to(torch.float32).save_pretrained(aside)
    trainer.processing_class.save_pretrained(aside)
    replace_folder(aside, folder)


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
