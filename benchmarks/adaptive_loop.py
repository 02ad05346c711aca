"""An adaptive budget over any source of trajectories: what the rounds of a run do, in memory."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from disa.partition.allocation import Counts, capped_without_precision, next_round
from disa.partition.draws import collect_draws, trajectory_arrays
from disa.partition.estimate import LogPartitionBatch, estimate_log_partition_batch
from disa.runs.records import ScoredTrajectory

Draw = Callable[[int, int, str], Sequence[ScoredTrajectory]]
"""``draw(prompt_index, n, source)``: n new scored trajectories from ``reference`` or ``proposal``."""


@dataclasses.dataclass(frozen=True)
class BudgetResult:
    """Estimates from an adaptively spent budget, and every prompt's trajectories, the pilot's first."""

    estimates: LogPartitionBatch
    draws: list[list[ScoredTrajectory]]
    capped: NDArray[np.bool_]
    spent: int


def adaptive_budget(
    draw: Draw,
    *,
    prompts: int,
    budget: int,
    pilot: int,
    cap: int,
    beta: float,
    reference_share: float = 0.25,
    precision: float = 0.1,
    rounds: int = 3,
) -> BudgetResult:
    """Draw a pilot for every prompt, then the rest of the budget in rounds, and estimate log Z from all draws."""
    rows: list[list[ScoredTrajectory]] = [[] for _ in range(prompts)]

    def extend(reference: Counts, proposal: Counts) -> None:
        for source, sizes in (("reference", reference), ("proposal", proposal)):
            for i in np.flatnonzero(sizes).tolist():
                rows[i] += draw(i, int(sizes[i]), source)

    first = np.full(prompts, math.ceil(reference_share * pilot))
    extend(first, pilot - first)
    for left in range(rounds, 0, -1):
        draws = collect_draws(**trajectory_arrays(rows), beta=beta, reward_range=(0.0, 1.0))
        extend(
            *next_round(
                draws,
                (budget - len(draws.prompt)) // left,
                cap=cap,
                b=beta,
                reference_share=reference_share,
                precision=precision,
                outlook=(1.0 - reference_share) * budget / prompts,
            )
        )
    estimates = estimate_log_partition_batch(**trajectory_arrays(rows), beta=beta)
    stopped = capped_without_precision(estimates.n, estimates.hits_ess, cap=cap, precision=precision)
    return BudgetResult(estimates, rows, stopped, int(estimates.n.sum()))
