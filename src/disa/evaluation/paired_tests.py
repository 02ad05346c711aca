"""Paired comparisons between several models on several tasks.

The unit of evidence is the problem: samples of one problem are averaged first, and models are compared on the
differences of the same problem. A model's *average* over tasks weighs every task alike, as the field's tables do.
"""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from disa.errors import DisaError
from disa.evaluation.metrics import AVERAGE, MetricValue, PromptValues, Values, clustered_mean, mean_of

_RESAMPLES = 20_000
"""Random sign patterns where there are too many to list: p-values near 0.05 are good to 0.0015 (binomial)."""


@dataclasses.dataclass(frozen=True, slots=True)
class EvaluationComparison:
    """One model against the baseline, on one task and one metric."""

    task: str
    metric: str
    model: str
    baseline: str
    difference: MetricValue
    """Model minus baseline over the problems both define the metric on."""
    p_value: float
    """Two-sided sign-flip permutation test of no difference."""
    p_holm: float
    """The same, adjusted (Holm 1979) for all models compared on this task and metric."""

    def as_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        found = {name: value for name, value in dataclasses.asdict(self).items() if name != "difference"}
        measured = self.difference
        se = None if math.isnan(measured.se) else measured.se
        return found | {"difference": measured.value, "se": se, "n_problems": measured.n_prompts}


def compare_evaluations(values: Values, baseline: str, metrics: Sequence[str]) -> list[EvaluationComparison]:
    """Every other model against the baseline on every task that both were evaluated on, and on their average.

    Raises DisaError where the baseline was not evaluated.
    """
    if baseline not in values:
        known = ", ".join(values)
        raise DisaError(f"no model is called '{baseline}'", where="--baseline", fix=f"choose one of {known}")
    found: dict[tuple[str, str], list[EvaluationComparison]] = defaultdict(list)
    for model in (m for m in values if m != baseline):
        for metric in metrics:
            differences = _differences(values[model], values[baseline], metric)
            for task, d in differences.items():
                measured = clustered_mean(d)
                found[task, metric].append(_comparison(task, metric, model, baseline, measured, [d]))
            if len(differences) > 1 and len(differences) == len(values[model]):
                measured = mean_of([clustered_mean(d) for d in differences.values()])
                groups = list(differences.values())
                found[AVERAGE, metric].append(_comparison(AVERAGE, metric, model, baseline, measured, groups))
    return [c for group in found.values() for c in _holm(group)]


def sign_flip_test(groups: Sequence[Sequence[float]]) -> float:
    """Two-sided p-value of "no difference" for paired differences, by flipping their signs.

    Under the null hypothesis that the two models are exchangeable on each problem, every pattern of signs is equally
    likely (Fisher 1935). The statistic is the mean over groups of the mean over a group's problems. All patterns are
    listed up to 20,000 (14 problems that differ), more are sampled with a fixed seed, and the observed one counts among
    the sampled, so p is never 0. ``groups`` are differences by problem, one sequence per task.
    """
    from scipy.stats import permutation_test

    weighted = np.concatenate([np.asarray(d, dtype=np.float64) / (len(d) * len(groups)) for d in groups])
    # Problems without a difference add nothing under any pattern.
    weighted = weighted[weighted != 0]
    if weighted.size < 2:
        return 1.0  # of one difference, both patterns are equally far from 0
    # Rounded so that patterns whose sums are equal in exact arithmetic count as equal.
    result = permutation_test(
        (weighted,),
        lambda x, axis: np.round(np.sum(x, axis=axis), 12),
        permutation_type="samples",
        vectorized=True,
        n_resamples=_RESAMPLES,
        batch=1000,
        rng=np.random.default_rng(0),
    )
    return float(result.pvalue)


def _differences(
    first: Mapping[str, Mapping[str, PromptValues]], second: Mapping[str, Mapping[str, PromptValues]], metric: str
) -> dict[str, list[float]]:
    """By task: differences over the problems both define the metric on."""
    result = {}
    for task, metrics in first.items():
        mine, theirs = metrics.get(metric, {}), second.get(task, {}).get(metric, {})
        if shared := [p for p in mine if p in theirs]:
            result[task] = [mine[p] - theirs[p] for p in shared]
    return result


def _comparison(
    task: str, metric: str, model: str, baseline: str, measured: MetricValue, groups: list[list[float]]
) -> EvaluationComparison:
    p = sign_flip_test(groups)
    return EvaluationComparison(task, metric, model, baseline, measured, p, p)


def _holm(group: list[EvaluationComparison]) -> list[EvaluationComparison]:
    """Holm's step-down adjustment: the i-th smallest of m p-values times m - i, never below an earlier one."""
    order = sorted(range(len(group)), key=lambda i: group[i].p_value)
    adjusted, largest = dict.fromkeys(order, 1.0), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, group[i].p_value * (len(group) - rank)))
        adjusted[i] = largest
    return [dataclasses.replace(c, p_holm=adjusted[i]) for i, c in enumerate(group)]
