"""Gather what the stages wrote and make the report of it."""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from disa.anchor import Anchor
from disa.display.page import Illustration
from disa.evaluation.metrics import per_prompt, prompt_value_rows, summary_to_json
from disa.evaluation.tables import summary_text
from disa.recipe import Recipe
from disa.report.certificates import certificates_of_models
from disa.report.content import ReportContent
from disa.report.sections import report_page
from disa.runs.folders import StageFolder, write_json
from disa.runs.parquet_rows import write_rows
from disa.runs.records import SOURCES, EvaluationRecord, Prompt, PromptValue, ScoredTrajectory
from disa.runs.stage import Stage
from disa.runs.step_log import read_step_log
from disa.scoring.run import decided_rows

VERSION = 4
CERTIFICATES = "certificates.json"


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
            trajectories=[r for folder in scores.values() for r in decided_rows(folder.thin_rows(ScoredTrajectory))],
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
    trajectories: list[ScoredTrajectory],
) -> None:
    """Write the page, ``figures/``, ``summary.json``, ``summary.txt``, ``certificates.json`` and ``values.parquet``."""
    beta = recipe.training.inverse_temperature
    values = per_prompt(
        records,
        {p.prompt_id: p.n_solutions for p in prompts},
        recipe.evaluation.ks,
        log_z={prompt_id: row.log_z for prompt_id, row in anchor.estimates.items()},
        beta=beta,
        has_modes=any(record.mode is not None for record in records),
    )
    packages = finished[-1].manifest["packages"]
    drawn = [f.manifest.get("trajectories", 0) for f in finished if f.name.startswith("3_scoring")]
    content = ReportContent(
        title=recipe.run_dir,
        recipe=yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False),
        estimates=list(anchor.estimates.values()),
        anchor_facts=anchor.fingerprint.as_dict(),
        beta=beta,
        reward_range=anchor.reward_range,
        binary=anchor.binary,
        coverage=anchor.evidence.get("coverage"),
        training_logs={
            method: _steps(folder, recipe.training.completions_per_step, recipe.training.method_uses(method))
            for method, folder in training.items()
        },
        values=values,
        prompts=prompts,
        records=records,
        parity=parity,
        timings={folder.name: folder.manifest["seconds"] for folder in finished},
        completions={"anchor": sum(drawn)}
        | {method: folder.manifest.get("completions", 0) for method, folder in training.items()},
        versions={name: version for name, version in packages.items() if version},
        files=_files(stage, finished),
        certificates=certificates_of_models(records, trajectories, anchor),
        training_completions={
            method: read_step_log(folder.path / "completions.jsonl") for method, folder in training.items()
        },
    )
    write_report(stage.path, content)
    write_json(stage.path / "summary.json", summary_to_json(content.summary))
    write_json(stage.path / CERTIFICATES, {m: dataclasses.asdict(c) for m, c in content.certificates.items()})
    write_rows(stage.path / "values.parquet", prompt_value_rows(values), PromptValue)
    (stage.path / "summary.txt").write_text(summary_text(content.summary), encoding="utf-8")
    stage.finish()


def write_report(report_dir: Path, content: ReportContent) -> Path:
    """Write ``report.html`` and ``figures/*.png`` into ``report_dir``; returns the page.

    The same content gives the same bytes with the same version of matplotlib.
    """
    # matplotlib takes a second to load and only this stage needs it
    from disa.display.figures import figure_style, write_figures
    from disa.report.evaluation_figures import evaluation_figures
    from disa.report.partition_figures import partition_figures
    from disa.report.training_figures import training_figures

    with figure_style():
        figures = {
            "evaluation": evaluation_figures(content),
            "partition": partition_figures(
                content.estimates, content.beta, content.reward_range, binary=content.binary, coverage=content.coverage
            ),
            "training": training_figures(content.training_logs, content.models),
        }
        drawn = iter(write_figures(report_dir / "figures", itertools.chain(*figures.values())))
    sections: dict[str, list[Illustration]] = {name: [next(drawn) for _ in group] for name, group in figures.items()}
    path = report_dir / "report.html"
    path.write_text(report_page(content, sections), encoding="utf-8")
    return path


def _files(stage: StageFolder, finished: list[StageFolder]) -> dict[str, str]:
    """What lies beside the page and in the stages before it, by paths from the page."""
    own = {
        "means and standard errors": "summary.json",
        "every metric of every model and prompt": "values.parquet",
        "the table as text": "summary.txt",
        "the certificates": CERTIFICATES,
    }
    kinds = ("*.parquet", "*.json", "*.jsonl")
    for folder in finished:
        found = sorted(f for kind in kinds for f in folder.path.glob(kind) if f.name != "started.json")
        own |= {f"{folder.name}, {file.name}": os.path.relpath(file, stage.path) for file in found}
    return own


def _steps(folder: StageFolder, completions: int, uses: int) -> list[dict[str, Any]]:
    """A step log under the report's names: slashes become underscores, completions are counted."""
    lines = read_step_log(folder.path / "steps.jsonl")
    return [
        {key.replace("/", "_"): value for key, value in line.items()}
        | {"completions": -(-line["step"] // uses) * completions}
        for line in lines
    ]
