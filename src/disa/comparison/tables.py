"""The comparison as rows of text: one row a method, one column a metric."""

from __future__ import annotations

import math

from disa.comparison.results import OWN, ComparisonResults, OverSeeds
from disa.evaluation.metrics import clustered_mean
from disa.report.tables import metric_label, shown_metrics

Row = list[str]


def results_rows(results: ComparisonResults, split: str = "heldout") -> list[Row]:
    """Header and one row a method: every metric as mean over seeds with its standard error."""
    metrics = shown_metrics(results.metrics(split))
    rows = [["method", "seeds", *map(metric_label, metrics)]]
    reference = [f"{clustered_mean(results.reference[split][m].values()).value:.3f}" for m in metrics]
    rows.append(["reference", "", *reference])
    for method in results.methods:
        cells = [seeds_text(method.metric(split, m)) for m in metrics]
        rows.append([_marked(method.method, results.best), str(len(method.values)), *cells])
    return rows


def difference_rows(results: ComparisonResults, split: str = "heldout") -> list[Row]:
    """Header and one row a method: paired differences to DISA's best mode; empty where it is not finished."""
    if results.best is None:
        return []
    metrics = shown_metrics(results.metrics(split))
    rows = [[f"minus {results.best}", *map(metric_label, metrics)]]
    for method in results.methods:
        if method.method != results.best:
            found = [results.difference(method.method, results.best, split, m) for m in metrics]
            rows.append([method.method, *(interval_text(d) for d in found)])
    return rows


def budget_rows(results: ComparisonResults) -> list[Row]:
    """Header and one row a method: what it was given, and the time its training took."""
    columns = ("steps", "drawn a step", "stored a step", "drawn in training", "offline read", "completions", "seconds")
    rows = [["method", *columns]]
    for method in results.methods:
        b = method.budget
        numbers = (b.steps, b.drawn_per_step, b.stored_per_step, b.drawn, b.read, b.completions)
        rows.append([method.method, *(f"{n:,}" for n in numbers), f"{method.seconds.value:.0f}"])
    return rows


def search_rows(results: ComparisonResults) -> list[Row]:
    """Header and one row a method: every candidate with its score, the chosen one in brackets."""
    rows = []
    for method in results.methods:
        cells = []
        for candidate in method.search:
            text = f"{_settings(candidate.point)}: {candidate.score:.3f}"
            cells.append(f"[{text}]" if candidate.point == method.point else text)
        if cells:
            rows.append([method.method, *cells])
    width = max((len(row) for row in rows), default=1) - 1
    return [["method", *(f"candidate {i + 1}" for i in range(width))], *rows] if rows else []


def rate_notes(results: ComparisonResults) -> list[str]:
    """Say for which methods a better learning rate may lie outside the search: an end or a single one was chosen."""
    found = {"largest": [], "smallest": [], "alone": []}
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


def seeds_text(number: OverSeeds | None) -> str:
    """``0.312 ± 0.011``; no error with one seed, nothing where it was not measured."""
    if number is None:
        return ""
    return f"{number.value:.3f}" + ("" if math.isnan(number.se) else f" ± {number.se:.3f}")


def interval_text(number: OverSeeds | None) -> str:
    """``+0.012 [-0.003, +0.027]``; no interval with one seed."""
    if number is None:
        return ""
    interval = "" if math.isnan(number.low) else f" [{number.low:+.3f}, {number.high:+.3f}]"
    return f"{number.value:+.3f}{interval}"


def _marked(method: str, best: str | None) -> str:
    return f"{method} *" if method == best else method


def _settings(point: dict) -> str:
    return ", ".join(f"{name} {value}" for name, value in point.items()) or "as in the recipe"
