"""A recipe's plan: work, time here, time on a stated cluster, and how a finished run compares."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from disa.errors import DisaError
from disa.planning.cluster import Cluster
from disa.planning.rehearsal import Rehearsal
from disa.planning.work import StageWork, count_work
from disa.recipe import Recipe
from disa.runs.folders import read_json
from disa.runs.peaks import KINDS


@dataclasses.dataclass(frozen=True)
class StagePlan:
    """One stage; ``work`` is None where no model runs."""

    stage: str
    seconds: float
    work: StageWork | None = None
    cluster_seconds: float | None = None
    measured: float | None = None
    made: float = 1.0
    """Share of the planned completions that the measured run made: rounds of drawing may end early."""
    held: int | None = None
    """Bytes that a process of the measured run held at most, of the GPU where it used one."""

    @property
    def ratio(self) -> float | None:
        """Planned over measured time, for what the run made."""
        return None if not self.measured else self.made * self.seconds / self.measured

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        found = dataclasses.asdict(self) | {"ratio": self.ratio}
        if self.work is not None:
            found["work"] |= {"flops": self.work.flops, "memory": self.work.memory}
        return found


def make_plan(
    recipe: Recipe, rehearsal: Rehearsal, *, cluster: Cluster | None = None, against: Path | None = None
) -> list[StagePlan]:
    """One row per stage, in pipeline order; the report, a few seconds of plotting, is left out.

    Raises DisaError where ``against`` has no finished stage of the plan, or one that drew or saw another number of
    completions (before any rounds, which may draw less than planned). A ``cluster`` adds its time for the stages that
    run the model, whose memory is then that of its GPUs; ``against`` is a run directory to compare with.
    """
    checkpointed = cluster is not None or torch.cuda.is_available()
    work = count_work(recipe, rehearsal.shape, rehearsal.lengths, rehearsal.prompts, checkpointed=checkpointed)
    counts = {split: sum(recipe.proposals.counts(split).values()) for split in rehearsal.prompts}
    first = sum(number * counts[split] for split, number in rehearsal.prompts.items())
    plans = []
    for stage in _stages(recipe):
        pace = rehearsal.paces["7_evaluation/reference" if stage.startswith("7_evaluation") else stage]
        own = work.get(stage)
        rounds = recipe.proposals.rounds if stage in ("2_proposals", "3_scoring") else 0
        measured, made = _measured(against, stage, own, rounds, first) if against else (None, 1.0)
        plans.append(
            StagePlan(
                stage,
                pace.seconds(_units(stage, recipe, rehearsal, own)),
                own,
                cluster.seconds(own) if cluster and own else None,
                measured,
                made,
                _held(against, stage, rounds) if against else None,
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
    if stage == "warmup" and recipe.warmup:
        return sum(run.steps for run in (recipe.warmup.proposal, recipe.warmup.reference) if run)
    if stage == "3_scoring" and work:
        return work.tokens
    if stage == "4_partition":
        return sum(rehearsal.prompts.values())
    return work.sequences if work else 0.0


def _measured(
    run_dir: Path, stage: str, work: StageWork | None, rounds: int = 0, first: int = 0
) -> tuple[float | None, float]:
    """Seconds of a finished stage and its rounds, and the share of the planned completions that they made.

    A stage without rounds must have made all of them, one with rounds the ``first`` ones that come before.
    """
    manifests = _manifests(run_dir, stage, rounds)
    if not manifests:
        return None, 1.0
    seconds = sum(manifest["seconds"] for manifest in manifests)
    # Training counts what it drew and what it learnt from the stored trajectories; methods that draw nothing drew 0.
    kinds = ("sequences", "trajectories", "completions", "stored", "samples")
    keys = [key for key in kinds if manifests[0].get(key)]
    if work is None or not keys:
        return seconds, 1.0
    found, asked = manifests[0][keys[0]], first if rounds else work.sequences
    if found != asked:
        raise DisaError(
            f"the run has {found} completions in {stage}, the recipe asks for {asked}",
            where=str(run_dir / stage / "manifest.json"),
            fix="plan the recipe that the run was made with, or --set what has changed since",
        )
    return seconds, sum(manifest[keys[0]] for manifest in manifests) / work.sequences


def _held(run_dir: Path, stage: str, rounds: int) -> int | None:
    """Most bytes of a finished stage and its rounds: those of the accelerator where it had one."""
    manifests = _manifests(run_dir, stage, rounds)
    found = [[m[kind] for m in manifests if kind in m] for kind in reversed(KINDS)]
    return next((max(values) for values in found if values), None)


def _manifests(run_dir: Path, stage: str, rounds: int) -> list[dict[str, Any]]:
    folder = run_dir / stage
    if not (folder / "manifest.json").is_file():
        return []
    folders = [folder, *(folder / f"round-{number}" for number in range(1, rounds + 1))]
    return [read_json(one / "manifest.json") for one in folders]
