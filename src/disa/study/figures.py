"""Figures of a study: what the error of log Z is made of, how it falls with N, and what it does to the policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from disa.display.figures import (
    FLAGGED,
    GUIDE,
    PAPER,
    UNFLAGGED,
    Figure,
    model_styles,
    name_curves,
    new_axes,
    plain_log,
)
from disa.evaluation.tables import largest_k
from disa.study.results import AXES

_QUANTITIES = {
    "bias_squared": ("Bias² of log Z", "nats²", "{:.3f}"),
    "variance": ("Variance of log Z", "nats²", "{:.3f}"),
    "rmse": ("RMSE of log Z", "nats", "{:.2f}"),
    "coverage": ("Interval coverage", "share", "{:.2f}"),
    "gated": ("Gate closed", "share of prompts", "{:.2f}"),
    "hits_ess": ("Effective rewarded draws", "draws", "{:.1f}"),
}


def study_figures(results: Mapping[str, Any]) -> list[Figure]:
    """Every figure; those of policies only where policies were trained."""
    size = min(results["trajectories"])
    # The one nearest to the recipe's own.
    beta = min(results["inverse_temperatures"], key=lambda beta: abs(beta - results["inverse_temperature"]))
    figures = [_heat_map(results, name, size) for name in _QUANTITIES]
    figures += [_decomposition(results, size, beta)]
    figures += [_against_beta(results, name, size) for name in ("bias_squared", "variance")]
    figures += [_rmse_against_size(results, beta)]
    betas = dict.fromkeys(row["inverse_temperature"] for row in results["policies"])
    return figures + [figure for value in betas for figure in _policy_figures(results, value)]


def _heat_map(results: Mapping[str, Any], name: str, size: int) -> Figure:
    title, unit, form = _QUANTITIES[name]
    strengths, betas = list(results["strengths"]), results["inverse_temperatures"]
    values = np.array([[_cell(results, s, b, size)[name]["value"] for b in betas] for s in strengths])
    drawing, axes = new_axes(f"{title} ({unit}), N = {size}", "inverse temperature", "")
    # Unit squares with their centres at whole numbers.
    axes.pcolormesh(np.arange(len(betas) + 1) - 0.5, np.arange(len(strengths) + 1) - 0.5, values, cmap="viridis")
    axes.invert_yaxis()
    axes.set_xticks(range(len(betas)), [f"{beta:g}" for beta in betas])
    axes.set_yticks(range(len(strengths)), strengths)
    axes.grid(visible=False)
    middle = (values.min() + values.max()) / 2
    for (i, j), value in np.ndenumerate(values):
        # Viridis is dark at its lower end. Neither colour is the theme's: they stand on the map, by day and by night.
        colour = "#FEFEFE" if value <= middle else "#010101"
        axes.text(j, i, form.format(value), ha="center", va="center", fontsize=8, color=colour)
    (low, least), (high, most) = _extremes(values, strengths, betas)
    caption = (
        f"{title} ({unit}) by proposal strength and inverse temperature, {size} trajectories per prompt. "
        f"Smallest {form.format(low)} ({least}), largest {form.format(high)} ({most})."
    )
    if name == "bias_squared":
        caption += " The estimate of bias² is unbiased, so that one near 0 may come out negative."
    return Figure(f"map_{name}", drawing, caption)


def _extremes(values: np.ndarray, strengths: Sequence[str], betas: Sequence[float]) -> list[tuple[float, str]]:
    found = []
    for index in (values.argmin(), values.argmax()):
        i, j = map(int, np.unravel_index(index, values.shape))
        found.append((float(values[i, j]), f"{strengths[i]}, beta {betas[j]:g}"))
    return found


def _decomposition(results: Mapping[str, Any], size: int, beta: float) -> Figure:
    """Bias² and variance side by side, by strength."""
    strengths = list(results["strengths"])
    drawing, axes = new_axes(f"Bias and variance, beta = {beta:g}, N = {size}", "proposal", "nats²")
    x, width, lines = np.arange(len(strengths)), 0.38, []
    for offset, name, colour in ((-0.5, "bias_squared", FLAGGED), (0.5, "variance", UNFLAGGED)):
        cells = [_cell(results, strength, beta, size)[name] for strength in strengths]
        values, errors = ([cell[key] or 0.0 for cell in cells] for key in ("value", "se"))
        shown = _QUANTITIES[name][0].partition(" ")[0].lower()
        axes.bar(x + offset * width, values, width, yerr=errors, color=colour, capsize=3, label=shown)
        lines.append(f"{shown} " + ", ".join(f"{s} {v:.3f}" for s, v in zip(strengths, values, strict=True)))
    axes.axhline(0, color=GUIDE, linewidth=0.8)
    axes.set_xticks(x, strengths)
    axes.grid(visible=False, axis="x")
    name_curves(axes)
    caption = (
        f"What the mean squared error of log Z is made of, in nats²: {'; '.join(lines)}. Bars are one standard error "
        "over prompts."
    )
    return Figure("decomposition", drawing, caption)


def _against_beta(results: Mapping[str, Any], name: str, size: int) -> Figure:
    """Bias² or variance against the inverse temperature, a line per strength."""
    title, unit, _ = _QUANTITIES[name]
    betas = sorted(results["inverse_temperatures"])
    drawing, axes = new_axes(f"{title}, N = {size}", "inverse temperature", unit)
    said = _lines(axes, results, name, betas, [(beta, size) for beta in betas])
    name_curves(axes)
    caption = (
        f"{title} ({unit}) from beta = {betas[0]:g} to {betas[-1]:g}, the same {size} trajectories per prompt at every "
        f"beta: {said}. Bars are one standard error over prompts."
    )
    return Figure(f"beta_{name}", drawing, caption)


def _rmse_against_size(results: Mapping[str, Any], beta: float) -> Figure:
    strengths, sizes = list(results["strengths"]), sorted(results["trajectories"])
    drawing, axes = new_axes(f"RMSE of log Z, beta = {beta:g}", "trajectories per prompt (N)", "nats")
    said = _lines(axes, results, "rmse", sizes, [(beta, size) for size in sizes])
    first = np.mean([_cell(results, name, beta, sizes[0])["rmse"]["value"] for name in strengths])
    guide = first * np.sqrt(sizes[0] / np.array(sizes, dtype=np.float64))
    axes.plot(sizes, guide, color=GUIDE, linestyle="--", label="1 / √N")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(sizes, [str(size) for size in sizes])
    plain_log(axes.yaxis)
    name_curves(axes)
    caption = (
        f"Root mean square error of log Z against N, both on logarithmic scales, N from {sizes[0]} to {sizes[-1]}: "
        f"{said} nats. Bars are one standard error over prompts; the dashed line falls as 1 / √N."
    )
    return Figure("rmse_trajectories", drawing, caption)


def _lines(axes: Axes, results: Mapping[str, Any], name: str, x: Sequence[float], cells: Sequence[tuple]) -> str:
    """Draw a quantity of these (beta, N) against x, a line per strength; returns its ends in words."""
    said = []
    for strength, look in model_styles(list(results["strengths"])).items():
        found = [_cell(results, strength, *cell)[name] for cell in cells]
        values, errors = ([cell[key] or 0.0 for cell in found] for key in ("value", "se"))
        axes.errorbar(x, values, errors, capsize=3, markersize=5, linewidth=1.5, label=strength, **look)
        said.append(f"{strength} {values[0]:.3f} to {values[-1]:.3f}")
    return "; ".join(said)


def _policy_figures(results: Mapping[str, Any], beta: float) -> list[Figure]:
    """What the policies of one inverse temperature gain on the reference, against their cells' error of log Z."""
    rows = [row for row in results["policies"] if row["inverse_temperature"] == beta]
    k = largest_k(rows[0]["gains"], "mean")
    labels = {"kl_to_target": "KL to the target (nats)", f"mean@{k}": f"Mean@{k}"}
    labels |= {"effective_modes": "Effective modes"}
    return [_gains(results, rows, name, label, beta) for name, label in labels.items() if name in rows[0]["gains"]]


def _gains(results: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], name: str, label: str, beta: float) -> Figure:
    drawing, axes = new_axes(
        f"{label.partition(' (')[0]}, beta = {beta:g}", "RMSE of log Z in the cell (nats)", f"{label}, less reference's"
    )
    methods, sizes = (list(dict.fromkeys(row[axis] for row in rows)) for axis in ("method", "trajectories"))
    styles, lines = model_styles(list(results["strengths"])), []
    for row in rows:
        rmse = _cell(results, *(row[axis] for axis in AXES))["rmse"]
        gain, colour = row["gains"][name], styles[row["strength"]]["color"]
        axes.errorbar(
            rmse["value"],
            gain["value"],
            gain["se"] or 0.0,
            rmse["se"] or 0.0,
            fmt="osD^vPX*"[sizes.index(row["trajectories"]) % 8],
            color=colour,
            markerfacecolor=colour if row["method"] == methods[0] else PAPER,
            capsize=3,
            markersize=7,
            label=f"{row['strength']}, N = {row['trajectories']}" + (f", {row['method']}" if methods[1:] else ""),
        )
        lines.append(f"{row['strength']}, N {row['trajectories']}, {row['method']}: {gain['value']:+.3f}")
    axes.axhline(0, color=GUIDE, linestyle="--")
    name_curves(axes)
    caption = (
        f"Held-out {label} of the policies trained with a cell's anchor, less the reference's, paired by prompt, "
        f"against the error of log Z in that cell, beta = {beta:g}. {'; '.join(lines)}. Bars are one standard error "
        f"over prompts, of values averaged over {results['seeds']} seeds."
    )
    return Figure(f"policy_{name.replace('@', '')}_beta_{beta:g}", drawing, caption)


def _cell(results: Mapping[str, Any], strength: str, beta: float, size: int) -> Mapping[str, Any]:
    wanted = strength, beta, size
    return next(cell for cell in results["cells"] if tuple(cell[axis] for axis in AXES) == wanted)
