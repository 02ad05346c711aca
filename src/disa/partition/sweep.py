"""log Z at any inverse temperatures from one set of draws: a sweep needs no new trajectories."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import ArrayLike

from disa.errors import DisaError
from disa.partition.draws import Draws
from disa.partition.estimators import mixture
from disa.partition.log_weights import Array, log_z_from_q, soft_success


def sweep_log_z(draws: Draws, betas: ArrayLike, reward_range: tuple[float, float]) -> Array:
    """Mixture estimates of log Z at several inverse temperatures, from the same weights and rewards.

    Only the soft successes depend on beta. Where rewards are 0 and 1, q is the same at every beta. The overlap
    gate is not applied; :func:`disa.partition.gate.gated` says which prompts it would close.

    Parameters
    ----------
    draws : Draws
        From :func:`disa.partition.draws.collect_draws`, at any beta.
    betas : array, shape (k,)
        Positive.
    reward_range : tuple of float
        Smallest and largest possible reward.

    Returns
    -------
    array, shape (prompts, k)
        Nats.

    Raises
    ------
    DisaError
        Where an inverse temperature is not finite and positive.
    """
    columns = []
    for beta in np.asarray(betas, dtype=np.float64):
        if not (np.isfinite(beta) and beta > 0):
            raise DisaError(f"betas holds {beta}, expected finite positive inverse temperatures")
        at_beta = dataclasses.replace(draws, soft=soft_success(draws.rewards, beta, reward_range))
        q = np.clip(mixture(at_beta, beta * (reward_range[1] - reward_range[0])), 0.0, 1.0)
        columns.append(log_z_from_q(q, beta, reward_range))
    return np.stack(columns, axis=1)
