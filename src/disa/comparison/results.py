"""What the finished cells of a comparison add up to.

The unit of evidence is the training seed. Every metric is a mean over prompts first, then a mean over seeds with the
standard error of those means; two methods are compared by the differences of the same prompts under the same seed,
averaged over prompts, with a t interval over seeds.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

from disa.comparison.budget import Budget
from disa.comparison.config import Point
from disa.comparison.grid import REFERENCE, Grid, best_point, undefined_criterion
from disa.evaluation.metrics import PromptValues, clustered_mean, paired_difference
from disa.runs.records import EvaluationRecord
from disa.runs.step_log import read_step_log

OWN = ("disa", "disa_forward", "disa_both")
"""Modes of DISA, of which the best on validation prompts stands for it."""
LEVEL = 0.95
"""Two-sided level of the intervals."""

Values = dict[str, dict[str, PromptValues]]
"""split -> metric -> prompt_id -> value, of one policy."""


@dataclasses.dataclass(frozen=True)
class OverSeeds:
    """A number that every seed gave."""

    value: float
    """Mean."""
    se: float
    """Standard error over seeds; NaN with one seed."""
    seeds: int
    low: float
    """Interval of the mean at LEVEL, from Student's t; NaN with one seed."""
    high: float

    @property
    def clear(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low > 0 or self.high < 0


@dataclasses.dataclass(frozen=True)
class SearchedPoint:
    """One point that a method's search tried."""

    point: Point
    learning_rate: float
    """As it was validated, also where the point leaves it to the recipe."""
    score: float
    """The criterion on the validation prompts; NaN where the policy diverged."""


@dataclasses.dataclass(frozen=True)
class MethodResult:
    """One method's finished seeds."""

    method: str
    point: Point
    """The chosen settings."""
    search: list[SearchedPoint]
    """Empty without a search."""
    budget: Budget
    uses: int
    """Optimiser steps of the chosen point that use each batch of completions."""
    values: dict[int, Values]
    """By seed."""
    logs: dict[int, list[dict[str, Any]]]
    """Step logs by seed."""

    def metric(self, split: str, name: str) -> OverSeeds | None:
        """Mean over prompts, over seeds; None where a seed lacks it."""
        found = [values.get(split, {}).get(name) or {} for values in self.values.values()]
        return over_seeds([clustered_mean(v.values()).value for v in found]) if all(found) else None

    @property
    def seconds(self) -> OverSeeds:
        """Wall time of training."""
        return over_seeds([log[-1]["wall_time"] for log in self.logs.values()])


@dataclasses.dataclass(frozen=True)
class ComparisonResults:
    """Everything a comparison measured so far."""

    methods: list[MethodResult]
    reference: Values
    best: str | None
    """DISA's best mode on validation prompts, None where none is finished."""
    criterion: str
    equal: str
    """What the budget makes equal."""
    missing: int
    """Policies of the recipe that are not finished."""

    def __getitem__(self, method: str) -> MethodResult:
        return next(m for m in self.methods if m.method == method)

    def __contains__(self, method: str) -> bool:
        return any(m.method == method for m in self.methods)

    def metrics(self, split: str) -> list[str]:
        """Names of what was measured on a split."""
        return list(self.reference.get(split, {}))

    def difference(self, method: str, to: str, split: str, name: str) -> OverSeeds | None:
        """Paired difference ``method - to`` over the seeds both have."""
        first, second = self[method].values, self[to].values
        per_seed = [
            paired_difference(first[s][split][name], second[s][split][name]).value
            for s in first
            if s in second and first[s].get(split, {}).get(name) and second[s].get(split, {}).get(name)
        ]
        return over_seeds(per_seed) if per_seed else None


def over_seeds(values: Sequence[float]) -> OverSeeds:
    """Mean over seeds with ``sd / sqrt(n)`` and ``mean ± t(n - 1) se``."""
    x = np.asarray(values, dtype=np.float64)
    n = len(x)
    if n < 2:
        return OverSeeds(float(x.mean()), math.nan, n, math.nan, math.nan)
    se = float(x.std(ddof=1) / math.sqrt(n))
    half = float(stats.t.ppf(0.5 + LEVEL / 2, n - 1)) * se
    mean = float(x.mean())
    return OverSeeds(mean, se, n, mean - half, mean + half)


def gather_results(grid: Grid) -> ComparisonResults | None:
    """Results of all finished seeds; None without any, or without the reference's evaluation."""
    reference = grid.evaluated(REFERENCE)
    if reference is None:
        return None
    methods, missing = [], 0
    for method in grid.comparison.methods:
        finals = {cell.seed: cell for cell in grid.finals(method, grid.comparison.seeds) if cell.seed is not None}
        found = {seed: folder for seed, cell in finals.items() if (folder := grid.evaluated(cell))}
        missing += len(grid.comparison.seeds) - len(found)
        if found and (point := grid.chosen(method)) is not None:
            trained = {seed: folder for seed in found if (folder := grid.trained(finals[seed]))}
            methods.append(
                MethodResult(
                    method=method,
                    point=point,
                    search=[
                        SearchedPoint(dict(cell.point), grid.training_config(cell).learning_rate, score)
                        for cell in grid.candidates(method)
                        if (score := grid.score(cell)) is not None
                    ],
                    budget=grid.budgets[method],
                    uses=next(grid.training_config(cell).method_uses(method) for cell in finals.values()),
                    values={seed: grid.values(folder.rows(EvaluationRecord)) for seed, folder in found.items()},
                    logs={seed: read_step_log(folder.path / "steps.jsonl") for seed, folder in trained.items()},
                )
            )
    if not methods:
        return None
    return ComparisonResults(
        methods=methods,
        reference=grid.values(reference.rows(EvaluationRecord)),
        best=best_mode(methods, grid.criterion),
        criterion=grid.criterion,
        equal=grid.comparison.budget,
        missing=missing,
    )


def best_mode(methods: Sequence[MethodResult], criterion: str) -> str | None:
    """DISA's best mode: by the criterion of the search, on validation prompts, over the finished seeds."""
    found = {m.method: m.metric("validation", criterion) for m in methods if m.method in OWN}
    scores = {method: number.value for method, number in found.items() if number is not None}
    if missing := [method for method in found if method not in scores]:
        raise undefined_criterion(criterion, missing[0])
    return best_point(scores, criterion) if scores else None
