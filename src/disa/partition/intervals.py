"""Two-sided intervals for q = E[w s] that stay honest with few hits and with none.

A standard error alone is never reported: with sharp proposals it covers 60% at a nominal 90%,
and without hits it is 0.
"""

from __future__ import annotations

import numpy as np
from scipy.special import betaincinv, gammaincinv

from disa.errors import DisaError
from disa.partition.draws import Draws
from disa.partition.log_weights import Array, linear_weights


def gamma(draws: Draws, level: float) -> tuple[Array, Array]:
    """Fay and Feuer's (1997) gamma interval for a weighted sum of Poisson counts.

    With ``y = mean(v)``, ``V = sum(v^2) / N^2``, ``k = w_max / N`` and a = 1 - level, the ends are the
    a/2 quantile of the gamma distribution with mean y and variance V, and the 1 - a/2 quantile of
    that with mean y + k and variance V + k^2. Without hits: 0 and ``k log(2/a)``. Without reference
    draws weights have no bound, and the upper end is 1.
    """
    a = 1.0 - level
    n = draws.counts
    v = linear_weights(draws.log_w) * draws.soft
    y, variance = draws.sum(v) / n, draws.sum(v * v) / n**2
    with np.errstate(divide="ignore"):
        k = n / draws.reference_counts / n  # w_max / N, infinite without reference draws
    low = _gamma_quantile(a / 2, y, variance)
    bounded = np.isfinite(k)
    k = np.where(bounded, k, 1.0)
    high = _gamma_quantile(1 - a / 2, y + k, variance + k * k)
    return low, np.where(bounded, np.minimum(high, 1.0), 1.0)


def _gamma_quantile(p: float, mean: Array, variance: Array) -> Array:
    positive = variance > 0
    variance, mean = np.where(positive, variance, 1.0), np.where(positive, mean, 1.0)
    return np.where(positive, gammaincinv(mean * mean / variance, p) * variance / mean, 0.0)


def clopper_pearson(draws: Draws, level: float) -> tuple[Array, Array]:
    """Exact binomial interval of the pass rate, for reference draws and rewards at the range's ends.

    Raises DisaError where a draw is not the reference's, or a reward lies strictly inside the range.
    """
    if not draws.from_reference.all():
        prompt = int(draws.prompt[np.argmin(draws.from_reference)])
        raise DisaError(
            "clopper_pearson counts reference draws only, found proposal draws",
            where=f"interval of prompt {prompt}",
            fix="use interval='gamma' or 'betting', or method='pass_rate'",
        )
    if ((draws.soft > 0) & (draws.soft < 1)).any():
        raise DisaError(
            "clopper_pearson needs rewards at the two ends of the range, found graded rewards",
            fix="use interval='gamma' or 'betting'",
        )
    a, n, hits = 1.0 - level, draws.counts, draws.sum(draws.soft)
    some, misses = hits > 0, n - hits
    low = np.where(some, betaincinv(np.maximum(hits, 1), misses + 1, a / 2), 0.0)
    high = np.where(misses > 0, betaincinv(hits + 1, np.maximum(misses, 1), 1 - a / 2), 1.0)
    return low, high
