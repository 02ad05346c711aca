"""Summaries of several models on several tasks, and paired comparisons between them.

The unit of evidence is the problem: samples of one problem are averaged first, and models are compared on the
differences of the same problem. A model's *average* over tasks weighs every task alike, as the field's tables do.
"""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from disa.errors import DisaError
from disa.evaluation.metrics import Measured, PromptValues, Summary, clustered_mean
from disa.evaluation.samples import ProblemScore

AVERAGE = "average"
"""Name under which the mean over tasks stands beside them."""
_RESAMPLES = 20_000
"""Random sign patterns where there are too many to list: p-values near 0.05 are good to 0.0015 (binomial)."""

Values = dict[str, dict[str, dict[str, PromptValues]]]
"""model -> task -> metric -> prompt_id -> value."""


@dataclasses.dataclass(frozen=True, slots=True)
class Comparison:
    """One model against the baseline, on one task and one metric."""

    task: str
    metric: str
    model: str
    baseline: str
    difference: Measured
    """Model minus baseline over the problems both define the metric on."""
    p_value: float
    """Two-sided sign-flip permutation test of no difference."""
    p_holm: float
    """The same, adjusted (Holm 1979) for all models compared on this task and metric."""


def problem_values(scores: Iterable[ProblemScore], ks: Sequence[int]) -> Values:
    """Every metric of every model and task by problem."""
    values: Values = {}
    for score in scores:
        metrics = values.setdefault(score.model, {}).setdefault(score.task, {})
        for name, value in score.metrics(ks).items():
            metrics.setdefault(name, {})[score.prompt_id] = value
    return without_idle_bounds(values, missing="undecided")


def without_idle_bounds(values: Values, *, missing: str) -> Values:
    """Drop ``*_low`` and ``*_high`` where the metric ``missing`` is 0 on every problem: they equal the metric."""
    return {
        model: {
            task: metrics
            if any(metrics.get(missing, {}).values())
            else {name: found for name, found in metrics.items() if not name.endswith(("_low", "_high"))}
            for task, metrics in tasks.items()
        }
        for model, tasks in values.items()
    }


def summarise_tasks(values: Values) -> Summary:
    """Mean over problems of every metric; with several tasks, also the mean over tasks.

    The standard error of a mean over T tasks is ``sqrt(sum_t se_t^2) / T``: tasks are fixed, their problems a sample.
    """
    summary: Summary = {}
    for model, tasks in values.items():
        means = {t: {m: clustered_mean(v.values()) for m, v in metrics.items()} for t, metrics in tasks.items()}
        if len(means) > 1:
            shared = [m for m in next(iter(means.values())) if all(m in metrics for metrics in means.values())]
            means[AVERAGE] = {m: _mean_of([metrics[m] for metrics in means.values()]) for m in shared}
        summary[model] = means
    return summary


def compare(values: Values, baseline: str, metrics: Sequence[str]) -> list[Comparison]:
    """Every other model against the baseline on every task that both were evaluated on, and on their average.

    Raises
    ------
    DisaError
        Where the baseline was not evaluated.
    """
    if baseline not in values:
        known = ", ".join(values)
        raise DisaError(f"no model is called '{baseline}'", where="--baseline", fix=f"choose one of {known}")
    found: dict[tuple[str, str], list[Comparison]] = defaultdict(list)
    for model in (m for m in values if m != baseline):
        for metric in metrics:
            differences = _differences(values[model], values[baseline], metric)
            for task, d in differences.items():
                measured = clustered_mean(d)
                found[task, metric].append(_comparison(task, metric, model, baseline, measured, [d]))
            if len(differences) > 1 and len(differences) == len(values[model]):
                measured = _mean_of([clustered_mean(d) for d in differences.values()])
                groups = list(differences.values())
                found[AVERAGE, metric].append(_comparison(AVERAGE, metric, model, baseline, measured, groups))
    return [c for group in found.values() for c in _holm(group)]


def sign_flip_test(groups: Sequence[Sequence[float]]) -> float:
    """Two-sided p-value of "no difference" for paired differences, by flipping their signs.

    Under the null hypothesis that the two models are exchangeable on each problem, every pattern of signs is
    equally likely (Fisher 1935). The statistic is the mean over groups of the mean over a group's problems. All
    patterns are listed up to 20,000 (14 problems that differ), more are sampled with a fixed seed, and the
    observed one counts among the sampled, so p is never 0.

    Parameters
    ----------
    groups : sequence of sequences of float
        Differences by problem: one sequence a task.
    """
    from scipy.stats import permutation_test

    weighted = np.concatenate([np.asarray(d, dtype=np.float64) / (len(d) * len(groups)) for d in groups])
    # Problems without a difference add nothing under any pattern.
    weighted = weighted[weighted != 0]
    if weighted.size == 0:
        return 1.0
    if weighted.size == 1:
        return 1.0  # both patterns are equally far from 0
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
    task: str, metric: str, model: str, baseline: str, measured: Measured, groups: list[list[float]]
) -> Comparison:
    p = sign_flip_test(groups)
    return Comparison(task, metric, model, baseline, measured, p, p)


def _holm(group: list[Comparison]) -> list[Comparison]:
    """Holm's step-down adjustment: the i-th smallest of m p-values times m - i, never below an earlier one."""
    order = sorted(range(len(group)), key=lambda i: group[i].p_value)
    adjusted, largest = dict.fromkeys(order, 1.0), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, group[i].p_value * (len(group) - rank)))
        adjusted[i] = largest
    return [dataclasses.replace(c, p_holm=adjusted[i]) for i, c in enumerate(group)]


def _mean_of(parts: Sequence[Measured]) -> Measured:
    se = math.sqrt(sum(m.se**2 for m in parts)) / len(parts)
    return Measured(sum(m.value for m in parts) / len(parts), se, sum(m.n_prompts for m in parts))
