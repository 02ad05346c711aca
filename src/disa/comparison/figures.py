"""Figures of a comparison: quality against diversity, distance to the target, and what training cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.ticker import LogLocator, NullLocator
from numpy.typing import NDArray

from disa.comparison.results import ComparisonResults, MethodResult
from disa.comparison.tables import seeds_text
from disa.evaluation.metrics import clustered_mean
from disa.report.canvas import GUIDE, Plate, model_styles, name_curves, new_axes
from disa.report.tables import largest_k

Styles = Mapping[str, Mapping[str, Any]]
Array = NDArray[np.float64]


def comparison_plates(results: ComparisonResults) -> list[Plate]:
    """Every figure there are numbers for."""
    styles = model_styles(["reference", *(m.method for m in results.methods)])
    return [
        *quality_against_diversity(results, styles),
        *distance_to_target(results, styles),
        *learning_curves(results, styles),
    ]


def quality_against_diversity(results: ComparisonResults, styles: Styles) -> list[Plate]:
    """Mean@k against effective modes on held-out prompts; none where modes are not countable."""
    k = largest_k(results.metrics("heldout"), "mean")
    if "effective_modes" not in results.metrics("heldout"):
        return []
    figure, axes = new_axes("Quality against diversity", f"Mean@{k}", "effective modes a prompt")
    means = [clustered_mean(results.reference["heldout"][m].values()).value for m in (f"mean@{k}", "effective_modes")]
    axes.plot(*means, **_point(styles["reference"]), label="reference")
    said = [f"reference {means[0]:.3f} and {means[1]:.2f}"]
    for method in results.methods:
        x, y = method.metric("heldout", f"mean@{k}"), method.metric("heldout", "effective_modes")
        errors = np.nan_to_num([x.se, y.se])
        axes.errorbar(
            x.value, y.value, xerr=errors[0], yerr=errors[1], **_point(styles[method.method]), label=method.method
        )
        said.append(f"{method.method} {x.value:.3f} and {y.value:.2f}")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.margins(0.1)
    name_curves(axes, "best")
    reading = (
        "Held-out prompts; up and to the right is better; bars are one standard error over seeds. "
        f"Mean@{k} and effective modes: {'; '.join(said)}."
    )
    return [Plate("quality_diversity", figure, reading)]


def distance_to_target(results: ComparisonResults, styles: Styles) -> list[Plate]:
    """KL to the target of every method on held-out prompts; none where the anchor lacks them."""
    if "kl_to_target" not in results.metrics("heldout"):
        return []
    found = {m.method: m.metric("heldout", "kl_to_target") for m in results.methods}
    order = sorted(found, key=lambda method: -found[method].value)
    figure, axes = new_axes("Distance to the target", "KL(policy || target), nats", "")
    for row, method in enumerate(order):
        error = np.nan_to_num(found[method].se)
        axes.errorbar(found[method].value, row, xerr=error, **_point(styles[method]))
    axes.set_yticks(range(len(order)), order)
    reference = clustered_mean(results.reference["heldout"]["kl_to_target"].values()).value
    axes.axvline(reference, color=GUIDE, linestyle="--", linewidth=1, label="reference")
    if min(n.value for n in found.values()) > 0:
        # Methods that maximise reward lie ten times farther off than those that match the target.
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.xaxis.set_minor_locator(NullLocator())
    axes.legend(loc="best")
    said = "; ".join(f"{method} {seeds_text(found[method])}" for method in reversed(order))
    reading = (
        "Held-out prompts, mean over seeds with one standard error; further left is nearer. "
        f"Reference {reference:.3f}; {said}."
    )
    return [Plate("kl_to_target", figure, reading)]


def learning_curves(results: ComparisonResults, styles: Styles) -> list[Plate]:
    """Training reward against completions, and against wall time.

    Offline methods see no reward while they train: their finished policy's, on training prompts, is one point, where
    any were evaluated.
    """
    curves = {method.method: reward_curve(method) for method in results.methods}
    k = largest_k(results.metrics("train"), "mean")
    shown = [method for method in results.methods if k is not None or curves[method.method] is not None]
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
            end = method.metric("train", f"mean@{k}")
            for (_, axes), x in ((completions, method.budget.read), (seconds, method.seconds.value)):
                axes.plot(x, end.value, **_point(look), label=method.method)
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
        name_curves(axes, "best")
    offline = "are sampled on training prompts: single points" if k is not None else "saw no reward and are not shown"
    reading = (
        f"Mean over seeds and a tenth of training; offline methods' policies {offline}. At the end: {'; '.join(ends)}."
    )
    return [
        Plate(
            "reward_completions", completions[0], "A curve starts behind the offline completions it owes. " + reading
        ),
        Plate("reward_time", seconds[0], "Training alone, shared stages left out. " + reading),
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
    reward = np.mean([_running_mean([line["reward"] for line in log[:n]], max(1, n // 10)) for log in logs], axis=0)
    return method.budget.read + steps * method.budget.drawn_per_step, wall, reward


def _running_mean(values: Sequence[float], window: int) -> Array:
    """Mean of the last ``window`` values, of fewer at the start."""
    sums = np.cumsum(np.asarray(values, dtype=np.float64))
    earlier = np.concatenate([np.zeros(window), sums])[: len(sums)]
    return (sums - earlier) / np.minimum(np.arange(1, len(sums) + 1), window)


def _point(look: Mapping[str, Any]) -> dict[str, Any]:
    return {"color": look["color"], "marker": look["marker"], "linestyle": "none", "markersize": 7}
