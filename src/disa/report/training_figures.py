"""Figures of the training stage: one panel per logged quantity, methods overlaid."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from disa.display.figures import GUIDE, Figure, model_styles, name_curves, new_axes, plain_log, running_mean

# key -> title, unit, what it means
_PANELS = {
    "reward": ("Reward", "mean reward", "Mean reward of the training completions."),
    "kl_to_target": ("KL to the target", "nats", "Distance left to the target, from sampled residuals."),
    "kl_to_reference": ("KL to the reference", "nats", "How far the policy has moved."),
    "residual_mean": ("Residual, mean", "nats", "On the policy's own draws: KL to the target plus the error of log Z."),
    "residual_rms": ("Residual, RMS", "nats", "Zero exactly when the policy is the target and log Z is exact."),
    "eps_audit": ("Audit of log Z", "eps-hat (nats)", "Above zero: log Z looks overestimated; below: underestimated."),
    "entropy": ("Entropy", "nats per token", "A collapse towards zero is a loss of diversity."),
    "grad_norm": ("Gradient norm", "norm", "Norm of the gradient before clipping."),
}
_ZERO_LINE = {"residual_mean", "eps_audit"}


def training_figures(logs: Mapping[str, Sequence[Mapping[str, Any]]], models: Sequence[str]) -> list[Figure]:
    """One figure for every quantity that at least one method logged; ``models`` are all of the report."""
    styles = model_styles(models)
    x_key = "completions" if all(_finite(s.get("completions")) for steps in logs.values() for s in steps) else "step"
    figures = []
    for key in _PANELS:
        series = {method: _series(steps, x_key, key) for method, steps in logs.items()}
        series = {method: xy for method, xy in series.items() if len(xy[0])}
        if series:
            figures.append(_panel(key, x_key, series, styles, set(logs) - set(series)))
    return figures


def _panel(
    key: str,
    x_key: str,
    series: Mapping[str, tuple[np.ndarray, np.ndarray]],
    styles: Mapping[str, Mapping[str, Any]],
    silent: set[str],
) -> Figure:
    title, unit, meaning = _PANELS[key]
    drawing, axes = new_axes(title, "completions drawn in training" if x_key == "completions" else "step", unit)
    changes = []
    for method, (x, y) in series.items():
        window = max(1, len(y) // 10)
        colour = styles[method]["color"]
        if window > 1:
            axes.plot(x, y, color=colour, alpha=0.25, linewidth=0.8)
        axes.plot(
            x, running_mean(y, window), color=colour, linestyle=styles[method]["linestyle"], linewidth=2, label=method
        )
        changes.append(f"{method} {y[:window].mean():.3g} → {y[-window:].mean():.3g}")
    if key in _ZERO_LINE:
        axes.axhline(0, color=GUIDE, linestyle="--", linewidth=1)
    if key == "grad_norm" and all((y > 0).all() for _, y in series.values()):
        axes.set_yscale("log")
        plain_log(axes.yaxis)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.locator_params(axis="x", nbins=6)
    name_curves(axes)
    caption = (
        f"{meaning} Lines are means over the last tenth of training until then. First tenth to last tenth: "
        f"{'; '.join(changes)}."
    )
    if silent:
        caption += f" Not logged by {', '.join(sorted(silent))}."
    return Figure(f"training_{key}", drawing, caption)


def _series(steps: Sequence[Mapping[str, Any]], x_key: str, key: str) -> tuple[np.ndarray, np.ndarray]:
    points = [(s.get(x_key, i), s[key]) for i, s in enumerate(steps) if _finite(s.get(key))]
    x, y = zip(*points, strict=True) if points else ((), ())
    return np.array(x, dtype=np.float64), np.array(y, dtype=np.float64)


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)
