"""What ``disa compare`` leaves behind: a table to read, one JSON of every number in it, figures and one page."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import yaml

from disa.comparison.results import ComparisonResults, OverSeeds
from disa.comparison.tables import comparison_tables, verdict_lines
from disa.display.page import FoldedText, PageFigures, PageLinks, PageSection, PageText, page
from disa.recipe import Recipe
from disa.runs.folders import write_json

VERSION = 3


def write_results(folder: Path, results: ComparisonResults, recipe: Recipe) -> str:
    """Write ``results.json``, ``table.txt``, ``table.md``, ``figures/`` and ``report.html``; returns the text table."""
    # matplotlib takes a second to load
    from disa.comparison.figures import comparison_figures
    from disa.display.figures import figure_style, write_figures

    tables = comparison_tables(results)
    text = "\n\n".join(table.text() for table in tables)
    write_json(folder / "results.json", as_json(results, recipe))
    (folder / "table.txt").write_text(text + "\n", encoding="utf-8")
    (folder / "table.md").write_text("\n\n".join(table.markdown() for table in tables) + "\n", encoding="utf-8")
    with figure_style():
        drawn = write_figures(folder / "figures", comparison_figures(results))
    lead = (
        "All policies start from the same reference and train on the same prompts, with beta = "
        f"{recipe.training.inverse_temperature:g}."
    )
    files = {"every number": "results.json", "the tables as text": "table.txt", "and as Markdown": "table.md"}
    first, *others = tables
    sections = [
        PageSection("Verdict", [PageText(verdict_lines(results))]),
        PageSection(first.title, [first, PageFigures(drawn)]),
        *(PageSection(table.title, [table]) for table in others),
        PageSection("Files", [PageLinks(files), FoldedText("Recipe", yaml.safe_dump(recipe.model_dump(mode="json")))]),
    ]
    written = page(f"{recipe.run_dir}: comparison", lead, sections)
    (folder / "report.html").write_text(written, encoding="utf-8")
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
    }


def _mean(values: dict[str, float]) -> float:
    return sum(values.values()) / len(values)


def _number(number: OverSeeds | None) -> dict[str, Any] | None:
    if number is None:
        return None
    return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in dataclasses.asdict(number).items()}
