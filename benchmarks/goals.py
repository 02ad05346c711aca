"""What the project's own comparisons are to show, checked against the numbers that ``disa compare`` wrote."""

from __future__ import annotations

from typing import Any, NamedTuple

from disa.evaluation.tables import largest_k

MODES_FACTOR, QUALITY_FACTOR = 2.0, 0.9
"""DISA's effective modes are to be this many times GRPO's, at a Mean@k of at least this share of GRPO's."""

SUPERVISED = ("lora_sft", "sft")
"""Fine-tuning on the correct offline trajectories, with adapters and in full."""
_MARKS = {True: "met", False: "missed", None: "open"}


class Goal(NamedTuple):
    """One goal on held-out prompts."""

    claim: str
    met: bool | None
    """By the means over seeds; None where a method or a metric is missing."""
    numbers: str
    """What it was judged by, with the interval of the paired difference where there is one."""


def goal_rows(results: dict[str, Any]) -> list[list[str]]:
    """Header and one row per goal."""
    return [["", "goal", "numbers"], *([_MARKS[g.met], g.claim, g.numbers] for g in check_goals(results))]


def check_goals(results: dict[str, Any]) -> list[Goal]:
    """Goals of DISA's best mode, in the order they were set, from a comparison's ``results.json``."""
    mean = f"mean@{largest_k(results['reference']['heldout'], 'mean')}"
    label = mean.replace("mean@", "Mean@")
    return [
        *(_judged(f"{label} no lower than {m}'s", _pair(results, m, mean), at_least=True) for m in ("flowrl", "a2po")),
        _modes_of_grpo(results, mean, label),
        *(
            _judged(f"{label} above {m}'s on the same trajectories", _pair(results, m, mean), at_least=False)
            for m in SUPERVISED
            if m in results["methods"]
        ),
        _nearest(results),
    ]


def _judged(claim: str, pair: tuple[float, float, str] | None, *, at_least: bool) -> Goal:
    if pair is None:
        return Goal(claim, None, "not measured")
    return Goal(claim, pair[0] > pair[1] or (at_least and pair[0] == pair[1]), pair[2])


def _modes_of_grpo(results: dict[str, Any], mean: str, label: str) -> Goal:
    claim = f"effective modes at least {MODES_FACTOR:g}x grpo's at {label} at least {QUALITY_FACTOR:g}x grpo's"
    quality, modes = _pair(results, "grpo", mean), _pair(results, "grpo", "effective_modes")
    if quality is None or modes is None:
        return Goal(claim, None, "not measured")
    met = modes[0] >= MODES_FACTOR * modes[1] and quality[0] >= QUALITY_FACTOR * quality[1]
    ratios = [f"{pair[0] / pair[1]:.2f}x" if pair[1] else "no mode of grpo" for pair in (modes, quality)]
    return Goal(claim, met, f"effective modes {ratios[0]}: {modes[2]}; {label} {ratios[1]}: {quality[2]}")


def _nearest(results: dict[str, Any]) -> Goal:
    claim, best = "the lowest KL to the target of all", results["best_mode"]
    found = {m: _value(results, m, "kl_to_target") for m in results["methods"]}
    values = {method: value for method, value in found.items() if value is not None}
    others = {method: value for method, value in values.items() if method != best}
    if best not in values or not others:
        return Goal(claim, None, "not measured")
    nearest = min(others, key=others.__getitem__)
    before = sum(value < values[best] for value in others.values())
    met = values[best] < others[nearest]
    place = f"next is {nearest}" if met else f"{nearest} has the lowest, {best} is {before + 1} of {len(values)}"
    return Goal(claim, met, f"{place}: {_pair(results, nearest, 'kl_to_target')[2]}")


def _pair(results: dict[str, Any], other: str, metric: str) -> tuple[float, float, str] | None:
    """Means over seeds of DISA's best mode and another method, and both in words."""
    best = results["best_mode"]
    own, theirs = _value(results, best, metric), _value(results, other, metric)
    if own is None or theirs is None:
        return None
    # Stored the other way round: the method minus the best mode.
    less = results["methods"][other]["minus_best"]["heldout"][metric]
    interval = "" if less["low"] is None else f" [{-less['high']:+.3f}, {-less['low']:+.3f}]"
    return own, theirs, f"{best} {own:.3f}, {other} {theirs:.3f}, {-less['value']:+.3f}{interval}"


def _value(results: dict[str, Any], method: str | None, metric: str) -> float | None:
    number = results["methods"].get(method, {}).get("over_seeds", {}).get("heldout", {}).get(metric)
    return None if number is None else number["value"]
