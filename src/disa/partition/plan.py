"""Plan further trajectories of a run: which draws of which prompts a round adds.

Draws are numbered within prompt and source, and prompt, source and number determine a trajectory's random numbers.
A plan is therefore a range of numbers, and drawing it again gives the same rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from disa.errors import DisaError
from disa.partition.allocation import Counts, capped_without_precision, next_round, reached_precision
from disa.partition.draws import collect_draws, trajectory_columns
from disa.partition.log_weights import Array
from disa.partition.verdict import MENDED_BY_DRAWS
from disa.proposals.config import DrawPlan
from disa.runs.records import SOURCES, PartitionEstimate, ScoredTrajectory
from disa.runs.scored_columns import ScoredColumns


def plan_round(
    rows: Sequence[ScoredTrajectory],
    *,
    budget: int,
    cap: int,
    reference_share: float,
    precision: float,
    outlook: float,
    beta: float,
    reward_range: tuple[float, float],
) -> DrawPlan:
    """Spend ``budget`` further draws on the prompts of these rows.

    Undecided rows (reward None) say nothing about log Z, but they were drawn: they count towards the cap, and the next
    draw has a number beyond theirs. A prompt without any decided row gets no more draws. Raises DisaError where a draw
    has no log-probability under the proposal. ``rows`` are everything drawn so far for the prompts that share the
    budget, in any order; the limits are those of :func:`disa.partition.allocation.next_round`.
    """
    require_weights(rows, "proposals.adaptive")
    made = ScoredColumns.of(rows).counts()
    in_order = sorted(rows, key=lambda row: (row.prompt_id, row.source, row.draw))
    decided = [row for row in in_order if row.reward is not None]
    counts = Counter(row.prompt_id for row in decided)
    if not counts:
        return {}
    undecided = [sum(made[prompt_id, s] for s in SOURCES) - count for prompt_id, count in counts.items()]
    draws = collect_draws(**trajectory_columns(list(counts), decided), beta=beta, reward_range=reward_range)
    further = next_round(
        draws,
        budget,
        cap=cap - np.array(undecided),
        b=beta * (reward_range[1] - reward_range[0]),
        reference_share=reference_share,
        precision=precision,
        outlook=outlook,
    )
    return {
        prompt_id: {
            source: range(made[prompt_id, source], made[prompt_id, source] + int(sizes[i]))
            for source, sizes in zip(SOURCES, further, strict=True)
        }
        for i, prompt_id in enumerate(counts)
    }


def resample_flagged(rows: Sequence[ScoredTrajectory], flags: Mapping[str, Sequence[str]]) -> DrawPlan:
    """Double the draws of every prompt with a flag that draws may remove, of either source.

    The share of reference draws, and with it the mixture that weights are taken against, stays. As flags look at
    rewards, the number of draws depends on them; every draw that was made takes part in the estimate. Undecided rows
    (reward None) were drawn: they are doubled with the others, and a prompt without any decided row, which has no
    estimate and no flags, gets no more. ``rows`` are everything drawn so far for these prompts, in any order.
    """
    made = ScoredColumns.of(rows).counts()
    wanted = [prompt_id for prompt_id, names in flags.items() if MENDED_BY_DRAWS.intersection(names)]
    return {p: {s: range(made[p, s], 2 * made[p, s]) for s in SOURCES} for p in wanted}


def require_weights(rows: Sequence[ScoredTrajectory], field: str) -> None:
    """Refuse rows without importance weights, naming the recipe's field that asks for them.

    Raises DisaError where a draw has no log-probability under the proposal.
    """
    if unknown := sum(row.log_proposal is None for row in rows):
        raise DisaError(
            f"{unknown} of {len(rows)} trajectories have no log-probability under the proposal, and what a round draws "
            "is decided by importance weights",
            where=f"recipe, field {field}",
            fix=f"give models.proposal, or set {field}: null",
        )


def stopped_at_cap(
    estimates: Sequence[PartitionEstimate], made: Mapping[tuple[str, str], int], *, cap: int, precision: float
) -> set[str]:
    """Ids of the prompts that an adaptive budget left at its cap without the precision.

    ``made`` is of :meth:`disa.runs.scored_columns.ScoredColumns.counts`: undecided draws count towards the cap.
    """
    if not estimates:
        return set()
    marks = capped_without_precision(_totals(estimates, made), _hits(estimates), cap=cap, precision=precision)
    return {row.prompt_id for row, mark in zip(estimates, marks, strict=True) if mark}


def spent_budget(
    estimates: Sequence[PartitionEstimate], made: Mapping[tuple[str, str], int], *, cap: int, precision: float
) -> dict[str, Any]:
    """What an adaptive budget came to, as plain JSON values: counts per prompt, and how many stopped at the cap.

    The arguments are those of :func:`stopped_at_cap`. ``reached`` prompts have the precision, hits_ess >= 1 /
    precision^2; ``capped`` ones were stopped at the cap without it; where there are others, the budget was spent.
    """
    return _counted(estimates, made) | {
        "cap": cap,
        "precision": precision,
        "reached": int(reached_precision(_hits(estimates), precision).sum()),
        "capped": len(stopped_at_cap(estimates, made, cap=cap, precision=precision)),
    }


def spent_resampling(estimates: Sequence[PartitionEstimate], made: Mapping[tuple[str, str], int]) -> dict[str, Any]:
    """What drawing again came to, as plain JSON values: counts per prompt, and how many are flagged still.

    The arguments are those of :func:`stopped_at_cap`.
    """
    left = sum(bool(MENDED_BY_DRAWS.intersection(row.flags)) for row in estimates)
    return _counted(estimates, made) | {"still_flagged": left}


def _counted(estimates: Sequence[PartitionEstimate], made: Mapping[tuple[str, str], int]) -> dict[str, Any]:
    counts = _totals(estimates, made)
    return {
        "trajectories": int(counts.sum()),
        "from_reference": sum(made.get((row.prompt_id, "reference"), 0) for row in estimates),
        "prompts": len(estimates),
        "fewest": int(counts.min()),
        "median": float(np.median(counts)),
        "most": int(counts.max()),
    }


def _totals(estimates: Sequence[PartitionEstimate], made: Mapping[tuple[str, str], int]) -> Counts:
    return np.array([sum(made.get((row.prompt_id, source), 0) for source in SOURCES) for row in estimates])


def _hits(estimates: Sequence[PartitionEstimate]) -> Array:
    return np.array([row.hits_ess for row in estimates])
