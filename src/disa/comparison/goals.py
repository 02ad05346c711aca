"""What a comparison is to show, checked against its numbers."""

from __future__ import annotations

import dataclasses
import math

from disa.comparison.results import ComparisonResults
from disa.comparison.tables import interval_text
from disa.report.tables import largest_k

MODES_FACTOR, QUALITY_FACTOR = 2.0, 0.9
"""DISA's effective modes are to be this many times GRPO's, at a Mean@k of at least this share of GRPO's."""

SUPERVISED = ("lora_sft", "sft")
"""Fine-tuning on the correct offline trajectories, with adapters and in full."""


@dataclasses.dataclass(frozen=True)
class Goal:
    """One goal on held-out prompts."""

    claim: str
    met: bool | None
    """By the means over seeds; None where a method or a metric is missing."""
    numbers: str
    """What it was judged by, with the interval of the paired difference where there is one."""


def check_goals(results: ComparisonResults) -> list[Goal]:
    """Goals of DISA's best mode, in the order they were set."""
    mean = f"mean@{largest_k(results.metrics('heldout'), 'mean')}"
    return [
        _no_lower(results, "flowrl", mean),
        _no_lower(results, "a2po", mean),
        _modes_of_grpo(results, mean),
        *(_higher(results, other, mean) for other in SUPERVISED if other in results),
        _nearest(results),
    ]


def _no_lower(results: ComparisonResults, other: str, metric: str) -> Goal:
    claim = f"{_label(metric)} no lower than {other}'s"
    pair = _pair(results, other, metric)
    return Goal(claim, None, "not measured") if pair is None else Goal(claim, pair[0] >= pair[1], pair[2])


def _higher(results: ComparisonResults, other: str, metric: str) -> Goal:
    claim = f"{_label(metric)} above {other}'s on the same trajectories"
    pair = _pair(results, other, metric)
    return Goal(claim, None, "not measured") if pair is None else Goal(claim, pair[0] > pair[1], pair[2])


def _modes_of_grpo(results: ComparisonResults, metric: str) -> Goal:
    claim = f"effective modes at least {MODES_FACTOR:g}x grpo's at {_label(metric)} at least {QUALITY_FACTOR:g}x grpo's"
    quality, modes = _pair(results, "grpo", metric), _pair(results, "grpo", "effective_modes")
    if quality is None or modes is None:
        return Goal(claim, None, "not measured")
    met = modes[0] >= MODES_FACTOR * modes[1] and quality[0] >= QUALITY_FACTOR * quality[1]
    ratios = [f"{pair[0] / pair[1]:.2f}x" if pair[1] else "no mode of grpo" for pair in (modes, quality)]
    return Goal(claim, met, f"effective modes {ratios[0]}: {modes[2]}; {_label(metric)} {ratios[1]}: {quality[2]}")


def _nearest(results: ComparisonResults) -> Goal:
    claim = "the lowest KL to the target of all"
    found = {m.method: m.metric("heldout", "kl_to_target") for m in results.methods}
    values = {method: number.value for method, number in found.items() if number is not None}
    others = {m: value for m, value in values.items() if m != results.best and not math.isnan(value)}
    if results.best not in values or not others:
        return Goal(claim, None, "not measured")
    nearest = min(others, key=others.__getitem__)
    _, _, numbers = _pair(results, nearest, "kl_to_target")
    before = sum(value < values[results.best] for value in others.values())
    met = values[results.best] < others[nearest]
    place = (
        f"next is {nearest}" if met else f"{nearest} has the lowest, {results.best} is {before + 1} of {len(values)}"
    )
    return Goal(claim, met, f"{place}: {numbers}")


def _pair(results: ComparisonResults, other: str, metric: str) -> tuple[float, float, str] | None:
    """Means over seeds of DISA's best mode and another method, and both in words."""
    if results.best is None or other not in results:
        return None
    own, theirs = (results[method].metric("heldout", metric) for method in (results.best, other))
    if own is None or theirs is None:
        return None
    difference = interval_text(results.difference(results.best, other, "heldout", metric))
    return own.value, theirs.value, f"{results.best} {own.value:.3f}, {other} {theirs.value:.3f}, {difference}"


def _label(metric: str) -> str:
    return metric.replace("mean@", "Mean@")
