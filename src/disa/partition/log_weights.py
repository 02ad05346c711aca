"""Rewards to soft successes, log-probabilities to importance weights, and q to log Z.

With rewards scaled to u = (r - r_min) / (r_max - r_min) and b = beta (r_max - r_min)::

    s = expm1(b u) / expm1(b),    q = E_ref[s] in [0, 1],    Z = exp(beta r_min) (1 + expm1(b) q)
    w = pi_ref / sum_j alpha_j p_j,    alpha_j the share of the prompt's draws that came from p_j

p_0 is the reference, so w <= 1/alpha_0 (balance heuristic of Veach and Guibas 1995 for a
deterministic mixture; Owen and Zhou 2000 call it defensive).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_EXP_SAFE = 700.0
"""expm1 overflows float64 just above 709."""

LOG_WEIGHT_CAP = 300.0
"""Sums over draws of squared weights up to exp(300) stay finite; q is clipped to 1 long before that."""


def soft_success(rewards: Array, beta: float, reward_range: tuple[float, float]) -> Array:
    """Soft success ``s = expm1(beta (r - r_min)) / expm1(beta (r_max - r_min))``, in [0, 1].

    Equals the reward itself where rewards are 0 and 1, and tends to the scaled reward as beta
    tends to 0. Finite for any beta: ``s = exp(b (u - 1)) expm1(-b u) / expm1(-b)``.
    """
    low, high = reward_range
    b = beta * (high - low)
    u = (rewards - low) / (high - low)
    return np.exp(b * (u - 1.0)) * (np.expm1(-b * u) / np.expm1(-b))


def log_z_from_q(q: Array, beta: float, reward_range: tuple[float, float]) -> Array:
    """``log Z = beta r_min + log1p(expm1(beta (r_max - r_min)) q)``, in nats, for any beta > 0."""
    low, high = reward_range
    b = beta * (high - low)
    if b <= _EXP_SAFE:
        return beta * low + np.log1p(np.expm1(b) * q)
    with np.errstate(divide="ignore"):
        return beta * low + np.logaddexp(np.log1p(-q), b + np.log(q))


def balance_log_weights(log_ratio: Array, reference_share: Array) -> Array:
    """Log of ``w = pi_ref / (alpha pi_ref + (1 - alpha) mu)``, in nats.

    ``log_ratio`` is log pi_ref - log mu: +inf where mu cannot write the completion, -inf where pi_ref cannot. alpha is
    the ``reference_share`` of each draw's prompt; the weight is exactly 1 where it is 1.
    """
    with np.errstate(divide="ignore"):
        return -np.logaddexp(np.log(reference_share), np.log1p(-reference_share) - log_ratio)


def log_ratio_to_proposals(log_ref: Array, log_proposal: Array, shares: Array) -> Array:
    """``log pi_ref - log mu`` with ``mu = sum_j shares_j mu_j``, in nats.

    Rows of ``shares``, each proposal's share of the proposal draws of the row's prompt, sum to 1, or to 0 where there
    are none (the ratio is then 0, and unused).
    """
    drawn = shares.any(axis=1)
    if log_proposal.shape[1] == 1:
        return np.where(drawn, log_ref - log_proposal[:, 0], 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(drawn, log_ref - np.logaddexp.reduce(np.log(shares) + log_proposal, axis=1), 0.0)


def linear_weights(log_w: Array) -> Array:
    """Weights from log-weights, without overflow in later sums of squares."""
    return np.exp(np.minimum(log_w, LOG_WEIGHT_CAP))
