"""A recipe's plan: work, time here, time on a stated cluster, and how a finished run compares."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from disa.errors import DisaError
from disa.planning.cluster import Cluster
from disa.planning.rehearsal import Rehearsal
from disa.planning.work import StageWork, count_work
from disa.recipe import Recipe
from disa.rundir import read_json


@dataclasses.dataclass(frozen=True)
class StagePlan:
    """One stage; ``work`` is None where no model runs."""

    stage: str
    seconds: float
    work: StageWork | None = None
    cluster_seconds: float | None = None
    measured: float | None = None

    @property
    def ratio(self) -> float | None:
        """Planned over measured time."""
        return None if not self.measured else self.seconds / self.measured

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        found = dataclasses.asdict(self) | {"ratio": self.ratio}
        if self.work is not None:
            found["work"]["flops"] = self.work.flops
        return found


def make_plan(
    recipe: Recipe, rehearsal: Rehearsal, *, cluster: Cluster | None = None, against: Path | None = None
) -> list[StagePlan]:
    """One row a stage, in pipeline order; the report, a few seconds of plotting, is left out.

    Parameters
    ----------
    cluster : Cluster, optional
        Adds its time for the stages that run the model.
    against : Path, optional
        Run directory whose finished stages are compared.

    Raises
    ------
    DisaError
        Where ``against`` has no finished stage of the plan, or one that drew or saw another number of completions.
    """
    work = count_work(recipe, rehearsal.shape, rehearsal.lengths, rehearsal.prompts)
    plans = []
    for stage in _stages(recipe):
        pace = rehearsal.paces["7_evaluation/reference" if stage.startswith("7_evaluation") else stage]
        own = work.get(stage)
        plans.append(
            StagePlan(
                stage,
                pace.seconds(_units(stage, recipe, rehearsal, own)),
                own,
                cluster.seconds(own) if cluster and own else None,
                _measured(against, stage, own) if against else None,
            )
        )
    if against and all(plan.measured is None for plan in plans):
        raise DisaError("no finished stage of this recipe", where=str(against), fix="give a finished run's directory")
    return plans


def _stages(recipe: Recipe) -> list[str]:
    warmup = ["warmup"] if recipe.warmup else []
    methods = recipe.training.methods
    return [
        "1_tasks",
        *warmup,
        "2_proposals",
        "3_scoring",
        "4_partition",
        "5_anchor",
        *(f"6_training/{method}" for method in methods),
        *(f"7_evaluation/{model}" for model in ("reference", *methods)),
    ]


def _units(stage: str, recipe: Recipe, rehearsal: Rehearsal, work: StageWork | None) -> float:
    """In the unit of the stage's pace."""
    if stage == "warmup":
        return sum(run.steps for run in (recipe.warmup.proposal, recipe.warmup.reference) if run)
    if stage == "3_scoring":
        return work.tokens
    if stage == "4_partition":
        return sum(rehearsal.prompts.values())
    return work.sequences if work else 0.0


def _measured(run_dir: Path, stage: str, work: StageWork | None) -> float | None:
    """Seconds of a finished stage and its rounds, which must have done the same amount of work."""
    path = run_dir / stage / "manifest.json"
    if not path.is_file():
        return None
    rounds = sorted((run_dir / stage).glob("round-*/manifest.json"))
    manifests = [read_json(found) for found in (path, *rounds)]
    # Training counts what it drew and what it learnt from the stored trajectories; methods that draw nothing drew 0.
    kinds = ("sequences", "trajectories", "completions", "stored", "samples")
    keys = [key for key in kinds if manifests[0].get(key)]
    found = sum(manifest[keys[0]] for manifest in manifests) if keys else None
    # An adaptive budget may end before it is spent, and not every prompt is drawn for again.
    if work is not None and found is not None and (found > work.sequences or (found < work.sequences and not rounds)):
        raise DisaError(
            f"the run has {found} completions in {stage}, the recipe asks for {work.sequences}",
            where=str(path),
            fix="plan the recipe that the run was made with, or --set what has changed since",
        )
    return sum(manifest["seconds"] for manifest in manifests)
