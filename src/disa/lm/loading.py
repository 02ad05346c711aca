"""How Hugging Face models and trainers are run on the machine at hand: device, precision, logs.

A frozen model is held in the precision it computes in, so that no weight is cast in a pass. Trained weights are float32
(bfloat16 parameters swallow updates at RL learning rates), with autocast around them for ``compute: bfloat16``.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from disa.errors import DisaError
from disa.runs.processes import local_rank

# Fast tokenizers warn when a process forks after using threads; nothing here is tokenizer-bound.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

_log = logging.getLogger(__name__)


def default_device() -> torch.device:
    """Return this process's CUDA device where there are any, else the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    # A launcher that shows each process its own device only leaves them one each.
    return torch.device("cuda", local_rank() % torch.cuda.device_count())


DeviceMap = str | Mapping[str, int | str] | None
"""Where the parts of a model lie, as ``from_pretrained`` takes it; null for one device."""


def stated_precision(compute: str, model: str | Path | PreTrainedModel) -> str:
    """What ``compute`` asks for of a frozen model: ``bfloat16`` or ``float32``.

    ``checkpoint`` is what ``config.json`` says of the weights, float32 for anything but bfloat16.
    """
    if compute != "checkpoint":
        return compute
    stored = load_config(model).dtype if isinstance(model, str | Path) else model.dtype
    return "bfloat16" if stored == torch.bfloat16 else "float32"


def effective_precision(compute: str, model: str | Path | PreTrainedModel) -> str:
    """What a frozen model is held in and computes in here: as :func:`stated`, where the machine has its arithmetic.

    Float32 takes the place of bfloat16 where a CPU would emulate it, tens of times slower; the log says so, once a
    process. It is the more exact of the two, so nothing else changes.
    """
    return "bfloat16" if stated_precision(compute, model) == "bfloat16" and not _emulates_bfloat16() else "float32"


@functools.cache
def _emulates_bfloat16() -> bool:
    capabilities = getattr(torch.cpu, "get_capabilities", None)  # older releases of torch do not tell
    if default_device().type != "cpu" or not capabilities:
        return False
    if any(there for name, there in capabilities().items() if "bf16" in name):  # avx512_bf16, amx_bf16, bf16, sve_bf16
        return False
    _log.warning("bfloat16 is asked for, and this CPU has no bfloat16 arithmetic: float32 is used, faster here")
    return True


def load_config(path: str | Path) -> PretrainedConfig:
    """Load a model's configuration without its weights.

    Raises DisaError where the folder or hub id holds none, or holds adapters alone.
    """
    refuse_adapters(path)
    with refuse_unloadable(path):
        return AutoConfig.from_pretrained(str(path))


def refuse_adapters(path: str | Path, model: PreTrainedModel | None = None) -> None:
    """Refuse a folder of PEFT adapters: transformers would load them over their base model, and other code the base.

    Of a hub id, only the ``model`` that transformers made of it tells. Raises DisaError where the folder holds adapters
    and no model.
    """
    folder, loaded = Path(path), getattr(model, "_hf_peft_config_loaded", False)
    if loaded or ((folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file()):
        raise DisaError(
            "a folder of adapters, expected a whole model",
            where=str(path),
            fix="merge them: AutoPeftModelForCausalLM.from_pretrained(FOLDER).merge_and_unload().save_pretrained(NEW), "
            "with the tokenizer beside it",
        )


def load_model(path: str | Path, compute: str = "checkpoint", device_map: DeviceMap = None) -> PreTrainedModel:
    """Load a causal language model in evaluation mode, frozen, in its :func:`effective_precision`.

    Raises DisaError where the folder or hub id holds no loadable model. ``device_map``, of a model that one device
    cannot hold, is passed to ``from_pretrained``; by default the whole model is on :func:`default_device`.
    """
    refuse_adapters(path)
    dtype = effective_precision(compute, path)
    with refuse_unloadable(path):
        model = AutoModelForCausalLM.from_pretrained(str(path), dtype=dtype, device_map=device_map)
    refuse_adapters(path, model)
    model = model.eval().requires_grad_(False)
    return model if device_map else model.to(default_device())


def load_base(path: str | Path, compute: str) -> PreTrainedModel:
    """Load what adapters are trained on: in its checkpoint's bfloat16 where training computes in it, else float32.

    A float32 checkpoint keeps its values: rounded ones would be another reference.
    """
    return load_model(path, "checkpoint" if effective_precision(compute, path) == "bfloat16" else "float32").train()


def without_dropout(model: nn.Module) -> None:
    """Switch every kind of dropout off, in layers, attention and adapters: log pi is that of the policy that samples.

    Layers keep their rates in themselves; ``config`` stays, as digests cover it.
    """
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if "dropout" in name and isinstance(value, float) and value > 0:
                setattr(module, name, 0.0)


def empty_model(path: str | Path) -> PreTrainedModel:
    """Make a model's modules from its configuration alone.

    Raises DisaError where the folder or hub id holds no such configuration.
    """
    with refuse_unloadable(path):
        return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(str(path)))


def trainable_model(path: str | Path) -> PreTrainedModel:
    """Load a causal language model in float32, in training mode."""
    return load_model(path, "float32").requires_grad_(True).train()


def require_vllm(field: str) -> None:
    """Refuse a recipe that asks for vLLM where it is not installed.

    Raises DisaError naming the recipe's field.
    """
    if find_spec("vllm") is None:
        # The versions that TRL 1.16 supports: training and proposals share one.
        fix = "pip install 'vllm>=0.22,<=0.31'"
        raise DisaError("vllm is not installed", where=f"recipe, field {field}", fix=fix)


def free_vllm(llm: Any) -> None:
    """End a ``vllm.LLM`` of this process, so that the next one finds its memory free."""
    llm.llm_engine.engine_core.shutdown()


def load_tokenizer(path: str | Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer beside a model; padding falls back to the end-of-text token.

    Raises DisaError where there is none.
    """
    with refuse_unloadable(path):
        tokenizer = AutoTokenizer.from_pretrained(str(path), padding_side="left")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_generation_config(path: str | Path) -> GenerationConfig:
    """What a model declares about generation, without its weights."""
    try:
        return GenerationConfig.from_pretrained(str(path))
    except OSError:  # a folder without such a file: transformers then derives it from the model's configuration
        return GenerationConfig.from_model_config(load_config(path))


@contextlib.contextmanager
def refuse_unloadable(path: str | Path) -> Any:
    """Turn whatever the libraries raise on loading into one line."""
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

    With adapters, the base model's defaults are the ones that count.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    own, base.generation_config = base.generation_config, GenerationConfig()
    try:
        yield
    finally:
        base.generation_config = own
