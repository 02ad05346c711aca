"""Figures of a comparison: quality against diversity, distance to the target, and what training cost."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from disa.comparison.results import ComparisonResults, MethodResult
from disa.comparison.tables import seeds_text
from disa.display.figures import (
    GUIDE,
    Figure,
    ScatterPoint,
    model_styles,
    name_curves,
    new_axes,
    plain_log,
    point_look,
    quality_against_diversity,
    running_mean,
)
from disa.evaluation.metrics import clustered_mean
from disa.evaluation.tables import largest_k

Styles = Mapping[str, Mapping[str, Any]]
Array = NDArray[np.float64]


def comparison_figures(results: ComparisonResults) -> list[Figure]:
    """Every figure there are numbers for."""
    styles = model_styles(["reference", *(m.method for m in results.methods)])
    return [*_scatter(results), *distance_to_target(results, styles), *learning_curves(results, styles)]


def _scatter(results: ComparisonResults) -> list[Figure]:
    """Mean@k against effective modes on held-out prompts; none where the task has no modes."""
    metrics = [f"mean@{largest_k(results.metrics('heldout'), 'mean')}", "effective_modes"]
    if "effective_modes" not in results.metrics("heldout"):
        return []
    mean, modes = ((clustered_mean(results.reference["heldout"][m].values()).value, math.nan) for m in metrics)
    points = [ScatterPoint("reference", mean, modes)]
    for method in results.methods:
        quality, diversity = (method.metric("heldout", metric) for metric in metrics)
        if quality is not None and diversity is not None:
            points.append(ScatterPoint(method.method, (quality.value, quality.se), (diversity.value, diversity.se)))
    lead = "Held-out prompts; bars are one standard error over seeds."
    return quality_against_diversity(points, metrics[0].replace("mean", "Mean"), lead)


def distance_to_target(results: ComparisonResults, styles: Styles) -> list[Figure]:
    """KL to the target of every method on held-out prompts; none where the anchor lacks them."""
    if "kl_to_target" not in results.metrics("heldout"):
        return []
    found = {m.method: n for m in results.methods if (n := m.metric("heldout", "kl_to_target")) is not None}
    if not found:
        return []
    order = sorted(found, key=lambda method: -found[method].value)
    drawing, axes = new_axes("Distance to the target", "KL(policy || target), nats", "")
    for row, method in enumerate(order):
        error = np.nan_to_num(found[method].se)
        axes.errorbar(found[method].value, row, xerr=error, **point_look(styles[method]))
    axes.set_yticks(range(len(order)), order)
    reference = clustered_mean(results.reference["heldout"]["kl_to_target"].values()).value
    axes.axvline(reference, color=GUIDE, linestyle="--", linewidth=1, label="reference")
    if min(n.value for n in found.values()) > 0:
        # Methods that maximise reward lie ten times farther off than those that match the target.
        axes.set_xscale("log")
        plain_log(axes.xaxis)
    name_curves(axes)
    said = "; ".join(f"{method} {seeds_text(found[method])}" for method in reversed(order))
    caption = (
        "Held-out prompts, mean over seeds with one standard error; further left is nearer. "
        f"Reference {reference:.3f}; {said}."
    )
    return [Figure("kl_to_target", drawing, caption)]


def learning_curves(results: ComparisonResults, styles: Styles) -> list[Figure]:
    """Training reward against completions, and against wall time.

    Offline methods see no reward while they train: their finished policy's, on training prompts, is one point, where
    any were evaluated.
    """
    curves = {method.method: reward_curve(method) for method in results.methods}
    k = largest_k(results.metrics("train"), "mean")
    ends_of = {m.method: None if k is None else m.metric("train", f"mean@{k}") for m in results.methods}
    shown = [m for m in results.methods if ends_of[m.method] is not None or curves[m.method] is not None]
    if not shown:
        return []
    completions, seconds = (
        new_axes("Reward against completions", "completions, offline ones included", "mean reward"),
        new_axes("Reward against time", "seconds of training", "mean reward"),
    )
    ends = []
    for method in shown:
        curve, look = curves[method.method], styles[method.method]
        if curve is None:
            end = ends_of[method.method]
            assert end is not None  # else the method is not shown
            for (_, axes), x in ((completions, method.budget.read), (seconds, method.seconds.value)):
                axes.plot(x, end.value, **point_look(look), label=method.method)
            ends.append(f"{method.method} {end.value:.3f}")
            continue
        drawn, wall, reward = curve
        line = {"color": look["color"], "linestyle": look["linestyle"], "linewidth": 1.5, "label": method.method}
        completions[1].plot(drawn, reward, **line)
        seconds[1].plot(wall, reward, **line)
        ends.append(f"{method.method} {reward[-1]:.3f}")
    for _, axes in (completions, seconds):
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,g}")
        name_curves(axes)
    offline = "are sampled on training prompts: single points" if k is not None else "saw no reward and are not shown"
    caption = (
        f"Mean over seeds and a tenth of training; offline methods' policies {offline}. At the end: {'; '.join(ends)}."
    )
    return [
        Figure(
            "reward_completions", completions[0], "A curve starts behind the offline completions it read. " + caption
        ),
        Figure("reward_time", seconds[0], "Training alone, shared stages left out. " + caption),
    ]


def reward_curve(method: MethodResult) -> tuple[Array, Array, Array] | None:
    """Completions, seconds and reward by step, means over seeds; None for a method that draws no completions.

    Rewards are running means over a tenth of the steps: single steps are too noisy to compare.
    """
    logs = [[line for line in log if "reward" in line] for log in method.logs.values()]
    n = min(map(len, logs))
    if n == 0:
        return None
    steps = np.array([line["step"] for line in logs[0][:n]], dtype=np.float64)
    wall = np.mean([[line["wall_time"] for line in log[:n]] for log in logs], axis=0)
    reward = np.mean([running_mean([line["reward"] for line in log[:n]], max(1, n // 10)) for log in logs], axis=0)
    return method.budget.read + np.ceil(steps / method.uses) * method.budget.drawn_per_step, wall, reward
