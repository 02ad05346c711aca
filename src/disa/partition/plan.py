"""Plan further trajectories of a run: which draws of which prompts a round of an adaptive budget adds.

Draws are numbered within prompt and source, and prompt, source and number determine a trajectory's random numbers.
A plan is therefore a range of numbers, and drawing it again gives the same rows.
"""

from __future__ import annotations

from collections.abc import Sequence

from disa.partition.allocation import next_round
from disa.partition.budget import trajectory_arrays
from disa.partition.draws import collect_draws
from disa.records import ScoredTrajectory

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
    """
    by_prompt: dict[str, list[ScoredTrajectory]] = {}
    for row in sorted(rows, key=lambda row: (row.prompt_id, row.source, row.draw)):
        by_prompt.setdefault(row.prompt_id, []).append(row)
    draws = collect_draws(**trajectory_arrays(list(by_prompt.values())), beta=beta, reward_range=reward_range)
    reference, proposal = next_round(
        draws,
        budget,
        cap=cap,
        b=beta * (reward_range[1] - reward_range[0]),
        reference_share=reference_share,
        precision=precision,
        outlook=outlook,
    )
    made = draws.reference_counts.astype(int), draws.counts - draws.reference_counts.astype(int)
    return {
        prompt_id: {
            source: range(int(first[i]), int(first[i] + further[i]))
            for source, first, further in (("reference", made[0], reference), ("proposal", made[1], proposal))
        }
        for i, prompt_id in enumerate(by_prompt)
    }
