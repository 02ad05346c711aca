"""Estimators of q = E_ref[s] from weighted draws; ``v = w s`` throughout.

Every estimator uses the same balance-heuristic weights, which are plain ratios pi_ref / mu where a
prompt has no reference draws. All are clipped to [0, 1], which never increases the error.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from disa.partition.diagnostics import effective_sample_sizes
from disa.partition.draws import Draws
from disa.partition.log_weights import Array, linear_weights
from disa.partition.psis import smoothed_log_weights
from disa.partition.unseen_weight import hit_weight, unseen_weight

CONTROL_RIDGE = 2.0
"""Ridge of the control variate's regression, in squared weights: as if two draws, one unit of weight from the mean, had
shown no relation. On 8 draws of a strong proposal the plain regression fits noise and doubles the error of log Z; from
32 draws on the ridge changes an error by at most 1%."""


def mixture(draws: Draws, b: float) -> Array:
    """``q = max((sum(v) + w_bar / 2) / (N + w_bar), (w0 / 2) / (N + w0))`` with ``v = g w s``, the default.

    - ``g = 1 - N (mean(w) - 1) (w - mean(w)) / (sum((w - mean(w))^2) + 2)``, not below 0, makes mean(g w) nearly the
      known E[w] = 1: a control variate (Owen and Zhou 2000) by ridge regression, as calibrated weights (Deville and
      Sarndal 1992).
    - ``w_bar = sum(v^2) / sum(v)`` is the weight of a typical hit, and half a hit in one more draw of that weight the
      Jeffreys prior: with reference draws alone q is ``(hits + 1/2) / (N + 1)``.
    - w0 is the weight of a success that was not seen, :func:`disa.partition.unseen_weight.unseen_weight`. Hits too
      light to say more than none at all are no evidence on what the reference itself would write.

    No g, w or w0 depends on the prompt's own rewards, and both sides of the maximum grow with every v, so turning a
    failure into a success never lowers q.
    """
    return np.maximum(*with_and_without_hits(draws))


def with_and_without_hits(draws: Draws) -> tuple[Array, Array]:
    """Return the two sides of :func:`mixture`: the estimate from the hits, and that of a prompt without any."""
    n, v = draws.counts, calibrated_weights(draws) * draws.soft
    total = draws.sum(v)
    w_bar = hit_weight(draws, v)
    w0 = unseen_weight(draws)
    return (total + 0.5 * w_bar) / (n + w_bar), 0.5 * w0 / (n + w0)


def effective_hits(draws: Draws) -> Array:
    """``sum(w s)^2 / sum((w s)^2)``, or 0 where the hits are too light to say more than none; shape (prompts,)."""
    hits, none = with_and_without_hits(draws)
    return np.where(hits >= none, effective_sample_sizes(draws)[1], 0.0)


def calibrated_weights(draws: Draws) -> Array:
    """Return the weights ``g w`` of :func:`mixture`, shape (n,)."""
    w = linear_weights(draws.log_w)
    mean = draws.sum(w) / draws.counts
    apart = w - draws.spread(mean)
    slope = draws.counts * (mean - 1.0) / (draws.sum(apart * apart) + CONTROL_RIDGE)
    return np.maximum(1.0 - draws.spread(slope) * apart, 0.0) * w


def anchored(draws: Draws, b: float) -> Array:
    """``q = mean(v)``, that is ``Z = 1 + mean(w expm1(beta r))``: unrewarded draws carry no weight."""
    return draws.sum(linear_weights(draws.log_w) * draws.soft) / draws.counts


def importance_sampling(draws: Draws, b: float) -> Array:
    """``Z = mean(w exp(beta r))``, that is ``q = mean(v) + (mean(w) - 1) / expm1(b)``."""
    return _from_exponential_mean(draws, linear_weights(draws.log_w), b)


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
    "pass_rate": mixture,
}
"""Estimators of q by name: (draws, b = beta times the width of the reward range) to shape (prompts,).

``pass_rate`` is the mixture of the reference draws alone, ``(hits + 1/2) / (n + 1)``: its callers drop the others."""
