"""What a step's residuals say about the policy and about log Z itself."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from disa.objectives.trajectory_balance import audit_log_z_error


def audit(residual: Float[Tensor, " audited"], log_ratio: Float[Tensor, " batch"]) -> dict[str, float]:
    """Metrics of one step's on-policy completions, in nats.

    ``residual/mean`` estimates KL(pi || pi*) + eps with eps = log Zhat - log Z, ``eps_audit`` eps from
    ``E_pi[exp(-delta)] = exp(-eps)``, pooled over prompts; ``kl_to_target`` is their difference and ``kl_to_reference``
    the mean log ratio, the only one without residuals.
    """
    metrics = {}
    if residual.numel():
        eps = audit_log_z_error(residual)
        metrics = {
            "residual/mean": residual.mean().item(),
            "residual/rms": residual.square().mean().sqrt().item(),
            "eps_audit": eps.item(),
            "kl_to_target": (residual.mean() - eps).item(),
        }
    return metrics | {"kl_to_reference": log_ratio.mean().item()}


class ResidualRecord:
    """Residuals of all micro-batches and processes since the last log line."""

    def __init__(self) -> None:
        self._residual: list[Tensor] = []
        self._log_ratio: list[Tensor] = []

    def add(self, residual: Tensor, log_ratio: Tensor, audited: Tensor) -> None:
        """Keep the decided rows (residual not NaN) of one gathered micro-batch, the residuals of audited ones only."""
        decided = ~residual.isnan()
        self._residual.append(residual[decided & audited])
        self._log_ratio.append(log_ratio[decided])

    def metrics(self) -> dict[str, float]:
        """Audit everything kept, and start over; nothing kept gives no metrics."""
        residuals, log_ratios = self._residual, self._log_ratio
        self._residual, self._log_ratio = [], []
        if not sum(r.numel() for r in log_ratios):
            return {}
        return audit(torch.cat(residuals), torch.cat(log_ratios))
