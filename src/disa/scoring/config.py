"""Settings of the scoring stage."""

from __future__ import annotations

from pydantic import Field

from disa.config import Compute, StageConfig, speed_only


class ScoringConfig(StageConfig):
    """How trajectories are scored, and how closely scorer and sampler must agree."""

    parity_bound: float | None = Field(None, gt=0)
    """Largest allowed mean absolute difference per token, in nats, between a trajectory's
    log-probability from the sampler and from the scorer, over the trajectories of one source; null for 0.001 where
    both models compute in float32, which agrees to about 1e-6, and 0.02 where one computes in bfloat16."""
    compute: Compute = "checkpoint"
    """Precision in which each model is held and scores: its checkpoint's, or a stated one."""
    tokens_per_batch: int = speed_only(16384, ge=1)
    """Prompt plus completion tokens scored at once, padding included."""
    trajectories_per_part: int = speed_only(4096, ge=1)
    """Trajectories written together: what a kill can cost."""
