"""How much evidence stands behind an estimate, and whether the log-probabilities agree."""

from __future__ import annotations

import numpy as np
from scipy.special import expit

from disa.partition.draws import Draws
from disa.partition.log_weights import Array

_EXP_ARGUMENT = 1e4
"""Stands for the infinite log ratio of a completion that one of the models cannot write."""

_BISECTIONS = 60
"""Halvings of a bracket at most 2e4 nats wide: the root is exact to 1e-13 nats."""


def effective_sample_sizes(draws: Draws) -> tuple[Array, Array]:
    """``ESS = sum(w)^2 / sum(w^2)`` of all draws and of the hits (w s in place of w).

    Returns
    -------
    ess, hits_ess : array, shape (prompts,)
        In draws; 0 where no weight, or no hit, is above 0.
    """
    w = np.exp(draws.log_w - draws.spread(np.maximum(draws.max(draws.log_w), -1e300)))
    return _kish(draws, w), _kish(draws, w * draws.soft)


def _kish(draws: Draws, w: Array) -> Array:
    largest = draws.max(w)
    w = w / draws.spread(np.where(largest > 0, largest, 1.0))  # squares of tiny weights would underflow
    squares = draws.sum(w * w)
    return np.where(squares > 0, draws.sum(w) ** 2 / np.where(squares > 0, squares, 1.0), 0.0)


def bennett_log_ratio(draws: Draws) -> tuple[Array, Array]:
    """Null test: Bennett's acceptance ratio for the log ratio of mu's and pi_ref's normalisers.

    Both log-probabilities are normalised, so the truth is 0; a value many standard errors away means that
    they do not describe the models that the draws came from (temperature, template or tokenizer
    differ). Solves, with n_0 reference and n_1 proposal draws and d = log mu - log pi_ref::

        sum_i 1 / (1 + (n_0 / n_1) exp(c - d_i)) = n_1

    (Bennett 1976; Shirts and Chodera 2008, whose asymptotic variance gives the standard error).

    Returns
    -------
    log_ratio, standard_error : array, shape (prompts,)
        Nats; NaN without draws of both kinds.
    """
    n0, n1 = draws.reference_counts, draws.counts - draws.reference_counts
    both = (n0 > 0) & (n1 > 0)
    d = np.clip(-draws.log_ratio, -_EXP_ARGUMENT, _EXP_ARGUMENT)
    offset = np.log(np.where(both, n0, 1.0) / np.where(both, n1, 1.0))

    def proposal_probability(c: Array) -> Array:
        return expit(d - draws.spread(c + offset))

    # The root lies between the extreme d, each widened by the prior odds of the two kinds.
    margin = np.abs(offset) + np.log(draws.counts) + 1.0
    low, high = -draws.max(-d) - margin, draws.max(d) + margin
    for _ in range(_BISECTIONS):
        middle = 0.5 * (low + high)
        above = draws.sum(proposal_probability(middle)) > n1
        low, high = np.where(above, middle, low), np.where(above, high, middle)
    c = 0.5 * (low + high)
    p = proposal_probability(c)
    information = draws.sum(p * (1.0 - p))
    with np.errstate(divide="ignore", invalid="ignore"):
        variance = 1.0 / information - 1.0 / n0 - 1.0 / n1
    return np.where(both, c, np.nan), np.where(both, np.sqrt(np.maximum(variance, 0.0)), np.nan)


def pooled_null_test(log_ratio: Array, standard_error: Array) -> dict[str, float | int | None]:
    """Mean of the per-prompt Bennett log ratios with its standard error over prompts, as plain values.

    Prompts weigh equally, and the standard error is the spread between them over the square root of
    their number: with few draws the asymptotic errors of single prompts are too optimistic to weigh by.
    """
    known = log_ratio[np.isfinite(log_ratio) & np.isfinite(standard_error)]
    n = len(known)
    return {
        "prompts": n,
        "log_ratio": float(known.mean()) if n else None,
        "standard_error": float(known.std(ddof=1) / np.sqrt(n)) if n > 1 else None,
    }


def coverage_profile(draws: Draws, thresholds: Array) -> Array:
    """Share of the reference's successes that mu writes at least exp(t) times less often than pi_ref.

    Measured on reference-drawn successes (weighted by s) of prompts that also have proposal
    draws, over the whole batch.

    Parameters
    ----------
    thresholds : array, shape (k,)
        t, nats.

    Returns
    -------
    array, shape (k,)
        In [0, 1]; NaN without a reference success.
    """
    mixed = draws.spread(draws.reference_counts < draws.counts)
    s = np.where(draws.from_reference & mixed, draws.soft, 0.0)
    if s.sum() == 0:
        return np.full(len(thresholds), np.nan)
    return np.array([s[draws.log_ratio >= t].sum() for t in thresholds]) / s.sum()
