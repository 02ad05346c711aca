"""What draws without a hit say: the weight of a success that they have not shown."""

from __future__ import annotations

import numpy as np

from disa.partition.diagnostics import effective_sample_sizes
from disa.partition.draws import Draws
from disa.partition.gate import SAFETY, reference_successes
from disa.partition.log_weights import Array, linear_weights

LEAST_FOUND_WEIGHT = 0.02
"""A proposal is credited with finding solutions at most 50 times as often as the reference, whatever the hits weigh."""

_ROUNDING = 1e-9
"""Less than this share of all successes, left by a difference of sums, is no evidence."""


def hit_weight(draws: Draws, v: Array) -> Array:
    """``w_bar = sum(v^2) / sum(v)``, the weight of a typical hit; 0 without hits; shape (prompts,)."""
    total = draws.sum(v)
    some = total > 0
    return np.where(some, draws.sum(v * v) / np.where(some, total, 1.0), 0.0)


def unseen_weight(draws: Draws) -> Array:
    """Weight w0 of a success that the prompt's draws have not shown, shape (prompts,).

    With h the probability that all M proposal draws of the prompt miss the reference's solutions, each of them finding
    one with probability ``exp(-(D + 1))``::

        log w0 = h log(N / ESS) + (1 - h) log w_found,    h = exp(-M exp(-(D + 1)))

    What the proposal misses has the weight of a typical reference draw, ``E_ref[w] = sum(w^2) / sum(w) = N / ESS``: 1
    where mu is the reference, 1/alpha where it writes nothing of the reference's. w_found is the geometric mean of the
    other prompts' w_bar, from 0.02 to N / ESS. D is that of the other prompts' reference successes per token, times the
    mean length of this prompt's reference draws. So w0 does not depend on this prompt's rewards.

    Where D is unknown (no lengths, or no reference success elsewhere), h = 1. Without reference draws nothing can be
    known of what mu misses, and h = 0.
    """
    n, n_reference = draws.counts, draws.reference_counts
    ess = effective_sample_sizes(draws)[0]
    typical = np.where(ess > 0, n / np.where(ess > 0, ess, 1.0), 1.0)

    missed = np.ones(len(n))
    if draws.lengths is not None:
        found = reference_successes(draws)
        tokens = found.tokens.sum() - found.tokens
        known = tokens > _ROUNDING * found.tokens.sum()
        d = (found.divergence.sum() - found.divergence) / np.where(known, tokens, 1.0) * found.length
        missed = np.where(known, np.exp(-(n - n_reference) * np.exp(-np.maximum(d, 0.0) - SAFETY)), 1.0)
    missed = np.where(n_reference > 0, missed, 0.0)

    w_bar = hit_weight(draws, linear_weights(draws.log_w) * draws.soft)
    some = w_bar > 0
    log_w_bar = np.log(np.where(some, w_bar, 1.0))
    others = some.sum() - some
    w_found = np.exp((log_w_bar.sum() - log_w_bar) / np.maximum(others, 1))
    w_found = np.clip(np.where(others > 0, w_found, typical), np.minimum(LEAST_FOUND_WEIGHT, typical), typical)
    return typical**missed * w_found ** (1.0 - missed)
