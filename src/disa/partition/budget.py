"""Spend a budget of trajectories where log Z is least certain.

With ``v = w s`` and ``c_x = sd(v) expm1(b) / Z`` on the mixture of prompt x, the error of log Z has variance
``c_x^2 / N_x`` (delta method), and the sum over prompts at a fixed total is smallest for (Neyman 1934)::

    N_x proportional to c_x

A pilot estimates c_x; the rest of the budget follows in rounds, each from all draws so far, within the cap. A
prompt whose hits_ess reaches 1 / eps^2, a relative error of about eps, gets no more.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from disa.errors import DisaError
from disa.partition.diagnostics import effective_sample_sizes
from disa.partition.draws import Draws, collect_draws
from disa.partition.estimate import LogPartitionBatch, estimate_log_partition_batch
from disa.partition.gate import gated
from disa.partition.log_weights import Array, linear_weights
from disa.records import ScoredTrajectory

Draw = Callable[[int, int, str], Sequence[ScoredTrajectory]]
"""``draw(prompt_index, n, source)``: n new scored trajectories from ``reference`` or ``proposal``."""

Counts = NDArray[np.intp]

_HALVINGS = 100
"""Of a bracket for the common factor of N_x: down to one ulp."""


@dataclasses.dataclass(frozen=True)
class BudgetResult:
    """Estimates from an adaptively spent budget, and the draws behind them."""

    estimates: LogPartitionBatch
    draws: tuple[tuple[ScoredTrajectory, ...], ...]
    """Every prompt's trajectories, the pilot's first."""
    capped: NDArray[np.bool_]
    """Prompts that reached the cap short of the precision: treat them as flagged."""
    spent: int


def allocate(pilot_sd_over_z: ArrayLike, counts: ArrayLike, budget: int, cap: ArrayLike) -> Counts:
    """Further draws per prompt, so that the totals come as close to Neyman's as draws already made allow.

    Totals are ``N_x = clip(t c_x, counts, max(cap, counts))`` with the t at which the budget is spent, rounded
    to whole draws by largest remainder. That minimises ``sum_x c_x^2 / N_x`` under these limits.

    Parameters
    ----------
    pilot_sd_over_z : array, shape (prompts,)
        c_x, non-negative; see :func:`relative_spread`. A prompt with 0 gets nothing.
    counts : array of int, shape (prompts,)
        Draws already made.
    budget : int
        Further draws in total.
    cap : int or array of int, shape (prompts,)
        Largest total of a prompt; one at its cap gets nothing.

    Returns
    -------
    array of int, shape (prompts,)
        Sums to the budget, or to less where the caps of all prompts with c_x > 0 are reached.

    Raises
    ------
    DisaError
        Where shapes differ, or a value is negative or not finite.
    """
    c, made = np.asarray(pilot_sd_over_z, dtype=np.float64), np.asarray(counts)
    if c.ndim != 1 or made.shape != c.shape or np.shape(cap) not in ((), c.shape):
        raise DisaError(f"shapes {c.shape}, {made.shape} and {np.shape(cap)} of sd over Z, counts and cap do not agree")
    if not (np.isfinite(c) & (c >= 0)).all() or (made < 0).any() or budget < 0:
        raise DisaError("sd over Z, counts and budget must be finite and not negative", where="allocate")
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
    """``c_x = sd(v) expm1(b) / Z`` per prompt, with half a hit in one more draw as prior.

    The prior's hit has the weight of a typical one, ``w_bar = sum(v^2) / sum(v)``, or 1 without hits, so that
    neither no hits nor hits alone look like certainty. Without hits in N draws and for large b,
    c_x is about sqrt(2 N): a prompt is not given up before its cap.

    Parameters
    ----------
    draws : Draws
    b : float
        beta times the width of the reward range.
    """
    v = linear_weights(draws.log_w) * draws.soft
    total, squares = draws.sum(v), draws.sum(v * v)
    w_bar = np.where(total > 0, squares / np.where(total > 0, total, 1.0), 1.0)
    mean = (total + 0.5 * w_bar) / (draws.counts + 1.0)
    variance = (squares + 0.5 * w_bar**2) / (draws.counts + 1.0) - mean**2
    # expm1(b) / (1 + expm1(b) q) = 1 / (exp(-b) / (1 - exp(-b)) + q), for any b.
    return np.sqrt(np.maximum(variance, 0.0)) / (np.exp(-b) / -np.expm1(-b) + mean)


def adaptive_budget(
    draw: Draw,
    *,
    prompts: int,
    budget: int,
    pilot: int,
    cap: int,
    beta: float,
    reward_range: tuple[float, float] = (0.0, 1.0),
    reference_share: float = 0.25,
    precision: float = 0.1,
    rounds: int = 3,
    level: float = 0.9,
) -> BudgetResult:
    """Draw a pilot for every prompt, then the rest of the budget by :func:`allocate`, and estimate log Z.

    Parameters
    ----------
    draw : callable
        ``draw(prompt_index, n, source)`` returns n new scored trajectories of one prompt, drawn
        independently of earlier ones, ``source`` being ``reference`` or ``proposal``.
    prompts : int
        Number of prompts.
    budget : int
        Trajectories in total, the pilot's included.
    pilot, cap : int
        Trajectories of every prompt in the pilot, and at most in all.
    beta : float
        Inverse temperature.
    reward_range : tuple of float
        Smallest and largest possible reward.
    reference_share : float
        Share of each prompt's trajectories that comes from the reference, in (0, 1].
    precision : float
        eps: a prompt with hits_ess >= 1 / eps^2 gets no more.
    rounds : int
        Allocations after the pilot; each spends an equal part of what is left.
    level : float
        Two-sided level of the intervals.

    Returns
    -------
    BudgetResult

    Raises
    ------
    DisaError
        Where the budget does not pay for the pilot, a setting is out of range, or ``draw`` returns other
        trajectories than it was asked for.

    Notes
    -----
    All draws of a prompt, the pilot's too, enter one estimate as one deterministic mixture: the weights use
    the prompt's final shares, which the rounds keep at ``reference_share`` (rounded up to whole draws).
    Where the gate is closed, further draws come from the reference alone, and the estimate is the pass
    rate of these and the pilot's reference draws. A gate that closes only after the last round leaves a prompt
    with few reference draws, flagged ``gated``: more rounds, and a pilot of 16 or more, make that rare.

    The sizes depend on earlier draws, so q is no longer exactly unbiased: a prompt whose pilot came
    out low gets more draws, which dilutes the low pilot more than a high one is diluted. With
    N_x in proportion to q^(-1/2) that gives q a relative bias of about +CV^2 / (2 N), the size of the
    Jensen bias of log q and against it: both vanish as 1 / N, beside a standard error of CV / sqrt(N).
    Intervals are those for fixed sizes.
    """
    _check_settings(prompts, budget, pilot, cap, reference_share, precision, rounds)
    rows: list[list[ScoredTrajectory]] = [[] for _ in range(prompts)]
    made = np.zeros((prompts, 2), dtype=np.intp)  # reference, proposal
    b = beta * (reward_range[1] - reward_range[0])

    def extend(wanted: Counts, reference_only: NDArray[np.bool_]) -> None:
        total = made.sum(axis=1) + wanted
        share = np.where(reference_only, total, np.ceil(reference_share * total).astype(np.intp))
        reference = np.clip(share - made[:, 0], 0, wanted)
        for column, (source, sizes) in enumerate((("reference", reference), ("proposal", wanted - reference))):
            for i in np.flatnonzero(sizes).tolist():
                rows[i] += _drawn(draw, i, int(sizes[i]), source)
            made[:, column] += sizes

    extend(np.full(prompts, pilot), np.zeros(prompts, dtype=bool))
    for remaining_rounds in range(rounds, 0, -1):
        left = budget - int(made.sum())
        draws = collect_draws(**trajectory_arrays(rows), beta=beta, reward_range=reward_range)
        closed = gated(draws)
        used = draws.reference_only(closed)
        reached = effective_sample_sizes(used)[1] >= precision**-2
        unused = draws.counts - used.counts
        limit = np.where(reached, 0, cap - unused)
        further = allocate(relative_spread(used, b), used.counts, left // remaining_rounds, limit)
        extend(further, closed)

    estimates = estimate_log_partition_batch(
        **trajectory_arrays(rows), beta=beta, reward_range=reward_range, level=level
    )
    capped = (made.sum(axis=1) >= cap) & (estimates.hits_ess < precision**-2)
    return BudgetResult(estimates, tuple(tuple(r) for r in rows), capped, int(made.sum()))


def _drawn(draw: Draw, prompt: int, n: int, source: str) -> list[ScoredTrajectory]:
    found = list(draw(prompt, n, source))
    if len(found) != n or any(row.source != source for row in found):
        sources = ", ".join(sorted({row.source for row in found})) or "nowhere"
        raise DisaError(
            f"returned {len(found)} trajectories from {sources}, asked for {n} from {source}",
            where=f"draw, prompt {prompt}",
            fix="return exactly the trajectories asked for",
        )
    return found


def trajectory_arrays(rows: Sequence[Sequence[ScoredTrajectory]]) -> dict[str, Any]:
    """Trajectories by prompt as the arrays that the estimators take."""
    flat = [row for prompt in rows for row in prompt]
    return {
        "rewards": np.array([row.reward for row in flat]),
        "prompt_index": np.repeat(np.arange(len(rows)), [len(prompt) for prompt in rows]),
        "log_ref": np.array([row.log_ref for row in flat]),
        "log_proposal": np.array([row.log_proposal for row in flat]),
        "from_reference": np.array([row.source == "reference" for row in flat]),
        "lengths": np.array([len(row.completion_ids) for row in flat], dtype=np.float64),
    }


def _check_settings(
    prompts: int, budget: int, pilot: int, cap: int, reference_share: float, precision: float, rounds: int
) -> None:
    rules = (
        ("prompts", prompts, prompts >= 1, "at least 1"),
        ("pilot", pilot, pilot >= 1, "at least 1"),
        ("budget", budget, budget >= prompts * pilot, f"at least prompts * pilot = {prompts * pilot}"),
        ("cap", cap, cap >= pilot, f"at least the pilot, {pilot}"),
        ("reference_share", reference_share, 0 < reference_share <= 1, "a number above 0 and at most 1"),
        ("precision", precision, precision > 0, "a relative error above 0"),
        ("rounds", rounds, rounds >= 1, "at least 1"),
    )
    for name, value, good, expected in rules:
        if not good:
            raise DisaError(f"{name} is {value}, expected {expected}", where="adaptive_budget")
