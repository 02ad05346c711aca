"""Trajectories whose proposal is unknown: what can still be estimated, and what is refused."""

from __future__ import annotations

import dataclasses

import numpy as np

from disa.errors import DisaError
from disa.runs.scored_columns import Scored, ScoredColumns


def weighable(rows: Scored, method: str) -> ScoredColumns:
    """Rows that the method can weight: all, or for ``pass_rate`` the reference's where the proposal is unknown.

    Raises DisaError where an importance weight needs a log-probability under the proposal that nobody knows.
    """
    columns = ScoredColumns.of(rows)
    unknown = int(np.isnan(columns.log_proposal).sum())
    if not unknown:
        return columns
    if method == "pass_rate" and columns.from_reference.any():
        reference = columns.where(columns.from_reference)
        return dataclasses.replace(reference, log_proposal=reference.log_ref)
    raise DisaError(
        f"{unknown} of {len(columns)} trajectories have no log-probability under the proposal, so no importance weight",
        where="partition",
        fix="give models.proposal, or log_prob in every imported row with proposals.reference_share: 0; or set "
        "partition.method: pass_rate, which estimates from the reference's draws alone. Supervised methods need none "
        "of this: disa training RECIPE --set 'training.methods=[sft]'",
    )
