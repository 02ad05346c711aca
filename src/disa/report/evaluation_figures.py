"""Figures of the evaluation stage: quality against diversity, and modes found against modes that exist."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from disa.display.figures import (
    GUIDE,
    MANY,
    Figure,
    ScatterPoint,
    model_styles,
    name_curves,
    new_axes,
    quality_against_diversity,
)
from disa.evaluation.metrics import clustered_mean
from disa.evaluation.tables import largest_k
from disa.report.content import ReportContent
from disa.runs.records import EvaluationRecord, Prompt


def evaluation_figures(content: ReportContent) -> list[Figure]:
    """Every figure there are numbers for; none of modes where the task has none."""
    points, k = [], None
    for model in content.models:
        for split, metrics in content.summary.get(model, {}).items():
            k = k or largest_k(metrics, "mean")
            if "effective_modes" in metrics and f"mean@{k}" in metrics:
                mean, modes = metrics[f"mean@{k}"], metrics["effective_modes"]
                points.append(ScatterPoint(model, (mean.value, mean.se), (modes.value, modes.se), split))
    return [
        *quality_against_diversity(points, f"Mean@{k}", "Bars are one standard error over prompts."),
        *modes_found(content.records, content.prompts, model_styles(content.models)),
    ]


def modes_found(
    records: Sequence[EvaluationRecord], prompts: Sequence[Prompt], styles: Mapping[str, Mapping[str, Any]]
) -> list[Figure]:
    """Distinct correct modes found per prompt against how many exist; one figure per split."""
    exist = {p.prompt_id: p.n_solutions for p in prompts if p.n_solutions}
    found: dict[str, dict[str, dict[str, set[str]]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(set)))
    draws: dict[tuple[str, str], int] = defaultdict(int)
    for r in records:
        if r.prompt_id in exist:
            draws[r.model, r.prompt_id] += 1
            modes = found[r.split][r.model][r.prompt_id]
            if r.mode is not None and r.correct:
                modes.add(r.mode)
    n_draws = max(draws.values(), default=0)
    return [_modes_found(split, found[split], exist, n_draws, styles) for split in sorted(found)]


def _modes_found(
    split: str,
    by_model: Mapping[str, Mapping[str, set[str]]],
    exist: Mapping[str, int],
    n_draws: int,
    styles: Mapping[str, Mapping[str, Any]],
) -> Figure:
    drawing, axes = new_axes(
        f"Modes found, {split} prompts", "solutions that exist", f"distinct found in {n_draws} draws"
    )
    models = [m for m in styles if m in by_model]
    top = max(exist[p] for by_prompt in by_model.values() for p in by_prompt)
    edges = 2 ** np.arange(int(np.log2(top)) + 2)
    lines = []
    for i, model in enumerate(models):
        pairs = sorted((exist[p], len(modes)) for p, modes in by_model[model].items())
        x, y = (np.array(column, dtype=np.float64) for column in zip(*pairs, strict=True))
        dodge = 2 ** (0.1 * (i - (len(models) - 1) / 2))
        axes.scatter(x * dodge, y, color=styles[model]["color"], s=7, alpha=0.2, linewidths=0, rasterized=len(x) > MANY)
        centres, means, errors = [], [], []
        for low, high in zip(edges[:-1], edges[1:], strict=True):
            inside = (x >= low) & (x < high)
            if inside.any():
                measured = clustered_mean(y[inside])
                centres.append(np.exp(np.log(x[inside]).mean()) * dodge)
                means.append(measured.value)
                errors.append(np.nan_to_num(measured.se))
        axes.errorbar(
            centres,
            means,
            errors,
            **styles[model],
            capsize=3,
            markersize=5,
            linewidth=1.5,
            label=model,
        )
        lines.append(f"{model} {y.sum():.0f} of {x.sum():.0f} ({y.sum() / x.sum():.0%})")
    bound = np.arange(1, top + 1)
    axes.plot(bound, np.minimum(bound, n_draws), color=GUIDE, linestyle="--", label="all there are")
    axes.set_xscale("log", base=2)
    axes.set_xticks(edges[edges <= 2 * top], [str(e) for e in edges[edges <= 2 * top]])
    axes.set_ylim(-0.3, 1.15 * max(len(m) for by_prompt in by_model.values() for m in by_prompt.values()) + 0.5)
    name_curves(axes)
    caption = (
        f"Modes found over modes that exist, summed over {max(len(b) for b in by_model.values())} {split} prompts, "
        f"in {n_draws} draws per prompt: {'; '.join(lines)}. Lines are means of prompts with a similar number of "
        "solutions, bars one standard error; faint dots are single prompts."
    )
    return Figure(f"modes_found_{split}", drawing, caption)
