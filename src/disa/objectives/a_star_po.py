"""A*-PO (arXiv 2505.20686): regression of the policy's log-ratio onto an optimal advantage.

``(beta2 (log pi - log pi_ref) + V - r)^2 = (beta2 delta)^2`` with delta the trajectory-balance residual at inverse
temperature 1/beta2 and log Z = V / beta2. So A*-PO is DISA with reference draws as the only trajectories, the
plain estimate of log Z, no baseline, and one completion a prompt.

The trainer does not call this function: it shares one residual, audit and mask of undecided rewards with the other
trajectory-balance trainers, and scales that residual by beta2. The tests hold its loss against this one.
"""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor

from disa.objectives.trajectory_balance import Length, trajectory_balance_loss, trajectory_balance_residual


def a_star_po_loss(
    log_pi: Float[Tensor, " batch"],
    log_ref: Float[Tensor, " batch"],
    reward: Float[Tensor, " batch"],
    value: Float[Tensor, " batch"],
    *,
    beta2: float,
    length: Length = "sum",
    lengths: Int[Tensor, " batch"] | None = None,
) -> Float[Tensor, ""]:
    """``mean (beta2 (log pi - log pi_ref) / n + V - r)^2`` with n = 1 (``sum``, as published) or the tokens (``mean``).

    Parameters
    ----------
    log_pi, log_ref, reward : Tensor, shape (batch,)
    value : Tensor, shape (batch,)
        V, frozen, in units of the reward: beta2 times :func:`disa.objectives.log_z.reference_log_z`.
    beta2 : float
        KL coefficient, 1 / inverse temperature.
    length : {"sum", "mean"}
    lengths : Tensor of int, shape (batch,)
        Tokens of each completion; needed exactly with ``mean``.
    """
    residual = trajectory_balance_residual(
        log_pi, log_ref, reward, value / beta2, beta=1.0 / beta2, length=length, lengths=lengths
    )
    return trajectory_balance_loss(beta2 * residual)
