"""Settings of the partition stage."""

from __future__ import annotations

from pydantic import Field

from disa.config import StageConfig
from disa.partition.estimate import EstimatorName, Interval


class PartitionConfig(StageConfig):
    """How log Z is estimated from the scored trajectories."""

    method: EstimatorName = "mixture"
    """Estimator; the default weighs all trajectories by the balance heuristic with a control variate."""
    interval: Interval = "gamma"
    """Kind of interval; clopper_pearson needs trajectories from the reference only."""
    level: float = Field(0.9, gt=0, lt=1)
    """Two-sided level of the intervals."""
    regressor: bool = False
    """Regress log Z on the prompts (mean-pooled states of the frozen reference) and use each prompt's posterior;
    prompts without trajectories get the prediction. Needs at least 20 training prompts with trajectories."""
