"""What ``disa compare`` leaves behind: a table to read, one JSON of every number in it, figures and one page."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

from disa.comparison.blocks import blocks
from disa.comparison.goals import check_goals
from disa.comparison.page import page
from disa.comparison.results import ComparisonResults, OverSeeds
from disa.recipe import Recipe
from disa.report.blocks import markdown_table
from disa.report.write import write_figures
from disa.runs.folders import write_json
from disa.text_table import aligned

VERSION = 2


def write_results(folder: Path, results: ComparisonResults, recipe: Recipe) -> str:
    """Write ``results.json``, ``table.txt``, ``table.md``, ``figures/`` and ``report.html``; returns the text table."""
    # matplotlib takes a second to load
    from disa.comparison.figures import comparison_plates
    from disa.report.canvas import illustrations, style

    tables = blocks(results)
    text = "\n\n".join("\n".join([block.reading, aligned(block.rows), *block.notes]) for block in tables)
    write_json(folder / "results.json", as_json(results, recipe))
    (folder / "table.txt").write_text(text + "\n", encoding="utf-8")
    parts = [part for block in tables for part in (block.reading, markdown_table(block.rows), " ".join(block.notes))]
    markdown = "\n\n".join(filter(None, parts))
    (folder / "table.md").write_text(markdown + "\n", encoding="utf-8")
    with style():
        drawn = illustrations(comparison_plates(results))
    write_figures(folder / "figures", drawn)
    (folder / "report.html").write_text(page(tables, recipe, drawn), encoding="utf-8")
    return text


def as_json(results: ComparisonResults, recipe: Recipe) -> dict[str, Any]:
    """Plain JSON values; undefined errors and ends of intervals are null."""
    splits = list(results.reference)
    return {
        "version": VERSION,
        "recipe": recipe.model_dump(mode="json"),
        "best_mode": results.best,
        "criterion": results.criterion,
        "missing": results.missing,
        "reference": {s: {m: _mean(v) for m, v in metrics.items()} for s, metrics in results.reference.items()},
        "methods": {
            method.method: {
                "point": method.point,
                "search": [
                    {"point": c.point, "score": None if math.isnan(c.score) else c.score} for c in method.search
                ],
                "budget": dataclasses.asdict(method.budget)
                | {"drawn": method.budget.drawn, "completions": method.budget.completions},
                "seconds": _number(method.seconds),
                "seeds": {
                    str(seed): {s: {m: _mean(v) for m, v in metrics.items()} for s, metrics in values.items()}
                    for seed, values in method.values.items()
                },
                "over_seeds": {s: {m: _number(method.metric(s, m)) for m in results.metrics(s)} for s in splits},
                "minus_best": {
                    s: {m: _number(results.difference(method.method, results.best, s, m)) for m in results.metrics(s)}
                    for s in splits
                }
                if results.best
                else None,
            }
            for method in results.methods
        },
        "goals": [dataclasses.asdict(goal) for goal in check_goals(results)],
    }


def _mean(values: dict[str, float]) -> float:
    return sum(values.values()) / len(values)


def _number(number: OverSeeds | None) -> dict[str, Any] | None:
    if number is None:
        return None
    return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in dataclasses.asdict(number).items()}
