"""Forward projection onto the frozen target: importance-weighted likelihood of offline trajectories.

``W = w exp(beta r) / Zhat`` is the density ratio of the target ``pi* = pi_ref exp(beta r) / Z`` to the
mixture the trajectories were drawn from, so ``-E_mixture[W log pi]`` is ``KL(pi* || pi)`` up to a
constant. On-policy trajectory balance minimises ``KL(pi || pi*)``: same target, same frozen log Z.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def target_weight(
    log_w: Float[Tensor, " batch"],
    reward: Float[Tensor, " batch"],
    log_z: Float[Tensor, " batch"],
    *,
    beta: float,
    cap: float,
) -> Float[Tensor, " batch"]:
    """``W = min(w exp(beta r) / Zhat, cap)``; without the cap its mean over a prompt's trajectories tends to 1.

    Parameters
    ----------
    log_w : Tensor, shape (batch,)
        Log of pi_ref over the mixture's density, in nats.
    reward, log_z : Tensor, shape (batch,)
    beta : float
        Inverse temperature.
    cap : float
        Bound on the weight: trades a bias towards the mixture for variance.
    """
    if log_z.requires_grad:
        raise ValueError("log_z requires grad, but DISA's log_z is frozen; pass log_z.detach()")
    return torch.exp(log_w + beta * reward - log_z).clamp(max=cap)


def forward_projection_loss(log_pi: Float[Tensor, " batch"], weight: Float[Tensor, " batch"]) -> Float[Tensor, ""]:
    """``-mean(W log pi)``; its gradient under the mixture is that of ``KL(pi* || pi)``."""
    return -(weight.detach() * log_pi).mean()
