"""What ``disa compare`` leaves behind: a table to read and one JSON of every number in it."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

from disa.comparison.goals import Goal, check_goals
from disa.comparison.results import ComparisonResults, OverSeeds
from disa.comparison.tables import aligned, budget_rows, difference_rows, results_rows, search_rows
from disa.recipe import Recipe
from disa.rundir import write_json

VERSION = 1


def write_results(folder: Path, results: ComparisonResults, recipe: Recipe) -> str:
    """Write ``results.json`` and ``table.txt``; returns the table."""
    goals = check_goals(results)
    table = text(results, goals)
    write_json(folder / "results.json", as_json(results, goals, recipe))
    (folder / "table.txt").write_text(table + "\n", encoding="utf-8")
    return table


def text(results: ComparisonResults, goals: list[Goal]) -> str:
    """Everything as aligned plain text."""
    blocks = ["held-out prompts, mean over seeds ± standard error\n" + aligned(results_rows(results))]
    if differences := difference_rows(results):
        blocks.append(
            f"differences to {results.best} (*: DISA's best mode by {results.criterion} on validation prompts), paired "
            "by prompt and seed, 95% t interval over seeds\n" + aligned(differences)
        )
    blocks.append("budget; offline methods draw no completions in training\n" + aligned(budget_rows(results)))
    if search := search_rows(results):
        blocks.append(f"search: {results.criterion} on validation prompts, chosen in brackets\n" + aligned(search))
    marks = {True: "met", False: "missed", None: "open"}
    blocks.append("goals of DISA's best mode\n" + aligned([[marks[g.met], g.claim, g.numbers] for g in goals]))
    if results.missing:
        blocks.append(f"{results.missing} policies of the recipe are not finished and not in these numbers")
    return "\n\n".join(blocks)


def as_json(results: ComparisonResults, goals: list[Goal], recipe: Recipe) -> dict[str, Any]:
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
                "search": [{"point": point, "score": score} for point, score in method.search],
                "budget": dataclasses.asdict(method.budget) | {"completions": method.budget.completions},
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
        "goals": [dataclasses.asdict(goal) for goal in goals],
    }


def _mean(values: dict[str, float]) -> float:
    return sum(values.values()) / len(values)


def _number(number: OverSeeds | None) -> dict[str, Any] | None:
    if number is None:
        return None
    return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in dataclasses.asdict(number).items()}
