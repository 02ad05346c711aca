"""The scored draws of many prompts as flat arrays, checked, and sorted by prompt."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from disa.errors import DisaError
from disa.partition.log_weights import Array, balance_log_weights, log_ratio_to_proposals, soft_success
from disa.runs.records import ScoredTrajectory
from disa.runs.scored_columns import Scored, ScoredColumns


@dataclasses.dataclass(frozen=True)
class Draws:
    """Draws of ``prompts`` prompts, one row each, grouped by prompt; every prompt has at least one.

    ``soft`` are soft successes in [0, 1]; ``log_ratio`` is log pi_ref - log mu and ``log_w`` the log importance weight,
    nats; ``lengths`` are tokens; ``prompt`` is the index of each draw's prompt, ascending.
    """

    rewards: Array
    soft: Array
    log_ratio: Array
    log_w: Array
    from_reference: NDArray[np.bool_]
    lengths: Array | None
    prompt: NDArray[np.intp]
    starts: NDArray[np.intp] = dataclasses.field(init=False)
    counts: NDArray[np.intp] = dataclasses.field(init=False)
    reference_counts: Array = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        starts = np.flatnonzero(np.concatenate(([True], self.prompt[1:] != self.prompt[:-1])))
        object.__setattr__(self, "starts", starts)
        object.__setattr__(self, "counts", np.diff(np.append(starts, len(self.prompt))))
        object.__setattr__(self, "reference_counts", self.sum(self.from_reference.astype(np.float64)))

    def sum(self, values: Array) -> Array:
        """Sum over each prompt's draws, shape (prompts,)."""
        return np.add.reduceat(values, self.starts)

    def max(self, values: Array) -> Array:
        """Maximum over each prompt's draws, shape (prompts,)."""
        return np.maximum.reduceat(values, self.starts)

    def spread(self, per_prompt: Any) -> Any:
        """Repeat a value per prompt for each of its draws, shape (n,)."""
        return np.repeat(per_prompt, self.counts)

    def reference_only(self, prompts: NDArray[np.bool_]) -> Draws:
        """Drop the proposal draws of the marked prompts, whose weights become 1."""
        marked = self.spread(prompts)
        keep = self.from_reference | ~marked
        return Draws(
            rewards=self.rewards[keep],
            soft=self.soft[keep],
            log_ratio=self.log_ratio[keep],
            log_w=np.where(marked, 0.0, self.log_w)[keep],
            from_reference=self.from_reference[keep],
            lengths=None if self.lengths is None else self.lengths[keep],
            prompt=self.prompt[keep],
        )


def collect_draws(
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
    reward_range: tuple[float, float],
) -> Draws:
    """Check the arrays of :func:`disa.estimate_log_partition_batch` and weight the draws."""
    low, high = reward_range
    if not (np.isfinite(low) and np.isfinite(high) and low < high):
        raise DisaError(
            f"reward_range is {reward_range}, expected two finite numbers, the smaller first",
            fix="pass the lowest and the highest reward that can occur, as (0, 1)",
        )
    if not (np.isfinite(beta) and beta > 0):
        raise DisaError(f"beta is {beta}, expected a finite positive number", fix="pass the inverse temperature")
    rewards = _floats("rewards", rewards, None)
    n = len(rewards)
    if n == 0:
        raise DisaError("rewards is empty", fix="pass at least one trajectory")
    _refuse("rewards", rewards, ~((rewards >= low) & (rewards <= high)), f"a reward in [{low}, {high}]")
    log_ref = _floats("log_ref", log_ref, n)
    _refuse("log_ref", log_ref, np.isnan(log_ref) | (log_ref == np.inf), "a log-probability below +inf")
    source = _sources(from_reference, source, n)
    log_proposal = _proposals(log_proposal, source, n)
    prompt = _prompts(prompt_index, n_prompts, n)
    if lengths is not None:
        lengths = _floats("lengths", lengths, n)
        _refuse("lengths", lengths, ~(lengths >= 0), "a number of tokens")
    sampled = np.where(source == 0, log_ref, log_proposal[np.arange(n), np.maximum(source, 1) - 1])
    _refuse("log-probability", sampled, np.isinf(sampled), "a finite value under the model the draw came from")

    if np.any(prompt[1:] < prompt[:-1]):
        order = np.argsort(prompt, kind="stable")
        rewards, log_ref, log_proposal = rewards[order], log_ref[order], log_proposal[order]
        source, prompt = source[order], prompt[order]
        lengths = lengths[order] if lengths is not None else None

    draws_of = np.stack([np.bincount(prompt, source == j) for j in range(log_proposal.shape[1] + 1)], axis=1)
    total, proposals = draws_of.sum(axis=1), draws_of[:, 1:].sum(axis=1)
    shares = draws_of[:, 1:] / np.maximum(proposals, 1.0)[:, None]
    log_ratio = log_ratio_to_proposals(log_ref, log_proposal, shares[prompt])
    return Draws(
        rewards=rewards,
        soft=soft_success(rewards, beta, reward_range),
        log_ratio=log_ratio,
        log_w=balance_log_weights(log_ratio, (draws_of[:, 0] / total)[prompt]),
        from_reference=source == 0,
        lengths=lengths,
        prompt=prompt,
    )


def trajectory_arrays(rows: Sequence[Sequence[ScoredTrajectory]]) -> dict[str, Any]:
    """Trajectories by prompt as the arrays that the estimators take."""
    index = np.repeat(np.arange(len(rows)), [len(prompt) for prompt in rows])
    return _arrays(ScoredColumns.of([row for prompt in rows for row in prompt]), index, len(rows))


def trajectory_columns(prompt_ids: Sequence[str], rows: Scored) -> dict[str, Any]:
    """Trajectories in any order as the arrays that the estimators take, prompts numbered as given."""
    columns, index = ScoredColumns.of(rows), {prompt_id: i for i, prompt_id in enumerate(prompt_ids)}
    numbers = np.array([index.get(prompt_id, -1) for prompt_id in columns.ids], dtype=np.intp)
    return _arrays(columns, numbers[columns.prompt], len(prompt_ids))


def _arrays(columns: ScoredColumns, prompt_index: NDArray[np.intp], n_prompts: int) -> dict[str, Any]:
    return {
        "rewards": columns.reward,
        "prompt_index": prompt_index,
        "n_prompts": n_prompts,
        "log_ref": columns.log_ref,
        "log_proposal": columns.log_proposal,
        "from_reference": columns.from_reference,
        "lengths": columns.own_length,
    }


def _sources(from_reference: ArrayLike | None, source: ArrayLike | None, n: int) -> NDArray[np.intp]:
    if (from_reference is None) == (source is None):
        found = "neither" if source is None else "both"
        raise DisaError(
            f"give from_reference or source, found {found}",
            fix="from_reference (bool) for one proposal; source (0 the reference, j the j-th proposal) for more",
        )
    if source is None:
        flags = np.asarray(from_reference)
        if flags.dtype != np.bool_:
            fix = "pass True for the reference's draws, False for the proposal's; source takes numbers"
            raise DisaError(f"from_reference has type {flags.dtype}, expected bool", fix=fix)
        source = np.where(flags, 0, 1)
    array = np.asarray(source)
    if array.shape != (n,):
        raise DisaError(f"the sources have shape {array.shape}, expected ({n},)", fix="pass one source per reward")
    if not np.issubdtype(array.dtype, np.integer):
        fix = "number the proposals from 1, the reference being 0"
        raise DisaError(f"source has type {array.dtype}, expected integers", fix=fix)
    return array.astype(np.intp)


def _proposals(log_proposal: ArrayLike | None, source: NDArray[np.intp], n: int) -> Array:
    if log_proposal is None:
        _refuse("source", source, source != 0, "0, since log_proposal is not given")
        return np.full((n, 1), -np.inf)
    array = np.asarray(log_proposal, dtype=np.float64)
    array = array[:, None] if array.ndim == 1 else array
    if array.ndim != 2 or array.shape[0] != n or array.shape[1] == 0:
        raise DisaError(
            f"log_proposal has shape {np.shape(log_proposal)}, expected ({n},) or ({n}, m)",
            fix="pass each trajectory's log-probability under each of the m proposals, one row per reward",
        )
    bad = (np.isnan(array) | (array == np.inf)).any(axis=1)
    _refuse("log_proposal", array, bad, "a log-probability below +inf")
    _refuse("source", source, (source < 0) | (source > array.shape[1]), f"an integer from 0 to {array.shape[1]}")
    return array


def _prompts(prompt_index: ArrayLike, n_prompts: int | None, n: int) -> NDArray[np.intp]:
    array = np.asarray(prompt_index)
    if array.shape != (n,) or not np.issubdtype(array.dtype, np.integer):
        raise DisaError(
            f"prompt_index has shape {array.shape} and type {array.dtype}, expected ({n},) integers",
            fix="pass the number of each reward's prompt, from 0",
        )
    _refuse("prompt_index", array, array < 0, "a prompt's index from 0")
    limit = int(array.max()) + 1 if n_prompts is None else n_prompts
    _refuse("prompt_index", array, array >= limit, f"an index below n_prompts = {limit}")
    if limit > n or not (present := np.bincount(array, minlength=limit) > 0).all():
        first = int(np.argmin(present)) if limit <= n else int(np.setdiff1d(np.arange(n + 1), array)[0])
        raise DisaError(
            f"prompt {first} of {limit} has no trajectory",
            where="prompt_index",
            fix="draw at least one trajectory for every prompt, or number the prompts without gaps",
        )
    return array.astype(np.intp)


def _floats(name: str, values: ArrayLike, n: int | None) -> Array:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or (n is not None and len(array) != n):
        expected = f"({'n' if n is None else n},)"
        raise DisaError(f"{name} has shape {array.shape}, expected {expected}", fix="pass one value per trajectory")
    return array


def _refuse(name: str, values: NDArray[Any], bad: NDArray[np.bool_], expected: str) -> None:
    if bad.any():
        first = int(np.argmax(bad))
        fix = "mend the value, or leave its trajectory out"
        raise DisaError(f"is {values[first]}, expected {expected}", where=f"{name}, element {first}", fix=fix)
