"""An upper bound, with stated confidence, on how far a policy is from the target on given prompts.

With f = log pi - log pi_ref - beta r, ``KL(pi || pi*) = E_pi[f] + log Z``. Both means over the prompts are bounded from
samples by constant bets, which need no variance estimate and no large number of samples (see
:mod:`disa.partition.betting`), and each may fail with half of the probability that is allowed:

- ``mean E_pi[min(f + t, ceiling)]`` from the policy's samples, t a number per prompt;
- ``mean (log Z - t)`` from the trajectories. With c = expm1(beta (r_max - r_min)) and any pilot a of q, the logarithm
  lies below its tangent: ``log1p(c q) <= log1p(c a) + c (q - a) / (1 + c a) =: t + c q / (1 + c a) - c a / (1 + c a)``,
  which is linear in q, so ``v = w s`` estimates it without bias and errors of prompts average out. The pilot comes
  from samples of the reference that the trajectories do not contain.

A sum of bounds then holds with the stated confidence. By Pinsker, and by Bretagnolle and Huber where KL is large,
``TV <= min(sqrt(KL / 2), sqrt(1 - exp(-KL)))``; both are concave, so they hold for means.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

_BETS = 0.5 ** np.arange(9.0)
_PILOT_STRENGTH = 2.0
"""Samples' worth of the prompts' common mean in every prompt's pilot: one of 0 would make its tangent steep."""
_FLOOR = 12.0
"""Nats below the smallest possible -beta r at which f is cut off: ``P_pi(log pi - log pi_ref < -t) <= exp(-t)``."""


@dataclasses.dataclass(frozen=True)
class Certificate:
    """Bounds on means over the prompts; ``kl`` is the estimate plus both margins."""

    kl: float
    """Upper bound on the mean KL(policy || target), nats, a completion's log-ratio to the target counting at most
    ``ceiling``."""
    tv: float
    """Upper bound on the mean total variation that follows."""
    level: float
    estimate: float
    """The same quantity without any margin: means in place of the bounds."""
    from_samples: float
    """Margin for the finite number of the policy's samples, nats."""
    from_trajectories: float
    """Margin for the finite number of trajectories, nats."""
    ceiling: float
    largest: float
    """Largest log-ratio that was seen, nats: far below ``ceiling``, or the ceiling is too low."""
    prompts: int

    @property
    def advice(self) -> str:
        """What would bring the bound down most."""
        samples = self.from_samples > self.from_trajectories
        return f"raise {'evaluation.samples_per_prompt' if samples else 'proposals.per_heldout_prompt'}"


def upper_mean(values: ArrayLike, high: float, miss: float) -> float:
    """Upper bound on the mean of the expectations of independent values in [0, high].

    ``e(m) = mean_j prod_i (1 + c_j (m - x_i) / (high - m))`` has expectation at most 1 at the true mean m, also where
    expectations differ (arithmetic and geometric means), and increases with m: the bound is where it passes 1 / miss.
    No value is above ``high``; ``miss`` is the probability with which the bound may be too low.
    """
    x = np.asarray(values, dtype=np.float64) / high
    low, up = float(x.mean()), 1.0
    for _ in range(60):
        m = (low + up) / 2
        ratio = (m - x) / (1 - m) if m < 1 else np.full_like(x, -1.0)
        with np.errstate(divide="ignore"):
            log_e = np.logaddexp.reduce(np.log1p(np.outer(_BETS, ratio)).sum(axis=1)) - math.log(len(_BETS))
        low, up = (low, m) if log_e >= math.log(1 / miss) else (m, up)
    return up * high


def certify(
    log_ratio: ArrayLike,
    reward: ArrayLike,
    sample_prompt: ArrayLike,
    v: ArrayLike,
    trajectory_prompt: ArrayLike,
    pilot: ArrayLike,
    pilot_prompt: ArrayLike,
    *,
    largest_weight: float,
    beta: float,
    reward_range: tuple[float, float],
    level: float = 0.95,
    ceiling: float = 50.0,
) -> Certificate:
    """Bound the mean KL(policy || target) over the prompts, numbered from 0; each has some of all three kinds of rows.

    ``log_ratio`` is log pi - log pi_ref of the policy's own samples, nats, and ``reward`` theirs, NaN where undecided
    (the smallest reward is then taken, which can only raise the bound). ``v`` is ``w s`` of the trajectories that log Z
    is estimated from: unbiased for q, in [0, largest_weight = 1 / alpha], alpha the smallest share of reference draws
    of any prompt; their number must not depend on what they are. ``pilot`` holds soft successes of reference samples
    that are no trajectories. A completion's log-ratio to the target counts in full up to ``ceiling`` nats: no sample
    can bound the mean of what has no bound; the bound is one on the KL itself where no completion lies above.
    """
    low, high = reward_range
    width = beta * (high - low)
    x, y, z = (np.asarray(p, dtype=np.intp) for p in (sample_prompt, trajectory_prompt, pilot_prompt))
    m, miss = int(x.max()) + 1, (1 - level) / 2
    s = np.asarray(pilot, dtype=np.float64)
    a = (np.bincount(z, s, m) + _PILOT_STRENGTH * max(s.mean(), 1e-3)) / (np.bincount(z, minlength=m) + _PILOT_STRENGTH)
    # c a and c / (1 + c a) without overflow: c is exp(width) - 1.
    slope = 1 / (np.exp(-width) / -np.expm1(-width) + a)
    tangent = beta * low + width + np.log(np.exp(-width) - np.expm1(-width) * a)

    f = np.asarray(log_ratio, dtype=np.float64) - beta * np.nan_to_num(np.asarray(reward, dtype=np.float64), nan=low)
    bottom = -beta * high - _FLOOR + tangent.min()
    cut = np.clip(f + tangent[x], bottom, ceiling)
    from_samples = _mean_over_prompts(cut - bottom, x, m, np.full(m, ceiling - bottom), miss)
    from_trajectories = _mean_over_prompts(np.asarray(v) * slope[y], y, m, largest_weight * slope, miss)
    constant = bottom - float((slope * a).mean())
    kl = float(max(0.0, from_samples[1] + from_trajectories[1] + constant))
    tv = min(math.sqrt(kl / 2), math.sqrt(-math.expm1(-kl)))
    estimate = float(from_samples[0] + from_trajectories[0] + constant)
    samples, trajectories = (bound - mean for mean, bound in (from_samples, from_trajectories))
    return Certificate(kl, tv, level, estimate, samples, trajectories, ceiling, float((f + tangent[x]).max()), m)


def _mean_over_prompts(
    values: Array, prompt: NDArray[np.intp], m: int, high: Array, miss: float
) -> tuple[float, float]:
    """Mean over prompts of means over their rows, in [0, high] each, and its upper bound."""
    counts = np.bincount(prompt, minlength=m)
    weight = len(values) / (m * counts)
    weighted = values * weight[prompt]
    return float(weighted.mean()), upper_mean(weighted, float((high * weight).max()), miss)
