"""Where further trajectories lower the error of log Z most.

With ``v = w s``, c the control variate's coefficient and ``c_x = sd(v - c w) expm1(b) / Z`` on the mixture of prompt
x, the error of log Z has variance ``c_x^2 / N_x`` (delta method), and the sum over prompts at a fixed total is smallest
for (Neyman 1934)::

    N_x proportional to c_x

Where they come from matters as much. On a mixture with a share alpha from the reference, v has the second moment
``E_mixture[v^2] = E_ref[w s^2]``, so that the best alpha is the one at which the reference's successes have the
smallest mean weight (:func:`least_variance_share`).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from disa.errors import DisaError
from disa.partition.draws import Draws
from disa.partition.estimators import CONTROL_RIDGE, effective_hits
from disa.partition.gate import gated_prompts
from disa.partition.log_weights import Array, linear_weights
from disa.partition.unseen_weight import hit_weight, unseen_weight

Counts = NDArray[np.intp]

_SHARES = 31
"""Values of alpha that are tried: the second moment is convex in it and flat around its minimum."""

_POOLED_SUCCESSES = 1.0
"""Successes' worth of trust in the successes of all prompts, beside a prompt's own."""

_HALVINGS = 100
"""Of a bracket for the common factor of N_x: down to one ulp."""


def capped_without_precision(made: Counts, hits_ess: Array, *, cap: int, precision: float) -> NDArray[np.bool_]:
    """Prompts that got all the draws that one may have and still lack the precision, shape (prompts,)."""
    return (made >= cap) & ~reached_precision(hits_ess, precision)


def reached_precision(hits_ess: Array, precision: float) -> NDArray[np.bool_]:
    """Prompts whose relative error is about ``precision``, or less: ``hits_ess >= 1 / precision^2``."""
    return hits_ess >= precision**-2


def next_round(
    draws: Draws,
    budget: int,
    *,
    cap: int | Counts,
    b: float,
    reference_share: float,
    precision: float,
    outlook: float,
) -> tuple[Counts, Counts]:
    """``budget`` further draws in total, of every prompt from the reference and from the proposal, given all so far.

    A prompt whose hits_ess reaches 1 / precision^2, a relative error of about ``precision``, gets no more, and none
    gets more than ``cap`` in all. Where the gate is closed, further draws come from the reference alone; elsewhere they
    bring the prompt's share of reference draws to that of least variance, ``reference_share`` (rounded up to whole
    draws) or more. ``outlook`` is how many proposal draws a prompt may expect in the end: what the gate holds against D
    where there are fewer yet. ``b`` is beta times the width of the reward range.
    """
    reference_made = draws.reference_counts.astype(np.intp)
    closed = gated_prompts(draws, np.maximum(draws.counts - reference_made, outlook))
    done = reached_precision(effective_hits(draws), precision)
    further = allocate(relative_spread(draws, b), draws.counts, budget, np.where(done, 0, cap))
    total = draws.counts + further
    share = np.where(closed, 1.0, least_variance_share(draws, reference_share))
    wanted = np.ceil(share * total).astype(np.intp)
    reference = np.clip(wanted - reference_made, 0, further)
    return reference, further - reference


def least_variance_share(draws: Draws, smallest: float) -> Array:
    """Share of reference draws at which the mixture estimates q best, shape (prompts,).

    With ``w_alpha = 1 / (alpha + (1 - alpha) mu / pi_ref)``, one draw's ``w_alpha s`` has on the mixture itself the
    second moment ``E_ref[w_alpha s^2]``, which is convex in alpha. Where the proposal finds the reference's successes
    it is smallest with few reference draws; where it writes other solutions, with reference draws alone, whose w is
    1; at a moderate divergence both kinds together beat either.

    The expectation is a mean over the reference's own successes: the proposal's would not show what it never writes. As
    a prompt has few, those of all prompts count as one more. ``smallest`` is the result where the reference had no
    success at all.
    """
    squared = np.where(draws.from_reference, draws.soft**2, 0.0)
    own = draws.sum(squared)
    if own.sum() == 0.0:
        return np.full(len(own), smallest)
    shares = np.linspace(smallest, 1.0, _SHARES)
    # Beyond 300 nats a weight is 0 or at its bound, and its sum over draws is still finite.
    odds = np.exp(-np.clip(draws.log_ratio, -300.0, 300.0))
    moments = np.stack([draws.sum(squared / (share + (1.0 - share) * odds)) for share in shares])
    pooled = moments.sum(axis=1, keepdims=True) / own.sum()
    return shares[np.argmin((moments + _POOLED_SUCCESSES * pooled) / (own + _POOLED_SUCCESSES), axis=0)]


def allocate(pilot_sd_over_z: ArrayLike, counts: ArrayLike, budget: int, cap: ArrayLike) -> Counts:
    """Further draws per prompt, so that the totals come as close to Neyman's as draws already made allow.

    Totals are ``N_x = clip(t c_x, counts, max(cap, counts))`` with c_x the ``pilot_sd_over_z``
    (:func:`relative_spread`) and the t at which the budget is spent, rounded to whole draws by largest remainder. That
    minimises ``sum_x c_x^2 / N_x`` under these limits. They sum to the budget, or to less where the caps of all prompts
    with c_x > 0 are reached. Raises DisaError where shapes differ, or a value is negative or not finite.
    """
    c, made = np.asarray(pilot_sd_over_z, dtype=np.float64), np.asarray(counts)
    if c.ndim != 1 or made.shape != c.shape or np.shape(cap) not in ((), c.shape):
        raise DisaError(
            f"shapes {c.shape}, {made.shape} and {np.shape(cap)} of sd over Z, counts and cap do not agree",
            where="allocate",
            fix="give one value per prompt; cap may be one for all",
        )
    if not (np.isfinite(c) & (c >= 0)).all() or (made < 0).any() or budget < 0:
        raise DisaError(
            "sd over Z, counts and budget must be finite and not negative",
            where="allocate",
            fix="leave prompts out whose spread is not known",
        )
    room = np.where(c > 0, np.maximum(np.asarray(cap) - made, 0), 0)
    budget = min(int(budget), int(room.sum()))
    if budget == 0:
        return np.zeros(len(c), dtype=np.intp)

    def further(t: float) -> Array:
        return np.clip(t * c - made, 0.0, room)

    low, high = 0.0, 1.0
    while further(high).sum() < budget and high < np.finfo(np.float64).max / 4:
        high *= 2.0
    for _ in range(_HALVINGS):
        t = 0.5 * (low + high)
        low, high = (t, high) if further(t).sum() < budget else (low, t)
    exact = further(high)
    whole = np.floor(exact)
    largest_remainders = np.argsort(whole - exact, kind="stable")
    whole[largest_remainders[: budget - int(whole.sum())]] += 1.0
    return whole.astype(np.intp)


def relative_spread(draws: Draws, b: float) -> Array:
    """``c_x = sd(v - c w) expm1(b) / Z`` per prompt, with the prior of :func:`disa.partition.estimators.mixture`.

    Half a hit in one more draw, of the weight of a typical hit, or of one not seen where there is none, so that neither
    no hits nor hits alone look like certainty. Without hits in N draws and for large b, c_x is about sqrt(2 N): a
    prompt is not given up before its cap. ``b`` is beta times the width of the reward range.
    """
    w = linear_weights(draws.log_w)
    v = w * draws.soft
    weight = np.where(effective_hits(draws) > 0, hit_weight(draws, v), unseen_weight(draws))
    n = draws.counts + weight
    mean = (draws.sum(v) + 0.5 * weight) / n
    apart = w - draws.spread(draws.sum(w) / draws.counts)
    c = draws.sum(apart * v) / (draws.sum(apart * apart) + CONTROL_RIDGE)
    rest = v - draws.spread(c) * apart
    variance = (draws.sum(rest * rest) + 0.5 * weight**2) / n - mean**2
    # expm1(b) / (1 + expm1(b) q) = 1 / (exp(-b) / (1 - exp(-b)) + q), for any b.
    return np.sqrt(np.maximum(variance, 0.0)) / (np.exp(-b) / -np.expm1(-b) + mean)
