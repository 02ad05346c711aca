"""Settings of the evaluation stage."""

from __future__ import annotations

from pydantic import Field, model_validator

from disa.config import Compute, Seed, StageConfig, speed_only


class EvaluationConfig(StageConfig):
    """What is sampled from every model, and which metrics are reported."""

    samples_per_prompt: int = Field(16, ge=1)
    """Completions of each evaluated prompt."""
    ks: tuple[int, ...] = (1, 8)
    """The k of Mean@k, pass@k and distinct modes at k."""
    train_prompts: int = Field(64, ge=0)
    """Training prompts evaluated beside all held-out ones (the first so many), to tell learning from generalising."""
    compute: Compute = "checkpoint"
    """Precision in which each model is held, samples and scores: its checkpoint's, or a stated one."""
    seed: Seed = 0
    """Seed of the samples; the same uniform numbers for every model."""
    batch_size: int = speed_only(256, ge=1)
    """Completions drawn at once, at most those of a part."""
    prompts_per_part: int = speed_only(32, ge=1)
    """Prompts written together: what a kill can cost."""

    @model_validator(mode="after")
    def _enough_samples(self) -> EvaluationConfig:
        if max(self.ks) > self.samples_per_prompt or min(self.ks) < 1:
            raise ValueError(f"ks {self.ks} must lie between 1 and samples_per_prompt {self.samples_per_prompt}")
        return self
