"""Settings of the partition stage."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from disa.config import StageConfig


class PartitionConfig(StageConfig):
    """How log Z is estimated from the scored trajectories."""

    method: Literal["mixture", "anchored", "is", "tis", "psis", "snis", "pass_rate"] = "mixture"
    """Estimator; the default weighs all trajectories by the balance heuristic with a control variate."""
    interval: Literal["gamma", "betting", "clopper_pearson"] = "gamma"
    """Kind of interval; clopper_pearson needs trajectories from the reference only."""
    level: float = Field(0.9, gt=0, lt=1)
    """Two-sided level of the intervals."""
