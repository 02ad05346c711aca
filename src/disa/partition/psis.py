"""Pareto k-hat of the largest importance weights, and their smoothing, for many prompts at once.

The largest ``M = floor(min(N / 5, 3 sqrt(N)))`` weights of a prompt, as exceedances x over the next
smaller weight, are fitted by a generalised Pareto distribution (Zhang and Stephens 2009, with the
weak prior of arXiv 1507.02646 that pulls k towards 1/2). Weights are never normalised, because
their mean is known to be 1 and log Z needs it.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from disa.partition.draws import Draws
from disa.partition.log_weights import Array

MIN_DRAWS = 25
"""Below this the tail has fewer than five weights, too few for a fit of two parameters."""

STATUSES = ("ok", "few_draws", "ties")
"""Why k-hat is missing: fewer than 25 draws, or fewer than five distinct weights in the tail."""

_OK, _FEW_DRAWS, _TIES = range(3)
_MIN_DISTINCT = 5
_RELATIVE_GAP = 1e-9  # weights closer than this are equal up to the rounding of log-probabilities
_PRIOR_DRAWS, _PRIOR_K = 10.0, 0.5  # the prior of arXiv 1507.02646
_BLOCK = 2_000_000  # elements of the largest temporary array: 16 MB


def pareto_k(draws: Draws) -> tuple[Array, NDArray[np.intp]]:
    """Shape k-hat of each prompt's weight tail.

    Returns k-hat, NaN where the status is not ``ok``, and the status as an index into :data:`STATUSES`.
    """
    k = np.full(len(draws.counts), np.nan)
    status = np.where(draws.counts < MIN_DRAWS, _FEW_DRAWS, _TIES)
    for fit in _tail_fits(draws, _tail_order(draws)):
        k[fit.prompts], status[fit.prompts] = fit.k, _OK
    return k, status


def smoothed_log_weights(draws: Draws) -> Array:
    """Log-weights with each fitted tail replaced by the expected order statistics of its fit.

    No weight exceeds the prompt's largest raw one. Prompts without a fit keep their weights.
    """
    log_w, order = draws.log_w.copy(), _tail_order(draws)
    for fit in _tail_fits(draws, order):
        m = fit.tail.shape[1]
        survival = 1.0 - (np.arange(m) + 0.5) / m
        k, sigma = fit.k[:, None], fit.sigma[:, None]
        flat = np.abs(k) < 1e-12
        excess = sigma * np.where(flat, -np.log(survival), np.expm1(-k * np.log(survival)) / np.where(flat, 1.0, k))
        smooth = np.log(np.minimum(fit.cutoff[:, None] + excess, 1.0))  # weights relative to the largest
        log_w[order[fit.tail]] = smooth + fit.log_max[:, None]
    return log_w


class _Fit:
    """Fits of a block of prompts whose tails have the same length."""

    def __init__(
        self, prompts: NDArray[np.intp], tail: NDArray[np.intp], cutoff: Array, log_max: Array, excess: Array
    ) -> None:
        self.prompts, self.tail, self.cutoff, self.log_max = prompts, tail, cutoff, log_max
        self.k, self.sigma = fit_generalised_pareto(excess)


def _tail_order(draws: Draws) -> NDArray[np.intp]:
    return np.lexsort((draws.log_w, draws.prompt))


def _tail_fits(draws: Draws, order: NDArray[np.intp]) -> Iterator[_Fit]:
    n = draws.counts
    lengths = np.where(n > 225, np.floor(3.0 * np.sqrt(n)), n // 5).astype(np.intp)
    lengths[n < MIN_DRAWS] = 0
    ends = draws.starts + n
    log_w = draws.log_w[order]
    for m in np.unique(lengths[lengths > 0]):
        same = np.flatnonzero(lengths == m)
        block = max(1, _BLOCK // int(m * (30 + np.sqrt(m))))
        for prompts in np.split(same, range(block, len(same), block)):
            tail = ends[prompts, None] - m + np.arange(m)
            log_max = log_w[ends[prompts] - 1]
            usable = np.isfinite(log_max)
            relative = np.exp(log_w[tail] - np.where(usable, log_max, 0.0)[:, None])
            cutoff = np.exp(log_w[tail[:, 0] - 1] - np.where(usable, log_max, 0.0))
            excess = relative - cutoff[:, None]
            gaps = np.diff(relative, prepend=cutoff[:, None], axis=1) > _RELATIVE_GAP * relative
            quartile = excess[:, int(m / 4 + 0.5) - 1]
            usable &= (gaps.sum(axis=1) >= _MIN_DISTINCT) & (quartile > 0)
            if usable.any():
                yield _Fit(prompts[usable], tail[usable], cutoff[usable], log_max[usable], excess[usable])


def fit_generalised_pareto(excess: Array) -> tuple[Array, Array]:
    """Shape k and scale sigma of generalised Pareto samples (Zhang and Stephens 2009, with a prior).

    The density is ``(1 + k x / sigma)^(-1/k - 1) / sigma``. Their quasi-posterior mean of ``theta = -k / sigma`` is
    taken over a grid of 30 + sqrt(m) points; k is then the profile maximum, averaged with a prior of ten draws at k =
    1/2. Each row of ``excess`` is ascending, at least 0, its first quartile and maximum above 0.
    """
    m = excess.shape[1]
    points = 30 + int(np.sqrt(m))
    largest, quartile = excess[:, -1], excess[:, int(m / 4 + 0.5) - 1]
    j = np.arange(1, points + 1)
    theta = 1.0 / largest[:, None] + (1.0 - np.sqrt(points / (j - 0.5))) / (3.0 * quartile[:, None])
    profile_k = np.log1p(-theta[:, :, None] * excess[:, None, :]).mean(axis=2)
    log_likelihood = m * (np.log(-theta / profile_k) - profile_k - 1.0)
    posterior = np.exp(log_likelihood - log_likelihood.max(axis=1, keepdims=True))
    posterior /= posterior.sum(axis=1, keepdims=True)
    mean_theta = (posterior * theta).sum(axis=1)
    k = np.log1p(-mean_theta[:, None] * excess).mean(axis=1)
    sigma = -k / mean_theta
    return (m * k + _PRIOR_DRAWS * _PRIOR_K) / (m + _PRIOR_DRAWS), sigma
