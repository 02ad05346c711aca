"""The error of log Z in one cell, from disjoint blocks of a stored pool: pure arrays.

Of a prompt with R estimates ``e_r + log Z``, measured against a log Z that is itself an estimate with variance ``v``::

    variance = s^2,    bias^2 = mean(e)^2 - s^2 / R - v,    mse = mean(e^2) - v = bias^2 + variance

with s^2 the sample variance of e. Each is unbiased, so a bias^2 near 0 comes out negative as often as positive; a mean
over prompts, with its standard error, says whether it differs from 0.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from disa.errors import DisaError
from disa.evaluation.metrics import MetricValue, clustered_mean
from disa.partition.config import PartitionConfig
from disa.partition.draws import collect_draws
from disa.partition.estimate import LogPartitionBatch, estimate_log_partition_batch
from disa.partition.gate import proposal_divergence
from disa.partition.log_weights import Array, log_z_from_q, soft_success
from disa.partition.verdict import FLAGS


class HeldoutDraws(NamedTuple):
    """Scored draws of some prompts, as the estimators take them, each with its index within prompt and source."""

    columns: dict[str, Any]
    """As :func:`disa.partition.draws.trajectory_columns` makes them."""
    draw: NDArray[np.intp]

    def block(self, number: int, counts: dict[str, int]) -> dict[str, Any]:
        """Arrays of the block with this number, in which every prompt has ``counts`` draws of each source."""
        inside = in_block(self.draw, self.columns["from_reference"], number, counts)
        flat = {name: value[inside] for name, value in self.columns.items() if name != "n_prompts"}
        return flat | {"n_prompts": self.columns["n_prompts"]}


def in_block(
    draw: ArrayLike, from_reference: ArrayLike, number: int, counts: dict[str, int]
) -> NDArray[np.bool_] | np.bool_:
    """Whether draws belong to a block: blocks are consecutive within prompt and source, and share nothing."""
    size = np.where(from_reference, counts["reference"], counts["proposal"])
    return (number * size <= np.asarray(draw)) & (np.asarray(draw) < (number + 1) * size)


def whole_blocks(pool: dict[str, int], counts: dict[str, int]) -> int:
    """How many blocks of ``counts`` draws a pool of ``pool`` draws of each source holds."""
    return min(pool[source] // count for source, count in counts.items() if count)


class TrueLogZ(NamedTuple):
    """log Z of some prompts from reference draws alone, shape (prompts,)."""

    log_z: Array
    variance: Array
    """Of log_z, by the delta method, nats squared."""


def truth_from_reference(columns: dict[str, Any], beta: float, reward_range: tuple[float, float]) -> TrueLogZ:
    """``q = (sum(s) + 1/2) / (n + 1)`` and ``Var log Z = (expm1(b) / Z)^2 Var q``.

    Z is taken without its factor exp(beta r_min). Var q is ``(mean(s^2) - mean(s)^2) / (n + 2)`` with half a success
    and half a failure added to the draws: for rewards of 0 and 1 the variance of the Jeffreys posterior. Raises
    DisaError where a prompt has no draw.
    """
    prompts = columns["n_prompts"]
    s = soft_success(columns["rewards"], beta, reward_range)
    n = np.bincount(columns["prompt_index"], minlength=prompts)
    if not n.all():
        raise DisaError(
            "a held-out prompt has no reference draw with a verdict",
            where="study, truth",
            fix="draw more, or use a task whose reward is never undecided",
        )
    first, second = (
        (np.bincount(columns["prompt_index"], values, minlength=prompts) + 0.5) / (n + 1) for values in (s, s * s)
    )
    log_z = log_z_from_q(first, beta, reward_range)
    # d log Z / d q = expm1(b) / Z, with log Z less beta r_min: both may be large, their ratio is at most 1 / q.
    b = beta * (reward_range[1] - reward_range[0])
    slope = -np.expm1(-b) * np.exp(b - (log_z - beta * reward_range[0]))
    return TrueLogZ(log_z, slope**2 * (second - first**2) / (n + 2))


class CellErrors(NamedTuple):
    """What the errors of one cell are made of, by prompt, shape (prompts,); nats and nats squared."""

    bias: Array
    bias_squared: Array
    variance: Array
    mse: Array


def error_parts(estimates: Array, truth: TrueLogZ) -> CellErrors:
    """Bias, variance and mean squared error of estimates of shape (replicates, prompts), at least two replicates."""
    errors = estimates - truth.log_z
    replicates, bias = len(errors), errors.mean(axis=0)
    variance = errors.var(axis=0, ddof=1)
    bias_squared = bias**2 - variance / replicates - truth.variance
    return CellErrors(bias, bias_squared, variance, bias_squared + variance)


def cell_error(
    pool: HeldoutDraws,
    counts: dict[str, int],
    blocks: int,
    truth: TrueLogZ,
    config: PartitionConfig,
    beta: float,
    reward_range: tuple[float, float],
) -> dict[str, Any]:
    """Measure one cell: error, interval coverage, flags and effective sample sizes, as plain JSON values.

    Every block is estimated as the partition stage would, all prompts at once, since the gate pools its evidence over
    them. Means are over prompts, whose standard errors treat them as independent. Of the whole pool come
    ``proposal_reward`` and ``divergence``, not where all draws came from the reference; ``truth_se`` is the root mean
    square standard error of the truth.
    """
    batches = [
        estimate_log_partition_batch(
            **pool.block(number, counts),
            beta=beta,
            reward_range=reward_range,
            method=config.method,
            interval=config.interval,
            level=config.level,
        )
        for number in range(blocks)
    ]
    low, high = (_stack(batches, name) for name in ("interval_low", "interval_high"))
    raised = {name: np.array([[name in flags for flags in batch.flags] for batch in batches]) for name in FLAGS}
    by_prompt = {
        **error_parts(_stack(batches, "log_z"), truth)._asdict(),
        "coverage": ((low <= truth.log_z) & (truth.log_z <= high)).mean(axis=0),
        "width": (high - low).mean(axis=0),
        "ess": _stack(batches, "ess").mean(axis=0),
        "hits_ess": _stack(batches, "hits_ess").mean(axis=0),
        "gated": raised["gated"].mean(axis=0),
        "flagged": np.any(list(raised.values()), axis=0).mean(axis=0),
    }
    found = {name: clustered_mean(values) for name, values in (by_prompt | _proposal(pool, beta, reward_range)).items()}
    found["rmse"] = root_mean_square(found["mse"])
    return {name: measured_json(measured) for name, measured in found.items()} | {
        "flags": {name: float(marks.mean()) for name, marks in raised.items() if marks.any()},
        "truth_se": float(np.sqrt(truth.variance.mean())),
        "blocks": blocks,
        "prompts": len(truth.log_z),
    }


def _proposal(pool: HeldoutDraws, beta: float, reward_range: tuple[float, float]) -> dict[str, Array]:
    """By prompt where known: mean reward of the proposal's draws, and D (:mod:`disa.partition.gate`)."""
    drawn = ~pool.columns["from_reference"]
    if not drawn.any():
        return {}
    of = pool.columns["prompt_index"][drawn]
    reward = np.bincount(of, pool.columns["rewards"][drawn], minlength=pool.columns["n_prompts"]) / np.bincount(of)
    d, _ = proposal_divergence(collect_draws(**pool.columns, beta=beta, reward_range=reward_range))
    return {"proposal_reward": reward} | ({"divergence": d[np.isfinite(d)]} if np.isfinite(d).any() else {})


def root_mean_square(square: MetricValue) -> MetricValue:
    """Square root of a mean, with its error by the delta method; a square that chance left below 0 counts as 0."""
    value = math.sqrt(max(square.value, 0.0))
    return MetricValue(value, square.se / (2.0 * value) if value else math.nan, square.n_prompts)


def measured_json(measured: MetricValue) -> dict[str, float | None]:
    """Value and standard error, null where it is undefined."""
    return {"value": measured.value, "se": None if math.isnan(measured.se) else measured.se}


def _stack(batches: list[LogPartitionBatch], name: str) -> Array:
    return np.stack([getattr(batch, name) for batch in batches])
