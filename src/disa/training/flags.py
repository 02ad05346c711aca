"""What training does with prompts whose log Z is flagged.

A flag says that the frozen estimate of a prompt cannot be relied on (:mod:`disa.partition.verdict`). Four policies::

    train    use it all the same; on-policy an error adds noise and no bias
    group    log Z of such a prompt is its group's mean, as in VarGrad
    skip     such a prompt is not trained on; its places go to others
    refuse   do not start, and name the prompts

A fifth one comes before the anchor is frozen, as nothing here may change it: ``proposals.resample`` draws again for
prompts flagged for want of draws, and these policies act on what is flagged then.

With ``group`` and ``skip`` the forward projection, which weights trajectories by the frozen log Z, leaves such prompts
out as well.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Literal

from disa.anchor import Anchor
from disa.errors import DisaError
from disa.runs.records import ScoredTrajectory

FlagPolicy = Literal["train", "group", "skip", "refuse"]
LogZSource = Literal["anchor", "group", "skip"]
POLICIES: tuple[FlagPolicy, ...] = ("train", "group", "skip", "refuse")
HARMLESS = frozenset({"gated"})
"""Flags that report which estimator was used and say nothing against its result."""


@dataclasses.dataclass(frozen=True)
class FlagPlan:
    """Where each prompt's log Z comes from in training."""

    source: Mapping[str, LogZSource]
    """By prompt id."""

    def count(self, source: str) -> int:
        """Number of prompts with this source."""
        return sum(found == source for found in self.source.values())


def flagged_prompts(anchor: Anchor, prompt_ids: Sequence[str]) -> list[str]:
    """Prompts with any flag that is not harmless, in the given order.

    Raises DisaError where a prompt has no estimate.
    """
    anchor.log_z(prompt_ids)
    return [p for p in prompt_ids if set(anchor.estimates[p].flags) - HARMLESS]


def flag_plan(anchor: Anchor, prompt_ids: Sequence[str], policy: FlagPolicy, *, prompts_per_step: int = 1) -> FlagPlan:
    """Decide for each prompt of the training set.

    Raises DisaError with ``refuse``, where a prompt is flagged; with ``skip``, where fewer than ``prompts_per_step``
    are not.
    """
    marked = set(flagged_prompts(anchor, prompt_ids))
    if policy == "refuse" and marked:
        named = ", ".join(sorted(marked)[:5]) + (", ..." if len(marked) > 5 else "")
        raise DisaError(
            f"{len(marked)} of {len(prompt_ids)} prompts are flagged: {named}",
            where="training, flagged=refuse",
            fix="draw more trajectories (proposals.resample or proposals.per_prompt), estimate and freeze again; "
            "'disa inspect' says what each flag asks for",
        )
    left = len(prompt_ids) - len(marked)
    if policy == "skip" and left < prompts_per_step:
        raise DisaError(
            f"{len(marked)} of {len(prompt_ids)} prompts are flagged, which leaves {left} to train on, "
            f"expected at least the {prompts_per_step} of a step",
            where="training, flagged=skip",
            fix="draw more trajectories, use flagged=group, or take fewer prompts per step",
        )
    other: LogZSource = policy if policy == "group" or policy == "skip" else "anchor"
    return FlagPlan({p: other if p in marked else "anchor" for p in prompt_ids})


def with_frozen_log_z(rows: Sequence[ScoredTrajectory], plan: FlagPlan) -> list[ScoredTrajectory]:
    """Stored trajectories of the prompts whose frozen log Z is used: the forward projection weights each row by it.

    Raises DisaError where there are rows, and none is left.
    """
    kept = [row for row in rows if plan.source[row.prompt_id] == "anchor"]
    if rows and not kept:
        raise DisaError(
            f"all {len(plan.source)} prompts are flagged, which leaves none of {len(rows)} stored trajectories to the "
            "forward projection, expected those of at least one prompt",
            where="training, flagged=group or skip with an offline share",
            fix="draw more trajectories, use flagged=train, or train disa with offline_share 0",
        )
    return kept


def require_frozen_log_z(prompt_ids: Collection[str], plan: FlagPlan) -> None:
    """Refuse offline trajectories of prompts whose frozen log Z is not used."""
    others = sorted(p for p in prompt_ids if plan.source.get(p, "anchor") != "anchor")
    if others:
        raise DisaError(
            f"offline trajectories of {len(others)} flagged prompts, {others[0]} first, are weighted by a log Z that "
            f"flagged={plan.source[others[0]]!r} does not use, expected none",
            where="DISATrainer",
            fix="leave them out by disa.training.flags.with_frozen_log_z(rows, plan), or use flagged='train'",
        )
