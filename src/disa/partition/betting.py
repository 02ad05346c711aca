"""Betting intervals for q: finite-sample valid, without any assumption on the weights' shape.

For a candidate mean m, a bettor who stakes the fraction g of the wealth on every draw ends with::

    K+(m) = prod_i (1 + g (x_i / m - 1))               against "the mean is at most m"
    K-(m) = prod_i (1 + g (m - x_i) / (1 - m))         against "the mean is at least m",  x_i in [0, 1]

and no bettor multiplies the wealth by 2/a with probability above a/2 when m is the mean (Markov).
The interval holds the m at which neither side has. This is the hedged capital of Waudby-Smith and
Ramdas (arXiv 2010.09686) with their grid of constant bets, averaged over g, and not their adaptive
bets: the draws of a mixture are independent but come in strata with different means,
under which only constant bets keep E[K] <= 1 (the product of 1 + g (m_i / m - 1) is at most 1 by the
inequality of arithmetic and geometric means). Constant bets also ignore the order of the draws.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from disa.partition.draws import Draws
from disa.partition.log_weights import Array, linear_weights

_BETS_LOW, _BETS_HIGH = 8, 5
"""Bets in each side's grid: neighbours differ by about a factor of two at 100s of draws."""

_WEIGHTS_HIGH = np.array([0.5, 0.125, 0.125, 0.125, 0.125])
"""Half of the upper side's wealth starts on the largest bet, the best one while effective hits are few."""

_BISECTIONS = 24
"""Halvings of a bracket at most some 30 nats wide: ends are exact to 2e-6 relative, and rounded outwards."""

_BLOCK_ROWS = 16_384
"""Draws handled together, so that the (bets, draws) temporaries stay in cache."""


def betting(draws: Draws, level: float) -> tuple[Array, Array]:
    """Interval for q from the capital of constant bets on the draws' ``v = w s``.

    The upper end needs the bound ``w_max = 1 / alpha``; without reference draws it is 1. Without hits the lower end is
    0 and the upper one finite. Returns both ends, in [0, 1], shape (prompts,).
    """
    v = linear_weights(draws.log_w) * draws.soft
    n, mean = draws.counts.astype(np.float64), draws.sum(v) / draws.counts
    # Draws without reward all pay alike: count them, and keep one per prompt so that no group is empty.
    first = np.zeros(len(v), dtype=bool)
    first[draws.starts] = True
    kept = np.flatnonzero((v > 0) | first)
    x, owner = v[kept], draws.prompt[kept]
    edges = np.searchsorted(owner, np.arange(len(n) + 1) + draws.prompt[0])
    low, high = np.zeros(len(n)), np.ones(len(n))
    threshold = np.log(2.0 / (1.0 - level))
    begin = 0
    while begin < len(n):
        end = max(begin + 1, int(np.searchsorted(edges, edges[begin] + _BLOCK_ROWS, side="right")) - 1)
        block = slice(begin, end)
        rows = slice(edges[begin], edges[end])
        starts = edges[begin:end] - edges[begin]
        group = _Group(x[rows], starts, np.diff(edges[begin : end + 1]), n[block], mean[block])
        low[block] = group.low(threshold)
        scale = draws.reference_counts[block] / n[block]  # 1 / w_max
        high[block] = np.where(scale > 0, group.high(threshold, scale), 1.0)
        begin = end
    return np.minimum(low, 1.0), np.minimum(high, 1.0)


class _Group:
    """The kept draws of a block of prompts."""

    def __init__(self, x: Array, starts: NDArray[np.intp], kept: NDArray[np.intp], n: Array, mean: Array) -> None:
        self.x, self.starts, self.kept, self.n, self.mean = x, starts, kept, n, mean

    def low(self, threshold: float) -> Array:
        """Smallest mean not refuted by K+, by bisection on log m."""
        # One hit among N draws pays best at g = 1/N; draws that all hit, at g near 1.
        bets = _geometric(0.9, 0.9 / self.n, _BETS_LOW)
        hits = self.mean > 0
        mean = np.where(hits, self.mean, 1.0)
        bets_of, misses = np.repeat(bets, self.kept, axis=1), self.n - self.kept

        def refuted(m: Array) -> NDArray[np.bool_]:
            gain = np.log1p(bets_of * (self.x / np.repeat(m, self.kept) - 1.0))
            return self._log_mean(gain, misses * np.log1p(-bets), np.full(_BETS_LOW, 1 / _BETS_LOW)) >= threshold

        # K+ at this m exceeds the threshold by the single bet g = 0.9/N on the largest draw (at least the mean).
        outside = np.log(mean) - threshold - np.log(self.n) - np.log(_BETS_LOW) - 3.0
        return np.where(hits, _bisect(refuted, outside, np.log(mean)), 0.0)

    def high(self, threshold: float, scale: Array) -> Array:
        """Largest mean not refuted by K-, on draws scaled into [0, 1], back on the scale of q."""
        # Against m = q + z sqrt(q / N) the best bet is near (m - q) / m: from 1 down to about 2/sqrt(N).
        bets = _geometric(1.0, np.minimum(0.5, 2.0 / np.sqrt(self.n)), _BETS_HIGH)
        scale = np.where(scale > 0, scale, 1.0)
        x = np.minimum(self.x * np.repeat(scale, self.kept), 1.0)  # at most 1 up to rounding
        bets_of, misses = np.repeat(bets, self.kept, axis=1), self.n - self.kept
        mean = np.minimum(self.mean * scale, 1.0)

        def refuted(m: Array) -> NDArray[np.bool_]:
            of = np.repeat(m, self.kept)
            with np.errstate(divide="ignore", invalid="ignore"):
                gain = np.log1p(bets_of * ((of - x) / (1.0 - of)))
                missed = misses * np.log1p(bets * (m / (1.0 - m)))
                return self._log_mean(gain, missed, _WEIGHTS_HIGH) >= threshold

        # Below 1/(N 1000) nothing is refuted yet: K- is at most exp(N m / (1 - m)).
        inside = np.log(np.maximum(mean, 1e-3 / self.n))
        return _bisect(refuted, np.zeros(len(mean)), inside) / scale

    def _log_mean(self, gain: Array, missed: Array, weights: Array) -> Array:
        log_wealth = np.add.reduceat(gain, self.starts, axis=1) + missed
        top = log_wealth.max(axis=0)
        return top + np.log(weights @ np.exp(log_wealth - top))


def _geometric(largest: float, smallest: Array, bets: int) -> Array:
    steps = np.linspace(0.0, 1.0, bets)[:, None]
    return largest * (smallest / largest) ** steps


def _bisect(refuted: Callable[[Array], NDArray[np.bool_]], outside: Array, inside: Array) -> Array:
    """Outer end of the bracket [outside, inside] of log m after narrowing it: always refuted, or where it began."""
    for _ in range(_BISECTIONS):
        middle = 0.5 * (outside + inside)
        out = refuted(np.exp(middle))
        outside, inside = np.where(out, middle, outside), np.where(out, inside, middle)
    return np.exp(outside)
