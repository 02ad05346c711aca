"""Trajectories whose proposal is unknown: what can still be estimated, and what is refused."""

from __future__ import annotations

import dataclasses

from disa.errors import DisaError
from disa.runs.records import ScoredTrajectory


def weighable(rows: list[ScoredTrajectory], method: str) -> list[ScoredTrajectory]:
    """Rows that the method can weight: all, or for ``pass_rate`` the reference's where the proposal is unknown.

    Raises DisaError where an importance weight needs a log-probability under the proposal that nobody knows.
    """
    unknown = sum(row.log_proposal is None for row in rows)
    if not unknown:
        return rows
    reference = [dataclasses.replace(row, log_proposal=row.log_ref) for row in rows if row.source == "reference"]
    if method == "pass_rate" and reference:
        return reference
    raise DisaError(
        f"{unknown} of {len(rows)} trajectories have no log-probability under the proposal, so no importance weight",
        where="partition",
        fix="give models.proposal, or log_prob in every imported row with proposals.reference_share: 0; or set "
        "partition.method: pass_rate, which estimates from the reference's draws alone. Supervised methods need none "
        "of this: disa training RECIPE --set 'training.methods=[sft]'",
    )
