"""Overlap with the proposal: whether it writes what the reference's successes look like.

The number of proposal draws that importance sampling needs is about exp(D) with
``D = KL(reference given success || mu)`` (Chatterjee and Diaconis 2018, arXiv 1511.01437). D grows with the length of
the completion (about 0.01 nat per token between unrelated teachers). Where ``D + 1 > log N_mu`` the proposal draws
carry next to nothing. The gate is then closed: the prompt is flagged, and further draws belong to the reference.

A closed gate drops no draw. A weight of the defensive mixture is at most 1/alpha, so its variance is at most that of
the reference draws alone, and what the proposal may have missed is a matter of
:func:`disa.partition.unseen_weight.unseen_weight`.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammainc, xlogy

from disa.partition.draws import Draws
from disa.partition.log_weights import Array

SAFETY = 1.0
"""Nats by which log N_mu must exceed D: one more e-fold of draws than the bare requirement."""

CHANCE = 0.05
"""The gate closes where overlap is sufficient with less than this probability."""

_OUTSIDE_SUPPORT = 1e4
"""Stands for the infinite log ratio of a completion that mu cannot write: closes any gate."""

_SMALLEST_D = 0.1
"""Nats; below it a log ratio varies by more than 2 D tells, for two models are never the same."""


@dataclasses.dataclass(frozen=True)
class Successes:
    """The reference's own successes; every field has shape (prompts,)."""

    usable: NDArray[np.bool_]
    """Prompts with draws of both kinds."""
    count: Array
    divergence: Array
    """Sum over the successes of log(pi_ref / mu) - log p, nats."""
    tokens: Array
    """Tokens of the successes; their number where no lengths are given."""
    length: Array
    """Mean tokens of all reference draws, which does not depend on who succeeded."""


def reference_successes(draws: Draws) -> Successes:
    """Sum the reference-drawn successes of every prompt, graded ones weighed by s."""
    n_reference = draws.reference_counts
    usable = (n_reference > 0) & (n_reference < draws.counts)
    s = np.where(draws.from_reference & draws.spread(usable), draws.soft, 0.0)
    count = draws.sum(s)
    log_p = np.log((count + 0.5) / (n_reference + 1.0))
    log_ratio = np.clip(draws.log_ratio, -_OUTSIDE_SUPPORT, _OUTSIDE_SUPPORT)
    lengths = np.ones(len(s)) if draws.lengths is None else draws.lengths
    tokens = draws.sum(np.where(draws.from_reference, lengths, 0.0))
    return Successes(
        usable=usable,
        count=count,
        divergence=draws.sum(s * log_ratio + xlogy(s, s)) - count * log_p,
        tokens=draws.sum(s * lengths),
        length=tokens / np.maximum(n_reference, 1.0),
    )


def proposal_divergence(draws: Draws) -> tuple[Array, Array]:
    """``D = mean of log(pi_ref / mu) over reference-drawn successes - log p``, and its standard error, in nats.

    Graded rewards weigh each reference draw by s, with density ratio ``pi_ref s / (p mu)``. p is the
    Jeffreys pass rate of the reference draws.

    A success's log ratio is taken to have variance 2 D, as it has where it is normal (a sum over many tokens), so
    that one success needs no spread of its own. Without lengths the mean over S successes then has variance 2 D / S.

    Where lengths are given, prompts share evidence through D per token: kappa is the rate per token over
    all T successes of the batch, and tau the standard deviation of the prompts' own rates (by moments). A prompt
    of mean length L has its own mean, of variance ``2 kappa L / S``, and the expectation kappa L, of variance
    ``(tau L)^2 + 2 kappa L / T``; D is their precision-weighted mean.

    A prompt without a reference success has D = kappa L (L over all its reference draws: its failures show how long its
    completions are). Without lengths, or without a reference success in the whole batch, D is NaN: overlap cannot be
    measured, and the gate stays open. Both have shape (prompts,), NaN where unknown or where the prompt lacks draws of
    either kind.
    """
    found = reference_successes(draws)
    successes, some = found.count, found.count > 0
    own = np.where(some, found.divergence / np.where(some, successes, 1.0), np.nan)
    if draws.lengths is None:
        d, squared_error = own, 2.0 * np.maximum(own, 0.0) / np.where(some, successes, 1.0)
    else:
        if found.tokens.sum() == 0:
            unknown = np.full(len(draws.counts), np.nan)
            return unknown, unknown
        rate = found.divergence.sum() / found.tokens.sum()
        length = np.where(some, found.tokens / np.where(some, successes, 1.0), found.length)
        expected = rate * length
        variance = 2.0 * np.maximum(expected, _SMALLEST_D)  # of one success
        excess = successes * (np.where(some, own, expected) - expected) ** 2 - np.where(some, variance, 0.0)
        tau_squared = max(excess.sum() / np.sum(successes * length**2), 0.0)
        precision = successes / variance, 1.0 / (tau_squared * length**2 + variance / successes.sum())
        squared_error = 1.0 / (precision[0] + precision[1])
        d = (precision[0] * np.where(some, own, 0.0) + precision[1] * expected) * squared_error
    return np.where(found.usable, d, np.nan), np.where(found.usable, np.sqrt(squared_error), np.nan)


def gated_prompts(draws: Draws, n_proposal: Array | None = None) -> NDArray[np.bool_]:
    """Prompts whose proposal draws carry next to nothing, shape (prompts,): ``P(D <= log N_mu - 1) < 5%``.

    A KL divergence is not negative: D is taken to have a gamma law with the mean and standard error of
    :func:`proposal_divergence`. A normal law gives D = 12 +- 8 a chance of 9% to be at most log 12 - 1, most of it on
    negative values; the gamma law gives it 2%. A wrongly closed gate costs all further proposal draws, which is why the
    gate closes against the odds only for one prompt in twenty. ``n_proposal`` is N_mu where more proposal draws are to
    come than there are.
    """
    d, error = proposal_divergence(draws)
    available = draws.counts - draws.reference_counts if n_proposal is None else n_proposal
    enough = np.maximum(np.log(np.maximum(available, 1)) - SAFETY, _SMALLEST_D)
    measured = (d > 0) & (error > 0)
    d, error = np.where(measured, d, 1.0), np.where(measured, error, 1.0)
    return measured & (gammainc((d / error) ** 2, enough * d / error**2) < CHANCE)
