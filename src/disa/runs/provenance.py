"""Fingerprints: what a result depends on, written so that a mismatch can be named.

A log Z is a statement about one reference under one sampling law and one reward. The
:class:`Fingerprint` lists everything that statement depends on; the anchor stores it and training
refuses to start when its own differs in any field.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn
    from transformers import PreTrainedTokenizerBase


@dataclasses.dataclass(frozen=True)
class Fingerprint:
    """Everything log Z(x) = log E_ref[exp(beta r)] depends on besides the prompt."""

    reference: str
    """Digest of the reference's weights and of its model settings."""
    tokenizer: str
    """Digest of the vocabulary, merges and special tokens."""
    tools: str = dataclasses.field(default="none", kw_only=True)
    """Identity of what answers the model while it writes: tools, an environment, a rollout function."""
    chat_template: str
    """Digest of the chat template and the system prompt, ``none`` where prompts are plain text."""
    temperature: float
    """Sampling temperature that divides the logits of every log-probability."""
    max_completion_length: int
    """Length limit in tokens: a cut completion is an atom of its own."""
    stop_token_ids: tuple[int, ...]
    """Tokens that end a completion."""
    reward: str
    """Name and version of the reward, with its range."""
    inverse_temperature: float
    """beta, the factor on the reward."""
    task: str
    """Task name and version."""

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values, as the anchor's manifest stores them."""
        return dataclasses.asdict(self) | {"stop_token_ids": list(self.stop_token_ids)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Fingerprint:
        """Inverse of :meth:`as_dict`."""
        return cls(**values | {"stop_token_ids": tuple(values["stop_token_ids"])})

    def differences(self, other: Fingerprint) -> list[tuple[str, Any, Any]]:
        """Fields that differ, as (name, own value, other's value)."""
        mine, theirs = self.as_dict(), other.as_dict()
        return [(name, mine[name], theirs[name]) for name in mine if mine[name] != theirs[name]]


def digest(value: Any) -> str:
    """Short stable digest of plain JSON values (keys sorted), 16 hex characters."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


# Fields of a model's configuration that are bookkeeping, or that the fingerprint has elsewhere (stop tokens).
_NOT_THE_LAW = frozenset(
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
        if value is not None and value is not False and name not in _NOT_THE_LAW and not name.startswith("_")
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
