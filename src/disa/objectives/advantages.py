"""On-policy DISA for trainers that take an advantage per completion and have no loss of their own."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from disa.objectives.trajectory_balance import anchored_baseline, trajectory_balance_residual

Floats = Float[Tensor, " batch"] | Float[np.ndarray, " batch"]
Ints = Int[Tensor, " batch"] | Int[np.ndarray, " batch"]


def advantages(
    *,
    log_z: Floats,
    log_pi: Floats,
    log_ref: Floats,
    reward: Floats,
    beta: float,
    group: Ints | None = None,
    prior_strength: float = 1.0,
) -> Floats:
    """Sequence advantage with which plain policy gradient is on-policy DISA.

    ``2 (A + b)`` with ``A = beta r - log Z - (log pi_old - log pi_ref)``, the negative residual at sampling time, and b
    the anchored leave-one-out baseline (0 without ``group``). On fresh completions the gradient of the REINFORCE loss
    ``-mean(advantage * log pi)`` equals that of DISA's ``mean((delta - b)^2)``: the gradient of a square is
    ``2 (delta - b) grad log pi`` (:func:`disa.objectives.trajectory_balance.trajectory_balance_loss`).

    Four conditions, each of which the trainer has to be set to:

    1. log-probabilities are sums over the completion's tokens, and so is the trainer's loss per completion; every
       completion counts equally, whatever its length;
    2. the advantages are used as they are: not centred, scaled or clipped by the trainer, and no other KL penalty;
    3. one optimiser step per batch of completions: after a step A belongs to the policy before it;
    4. all log-probabilities are those of the sampling law: logits over the sampling temperature, no top-p or top-k.

    Parameters
    ----------
    log_z : Tensor or ndarray, shape (batch,)
        Frozen log Z of each completion's prompt, nats (:meth:`disa.Anchor.log_z`).
    log_pi, log_ref : Tensor or ndarray, shape (batch,)
        Log-probability of each completion under the policy that drew it and under the reference, nats.
    reward : Tensor or ndarray, shape (batch,)
        Raw rewards; NaN where undecided.
    beta : float
        Inverse temperature of the target.
    group : Tensor or ndarray of int, shape (batch,), optional
        Completions of one prompt share a number; with it noise is reduced and the expected gradient stays.
    prior_strength : float
        n0 of the baseline (:func:`disa.objectives.trajectory_balance.anchored_baseline`).

    Returns
    -------
    Tensor or ndarray, shape (batch,)
        As ``log_pi``: numpy or torch, its dtype and device, no gradient. Computed in float64. 0 where the reward is
        undecided, which leaves the completion out.

    Raises
    ------
    ValueError
        Where log_ref or log_z requires grad.
    """
    like = torch.as_tensor(log_pi)
    exact = [torch.as_tensor(x, device=like.device).double() for x in (like.detach(), log_ref, reward, log_z)]
    delta = trajectory_balance_residual(*exact, beta=beta)
    decided = ~delta.isnan()
    if group is not None:
        members = torch.as_tensor(group, device=like.device)[decided]
        delta[decided] -= anchored_baseline(delta[decided], members, prior_strength=prior_strength)
    found = torch.where(decided, -2 * delta, 0.0).to(like.dtype)
    return found.numpy() if isinstance(log_pi, np.ndarray) else found
