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
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from disa.errors import DisaError
from disa.runs.records import EvaluationRecord, Prompt

CORRECT_REWARD = 1.0
"""A completion is correct when it earns the full reward; partial credit is not a solution."""


@dataclasses.dataclass(frozen=True, slots=True)
class Measured:
    """A metric: never a bare float."""

    value: float
    se: float
    """Standard error over prompts; NaN where one prompt leaves it undefined."""
    n_prompts: int
    """Prompts the metric is defined on, which may be fewer than were evaluated."""


PromptValues = dict[str, float]
"""One metric of one model: value by ``prompt_id``, without the prompts it is undefined on."""
Summary = dict[str, dict[str, dict[str, Measured]]]
"""model -> split -> metric -> measured."""


def mean_at_k(correct: ArrayLike, k: int) -> float:
    """Correctness of one prompt averaged over k samples.

    Averaged over every choice of k among the n samples it is their plain mean, whatever k <= n is.

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
    return float(correct.mean())


def pass_at_k(correct: ArrayLike, k: int) -> float:
    """Chance that at least one of k samples is correct: ``1 - C(n-c, k) / C(n, k)``.

    Unbiased for c correct among n samples (Chen et al., arXiv 2107.03374, equation 1). Parameters
    and errors as in :func:`mean_at_k`.
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

    Raises
    ------
    DisaError
        When fewer than k samples were drawn.
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


def coverage(modes: Sequence[str | None], n_solutions: int) -> float:
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


def clustered_mean(values: Iterable[float]) -> Measured:
    """Mean of per-prompt values with its standard error ``sd / sqrt(n_prompts)`` (sd with n - 1)."""
    x = np.fromiter(values, dtype=np.float64)
    if x.size == 0:
        raise ValueError("no prompt to average over")
    se = float(x.std(ddof=1) / math.sqrt(x.size)) if x.size > 1 else math.nan
    return Measured(float(x.mean()), se, int(x.size))


def paired_difference(first: Mapping[str, float], second: Mapping[str, float]) -> Measured:
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
    prompts: Iterable[Prompt],
    log_z: Mapping[str, float],
    beta: float,
    ks: Sequence[int],
) -> dict[str, dict[str, dict[str, PromptValues]]]:
    """Every metric of every model by prompt: model -> split -> metric -> prompt_id -> value.

    Metrics of modes are defined where the task counts its solutions (and ``coverage`` where there
    is at least one); ``kl_to_target`` where ``log_z`` (nats) names the prompt.

    Raises
    ------
    DisaError
        When a record's prompt is unknown, a correct sample of a countable task has no mode, or a
        prompt has fewer samples than the largest k.
    """
    by_id = {p.prompt_id: p for p in prompts}
    groups: dict[tuple[str, str, str], list[EvaluationRecord]] = defaultdict(list)
    for record in records:
        groups[record.model, record.split, record.prompt_id].append(record)
    result: dict[str, dict[str, dict[str, PromptValues]]] = {}
    for (model, split, prompt_id), rows in groups.items():
        if prompt_id not in by_id:
            raise DisaError(
                f"prompt_id '{prompt_id}' is not among the task's prompts",
                where=f"evaluation of {model}",
                fix="evaluate on the prompts of this run, or rerun the evaluation",
            )
        metrics = result.setdefault(model, {}).setdefault(split, {})
        for name, value in _one_prompt(rows, by_id[prompt_id], log_z.get(prompt_id), beta, ks).items():
            metrics.setdefault(name, {})[prompt_id] = value
    return result


def summarise(
    records: Iterable[EvaluationRecord],
    prompts: Iterable[Prompt],
    log_z: Mapping[str, float],
    beta: float,
    ks: Sequence[int],
) -> Summary:
    """Every metric of every model and split as a mean over prompts; see :func:`per_prompt`."""
    return {
        model: {
            split: {metric: clustered_mean(values.values()) for metric, values in metrics.items()}
            for split, metrics in splits.items()
        }
        for model, splits in per_prompt(records, prompts, log_z, beta, ks).items()
    }


def summary_to_json(summary: Summary) -> dict[str, Any]:
    """Plain JSON values of a summary; an undefined standard error becomes null."""
    return {
        model: {
            split: {
                metric: {"value": m.value, "se": None if math.isnan(m.se) else m.se, "n_prompts": m.n_prompts}
                for metric, m in metrics.items()
            }
            for split, metrics in splits.items()
        }
        for model, splits in summary.items()
    }


def _one_prompt(
    rows: Sequence[EvaluationRecord], prompt: Prompt, log_z: float | None, beta: float, ks: Sequence[int]
) -> PromptValues:
    kl = kl_to_reference([r.log_pi for r in rows], [r.log_ref for r in rows])
    # Undecided samples are neither correct nor wrong; a metric at more samples than are decided is undefined here.
    decided = [r for r in rows if r.reward is not None]
    if len(decided) < len(rows):
        rows, ks = decided, [k for k in ks if k <= len(decided)]
    if not rows:
        return {"kl_to_reference": kl}
    correct = [r.reward >= CORRECT_REWARD for r in rows]
    values = {f"mean@{k}": mean_at_k(correct, k) for k in ks}
    values |= {f"pass@{k}": pass_at_k(correct, k) for k in ks}
    if prompt.n_solutions is not None:
        modes = [_mode(row) if c else None for row, c in zip(rows, correct, strict=True)]
        values |= {f"distinct_modes@{k}": distinct_modes_at_k(modes, k) for k in ks}
        values["effective_modes"] = effective_modes(modes)
        if prompt.n_solutions > 0:
            values["coverage"] = coverage(modes, prompt.n_solutions)
    if log_z is not None:
        log_pi, log_ref, reward = ([getattr(r, name) for r in rows] for name in ("log_pi", "log_ref", "reward"))
        values["kl_to_target"] = kl_to_target(log_pi, log_ref, reward, log_z=log_z, beta=beta)
    values["kl_to_reference"] = kl
    return values


def _mode(row: EvaluationRecord) -> str:
    if row.mode is None:
        raise DisaError(
            "a correct sample of a task with countable solutions has no mode",
            where=f"evaluation of {row.model}, prompt_id '{row.prompt_id}', draw {row.draw}, field 'mode'",
            fix="let the task's verifier return the canonical form of every correct solution",
        )
    return row.mode


def _at_least(samples: ArrayLike | Sequence[str | None], k: int) -> np.ndarray:
    samples = np.asarray(samples)
    if not 1 <= k <= len(samples):
        raise DisaError(
            f"a metric at k = {k} needs 1 <= k <= the number of samples of each prompt, found {len(samples)}",
            where="evaluation",
            fix="draw more samples a prompt, or lower k",
        )
    return samples


def _counts(modes: Sequence[str | None]) -> Counter[str]:
    return Counter(m for m in modes if m is not None)
