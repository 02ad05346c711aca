"""Settings of the proposals stage."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from disa.config import StageConfig, speed_only


class ProposalsConfig(StageConfig):
    """How many trajectories are drawn, and from where."""

    per_prompt: int = Field(64, ge=1)
    """Trajectories of each training prompt."""
    per_heldout_prompt: int = Field(64, ge=0)
    """Trajectories of each held-out or validation prompt: their log Z is for evaluation only."""
    reference_share: float = Field(0.25, ge=0.0, le=1.0)
    """alpha, the share drawn from the reference: it bounds every importance weight by 1/alpha."""
    compute: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of sampling."""
    seed: int = 0
    """Seed; with prompt id, source and draw index it determines a trajectory's random numbers."""
    batch_size: int = speed_only(256, ge=1)
    """Completions drawn at once."""
    prompts_per_part: int = speed_only(64, ge=1)
    """Prompts whose trajectories are written together: what a kill can cost."""

    def counts(self, split: str) -> dict[str, int]:
        """Draws per source for a prompt of this split."""
        total = self.per_prompt if split == "train" else self.per_heldout_prompt
        reference = round(self.reference_share * total)
        return {"reference": reference, "proposal": total - reference}
