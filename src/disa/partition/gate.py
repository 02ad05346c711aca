"""The overlap gate: whether the proposal writes what the reference's successes look like.

The number of proposal draws that importance sampling needs is about exp(D) with
``D = KL(reference given success || mu)`` (Chatterjee and Diaconis 2018, arXiv 1511.01437). D grows
with the length of the completion (about 0.01 nat a token between unrelated teachers), and where
``D + 1 > log N_mu`` the proposal draws only add heavy-tailed noise: the plain pass rate of the
reference draws is then the better estimator.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import xlogy

from disa.partition.draws import Draws
from disa.partition.log_weights import Array

SAFETY = 1.0
"""Nats by which log N_mu must exceed D: one more e-fold of draws than the bare requirement."""

_OUTSIDE_SUPPORT = 1e4
"""Stands for the infinite log ratio of a completion that mu cannot write: closes any gate."""


def divergence(draws: Draws) -> Array:
    """``D = mean of log(pi_ref / mu) over reference-drawn successes - log p``, per prompt, in nats.

    Graded rewards weigh each reference draw by s, with density ratio ``pi_ref s / (p mu)``. p is the
    Jeffreys pass rate of the reference draws.

    Where lengths are given, prompts share evidence through D per token: with S successes of its own
    and mean length L, a prompt has ``D = (sum of its S terms + kappa L) / (S + 1)``, kappa being
    the rate per token over all successes of the batch, which so counts as one more success.

    A prompt without a reference success has D = kappa L (L over all its reference draws: its
    failures show how long its completions are). Without lengths, or without a reference success
    in the whole batch, D is NaN: overlap cannot be measured, and the gate stays open. Dropping
    the proposal draws would then leave nothing but a pass rate of zero hits, while the mixture
    stays unbiased and its interval, through w_max = 1/alpha, covers whatever mass mu misses.

    Returns
    -------
    array, shape (prompts,)
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
    if draws.lengths is None:
        d = np.where(some, total / np.where(some, successes, 1.0), np.nan)
    else:
        success_tokens = draws.sum(s * draws.lengths)
        if success_tokens.sum() == 0:
            return np.full(len(draws.counts), np.nan)
        rate = total.sum() / success_tokens.sum()
        reference_tokens = draws.sum(np.where(draws.from_reference, draws.lengths, 0.0))
        length = np.where(
            some, success_tokens / np.where(some, successes, 1.0), reference_tokens / np.maximum(n_reference, 1.0)
        )
        d = (total + rate * length) / (successes + 1.0)
    return np.where(usable, d, np.nan)


def gated(draws: Draws) -> NDArray[np.bool_]:
    """Prompts whose proposal draws are better dropped: ``D + 1 > log N_mu``, shape (prompts,)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return divergence(draws) + SAFETY > np.log(draws.counts - draws.reference_counts)
