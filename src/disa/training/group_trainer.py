"""VarGrad and GFlowRL: log Z from the group's own completions, taken anew at every step."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from disa.errors import DisaError
from disa.objectives.trajectory_balance import clip_gap
from disa.training.balance_config import BalanceConfig
from disa.training.balance_trainer import BalanceTrainer

GFLOWRL_BETA = 8.0
"""Inverse temperature GFlowRL was published with."""


@dataclass
class VarGradConfig(BalanceConfig):
    """Configuration of :class:`VarGradTrainer`."""

    groups_of_one: ClassVar[bool] = False


@dataclass
class GFlowRLConfig(VarGradConfig):
    """Configuration of :class:`GFlowRLTrainer`."""

    reuses_completions: ClassVar[bool] = True

    published: bool = field(
        default=False,
        metadata={
            "help": "The published convention: inverse temperature 8 and log Z from sums (Eq. 4) in a residual of "
            "means over tokens (Eq. 6), whatever inverse_temperature and length say. By default sums everywhere, whose "
            "fixed point is the target."
        },
    )
    clip_low: float | None = field(
        default=None, metadata={"help": "Residuals are kept above -clip_low; none: no clip."}
    )
    clip_high: float | None = field(
        default=None, metadata={"help": "Residuals are kept below clip_high; none: no clip."}
    )
    weight_cap: float = field(default=10.0, metadata={"help": "Bound on pi / pi_sampler of a reused completion."})

    def __post_init__(self) -> None:
        """Resolve the published convention."""
        if self.published:
            self.inverse_temperature, self.length = GFLOWRL_BETA, "mean"
        for name in ("clip_low", "clip_high"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise DisaError(f"{name} is {value}, expected a number above 0", where="GFlowRLConfig")
        super().__post_init__()


class VarGradTrainer(BalanceTrainer):
    """Trajectory balance with the group's mean as log Z (VarGrad, arXiv 2010.10436; TBA, arXiv 2503.18929)."""

    _tag_names = ["trl", "vargrad"]
    _name = "VarGrad"
    _paper = {"title": "VarGrad: A Low-Variance Gradient Estimator for Variational Inference", "id": "2010.10436"}

    def _known_log_z(self, batch: dict[str, Any], rows: list[dict[str, Any]]) -> Tensor:
        return self._group_log_z(batch, length=self.args.length)


class GFlowRLTrainer(VarGradTrainer):
    """VarGrad with a clipped residual and importance weights on reused completions (GFlowRL, arXiv 2607.13394).

    With sums, no clip and fresh completions it is VarGrad.
    """

    _tag_names = ["trl", "gflowrl"]
    _name = "GFlowRL"
    _paper = {"title": "GFlowRL", "id": "2607.13394"}

    def _known_log_z(self, batch: dict[str, Any], rows: list[dict[str, Any]]) -> Tensor:
        return self._group_log_z(batch, length="sum" if self.args.published else self.args.length)

    def _transform_residual(self, residual: Tensor, moved: Tensor) -> Tensor:
        low, high = (float("inf") if end is None else end for end in (self.args.clip_low, self.args.clip_high))
        return clip_gap(residual, moved, low=low, high=high)
