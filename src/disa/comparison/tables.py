"""The tables of a comparison: one row per method, one column per metric, with what is to be known of each."""

from __future__ import annotations

import math

from disa.comparison.results import LEVEL, OWN, ComparisonResults, OverSeeds
from disa.display.table import Table, with_error
from disa.evaluation.metrics import clustered_mean
from disa.evaluation.tables import MARK, metric_label, shown_metrics

Row = list[str]

_EQUAL = {
    "completions": "Completions drawn in training and offline trajectories read are equal in their sum, but for "
    "offline methods, which draw none.",
    "steps": "Completions drawn per step are equal, but for offline methods, which draw none; offline trajectories "
    "come on top.",
}
_BUDGET = (
    "Every method has equally many batches of completions. A batch is learned from in as many optimiser steps as the "
    "search chose, and a step of disa_both from as many stored trajectories beside it; sequences learned from count a "
    "completion as often as it was used. Drawn in training is the budget without the anchor, which every inverse "
    "temperature, seed and method that reads it shares. {} Seconds are those of training, mean over seeds."
)


def comparison_tables(results: ComparisonResults) -> list[Table]:
    """Every table there are numbers for."""
    unfinished = f" {results.missing} policies of the recipe are not finished and not in it." if results.missing else ""
    found = [
        Table(
            method_rows(results),
            "Results",
            f"Held-out prompts, mean over training seeds ± one standard error over seeds.{unfinished}",
        ),
        Table(
            difference_rows(results),
            "Differences",
            f"Each method minus {results.best}, the best of DISA's modes (*) by {results.criterion} on validation "
            f"prompts, mean over seeds: {mode_scores(results)}. Differences are paired by prompt and seed, with a "
            f"{LEVEL:.0%} t interval over seeds; {MARK} marks an interval without 0.",
        ),
        Table(budget_rows(results), "Budget", _BUDGET.format(_EQUAL[results.equal])),
        Table(
            search_rows(results),
            "Search",
            f"{results.criterion} on validation prompts of every candidate, the chosen one in brackets.",
            rate_notes(results),
        ),
    ]
    return [table for table in found if table.rows]


def method_rows(results: ComparisonResults) -> list[Row]:
    """Header and one row per method: every metric as mean over seeds with its standard error."""
    metrics = _shown(results)
    rows = [["method", "seeds", *map(metric_label, metrics)]]
    heldout = results.reference["heldout"]
    reference = [f"{clustered_mean(heldout[m].values()).value:.3f}" for m in metrics]
    rows.append(["reference", "", *reference])
    for method in results.methods:
        cells = [seeds_text(method.metric("heldout", m)) for m in metrics]
        name = f"{method.method} *" if method.method == results.best else method.method
        rows.append([name, str(len(method.values)), *cells])
    return rows


def difference_rows(results: ComparisonResults) -> list[Row]:
    """Header and one row per method: paired differences to DISA's best mode; empty where it is not finished."""
    if results.best is None:
        return []
    metrics = _shown(results)
    rows = [[f"minus {results.best}", *map(metric_label, metrics)]]
    for method in results.methods:
        if method.method != results.best:
            found = [results.difference(method.method, results.best, "heldout", m) for m in metrics]
            rows.append([method.method, *(interval_text(d) for d in found)])
    return rows


def budget_rows(results: ComparisonResults) -> list[Row]:
    """Header and one row per method: what it was given, and the time its training took."""
    columns = ["batches", "steps per batch", "drawn per batch", "stored per step"]
    columns += ["drawn in training", "offline read", "completions", "sequences learned from"]
    rows = [["method", *columns, "seconds"]]
    for method in results.methods:
        b = method.budget
        learned = b.steps * method.uses * (b.drawn_per_step + b.stored_per_step)
        numbers = (b.steps, method.uses, b.drawn_per_step, b.stored_per_step, b.drawn, b.read, b.completions, learned)
        rows.append([method.method, *(f"{n:,}" for n in numbers), f"{method.seconds.value:.0f}"])
    return rows


def search_rows(results: ComparisonResults) -> list[Row]:
    """Header and one row per method: every candidate with its score, the chosen one in brackets."""
    rows = []
    for method in results.methods:
        texts = [(f"{_settings(c.point)}: {c.score:.3f}", c.point == method.point) for c in method.search]
        if texts:
            rows.append([method.method, *(f"[{text}]" if chosen else text for text, chosen in texts)])
    width = max((len(row) for row in rows), default=1) - 1
    return [["method", *(f"candidate {i + 1}" for i in range(width))], *rows] if rows else []


def rate_notes(results: ComparisonResults) -> list[str]:
    """Say for which methods a better learning rate may lie outside the search: an end or a single one was chosen."""
    found: dict[str, list[str]] = {"largest": [], "smallest": [], "alone": []}
    for method in results.methods:
        rates = {candidate.learning_rate for candidate in method.search}
        chosen = [candidate.learning_rate for candidate in method.search if candidate.point == method.point]
        if len(rates) == 1:
            found["alone"].append(method.method)
        elif chosen:
            found["largest"] += [method.method] if chosen[0] == max(rates) else []
            found["smallest"] += [method.method] if chosen[0] == min(rates) else []
    texts = {
        "largest": "The largest learning rate tried was chosen for {}: a larger one may be better.",
        "smallest": "The smallest learning rate tried was chosen for {}: a smaller one may be better.",
        "alone": "A single learning rate was tried for {}: another one may be better.",
    }
    return [texts[end].format(", ".join(names)) for end, names in found.items() if names]


def mode_scores(results: ComparisonResults) -> str:
    """What chose the best of DISA's modes: each one's criterion on validation prompts, over its seeds."""
    modes = [method for method in results.methods if method.method in OWN]
    return ", ".join(f"{m.method} {seeds_text(m.metric('validation', results.criterion))}" for m in modes)


def verdict_lines(results: ComparisonResults) -> list[str]:
    """Where each other method's interval of the difference to DISA's best mode leaves out 0, as sentences."""
    if results.best is None:
        return ["No mode of DISA is finished."]
    metrics, said = _shown(results), []
    for method in results.methods:
        if method.method != results.best:
            found = {m: results.difference(method.method, results.best, "heldout", m) for m in metrics}
            parts = [f"{metric_label(m)} {interval_text(d)}" for m, d in found.items() if d is not None and d.clear]
            said.append(
                f"{method.method} minus {results.best}: {'; '.join(parts) or 'no metric differs beyond noise'}."
            )
    return [f"The best of DISA's modes is {results.best}, chosen on validation prompts.", *said]


def seeds_text(number: OverSeeds | None) -> str:
    """``0.312 ± 0.011``; no error with one seed, nothing where it was not measured."""
    return "" if number is None else with_error(number.value, number.se)


def interval_text(number: OverSeeds | None) -> str:
    """``+0.012 [+0.003, +0.021] *``; no interval with one seed, a mark where it leaves out 0."""
    if number is None:
        return ""
    interval = "" if math.isnan(number.low) else f" [{number.low:+.3f}, {number.high:+.3f}]"
    return f"{number.value:+.3f}{interval}" + (f" {MARK}" if number.clear else "")


def _shown(results: ComparisonResults) -> list[str]:
    values = [results.reference, *(v for method in results.methods for v in method.values.values())]
    idle = [] if any(any(v.get("heldout", {}).get("undecided", {}).values()) for v in values) else ["undecided"]
    return shown_metrics(results.metrics("heldout"), idle=idle)


def _settings(point: dict) -> str:
    return ", ".join(f"{name} {value}" for name, value in point.items()) or "as in the recipe"
