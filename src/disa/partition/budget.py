"""Spend a budget of trajectories where log Z is least certain.

A pilot for every prompt; then the rest of the budget in rounds, each allocated from all draws so far by
:func:`disa.partition.allocation.next_round`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from disa.errors import DisaError
from disa.partition.allocation import Counts, capped, next_round
from disa.partition.draws import collect_draws, trajectory_arrays
from disa.partition.estimate import LogPartitionBatch, estimate_log_partition_batch
from disa.runs.records import ScoredTrajectory

Draw = Callable[[int, int, str], Sequence[ScoredTrajectory]]
"""``draw(prompt_index, n, source)``: n new scored trajectories from ``reference`` or ``proposal``."""


@dataclasses.dataclass(frozen=True)
class BudgetResult:
    """Estimates from an adaptively spent budget, and the draws behind them."""

    estimates: LogPartitionBatch
    draws: tuple[tuple[ScoredTrajectory, ...], ...]
    """Every prompt's trajectories, the pilot's first."""
    capped: NDArray[np.bool_]
    """Prompts that reached the cap short of the precision; the estimates carry it as a flag."""
    spent: int


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
        Smallest share of each prompt's trajectories that comes from the reference, in (0, 1]: the pilot's.
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
    the prompt's final shares, which the rounds move from ``reference_share`` to those of least variance
    (:func:`disa.partition.allocation.least_variance_share`).
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
    b = beta * (reward_range[1] - reward_range[0])

    def extend(reference: Counts, proposal: Counts) -> None:
        for source, sizes in (("reference", reference), ("proposal", proposal)):
            for i in np.flatnonzero(sizes).tolist():
                rows[i] += _drawn(draw, i, int(sizes[i]), source)

    first = np.full(prompts, math.ceil(reference_share * pilot))
    extend(first, pilot - first)
    for remaining_rounds in range(rounds, 0, -1):
        draws = collect_draws(**trajectory_arrays(rows), beta=beta, reward_range=reward_range)
        further = next_round(
            draws,
            (budget - len(draws.prompt)) // remaining_rounds,
            cap=cap,
            b=b,
            reference_share=reference_share,
            precision=precision,
            outlook=(1.0 - reference_share) * budget / prompts,
        )
        extend(*further)

    estimates = estimate_log_partition_batch(
        **trajectory_arrays(rows), beta=beta, reward_range=reward_range, level=level
    )
    stopped = capped(estimates.n, estimates.hits_ess, cap=cap, precision=precision)
    flags = [(*f, "capped") if mark else f for f, mark in zip(estimates.flags, stopped, strict=True)]
    estimates = dataclasses.replace(estimates, flags=tuple(flags))
    return BudgetResult(estimates, tuple(tuple(r) for r in rows), stopped, int(estimates.n.sum()))


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
