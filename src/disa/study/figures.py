"""Figures of a study: what the error of log Z is made of, how it falls with N, and what it does to the policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from disa.report.canvas import FLAGGED, GUIDE, UNFLAGGED, Plate, model_styles, new_axes
from disa.report.tables import largest_k
from disa.study.results import AXES

_QUANTITIES = {
    "bias_squared": ("bias² of log Z", "nats²", "{:.3f}"),
    "variance": ("variance of log Z", "nats²", "{:.3f}"),
    "rmse": ("RMSE of log Z", "nats", "{:.2f}"),
    "coverage": ("interval coverage", "share", "{:.2f}"),
    "gated": ("gate closed", "share of prompts", "{:.2f}"),
    "hits_ess": ("effective rewarded draws", "draws", "{:.1f}"),
}


def study_plates(results: Mapping[str, Any]) -> list[Plate]:
    """Every figure; those of policies only where policies were trained."""
    size = min(results["trajectories"])
    beta = central_beta(results)
    plates = [_heat_map(results, name, size) for name in _QUANTITIES]
    plates += [_decomposition(results, "strength", size, beta), _decomposition(results, "inverse_temperature", size)]
    plates += [_rmse_against_size(results, beta)]
    betas = dict.fromkeys(row["inverse_temperature"] for row in results["policies"])
    return plates + [plate for value in betas for plate in _policy_plates(results, value)]


def central_beta(results: Mapping[str, Any]) -> float:
    """The study's inverse temperature nearest to the recipe's own."""
    return min(results["inverse_temperatures"], key=lambda beta: abs(beta - results["inverse_temperature"]))


def _heat_map(results: Mapping[str, Any], name: str, size: int) -> Plate:
    title, unit, form = _QUANTITIES[name]
    strengths, betas = list(results["strengths"]), results["inverse_temperatures"]
    values = np.array([[_cell(results, s, b, size)[name]["value"] for b in betas] for s in strengths])
    figure, axes = new_axes(f"{title}, N = {size}", "inverse temperature", "")
    image = axes.imshow(values, aspect="auto", cmap="viridis")
    figure.colorbar(image, label=unit)
    axes.set_xticks(range(len(betas)), [f"{beta:g}" for beta in betas])
    axes.set_yticks(range(len(strengths)), strengths)
    axes.grid(visible=False)
    middle = (values.min() + values.max()) / 2
    for (i, j), value in np.ndenumerate(values):
        # Viridis is dark at its lower end.
        colour = "white" if value <= middle else "black"
        axes.text(j, i, form.format(value), ha="center", va="center", fontsize=8, color=colour)
    (low, least), (high, most) = _extremes(values, strengths, betas)
    reading = (
        f"{title.capitalize()} ({unit}) by proposal strength and inverse temperature, {size} trajectories a prompt. "
        f"Smallest {form.format(low)} ({least}), largest {form.format(high)} ({most})."
    )
    if name == "bias_squared":
        reading += " The estimate of bias² is unbiased, so that one near 0 may come out negative."
    return Plate(f"map_{name}", figure, reading)


def _extremes(values: np.ndarray, strengths: Sequence[str], betas: Sequence[float]) -> list[tuple[float, str]]:
    found = []
    for index in (values.argmin(), values.argmax()):
        i, j = np.unravel_index(index, values.shape)
        found.append((float(values[i, j]), f"{strengths[i]}, beta {betas[j]:g}"))
    return found


def _decomposition(results: Mapping[str, Any], axis: str, size: int, beta: float | None = None) -> Plate:
    """Bias² and variance side by side: against strength at one beta, or against beta as means over strengths."""
    strengths = list(results["strengths"])
    if axis == "strength":
        groups = {name: [_cell(results, name, beta, size)] for name in strengths}
        title, label, held = f"Bias and variance, beta = {beta:g}, N = {size}", "proposal", ""
    else:
        betas = results["inverse_temperatures"]
        groups = {f"{b:g}": [_cell(results, name, b, size) for name in strengths] for b in betas}
        title, label, held = f"Bias and variance, N = {size}", "inverse temperature", ", mean over strengths"
    figure, axes = new_axes(title, label, f"nats²{held}")
    x, width, lines = np.arange(len(groups)), 0.38, []
    for offset, name, colour in ((-0.5, "bias_squared", FLAGGED), (0.5, "variance", UNFLAGGED)):
        values = [np.mean([cell[name]["value"] for cell in cells]) for cells in groups.values()]
        # Strengths share prompts and reference draws: their mean has no error of its own here.
        errors = [cells[0][name]["se"] or 0.0 if len(cells) == 1 else 0.0 for cells in groups.values()]
        shown = _QUANTITIES[name][0].split(" ")[0]
        axes.bar(x + offset * width, values, width, yerr=errors, color=colour, capsize=3, label=shown)
        lines.append(f"{shown} " + ", ".join(f"{g} {v:.3f}" for g, v in zip(groups, values, strict=True)))
    axes.axhline(0, color=GUIDE, linewidth=0.8)
    axes.set_xticks(x, list(groups))
    axes.grid(visible=False, axis="x")
    axes.legend(loc="best")
    reading = f"What the mean squared error of log Z is made of{held}: {'; '.join(lines)} (nats²)."
    if axis == "strength":
        reading += " Bars are one standard error over prompts."
    return Plate(f"decomposition_{axis}", figure, reading)


def _rmse_against_size(results: Mapping[str, Any], beta: float) -> Plate:
    strengths, sizes = list(results["strengths"]), sorted(results["trajectories"])
    figure, axes = new_axes(f"RMSE of log Z, beta = {beta:g}", "trajectories a prompt (N)", "nats")
    styles, lines = model_styles(strengths), []
    for name in strengths:
        cells = [_cell(results, name, beta, size) for size in sizes]
        values, errors = ([cell["rmse"][key] or 0.0 for cell in cells] for key in ("value", "se"))
        axes.errorbar(sizes, values, errors, capsize=3, markersize=5, linewidth=1.5, label=name, **styles[name])
        lines.append(f"{name} {values[0]:.3f} to {values[-1]:.3f}")
    first = np.mean([_cell(results, name, beta, sizes[0])["rmse"]["value"] for name in strengths])
    guide = first * np.sqrt(sizes[0] / np.array(sizes, dtype=np.float64))
    axes.plot(sizes, guide, color=GUIDE, linestyle="--", label="1 / √N")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.legend(loc="best")
    reading = (
        f"Root mean square error of log Z against N, both on logarithmic scales, N from {sizes[0]} to {sizes[-1]}: "
        f"{'; '.join(lines)} nats. Bars are one standard error over prompts; the dashed line falls as 1 / √N."
    )
    return Plate("rmse_trajectories", figure, reading)


def _policy_plates(results: Mapping[str, Any], beta: float) -> list[Plate]:
    """Held-out quality of the policies of one inverse temperature against their cells' error of log Z."""
    rows = [row for row in results["policies"] if row["inverse_temperature"] == beta]
    reference = next(row for row in results["references"] if row["inverse_temperature"] == beta)
    k = largest_k(rows[0]["metrics"], "mean")
    labels = {"kl_to_target": "KL to the target, nats", f"mean@{k}": f"Mean@{k}"}
    labels |= {"effective_modes": "effective modes"}
    return [
        _policies(results, rows, reference, name, label, beta)
        for name, label in labels.items()
        if name in rows[0]["metrics"]
    ]


def _policies(
    results: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    reference: Mapping[str, Any],
    name: str,
    label: str,
    beta: float,
) -> Plate:
    figure, axes = new_axes(f"{label.split(',')[0]}, beta = {beta:g}", "RMSE of log Z in the cell, nats", label)
    methods = list(dict.fromkeys(row["method"] for row in rows))
    styles, lines = model_styles(list(results["strengths"])), []
    for row in rows:
        rmse = _cell(results, *(row[axis] for axis in AXES))["rmse"]
        found, style = row["metrics"][name], styles[row["strength"]]
        axes.errorbar(
            rmse["value"],
            found["value"],
            found["se"] or 0.0,
            rmse["se"] or 0.0,
            fmt=style["marker"],
            color=style["color"],
            markerfacecolor=style["color"] if row["method"] == methods[0] else "white",
            capsize=3,
            markersize=7,
            label=f"{row['strength']}, N = {row['trajectories']}" + (f", {row['method']}" if methods[1:] else ""),
        )
        lines.append(f"{row['strength']}, N {row['trajectories']}, {row['method']}: {found['value']:.3f}")
    start = reference["metrics"][name]["value"]
    axes.axhline(start, color=GUIDE, linestyle="--", label="reference")
    axes.legend(loc="best", fontsize=7)
    reading = (
        f"Held-out {label} of the policies trained with a cell's anchor against the error of log Z in that cell, "
        f"beta = {beta:g}; reference {start:.3f}. {'; '.join(lines)}. Bars are one standard error over prompts, of "
        f"values averaged over {results['seeds']} seeds."
    )
    return Plate(f"policy_{name.replace('@', '')}_beta_{beta:g}", figure, reading)


def _cell(results: Mapping[str, Any], strength: str, beta: float, size: int) -> Mapping[str, Any]:
    wanted = strength, beta, size
    return next(cell for cell in results["cells"] if tuple(cell[axis] for axis in AXES) == wanted)
