"""Estimate log Z for one prompt or for many: weights, estimator, interval, diagnostics, flags."""

from __future__ import annotations

import dataclasses
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from disa.errors import DisaError
from disa.partition.betting import betting
from disa.partition.diagnostics import effective_sample_sizes
from disa.partition.draws import Draws, collect_draws
from disa.partition.estimators import ESTIMATORS, effective_hits, mixture, with_and_without_hits
from disa.partition.gate import gated_prompts
from disa.partition.intervals import clopper_pearson, gamma
from disa.partition.log_weights import Array, linear_weights, log_z_from_q
from disa.partition.psis import STATUSES, pareto_k
from disa.partition.verdict import flag_prompts

EstimatorName = Literal["mixture", "anchored", "is", "tis", "psis", "snis", "pass_rate"]
Interval = Literal["gamma", "betting", "clopper_pearson"]

_INTERVALS = {"gamma": gamma, "betting": betting, "clopper_pearson": clopper_pearson}


@dataclasses.dataclass(frozen=True)
class LogPartition:
    """One prompt's log Z with everything needed to judge it; see :class:`LogPartitionBatch`."""

    log_z: float
    q: float
    interval: tuple[float, float]
    n: int
    n_reference: int
    mean_reward_reference: float
    ess: float
    hits_ess: float
    mean_weight: float
    pareto_k: float
    pareto_status: str
    method: str
    flags: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class LogPartitionBatch:
    """Estimates of log Z of many prompts. Every field has one entry per prompt."""

    log_z: Array
    """Estimate of log E_ref[exp(beta r)], nats."""
    q: Array
    """Soft success probability in [0, 1]: ``Z = exp(beta r_min) (1 + expm1(beta (r_max - r_min)) q)``."""
    q_without_hits: Array
    """What q would be had no draw been rewarded: the mixture's q is never below. 0 for the other methods."""
    interval_low: Array
    interval_high: Array
    """Two-sided interval for log Z, nats; always holds the estimate."""
    n: NDArray[np.intp]
    """Draws."""
    n_reference: NDArray[np.intp]
    """Draws from the reference."""
    mean_reward_reference: Array
    """Mean reward of the reference draws; NaN without any."""
    ess: Array
    """Effective draws, ``sum(w)^2 / sum(w^2)``, among the draws the method used."""
    hits_ess: Array
    """Effective rewarded draws, ``sum(w s)^2 / sum((w s)^2)``; 0 where they are too light to say more than none."""
    mean_weight: Array
    """Mean of w, whose expectation is 1; what it lacks is reference mass that the draws miss."""
    pareto_k: Array
    """Shape of the weights' tail; NaN where the status is not ``ok``."""
    pareto_status: tuple[str, ...]
    """``ok``, ``few_draws`` (fewer than 25) or ``ties`` (tail without five distinct weights)."""
    method: tuple[str, ...]
    """Estimator used."""
    flags: tuple[tuple[str, ...], ...]
    """Names from :data:`disa.partition.verdict.FLAGS`, which says what to do about each."""

    def __len__(self) -> int:
        return len(self.log_z)

    def row(self, i: int) -> LogPartition:
        """Return the estimate of one prompt."""
        return LogPartition(
            interval=(float(self.interval_low[i]), float(self.interval_high[i])),
            n=int(self.n[i]),
            n_reference=int(self.n_reference[i]),
            **{
                name: float(getattr(self, name)[i])
                for name in ("log_z", "q", "mean_reward_reference", "ess", "hits_ess", "mean_weight", "pareto_k")
            },
            pareto_status=self.pareto_status[i],
            method=self.method[i],
            flags=self.flags[i],
        )


def estimate_log_partition(
    rewards: ArrayLike,
    *,
    log_ref: ArrayLike,
    log_proposal: ArrayLike | None = None,
    from_reference: ArrayLike | None = None,
    source: ArrayLike | None = None,
    lengths: ArrayLike | None = None,
    beta: float,
    reward_range: tuple[float, float] = (0.0, 1.0),
    method: EstimatorName = "mixture",
    interval: Interval = "gamma",
    level: float = 0.9,
) -> LogPartition:
    """Estimate one prompt's ``log Z = log E_ref[exp(beta r)]`` from scored draws.

    The arguments are those of :func:`estimate_log_partition_batch`, for the draws of one prompt.

    Examples
    --------
    >>> est = estimate_log_partition([1, 0, 0, 0], log_ref=[-3.0] * 4, from_reference=[True] * 4, beta=15.0)
    >>> round(est.q, 3), est.n_reference
    (0.375, 4)
    """
    return estimate_log_partition_batch(
        rewards,
        prompt_index=np.zeros(np.shape(rewards)[:1], dtype=np.intp),
        log_ref=log_ref,
        log_proposal=log_proposal,
        from_reference=from_reference,
        source=source,
        lengths=lengths,
        beta=beta,
        reward_range=reward_range,
        method=method,
        interval=interval,
        level=level,
    ).row(0)


def estimate_log_partition_batch(
    rewards: ArrayLike,
    *,
    prompt_index: ArrayLike,
    n_prompts: int | None = None,
    log_ref: ArrayLike,
    log_proposal: ArrayLike | None = None,
    from_reference: ArrayLike | None = None,
    source: ArrayLike | None = None,
    lengths: ArrayLike | None = None,
    beta: float,
    reward_range: tuple[float, float] = (0.0, 1.0),
    method: EstimatorName = "mixture",
    interval: Interval = "gamma",
    level: float = 0.9,
) -> LogPartitionBatch:
    """Estimate ``log Z = log E_ref[exp(beta r)]`` of many prompts from flat arrays of n scored draws.

    Parameters
    ----------
    rewards : array, shape (n,)
        Within ``reward_range``.
    prompt_index : array of int, shape (n,)
        Each draw's prompt, from 0, in any order; every prompt needs a draw.
    n_prompts : int, optional
        Number of prompts, one more than the largest index unless given.
    log_ref : array, shape (n,)
        log pi_ref of each completion, nats, under the sampling law used to draw.
    log_proposal : array, shape (n,) or (n, m), optional
        log mu of each completion under each of m proposals, also for draws from the reference. May
        be left out where every draw came from the reference.
    from_reference : array of bool, shape (n,), optional
        Whether the reference drew it; with one proposal, the short form of ``source``.
    source : array of int, shape (n,), optional
        The model that drew it: 0 the reference, j the proposal in column j - 1. Give this or ``from_reference``.
    lengths : array, shape (n,), optional
        Tokens of each completion. With them the overlap of reference and proposal is measured over all prompts, by
        length; without, each prompt is judged by its own draws.
    beta : float
        Inverse temperature, positive.
    reward_range : tuple of float
        Smallest and largest possible reward.
    method : str
        ``mixture`` (default) uses all draws; where the proposal does not overlap with the reference's successes, the
        flag ``gated`` says that its draws carry next to nothing. ``pass_rate`` uses only the reference draws.
    interval : str
        ``gamma``, ``betting`` (finite-sample valid, wider) or ``clopper_pearson`` (reference draws
        and two-valued rewards only).
    level : float
        Two-sided level of the intervals, in (0, 1).

    Returns
    -------
    LogPartitionBatch

    Raises
    ------
    DisaError
        Naming the argument and element at fault.

    Notes
    -----
    The shares alpha_j in the balance heuristic ``w = pi_ref / sum_j alpha_j p_j`` are the actual shares of
    the prompt's draws, so that w = 1 exactly where all of them came from the reference.
    """
    _check_choices(method, interval, level)
    draws = collect_draws(
        rewards,
        prompt_index=prompt_index,
        n_prompts=n_prompts,
        log_ref=log_ref,
        log_proposal=log_proposal,
        from_reference=from_reference,
        source=source,
        lengths=lengths,
        beta=beta,
        reward_range=reward_range,
    )
    n, n_reference = draws.counts, draws.reference_counts
    used = _reference_draws(draws) if method == "pass_rate" else draws
    q = np.clip(ESTIMATORS[method](used, beta * (reward_range[1] - reward_range[0])), 0.0, 1.0)
    q_low, q_high = _INTERVALS[interval](used, level)
    # An estimate outside its interval (a regression on few draws, or a biased method) widens it.
    low, high = (log_z_from_q(end, beta, reward_range) for end in (np.minimum(q_low, q), np.maximum(q_high, q)))
    ess, hits_ess = effective_sample_sizes(used)
    without_hits = np.zeros(len(n))
    if ESTIMATORS[method] is mixture:
        hits_ess, without_hits = effective_hits(used), with_and_without_hits(used)[1]
    mean_weight = used.sum(linear_weights(used.log_w)) / used.counts
    k, status = pareto_k(used)
    rewards_of_reference = draws.sum(np.where(draws.from_reference, draws.rewards, 0.0))
    mean_reward = rewards_of_reference / np.where(n_reference > 0, n_reference, np.nan)
    return LogPartitionBatch(
        log_z=log_z_from_q(q, beta, reward_range),
        q=q,
        q_without_hits=without_hits,
        interval_low=low,
        interval_high=high,
        n=n,
        n_reference=n_reference.astype(np.intp),
        mean_reward_reference=mean_reward,
        ess=ess,
        hits_ess=hits_ess,
        mean_weight=mean_weight,
        pareto_k=k,
        pareto_status=tuple(np.array(STATUSES)[status].tolist()),
        method=(method,) * len(n),
        flags=flag_prompts(
            gated=gated_prompts(draws) & (method == "mixture"),
            hits_ess=hits_ess,
            interval_width=high - low,
            pareto_k=k,
            mean_weight=mean_weight,
            n_reference=n_reference,
        ),
    )


def _reference_draws(draws: Draws) -> Draws:
    if not draws.reference_counts.all():
        raise DisaError(
            "method pass_rate needs reference draws, found none",
            where=f"prompt {int(np.argmin(draws.reference_counts))}",
            fix="draw some trajectories from the reference (proposals.reference_share above 0)",
        )
    return draws.reference_only(np.ones(len(draws.counts), dtype=bool))


def _check_choices(method: str, interval: str, level: float) -> None:
    for name, value, allowed in (
        ("method", method, get_args(EstimatorName)),
        ("interval", interval, get_args(Interval)),
    ):
        if value not in allowed:
            problem = f"{name} is {value!r}, expected one of {', '.join(allowed)}"
            raise DisaError(problem, fix="leave it out, or choose one of these by docs/estimators.md")
    if not 0.0 < level < 1.0:
        raise DisaError(f"level is {level}, expected a number between 0 and 1", fix="pass a level such as 0.9")
