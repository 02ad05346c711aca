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

    Both of shape (prompts,), in draws; 0 where no weight, or no hit, is above 0.
    """
    w = np.exp(draws.log_w - draws.spread(np.maximum(draws.max(draws.log_w), -1e300)))
    return _kish(draws, w), _kish(draws, w * draws.soft)


def _kish(draws: Draws, w: Array) -> Array:
    largest = draws.max(w)
    w = w / draws.spread(np.where(largest > 0, largest, 1.0))  # squares of tiny weights would underflow
    squares = draws.sum(w * w)
    return np.where(squares > 0, draws.sum(w) ** 2 / np.where(squares > 0, squares, 1.0), 0.0)


def bennett_null_test(draws: Draws) -> dict[str, float | int | None]:
    """Null test: Bennett's acceptance ratio for the log ratio of mu's and pi_ref's normalisers.

    Both log-probabilities are normalised for every prompt, so the truth is 0; a value many standard errors
    away means that they do not describe the models that the draws came from (temperature, template
    or tokenizer differ). One root c over all prompts that have draws of both kinds, with n_0 reference
    and n_1 proposal draws of the prompt and d = log mu - log pi_ref::

        sum_i p_i = sum_x n_1(x),    p_i = 1 / (1 + (n_0 / n_1) exp(c - d_i))

    (Bennett 1976; Shirts and Chodera 2008.) With ``I = sum_i p_i (1 - p_i)`` per prompt, the standard error is
    ``sqrt(sum_x (I - I^2 (1/n_0 + 1/n_1))) / sum_x I``: the draws' numbers per source are fixed. Returns ``prompts``
    (with draws of both kinds), ``log_ratio`` and ``standard_error`` in nats, null without such prompts or where mu and
    pi_ref never write the same completions.
    """
    n0, n1 = draws.reference_counts, draws.counts - draws.reference_counts
    both = (n0 > 0) & (n1 > 0)
    if not both.any():
        return {"prompts": 0, "log_ratio": None, "standard_error": None}
    n0, n1 = np.where(both, n0, 1.0), np.where(both, n1, 1.0)
    d = np.clip(-draws.log_ratio, -_EXP_ARGUMENT, _EXP_ARGUMENT) - draws.spread(np.log(n0 / n1))
    d = d[draws.spread(both)]
    expected = n1[both].sum()

    # At c below the smallest d (or above the largest) by this much all p_i are 1 (or 0) to within one draw.
    margin = np.log(len(d)) + 1.0
    low, high = d.min() - margin, d.max() + margin
    for _ in range(_BISECTIONS):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if expit(d - middle).sum() > expected else (low, middle)
    c = 0.5 * (low + high)

    information = np.zeros(len(draws.prompt))
    information[draws.spread(both)] = expit(d - c) * expit(c - d)
    information = draws.sum(information)
    variance = np.sum(information - information**2 * (1.0 / n0 + 1.0 / n1))
    total = information.sum()
    known = total > 0
    return {
        "prompts": int(both.sum()),
        "log_ratio": float(c) if known else None,
        "standard_error": float(np.sqrt(max(variance, 0.0)) / total) if known else None,
    }


def coverage_profile(draws: Draws, thresholds: Array) -> Array:
    """Share of the reference's successes that mu writes at least exp(t) times less often than pi_ref.

    Measured on reference-drawn successes (weighted by s) of prompts that also have proposal draws, over the whole
    batch. ``thresholds`` are t in nats. NaN without a reference success.
    """
    mixed = draws.spread(draws.reference_counts < draws.counts)
    s = np.where(draws.from_reference & mixed, draws.soft, 0.0)
    if s.sum() == 0:
        return np.full(len(thresholds), np.nan)
    return np.array([s[draws.log_ratio >= t].sum() for t in thresholds]) / s.sum()
