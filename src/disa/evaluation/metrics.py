"""What a set of sampled completions says about a model, each number with its standard error.

Draws of one prompt are not independent evidence about other prompts, so every metric is first a
value per prompt and only then a mean over prompts: ``per_prompt`` makes the values,
``clustered_mean`` the :class:`Measured` result, ``paired_difference`` compares two models.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from disa.errors import DisaError
from disa.runs.records import EvaluationRecord, PromptValue

AVERAGE = "average"
"""Name under which the mean over tasks stands beside them."""


@dataclasses.dataclass(frozen=True, slots=True)
class MetricValue:
    """A metric: never a bare float."""

    value: float
    se: float
    """Standard error over prompts; NaN where one prompt leaves it undefined."""
    n_prompts: int
    """Prompts the metric is defined on, which may be fewer than were evaluated."""


PromptValues = dict[str, float]
"""One metric of one model: value by ``prompt_id``, without the prompts it is undefined on."""
Values = dict[str, dict[str, dict[str, PromptValues]]]
"""model -> split or task -> metric -> prompt_id -> value."""
Summary = dict[str, dict[str, dict[str, MetricValue]]]
"""model -> split or task -> metric -> measured."""


def pass_at_k(correct: ArrayLike, k: int) -> float:
    """Chance that at least one of k samples is correct: ``1 - C(n-c, k) / C(n, k)``.

    Unbiased for c correct among n samples (Chen et al., arXiv 2107.03374, equation 1). Mean@k, averaged over every
    choice of k samples, is their plain mean, whatever k is.

    Parameters
    ----------
    correct : array_like of bool, shape (n,)
        Whether each sample of the prompt is correct.
    k : int
        Samples the metric speaks of.

    Raises
    ------
    DisaError
        When fewer than k samples were drawn.
    """
    correct = _at_least(correct, k)
    n, c = len(correct), int(correct.sum())
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


def distinct_modes_at_k(modes: Sequence[str | None], k: int) -> float:
    """Distinct correct modes expected among k samples: ``sum_m 1 - C(n-n_m, k) / C(n, k)``.

    Rarefaction (Hurlbert, Ecology 52, 1971, equation 4): unbiased, and at k = n the plain count.

    Parameters
    ----------
    modes : sequence of str or None, length n
        Mode of each sample, None for an incorrect one.
    k : int
        Samples the metric speaks of.

    Errors as in :func:`pass_at_k`.
    """
    n = len(_at_least(modes, k))
    return math.fsum(1.0 - math.comb(n - n_m, k) / math.comb(n, k) for n_m in _counts(modes).values())


def effective_modes(modes: Sequence[str | None]) -> float:
    """Exponential of the Shannon entropy of the modes of the correct samples.

    ``exp(-sum_m f_m log f_m)``: m equally frequent modes give m (Hill number of order 1; Hill,
    Ecology 54, 1973). A prompt without a correct sample counts 0: leaving it out would let a model
    gain by failing where it has only one solution to offer. As a plug-in estimate it is biased low
    where correct samples are few, so compare models at equal n.
    """
    counts = np.array(list(_counts(modes).values()), dtype=np.float64)
    if counts.size == 0:
        return 0.0
    f = counts / counts.sum()
    return float(np.exp(-np.sum(f * np.log(f))))


def solution_coverage(modes: Sequence[str | None], n_solutions: int) -> float:
    """Distinct correct modes found, as a share of the ``n_solutions`` that exist.

    At most n / n_solutions for n samples, so compare models at equal n.
    """
    return len(_counts(modes)) / n_solutions


def kl_to_reference(log_pi: ArrayLike, log_ref: ArrayLike) -> float:
    """KL(pi || pi_ref) of one prompt in nats: mean of ``log_pi - log_ref`` over draws from pi.

    Unbiased, and therefore below zero by chance when the two models are close.
    """
    return float(np.mean(np.asarray(log_pi, np.float64) - np.asarray(log_ref, np.float64)))


def kl_to_target(log_pi: ArrayLike, log_ref: ArrayLike, reward: ArrayLike, *, log_z: float, beta: float) -> float:
    """KL(pi || pi*) of one prompt in nats: mean of ``log_z + log_pi - log_ref - beta * reward``.

    The mean trajectory-balance residual over draws from pi. An error eps of log_z shifts it by
    eps for every model alike: it cancels in :func:`paired_difference`.

    Parameters
    ----------
    log_pi, log_ref, reward : array_like, shape (n,)
        Sequence log-probabilities in nats and rewards of draws from pi.
    log_z : float
        The anchor's log partition function of the prompt, in nats.
    beta : float
        Inverse temperature.
    """
    residual = log_z + np.asarray(log_pi, np.float64) - np.asarray(log_ref, np.float64)
    return float(np.mean(residual - beta * np.asarray(reward, np.float64)))


def clustered_mean(values: Iterable[float]) -> MetricValue:
    """Mean of per-prompt values with its standard error ``sd / sqrt(n_prompts)`` (sd with n - 1)."""
    x = np.fromiter(values, dtype=np.float64)
    if x.size == 0:
        raise ValueError("no prompt to average over")
    se = float(x.std(ddof=1) / math.sqrt(x.size)) if x.size > 1 else math.nan
    return MetricValue(float(x.mean()), se, int(x.size))


def paired_difference(first: Mapping[str, float], second: Mapping[str, float]) -> MetricValue:
    """``first - second`` over the prompts both are defined on.

    Pairing removes the spread of difficulty between prompts from the standard error.

    Raises
    ------
    DisaError
        When no prompt is shared.
    """
    shared = [p for p in first if p in second]
    if not shared:
        raise DisaError(
            "the two models share no prompt that the metric is defined on",
            where="evaluation",
            fix="evaluate both models on the same prompts",
        )
    return clustered_mean(first[p] - second[p] for p in shared)


def per_prompt(
    records: Iterable[EvaluationRecord],
    n_solutions: Mapping[str, int | None],
    ks: Sequence[int],
    *,
    log_z: Mapping[str, float] = MappingProxyType({}),
    beta: float = 0.0,
    by: Literal["split", "task"] = "split",
    has_modes: bool = False,
) -> Values:
    """Every metric of every model by prompt: model -> split or task -> metric -> prompt_id -> value.

    Parameters
    ----------
    records : iterable of EvaluationRecord
    n_solutions : mapping of str to (int or None)
        Exact number of solutions by ``prompt_id``, None where the task cannot count them.
    ks : sequence of int
        The k of Mean@k, pass@k and distinct modes at k.
    log_z : mapping of str to float
        The anchor's log Z, nats; ``kl_to_target`` is defined for the prompts it names.
    beta : float
        Inverse temperature.
    by : {"split", "task"}
        What prompts are grouped by.
    has_modes : bool
        Whether the task names the modes of solutions that it cannot count.

    Raises
    ------
    DisaError
        When a record's prompt is unknown, a correct sample of a task with modes has none, or a prompt has fewer
        samples than the largest k.
    """
    groups: dict[tuple[str, str, str], list[EvaluationRecord]] = defaultdict(list)
    for record in records:
        groups[record.model, getattr(record, by), record.prompt_id].append(record)
    result: Values = {}
    for (model, group, prompt_id), rows in groups.items():
        if prompt_id not in n_solutions:
            raise DisaError(
                f"prompt_id '{prompt_id}' is not among the task's prompts",
                where=f"evaluation of {model}",
                fix="evaluate on the prompts of this run, or rerun the evaluation",
            )
        metrics = result.setdefault(model, {}).setdefault(group, {})
        count = n_solutions[prompt_id]
        found = prompt_metrics(rows, ks, n_solutions=count, has_modes=has_modes or count is not None)
        found |= _divergences(rows, log_z.get(prompt_id), beta)
        for name, value in found.items():
            metrics.setdefault(name, {})[prompt_id] = value
    return without_idle_bounds(result, missing="undecided")


def without_idle_bounds(values: Values, *, missing: str) -> Values:
    """Drop ``*_low`` and ``*_high`` where the metric ``missing`` is 0 on every prompt: they equal the metric."""
    return {
        model: {
            group: metrics
            if any(metrics.get(missing, {}).values())
            else {name: found for name, found in metrics.items() if not name.endswith(("_low", "_high"))}
            for group, metrics in groups.items()
        }
        for model, groups in values.items()
    }


def summarise_metrics(values: Values, *, average: bool = False) -> Summary:
    """Mean over prompts of every metric; on request, with several groups, also the mean over them.

    The standard error of a mean over T tasks is ``sqrt(sum_t se_t^2) / T``: tasks are fixed, their prompts a sample.
    """
    summary: Summary = {}
    for model, groups in values.items():
        means = {g: {m: clustered_mean(v.values()) for m, v in metrics.items()} for g, metrics in groups.items()}
        if average and len(means) > 1:
            shared = [m for m in next(iter(means.values())) if all(m in metrics for metrics in means.values())]
            means[AVERAGE] = {m: mean_of([metrics[m] for metrics in means.values()]) for m in shared}
        summary[model] = means
    return summary


def mean_of(parts: Sequence[MetricValue]) -> MetricValue:
    """Mean of independent measurements, each weighing the same."""
    se = math.sqrt(sum(m.se**2 for m in parts)) / len(parts)
    return MetricValue(sum(m.value for m in parts) / len(parts), se, sum(m.n_prompts for m in parts))


def summary_to_json(summary: Summary) -> dict[str, Any]:
    """Plain JSON values of a summary; an undefined standard error becomes null."""
    return {
        model: {
            group: {
                metric: {"value": m.value, "se": None if math.isnan(m.se) else m.se, "n_prompts": m.n_prompts}
                for metric, m in metrics.items()
            }
            for group, metrics in groups.items()
        }
        for model, groups in summary.items()
    }


def prompt_value_rows(values: Values) -> list[PromptValue]:
    """Every value as a row of its own."""
    return [
        PromptValue(model, group, prompt_id, metric, value)
        for model, groups in values.items()
        for group, metrics in groups.items()
        for metric, found in metrics.items()
        for prompt_id, value in found.items()
    ]


def prompt_metrics(
    rows: Sequence[EvaluationRecord], ks: Sequence[int], *, n_solutions: int | None, has_modes: bool
) -> PromptValues:
    """Metrics of one model's samples of one prompt, as far as the prompt defines them.

    Accuracy is over the samples with a verdict. Mean@k is their mean, whatever k is; a prompt with fewer than k of
    them does not define pass@k and distinct modes at k. ``*_low`` and ``*_high`` count every undecided sample as wrong
    and as correct: whatever the missing verdicts are, the metric of all samples lies between.
    """
    for k in ks:
        _at_least(rows, k)
    decided = [r for r in rows if r.reward is not None]
    missing, correct = len(rows) - len(decided), [r.correct for r in decided]
    verdicts = {"": correct, "_low": correct + [False] * missing, "_high": correct + [True] * missing}
    values: PromptValues = {}
    for name, found in verdicts.items():
        values |= {f"mean@{k}{name}": float(np.mean(found)) for k in ks if found}
        values |= {f"pass@{k}{name}": pass_at_k(found, k) for k in ks if k <= len(found)}
    if has_modes and decided:
        modes = [_mode(row) if row.correct else None for row in decided]
        values |= {f"distinct_modes@{k}": distinct_modes_at_k(modes, k) for k in ks if k <= len(decided)}
        values["effective_modes"] = effective_modes(modes)
        if n_solutions:
            values["coverage"] = solution_coverage(modes, n_solutions)
    tokens = [r.completion_tokens for r in rows if r.completion_tokens is not None]
    values |= {"undecided": missing / len(rows), "truncated": sum(r.truncated for r in rows) / len(rows)}
    return values | ({"tokens": sum(tokens) / len(tokens)} if tokens else {})


def _divergences(rows: Sequence[EvaluationRecord], log_z: float | None, beta: float) -> PromptValues:
    """KL to the reference, and to the target where log Z is known and a sample decided; none without log-probs."""
    known = [(r.log_pi, r.log_ref) for r in rows if r.log_pi is not None and r.log_ref is not None]
    if len(known) < len(rows):
        return {}
    values = {"kl_to_reference": kl_to_reference([pi for pi, _ in known], [ref for _, ref in known])}
    decided = [r for r in rows if r.reward is not None]
    if log_z is not None and decided:
        log_pi, log_ref, reward = ([getattr(r, name) for r in decided] for name in ("log_pi", "log_ref", "reward"))
        values["kl_to_target"] = kl_to_target(log_pi, log_ref, reward, log_z=log_z, beta=beta)
    return values


def _mode(row: EvaluationRecord) -> str:
    if row.mode is None:
        raise DisaError(
            "a correct sample of a task with modes has none",
            where=f"evaluation of {row.model}, prompt_id '{row.prompt_id}', draw {row.draw}, field 'mode'",
            fix="let the task's verifier return the canonical form of every correct solution",
        )
    return row.mode


def _at_least(samples: ArrayLike | Sequence[object], k: int) -> np.ndarray:
    samples = np.asarray(samples)
    if not 1 <= k <= len(samples):
        raise DisaError(
            f"a metric at k = {k} needs 1 <= k <= the number of samples of each prompt, found {len(samples)}",
            where="evaluation",
            fix="draw more samples per prompt, or lower k",
        )
    return samples


def _counts(modes: Sequence[str | None]) -> Counter[str]:
    return Counter(m for m in modes if m is not None)
