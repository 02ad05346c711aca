"""Which proposal says most of log Z for its cost: candidates compared on one pool of pilot draws.

The pool holds draws of the reference and of every source. All densities of all draws being known, each draw is weighted
by the balance heuristic over the whole pool, and every candidate's second moment follows without draws of its own::

    W = pi_ref / sum_k n_k p_k,    q = sum(W s),    M = sum(W w s^2),    w = pi_ref / (alpha pi_ref + (1 - alpha) mu)

One draw of the candidate's design then brings h = q^2 / M effective hits (its relative variance is 1 / h - 1).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from disa.partition.log_weights import Array, balance_log_weights


class PilotDraws(NamedTuple):
    """Pilot draws of some prompts, of every source equally many per prompt but for undecided ones."""

    prompt: NDArray[np.intp]
    """Shape (n,), from 0."""
    success: Array
    """Rewards scaled to [0, 1], shape (n,)."""
    log_ref: Array
    """Shape (n,), nats."""
    source: NDArray[np.intp]
    """0 for the reference, k for source k, shape (n,)."""
    log_sources: Array
    """Log-probability under each source, the reference being the first, shape (n, sources), nats."""


class MeasuredCandidate(NamedTuple):
    """One candidate on the pilot's prompts."""

    name: str
    cost: float
    """Forward passes of the reference per token of a trajectory: drawing it and scoring it."""
    divergence: float
    """D, KL divergence of the reference's successes from mu, mean over prompts with successes; nats."""
    hits: float
    """Effective hits per draw, mean over prompts."""
    error: float
    """Mean over prompts of 1 / (1 + N h), N being the draws that the budget pays: the variance of log Z where there are
    many hits, and 1, about that of a guess, where there are none."""
    gain: float
    """The reference's error less this one's."""
    gain_error: float
    """Standard error of the gain, over prompts."""


def pooled_weights(pool: PilotDraws) -> Array:
    """``W`` of every draw: their sum is 1 for every prompt in expectation, shape (n,)."""
    counts = np.stack([np.bincount(pool.prompt, pool.source == k) for k in range(pool.log_sources.shape[1])], axis=1)
    with np.errstate(divide="ignore"):
        log_counts = np.log(counts[pool.prompt])
    return np.exp(pool.log_ref - np.logaddexp.reduce(log_counts + pool.log_sources, axis=1))


def measure_candidate(
    pool: PilotDraws, name: str, log_mu: Array | None, *, reference_share: float, cost: float, budget: float
) -> tuple[MeasuredCandidate, Array]:
    """Judge one candidate: its measurement, ``gain`` being 0, and each prompt's error.

    ``log_mu`` is every draw's log-probability under the candidate, None for the reference alone. ``cost`` counts
    forward passes per token of one trajectory, ``budget`` those to be spent on a prompt.
    """
    weight = pooled_weights(pool)
    log_ratio = np.zeros(len(weight)) if log_mu is None else pool.log_ref - log_mu
    share = np.full(len(weight), 1.0 if log_mu is None else reference_share)
    w = np.exp(balance_log_weights(log_ratio, share))
    hit = weight * pool.success
    q, moment = np.bincount(pool.prompt, hit), np.bincount(pool.prompt, hit * w * pool.success)
    known = q > 0
    hits = np.zeros(len(q))
    hits[known] = q[known] ** 2 / moment[known]
    finite = np.where(hit > 0, log_ratio, 0.0)
    divergence = np.bincount(pool.prompt, hit * finite)[known] / q[known] - np.log(np.minimum(q[known], 1.0))
    error = 1.0 / (1.0 + budget / cost * hits)
    mean = float(divergence.mean()) if known.any() else float("nan")
    return MeasuredCandidate(name, cost, mean, float(hits.mean()), float(error.mean()), 0.0, 0.0), error


def compare_candidates(found: list[tuple[MeasuredCandidate, Array]]) -> tuple[list[MeasuredCandidate], int, str]:
    """Give every candidate its gain over the first, the reference alone, and choose.

    Returns the candidates, the index of the chosen one, and why.
    """
    reference = found[0][1]
    rows = []
    for measured, error in found:
        gain = reference - error
        spread = float(gain.std(ddof=1) / np.sqrt(len(gain))) if len(gain) > 1 else float("inf")
        rows.append(measured._replace(gain=float(gain.mean()), gain_error=spread))
    best = max(range(len(rows)), key=lambda i: rows[i].gain)
    one = rows[best]
    if best == 0:
        return rows, 0, "no candidate has a smaller error than reference draws at equal cost"
    said = f"{one.name} lowers the error by {one.gain:.3f} ± {one.gain_error:.3f} at equal cost"
    if one.gain <= one.gain_error:
        return rows, 0, f"{said}, no more than its standard error: reference draws"
    return rows, best, said
