"""Write what a study found: ``results.json``, ``summary.txt``, ``figures/*.png`` and ``study.html``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from disa.report.canvas import illustrations, style
from disa.report.escape import shown
from disa.report.html import document, plates, section
from disa.report.tables import rows_html
from disa.report.write import write_figures
from disa.runs.folders import StageFolder, write_json
from disa.runs.locks import exclusive
from disa.study.figures import study_plates
from disa.study.results import cell_row, error_table, policy_rows, policy_table, reference_row, strength_table
from disa.study.run import Study
from disa.study.share import share
from disa.text_table import aligned

VERSION = 1


def write_report(study: Study) -> StageFolder:
    """Gather the units of a study that has run and write the report's folder; returns it."""
    cells = {cell: study.error(cell) for cell in study.cells()}
    trained = {
        cell: [study.evaluations[cell, seed] for seed in range(study.config.seeds)] for cell in study.policy_cells()
    }
    inputs = {folder.path.relative_to(study.folder).as_posix(): folder for folder in cells.values()}
    inputs |= {
        folder.path.relative_to(study.folder).as_posix(): folder
        for seeds in trained.values()
        for folders in seeds
        for folder in folders
    }
    recipe = study.recipe
    identity = {"ks": list(recipe.evaluation.ks), "inverse_temperature": recipe.training.inverse_temperature}
    stage = StageFolder(study.folder, "report", version=VERSION, identity=identity, inputs=inputs)

    def write() -> None:
        with exclusive(study.folder):
            if not stage.finished:
                stage.begin()
                _write(stage.path, _results(study, cells, trained), yaml.safe_dump(recipe.model_dump(mode="json")))
                stage.finish()

    share([write], study.say)
    return stage


def _results(study: Study, cells: Mapping[Any, StageFolder], trained: Mapping[Any, Any]) -> dict[str, Any]:
    config, ks, prompts = study.config, study.recipe.evaluation.ks, study.heldout()
    betas = dict.fromkeys(cell.beta for cell in trained)
    truth = {beta: study.true_log_z(beta) for beta in betas}
    samples = study.truth.evaluation()[0] if trained else None
    return {
        "inverse_temperature": study.recipe.training.inverse_temperature,
        "inverse_temperatures": list(config.inverse_temperatures),
        "trajectories": list(config.trajectories),
        "strengths": {name: strength.model_dump() for name, strength in config.strengths.items()},
        "prompts": len(prompts),
        "pool": config.pool,
        "truth": config.truth,
        "seeds": config.seeds,
        "method": study.recipe.partition.method,
        "level": study.recipe.partition.level,
        "cells": [cell_row(cell, error) for cell, error in cells.items()],
        "references": [reference_row(samples, beta, prompts, truth[beta], ks) for beta in betas],
        "policies": [
            row for cell, seeds in trained.items() for row in policy_rows(cell, seeds, prompts, truth[cell.beta], ks)
        ],
    }


def _write(folder: Path, results: dict[str, Any], recipe: str) -> None:
    write_json(folder / "results.json", results)
    tables = summary_tables(results)
    text = "\n\n".join(f"{title}\n{aligned(rows)}" for title, rows in tables.items())
    (folder / "summary.txt").write_text(text + "\n", encoding="utf-8")
    with style():
        drawn = illustrations(study_plates(results))
    write_figures(folder / "figures", drawn)
    page = document(
        "Study of the anchor",
        [
            "<h1>Study of the anchor</h1>",
            f'<p class="soft">{shown(lead(results))}</p>',
            *(section(title, rows_html(rows)) for title, rows in tables.items()),
            section("Figures", plates(drawn)),
            section("Recipe", f"<pre>{shown(recipe, limit=len(recipe))}</pre>"),
        ],
    )
    (folder / "study.html").write_text(page, encoding="utf-8")


def summary_tables(results: Mapping[str, Any]) -> dict[str, list[list[str]]]:
    """Tables by title, each with a header row."""
    tables = {"Proposals": strength_table(results)}
    tables |= {
        f"Error of log Z, beta = {beta:g}": error_table(results, beta) for beta in results["inverse_temperatures"]
    }
    policies = policy_table(results)
    return tables | ({"Policies, held-out prompts": policies} if policies else {})


def lead(results: Mapping[str, Any]) -> str:
    """What the numbers are measured on, in three sentences."""
    worst = max(cell["truth_se"] for cell in results["cells"])
    return (
        f"Errors of log Z on {results['prompts']} held-out prompts, estimator {results['method']}, against "
        f"{results['truth']} reference draws a prompt (root mean square standard error at most {worst:.3f} nats, "
        f"subtracted from bias²). A cell's replicates are disjoint blocks of a pool of {results['pool']} trajectories. "
        f"Intervals have level {results['level']:g}; ± is one standard error over prompts."
    )
