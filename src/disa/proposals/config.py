"""Settings of the proposals stage."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from disa.config import StageConfig, speed_only


class AdaptiveConfig(StageConfig):
    """A pilot for every training prompt, then the rest of the budget where log Z is least certain."""

    pilot: int = Field(16, ge=1)
    """Trajectories of every training prompt before the first allocation."""
    cap: int = Field(512, ge=1)
    """Most trajectories of a prompt."""
    precision: float = Field(0.1, gt=0)
    """Relative error of Z at which a prompt gets no more: hits_ess of 1 / precision^2."""
    rounds: int = Field(3, ge=1)
    """Allocations after the pilot, each from everything drawn so far; each spends an equal part of what is left."""


class ProposalsConfig(StageConfig):
    """How many trajectories are drawn, and from where."""

    per_prompt: int = Field(64, ge=1)
    """Trajectories of each training prompt."""
    per_heldout_prompt: int = Field(64, ge=0)
    """Trajectories of each held-out or validation prompt: their log Z is for evaluation only."""
    reference_share: float = Field(0.25, ge=0.0, le=1.0)
    """alpha, the share drawn from the reference: it bounds every importance weight by 1/alpha."""
    adaptive: AdaptiveConfig | None = None
    """Spend per_prompt trajectories a training prompt on average, unevenly; null gives every prompt the same."""
    compute: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of sampling."""
    seed: int = 0
    """Seed; with prompt id, source and draw index it determines a trajectory's random numbers."""
    batch_size: int = speed_only(256, ge=1)
    """Completions drawn at once."""
    prompts_per_part: int = speed_only(64, ge=1)
    """Prompts whose trajectories are written together: what a kill can cost."""

    @model_validator(mode="after")
    def _room_for_the_pilot(self) -> ProposalsConfig:
        if self.adaptive and self.adaptive.pilot > min(self.per_prompt, self.adaptive.cap):
            raise ValueError(
                f"adaptive.pilot {self.adaptive.pilot} exceeds per_prompt {self.per_prompt} "
                f"or adaptive.cap {self.adaptive.cap}"
            )
        return self

    def identity(self) -> dict[str, Any]:
        """Without ``adaptive`` where it is null: even budgets keep the identity they had before there were others."""
        values = super().identity()
        return values if self.adaptive else {name: value for name, value in values.items() if name != "adaptive"}

    def counts(self, split: str) -> dict[str, int]:
        """Draws per source for a prompt of this split; the pilot's where the budget is adaptive."""
        first = self.adaptive.pilot if self.adaptive else self.per_prompt
        total = first if split == "train" else self.per_heldout_prompt
        reference = round(self.reference_share * total)
        return {"reference": reference, "proposal": total - reference}
