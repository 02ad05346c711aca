"""Estimators of q = E_ref[s] from weighted draws; ``v = w s`` throughout.

Every estimator uses the same balance-heuristic weights, which are plain ratios pi_ref / mu where a
prompt has no reference draws. All are clipped to [0, 1], which never increases the error.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from disa.partition.draws import Draws
from disa.partition.log_weights import Array, linear_weights
from disa.partition.psis import smoothed_log_weights

CONTROL_RIDGE = 2.0
"""Ridge of the control variate's regression, in squared weights: as if two draws, one unit of weight from the mean, had
shown no relation. On 8 draws of a strong proposal the plain regression fits noise and doubles the error of log Z; from
32 draws on the ridge changes an error by at most 1%."""


def mixture(draws: Draws, b: float) -> Array:
    """``q = mean(v) - c (mean(w) - 1) + w_bar / (2N)``, the default.

    E[w] = 1 is known: a control variate (Owen and Zhou 2000). c is the coefficient of the ridge regression of v on w,
    ``c = sum((w - mean(w)) v) / (sum((w - mean(w))^2) + 2)``, and ``w_bar = sum(v^2) / sum(v)`` the typical
    contribution of a hit (1 without hits): the half count that the Jeffreys prior adds, in units of w_bar.
    """
    n = draws.counts
    w = linear_weights(draws.log_w)
    v = w * draws.soft
    mean_w, mean_v = draws.sum(w) / n, draws.sum(v) / n
    c = control_coefficient(draws, w - draws.spread(mean_w), v)
    hits = mean_v > 0
    w_bar = np.where(hits, draws.sum(v * v) / n / np.where(hits, mean_v, 1.0), 1.0)
    return mean_v - c * (mean_w - 1.0) + w_bar / (2.0 * n)


def control_coefficient(draws: Draws, w_apart: Array, v: Array) -> Array:
    """``c = sum((w - mean(w)) v) / (sum((w - mean(w))^2) + 2)`` per prompt, given ``w - mean(w)`` and v."""
    return draws.sum(w_apart * v) / (draws.sum(w_apart * w_apart) + CONTROL_RIDGE)


def anchored(draws: Draws, b: float) -> Array:
    """``q = mean(v)``, that is ``Z = 1 + mean(w expm1(beta r))``: unrewarded draws carry no weight."""
    return draws.sum(linear_weights(draws.log_w) * draws.soft) / draws.counts


def importance_sampling(draws: Draws, b: float) -> Array:
    """``Z = mean(w exp(beta r))``, that is ``q = mean(v) + (mean(w) - 1) / expm1(b)``."""
    w = linear_weights(draws.log_w)
    return _from_exponential_mean(draws, w, b)


def truncated(draws: Draws, b: float) -> Array:
    """Estimate by importance sampling with w truncated at sqrt(N) (Ionides 2008; E[w] = 1 is known)."""
    bound = draws.spread(np.sqrt(draws.counts))
    return _from_exponential_mean(draws, np.minimum(linear_weights(draws.log_w), bound), b)


def pareto_smoothed(draws: Draws, b: float) -> Array:
    """Estimate by importance sampling with the largest weights Pareto-smoothed, unnormalised (arXiv 1507.02646)."""
    return _from_exponential_mean(draws, linear_weights(smoothed_log_weights(draws)), b)


def self_normalised(draws: Draws, b: float) -> Array:
    """``q = sum(v) / sum(w)``: badly biased where the draws miss most of the reference's mass."""
    w = np.exp(draws.log_w - draws.spread(np.maximum(draws.max(draws.log_w), -1e300)))
    total = draws.sum(w)
    return np.where(total > 0, draws.sum(w * draws.soft) / np.where(total > 0, total, 1.0), 0.0)


def pass_rate(draws: Draws, b: float) -> Array:
    """Jeffreys posterior mean ``(sum(s) + 1/2) / (n + 1)``; the draws must all be the reference's."""
    return (draws.sum(draws.soft) + 0.5) / (draws.counts + 1.0)


def _from_exponential_mean(draws: Draws, w: Array, b: float) -> Array:
    n = draws.counts
    excess = draws.sum(w) / n - 1.0
    return draws.sum(w * draws.soft) / n + excess * np.exp(-b) / -np.expm1(-b)  # 1 / expm1(b) for any b


ESTIMATORS: dict[str, Callable[[Draws, float], Array]] = {
    "mixture": mixture,
    "anchored": anchored,
    "is": importance_sampling,
    "tis": truncated,
    "psis": pareto_smoothed,
    "snis": self_normalised,
    "pass_rate": pass_rate,
}
"""Estimators of q by name: (draws, b = beta times the width of the reward range) to shape (prompts,)."""
