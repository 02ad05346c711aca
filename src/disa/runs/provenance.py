"""Fingerprints: what a result depends on, written so that a mismatch can be named.

A log Z is a statement about one reference under one sampling law and one reward. The
:class:`Fingerprint` lists everything that statement depends on; the anchor stores it and training
refuses to start when its own differs in any field.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any


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
