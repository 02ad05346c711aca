"""Settings of the scoring stage."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from disa.config import StageConfig, speed_only


class ScoringConfig(StageConfig):
    """How trajectories are scored, and how closely scorer and sampler must agree."""

    parity_bound: float = Field(1e-3, gt=0)
    """Largest allowed mean absolute difference per token, in nats, between a trajectory's
    log-probability from the sampler and from the scorer, over the trajectories of one source.
    float32 agrees to about 1e-6; bfloat16 needs about 0.02."""
    compute: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the forward passes."""
    tokens_per_batch: int = speed_only(16384, ge=1)
    """Prompt plus completion tokens scored at once, padding included."""
    trajectories_per_part: int = speed_only(4096, ge=1)
    """Trajectories written together: what a kill can cost."""
