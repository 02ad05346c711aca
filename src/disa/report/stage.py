"""Gather what the stages wrote and make the report of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import yaml

from disa.anchor import Anchor
from disa.evaluation.metrics import summarise, summary_to_json
from disa.recipe import Recipe
from disa.report.content import ReportContent
from disa.report.tables import metrics_table_text
from disa.report.write import write_report
from disa.runs.folders import StageFolder, write_json
from disa.runs.records import SOURCES, EvaluationRecord, Prompt
from disa.runs.stage import Stage
from disa.runs.step_log import read_step_log

VERSION = 1


def report_stage(
    recipe: Recipe,
    prompts: Callable[[], list[Prompt]],
    scores: dict[str, StageFolder],
    anchor: StageFolder,
    training: list[StageFolder],
    evaluation: list[StageFolder],
    finished: Callable[[], list[StageFolder]],
) -> Stage:
    """Describe the stage that reports on everything; ``finished`` are all stages of the run."""

    def work(stage: StageFolder) -> None:
        run_report(
            stage,
            recipe,
            prompts=prompts(),
            anchor=Anchor.load(anchor.path),
            training=dict(zip(recipe.training.methods, training, strict=True)),
            records=[row for folder in evaluation for row in folder.rows(EvaluationRecord)],
            parity=_parity(scores),
            finished=finished(),
        )

    inputs = {stage.name: stage for stage in (*scores.values(), anchor, *training, *evaluation)}
    return Stage("report", "8_report", VERSION, {"ks": list(recipe.evaluation.ks)}, inputs, work)


def _parity(folders: dict[str, StageFolder]) -> dict[str, Any]:
    """The parity report of the first draws, with those of the rounds beside it."""
    found = {label: folder.manifest["parity"] for label, folder in folders.items()}
    first = found.pop("scoring")
    return first | {f"{label} {s}": r[s] for label, r in found.items() for s in SOURCES if s in r}


def run_report(
    stage: StageFolder,
    recipe: Recipe,
    *,
    prompts: list[Prompt],
    anchor: Anchor,
    training: dict[str, StageFolder],
    records: list[EvaluationRecord],
    parity: dict[str, Any],
    finished: list[StageFolder],
) -> None:
    """Write ``report.html``, ``figures/``, ``summary.json`` and ``summary.txt``."""
    beta = recipe.training.inverse_temperature
    log_z = {prompt_id: row.log_z for prompt_id, row in anchor.estimates.items()}
    summary = summarise(records, prompts, log_z, beta, recipe.evaluation.ks)
    content = ReportContent(
        title=recipe.run_dir,
        recipe=yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False),
        estimates=list(anchor.estimates.values()),
        anchor_facts=anchor.fingerprint.as_dict(),
        beta=beta,
        training_logs={
            method: _steps(folder, recipe.training.completions_per_step) for method, folder in training.items()
        },
        summary=summary,
        prompts=prompts,
        records=records,
        parity=parity,
        timings={folder.name: folder.manifest["seconds"] for folder in finished},
        versions={name: version for name, version in _packages(finished).items() if version},
    )
    write_report(stage.path, content)
    write_json(stage.path / "summary.json", summary_to_json(summary))
    (stage.path / "summary.txt").write_text(metrics_table_text(summary), encoding="utf-8")
    stage.finish()


def _packages(finished: list[StageFolder]) -> dict[str, str | None]:
    """Package versions as the last finished stage recorded them."""
    return finished[-1].manifest["packages"]


def _steps(folder: StageFolder, completions_per_step: int) -> list[dict[str, Any]]:
    """A step log under the report's names: slashes become underscores, completions are counted."""
    lines = read_step_log(folder.path / "steps.jsonl")
    return [
        {key.replace("/", "_"): value for key, value in line.items()}
        | {"completions": line["step"] * completions_per_step}
        for line in lines
    ]
