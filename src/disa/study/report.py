"""Write what a study found: ``results.json``, ``summary.txt``, ``figures/*.png`` and ``study.html``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from disa.display.figures import figure_style, write_figures
from disa.display.page import FoldedText, PageFigures, PageLinks, PageSection, PageText, page
from disa.display.table import with_error
from disa.runs.folders import StageFolder, write_json
from disa.runs.locks import exclusive
from disa.study.figures import study_figures
from disa.study.results import cell_row, policy_rows, reference_row, study_tables
from disa.study.run import Study

VERSION = 2


def write_report(study: Study) -> StageFolder:
    """Gather the units of a study that has run and write the report's folder; returns it."""
    cells = {cell: study.error(cell) for cell in study.cells()}
    trained = {
        cell: [study.evaluations[cell, seed] for seed in range(study.config.seeds)] for cell in study.policy_cells()
    }
    read = [*cells.values(), *(folder for seeds in trained.values() for folders in seeds for folder in folders)]
    inputs = {folder.path.relative_to(study.folder).as_posix(): folder for folder in read}
    recipe = study.recipe
    identity = {"ks": list(recipe.evaluation.ks), "inverse_temperature": recipe.training.inverse_temperature}
    stage = StageFolder(study.folder, "report", version=VERSION, identity=identity, inputs=inputs)

    def write() -> None:
        with exclusive(study.folder):
            if not stage.finished:
                stage.begin()
                _write(stage.path, _results(study, cells, trained), yaml.safe_dump(recipe.model_dump(mode="json")))
                stage.finish()

    study.share({"report": write})
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
        "references": [reference_row(samples, beta, prompts, truth[beta], ks) for beta in betas if samples],
        "policies": [
            row for cell, seeds in trained.items() for row in policy_rows(cell, seeds, prompts, truth[cell.beta], ks)
        ],
    }


def _write(folder: Path, results: dict[str, Any], recipe: str) -> None:
    write_json(folder / "results.json", results)
    tables = study_tables(results)
    text = "\n\n".join(f"{table.title}\n{table.text()}" for table in tables)
    (folder / "summary.txt").write_text(text + "\n", encoding="utf-8")
    with figure_style():
        drawn = write_figures(folder / "figures", study_figures(results))
    sections = [
        PageSection("Verdict", [PageText(verdict_lines(results))]),
        *(PageSection(table.title, [table]) for table in tables),
        PageSection("Figures", [PageFigures(drawn)]),
        PageSection(
            "Files",
            [PageLinks({"every number": "results.json", "the tables": "summary.txt"}), FoldedText("Recipe", recipe)],
        ),
    ]
    (folder / "study.html").write_text(page("Study of the anchor", study_lead(results), sections), encoding="utf-8")


def verdict_lines(results: Mapping[str, Any]) -> list[str]:
    """Which proposal estimates log Z best, and which policies ended clearly nearer or farther, as sentences."""
    said = []
    for beta in results["inverse_temperatures"]:
        at = [cell for cell in results["cells"] if cell["inverse_temperature"] == beta]
        best = {n: min((c for c in at if c["trajectories"] == n), key=_rmse) for n in results["trajectories"]}
        cells = ", ".join(f"{c['strength']} at N = {n} ({_rmse(c):.3f})" for n, c in best.items())
        said.append(f"Beta {beta:g}, smallest RMSE of log Z in nats: {cells}.")
    for row in results["policies"]:
        gain = row["gains"].get("kl_to_target", {"se": None})
        if gain["se"] is not None and abs(gain["value"]) > 2 * gain["se"]:
            where = f"Beta {row['inverse_temperature']:g}, {row['strength']}, N = {row['trajectories']}"
            end = "nearer to" if gain["value"] < 0 else "farther from"
            less = with_error(abs(gain["value"]), gain["se"])
            said.append(f"{where}: {row['method']} ends {end} the target than the reference, by {less} nats.")
    return said


def _rmse(cell: Mapping[str, Any]) -> float:
    return cell["rmse"]["value"]


def study_lead(results: Mapping[str, Any]) -> str:
    """What the numbers are measured on, in three sentences."""
    worst = max(cell["truth_se"] for cell in results["cells"])
    return (
        f"Errors of log Z on {results['prompts']} held-out prompts, estimator {results['method']}, against "
        f"{results['truth']} reference draws per prompt (root mean square standard error at most {worst:.3f} nats, "
        f"subtracted from bias²). A cell's replicates are disjoint blocks of a pool of {results['pool']} trajectories. "
        f"Intervals have level {results['level']:g}; ± is one standard error over prompts."
    )
