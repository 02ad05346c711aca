"""Plan further trajectories of a run: which draws of which prompts a round of an adaptive budget adds.

Draws are numbered within prompt and source, and prompt, source and number determine a trajectory's random numbers.
A plan is therefore a range of numbers, and drawing it again gives the same rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from disa.errors import DisaError
from disa.partition.allocation import next_round
from disa.partition.draws import collect_draws, trajectory_columns
from disa.records import PartitionEstimate, ScoredTrajectory

SOURCES = ("reference", "proposal")

Plan = dict[str, dict[str, range]]
"""Prompt id and source to the numbers of the draws to make."""


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
) -> Plan:
    """Spend ``budget`` further draws on the prompts of these rows.

    Undecided rows (reward None) say nothing about log Z, but they were drawn: they count towards the cap, and the next
    draw has a number beyond theirs. A prompt without any decided row gets no more draws.

    Parameters
    ----------
    rows : sequence of ScoredTrajectory
        Everything drawn so far for the prompts that share the budget, in any order.
    budget, cap, reference_share, precision, outlook
        As in :func:`disa.partition.allocation.next_round`.
    beta : float
        Inverse temperature.
    reward_range : tuple of float
        Smallest and largest possible reward.

    Raises
    ------
    DisaError
        Where a draw has no log-probability under the proposal.
    """
    if unknown := sum(row.log_proposal is None for row in rows):
        raise DisaError(
            f"{unknown} of {len(rows)} trajectories have no log-probability under the proposal, and a budget is "
            "allocated by importance weights",
            where="recipe, field proposals.adaptive",
            fix="give models.proposal, or set proposals.adaptive: null",
        )
    made = Counter((row.prompt_id, row.source) for row in rows)
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


def spent(estimates: Sequence[PartitionEstimate], *, cap: int, precision: float) -> dict[str, Any]:
    """What an adaptive budget came to, as plain JSON values: counts a prompt, and how many stopped at the cap.

    ``reached`` prompts have the precision, hits_ess >= 1 / precision^2; ``capped`` ones were stopped at the cap without
    it; where there are others, the budget was spent.
    """
    counts = np.array([row.n for row in estimates])
    reached = np.array([row.hits_ess for row in estimates]) >= precision**-2
    return {
        "trajectories": int(counts.sum()),
        "from_reference": int(sum(row.n_reference for row in estimates)),
        "prompts": len(estimates),
        "fewest": int(counts.min()),
        "median": float(np.median(counts)),
        "most": int(counts.max()),
        "cap": cap,
        "precision": precision,
        "reached": int(reached.sum()),
        "capped": int(((counts >= cap) & ~reached).sum()),
    }
