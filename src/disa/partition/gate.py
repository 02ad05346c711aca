"""The overlap gate: whether the proposal writes what the reference's successes look like.

The number of proposal draws that importance sampling needs is about exp(D) with
``D = KL(reference given success || mu)`` (Chatterjee and Diaconis 2018, arXiv 1511.01437). D grows
with the length of the completion (about 0.01 nat a token between unrelated teachers), and where
``D + 1 > log N_mu`` the proposal draws carry next to nothing: the plain pass rate of the reference
draws is then the better estimator, and further draws belong to the reference.

Weights of the defensive mixture never exceed 1/alpha, so an open gate costs little where it should be closed,
and a closed one costs all the proposal draws where it should be open. It therefore closes only where D is
large by two standard errors.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import xlogy

from disa.partition.draws import Draws
from disa.partition.log_weights import Array

SAFETY = 1.0
"""Nats by which log N_mu must exceed D: one more e-fold of draws than the bare requirement."""

STANDARD_ERRORS = 2.0
"""Standard errors by which D must be too large: two reference draws a prompt do not close a gate by chance."""

_OUTSIDE_SUPPORT = 1e4
"""Stands for the infinite log ratio of a completion that mu cannot write: closes any gate."""


_SMALLEST_D = 0.1
"""Nats; below it a log ratio varies by more than 2 D tells, for two models are never the same."""


def divergence(draws: Draws) -> tuple[Array, Array]:
    """``D = mean of log(pi_ref / mu) over reference-drawn successes - log p``, and its standard error, in nats.

    Graded rewards weigh each reference draw by s, with density ratio ``pi_ref s / (p mu)``. p is the
    Jeffreys pass rate of the reference draws.

    A success's log ratio is taken to have variance 2 D, as it has where it is normal (a sum over many tokens), so
    that one success needs no spread of its own. Without lengths the mean over S successes then has variance 2 D / S.

    Where lengths are given, prompts share evidence through D per token: kappa is the rate per token over
    all T successes of the batch, and tau the standard deviation of the prompts' own rates (by moments). A prompt
    of mean length L has its own mean, of variance ``2 kappa L / S``, and the expectation kappa L, of variance
    ``(tau L)^2 + 2 kappa L / T``; D is their precision-weighted mean.

    A prompt without a reference success has D = kappa L (L over all its reference draws: its
    failures show how long its completions are). Without lengths, or without a reference success
    in the whole batch, D is NaN: overlap cannot be measured, and the gate stays open. Dropping
    the proposal draws would then leave nothing but a pass rate of zero hits, while the mixture
    stays unbiased and its interval, through w_max = 1/alpha, covers whatever mass mu misses.

    Returns
    -------
    d, standard_error : array, shape (prompts,)
        NaN where unknown, or where the prompt lacks draws of either kind.
    """
    n_reference = draws.reference_counts
    usable = (n_reference > 0) & (n_reference < draws.counts)
    s = np.where(draws.from_reference & draws.spread(usable), draws.soft, 0.0)
    successes = draws.sum(s)
    log_p = np.log((successes + 0.5) / (n_reference + 1.0))
    log_ratio = np.clip(draws.log_ratio, -_OUTSIDE_SUPPORT, _OUTSIDE_SUPPORT)
    total = draws.sum(s * log_ratio + xlogy(s, s)) - successes * log_p

    some = successes > 0
    own = np.where(some, total / np.where(some, successes, 1.0), np.nan)
    if draws.lengths is None:
        d, squared_error = own, 2.0 * np.maximum(own, 0.0) / np.where(some, successes, 1.0)
    else:
        success_tokens = draws.sum(s * draws.lengths)
        if success_tokens.sum() == 0:
            unknown = np.full(len(draws.counts), np.nan)
            return unknown, unknown
        rate = total.sum() / success_tokens.sum()
        reference_tokens = draws.sum(np.where(draws.from_reference, draws.lengths, 0.0))
        length = np.where(
            some, success_tokens / np.where(some, successes, 1.0), reference_tokens / np.maximum(n_reference, 1.0)
        )
        expected = rate * length
        variance = 2.0 * np.maximum(expected, _SMALLEST_D)  # of one success
        excess = successes * (np.where(some, own, expected) - expected) ** 2 - np.where(some, variance, 0.0)
        tau_squared = max(excess.sum() / np.sum(successes * length**2), 0.0)
        precision = successes / variance, 1.0 / (tau_squared * length**2 + variance / successes.sum())
        squared_error = 1.0 / (precision[0] + precision[1])
        d = (precision[0] * np.where(some, own, 0.0) + precision[1] * expected) * squared_error
    return np.where(usable, d, np.nan), np.where(usable, np.sqrt(squared_error), np.nan)


def gated(draws: Draws, n_proposal: Array | None = None) -> NDArray[np.bool_]:
    """Prompts whose proposal draws are better dropped: ``D - 2 standard errors + 1 > log N_mu``, shape (prompts,).

    Parameters
    ----------
    draws : Draws
    n_proposal : array, shape (prompts,), optional
        N_mu, where more proposal draws are to come than there are.
    """
    d, standard_error = divergence(draws)
    available = draws.counts - draws.reference_counts if n_proposal is None else n_proposal
    with np.errstate(divide="ignore", invalid="ignore"):
        return d - STANDARD_ERRORS * standard_error + SAFETY > np.log(available)
