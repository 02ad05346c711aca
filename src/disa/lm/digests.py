"""Digests of models and tokenizers: equal where the distribution is, whatever the precision, adapters or files."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from disa.runs.provenance import digest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn
    from transformers import PreTrainedTokenizerBase

# Fields of a model's configuration that are bookkeeping, or that the fingerprint has elsewhere (stop tokens).
_IRRELEVANT = frozenset(
    "architectures dtype torch_dtype use_cache transformers_version model_name_or_path return_dict output_attentions "
    "output_hidden_states problem_type id2label label2id bos_token_id eos_token_id pad_token_id auto_map".split()
)


def weights_digest(model: nn.Module) -> str:
    """Digest of a model: its weights, and the settings they are used with.

    Of a PeftModel it is the base model's, with adapters off. Adapters that were loaded into a plain model, as
    ``from_pretrained`` does with an adapter's folder, are part of that model and of its digest.

    Values are hashed in float32, so that a checkpoint stored in bfloat16 and its float32 copy,
    which hold the same numbers, have the same digest. Tied parameters count once. The settings are those of
    ``config.json`` that the forward pass may read: another ``rope_theta`` is another distribution. Parameters that are
    spread over processes (FSDP2) are gathered one by one: all processes have to come here.
    """
    import torch
    from accelerate.utils import align_module_device
    from torch.distributed.tensor import DTensor

    config = getattr(model, "config", None)
    hasher = hashlib.sha256(digest(_settings(config.to_dict() if config is not None else {})).encode())
    for name, parameter in base_parameters(model):
        hasher.update(f"{name}{tuple(parameter.shape)}".encode())
        values = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
        if values.is_meta:  # laid aside by a device map
            owner, _, leaf = name.rpartition(".")
            with align_module_device(module := model.get_submodule(owner), torch.device("cpu")):
                values = getattr(module, leaf).detach().clone()
        values = values.detach().to("cpu", torch.float32).contiguous()
        hasher.update(values.numpy().data)
    return hasher.hexdigest()[:16]


def _settings(values: dict[str, Any]) -> dict[str, Any]:
    """Settings that may change what a model computes.

    Null and false are left out: that is what a later release of transformers gives a field which it adds.
    """
    return {
        name: _settings(value) if isinstance(value, dict) else value
        for name, value in values.items()
        if value is not None and value is not False and name not in _IRRELEVANT and not name.startswith("_")
    }


def base_parameters(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Parameters that the model has with its adapters off, under the names they have without them, sorted.

    Whatever kind of adapters: a layer of PEFT's holds the base's own as ``base_layer`` or ``original_module``, a model
    of PEFT's as ``base_model`` or ``model``; all else in it is the adapter's.
    """
    adapted = hasattr(model, "peft_config") and hasattr(model, "get_base_model")
    wrappers = {name for name, module in model.named_modules() if type(module).__module__.startswith("peft.")}
    found = []
    for name, parameter in model.named_parameters() if adapted else ():
        parts, plain = name.split("."), []
        for i, part in enumerate(parts):
            if ".".join(parts[:i]) not in wrappers:
                plain.append(part)
            elif part not in ("base_layer", "original_module", "base_model", "model"):
                break
        else:
            found.append((".".join(plain), parameter))
    return sorted(found if adapted else model.named_parameters(), key=lambda pair: pair[0])


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Digest of everything that turns text into ids: the backend's own serialisation."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    content = json.loads(backend.to_str()) if backend is not None else tokenizer.get_vocab()
    if isinstance(content, dict):
        # Padding and truncation are call-time settings that trainers switch on and off.
        content = {key: value for key, value in content.items() if key not in ("padding", "truncation")}
    return digest({"content": content, "eos": tokenizer.eos_token_id})


def chat_template_digest(
    tokenizer: PreTrainedTokenizerBase,
    *,
    conversational: bool,
    system_prompt: str | None = None,
    arguments: Mapping[str, Any] | None = None,
) -> str:
    """Digest of chat template, system prompt and the template's further arguments; ``none`` for plain text."""
    return digest([tokenizer.chat_template, system_prompt, dict(arguments or {})]) if conversational else "none"
