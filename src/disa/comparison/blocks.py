"""The tables of a comparison with what is to be known of each, once for terminal, Markdown and page."""

from __future__ import annotations

import dataclasses

from disa.comparison.goals import check_goals
from disa.comparison.results import LEVEL, ComparisonResults
from disa.comparison.tables import Row, budget_rows, difference_rows, mode_scores, rate_notes, results_rows, search_rows

_MARKS = {True: "met", False: "missed", None: "open"}
_EQUAL = {
    "completions": "Completions drawn in training and offline trajectories read are equal in their sum, but for "
    "offline methods, which draw none.",
    "steps": "Completions drawn in a step are equal, but for offline methods, which draw none; offline trajectories "
    "come on top.",
}
_BUDGET = (
    "Every method takes equally many optimiser steps. A step learns from the completions drawn in it and from stored "
    "trajectories: disa_both from as many of both. {} Seconds are those of training, mean over seeds."
)


@dataclasses.dataclass(frozen=True)
class Block:
    """One table."""

    title: str
    reading: str
    rows: list[Row]
    """Header first."""
    notes: list[str] = dataclasses.field(default_factory=list)
    """Sentences beneath it."""


def blocks(results: ComparisonResults) -> list[Block]:
    """Every table there are numbers for."""
    unfinished = f" {results.missing} policies of the recipe are not finished and not in it." if results.missing else ""
    goals = [["", "goal", "numbers"], *([_MARKS[g.met], g.claim, g.numbers] for g in check_goals(results))]
    found = [
        Block(
            "Results",
            f"Held-out prompts, mean over training seeds ± one standard error over seeds.{unfinished}",
            results_rows(results),
        ),
        Block(
            "Differences",
            f"Each method minus {results.best}, the best of DISA's modes (*) by {results.criterion} on validation "
            f"prompts, mean over seeds: {mode_scores(results)}. Differences are paired by prompt and seed, with a "
            f"{LEVEL:.0%} t interval over seeds.",
            difference_rows(results),
        ),
        Block("Goals", "Goals of DISA's best mode, judged by means over seeds.", goals),
        Block("Budget", _BUDGET.format(_EQUAL[results.equal]), budget_rows(results)),
        Block(
            "Search",
            f"{results.criterion} on validation prompts of every candidate, the chosen one in brackets.",
            search_rows(results),
            rate_notes(results),
        ),
    ]
    return [block for block in found if block.rows]
