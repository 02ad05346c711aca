"""Trajectory balance with a frozen log Z (Malkin et al., arXiv 2201.13259; DISA, arXiv 2605.17295)."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


def trajectory_balance_residual(
    log_pi: Float[Tensor, " batch"],
    log_ref: Float[Tensor, " batch"],
    reward: Float[Tensor, " batch"],
    log_z: Float[Tensor, " batch"],
    *,
    beta: float,
) -> Float[Tensor, " batch"]:
    """``delta = log Z + log pi - log pi_ref - beta r``, in nats.

    Raises
    ------
    ValueError
        Where log_z or log_ref would receive gradients: DISA freezes both.
    """
    for name, tensor in (("log_z", log_z), ("log_ref", log_ref)):
        if tensor.requires_grad:
            raise ValueError(f"{name} requires grad, but DISA's {name} is frozen; pass {name}.detach()")
    return log_z + log_pi - log_ref - beta * reward


def anchored_baseline(
    residual: Float[Tensor, " batch"], group: Int[Tensor, " batch"], *, prior_strength: float
) -> Float[Tensor, " batch"]:
    """Leave-one-out mean of a group's residuals, shrunk towards the frozen log Z's own baseline, zero.

    ``b_j = (K - 1) / (K - 1 + n0) * mean_{i != j} delta_i``. As b_j does not depend on completion j,
    the on-policy gradient keeps its expectation; a completion alone in its group gets b_j = 0.

    Parameters
    ----------
    residual : Tensor, shape (batch,)
    group : Tensor, shape (batch,)
        Completions of one prompt share a number.
    prior_strength : float
        n0 >= 0, the completions' worth of trust in the frozen log Z: infinity gives the plain
        residual, 0 the plain leave-one-out mean.
    """
    delta = residual.detach()
    members, index = torch.unique(group, return_inverse=True)
    totals = delta.new_zeros(members.numel())
    counts = totals.index_add(0, index, torch.ones_like(delta))[index]
    others_sum = totals.index_add(0, index, delta)[index] - delta
    # (K-1)/(K-1+n0) * sum/(K-1) = sum/(K-1+n0); a group of one has sum 0, so its denominator is free.
    return others_sum / (counts - 1 + prior_strength).clamp(min=torch.finfo(delta.dtype).tiny)


def trajectory_balance_loss(
    residual: Float[Tensor, " batch"], baseline: Float[Tensor, " batch"] | None = None
) -> Float[Tensor, ""]:
    """``mean((delta - b)^2)``; on-policy its gradient is ``2 E[(delta - b) grad log pi] = 2 grad KL(pi || pi*)``."""
    if baseline is not None:
        residual = residual - baseline.detach()
    return residual.square().mean()


def audit_log_z_error(residual: Float[Tensor, " batch"]) -> Float[Tensor, ""]:
    """``eps_hat = -log mean exp(-delta)`` over on-policy completions, an estimate of eps = log Zhat - log Z.

    Exact in expectation before the logarithm: ``E_pi[exp(-delta)] = exp(-eps)`` for every policy with
    the reference's support.
    """
    return -(torch.logsumexp(-residual, dim=0) - torch.log(torch.tensor(float(residual.numel()))))
