"""log Z at any inverse temperatures from one set of draws: a sweep needs no new trajectories."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from disa.errors import DisaError
from disa.partition.draws import Draws, collect_draws
from disa.partition.estimators import ESTIMATORS
from disa.partition.log_weights import Array, log_z_from_q, soft_success


def sweep_log_partition(
    rewards: ArrayLike,
    *,
    betas: ArrayLike,
    reward_range: tuple[float, float] = (0.0, 1.0),
    methods: Sequence[str] | None = None,
    **scored: Any,
) -> Array:
    """Estimates of log Z of many prompts at several inverse temperatures, from the same scored draws.

    Parameters
    ----------
    rewards : array, shape (n,)
    betas : array, shape (k,)
        Inverse temperatures, positive.
    reward_range : tuple of float
        Smallest and largest possible reward.
    methods : sequence of str, optional
        The estimator of each prompt, as an estimate's ``method`` names it: the default where not given.
    **scored
        ``prompt_index``, ``log_ref``, ``log_proposal``, ``from_reference`` or ``source``, ``lengths``, ``n_prompts``
        as in :func:`disa.estimate_log_partition_batch`, whose ``log_z`` each column equals.

    Returns
    -------
    array, shape (prompts, k)
        Nats.

    Raises
    ------
    DisaError
        Naming the argument and element at fault.
    """
    # The weights do not depend on beta; it only fills the soft successes, which the sweep sets anew.
    draws = collect_draws(rewards, beta=1.0, reward_range=reward_range, **scored)
    return sweep_log_z(draws, betas, reward_range, methods)


def sweep_log_z(
    draws: Draws, betas: ArrayLike, reward_range: tuple[float, float], methods: Sequence[str] | None = None
) -> Array:
    """:func:`sweep_log_partition` of collected draws.

    Only the soft successes depend on beta. Where rewards are 0 and 1, q is the same at every beta. Raises DisaError
    where an inverse temperature is not finite and positive, or the methods do not fit the draws.
    """
    chosen = _checked(["mixture"] * len(draws.counts) if methods is None else methods, draws)
    columns = []
    for beta in np.asarray(betas, dtype=np.float64):
        if not (np.isfinite(beta) and beta > 0):
            problem = f"betas holds {beta}, expected finite positive inverse temperatures"
            raise DisaError(problem, fix="leave it out, or pass a finite number above 0")
        b = beta * (reward_range[1] - reward_range[0])
        at_beta = dataclasses.replace(draws, soft=soft_success(draws.rewards, beta, reward_range))
        used = at_beta.reference_only(chosen == "pass_rate")
        q = np.empty(len(chosen))
        for name in np.unique(chosen).tolist():
            q = np.where(chosen == name, np.clip(ESTIMATORS[name](used, b), 0.0, 1.0), q)
        columns.append(log_z_from_q(q, beta, reward_range))
    return np.stack(columns, axis=1)


def _checked(methods: Sequence[str], draws: Draws) -> NDArray[np.str_]:
    if len(methods) != len(draws.counts):
        raise DisaError(
            f"{len(methods)} methods for {len(draws.counts)} prompts", where="methods", fix="give one per prompt"
        )
    for i, name in enumerate(methods):
        if name not in ESTIMATORS:
            problem = f"is {name!r}, expected one of {', '.join(ESTIMATORS)}"
            raise DisaError(problem, where=f"methods, prompt {i}", fix="choose one of these by docs/estimators.md")
        if name == "pass_rate" and not draws.reference_counts[i]:
            raise DisaError(
                "method pass_rate needs reference draws, found none",
                where=f"methods, prompt {i}",
                fix="draw from the reference too, or use another method there",
            )
    return np.array(methods)
