"""Judge a fitted regressor on the counts of prompts that it has not seen."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import minimize_scalar
from scipy.special import betainc, expit, ndtri

from disa.errors import DisaError
from disa.partition.log_weights import Array, log_z_from_q
from disa.partition.logit_normal import log_marginal
from disa.partition.regressor import Regressor, check_counts, log_z_posterior
from disa.partition.regressor_fit import LOG_WIDTH_RANGE

_PRIOR_SHARES = 200


@dataclasses.dataclass(frozen=True)
class RegressorReport:
    """How well the regressor predicts prompts without their draws, beside a constant for all prompts."""

    prompts: int
    nll: float
    """Negative log-likelihood of the counts, nats per prompt, without the binomial coefficient."""
    nll_constant: float
    r2_logit_q: float
    """Share of the variance of logit q between prompts that the features explain, ``1 - s^2 / s_0^2``: the widths
    at which these counts are likeliest around the predictions and around the constant, so free of
    the counts' own noise; below 0 where the constant is better."""
    coverage: float
    """Share of counts inside their central predictive interval; a count on its edge enters by the part inside."""
    level: float
    """What the coverage should be."""
    rmse: float
    """Of predicted log Z, nats, against each prompt's own Jeffreys estimate: its noise and bias, which with tens
    of draws or fewer outweigh what the features explain, are part of it."""
    rmse_constant: float


def report_regressor(
    regressor: Regressor,
    k: ArrayLike,
    n: ArrayLike,
    features: ArrayLike,
    *,
    beta: float,
    reward_range: tuple[float, float] = (0.0, 1.0),
    level: float = 0.9,
) -> RegressorReport:
    """Compare predictions from features alone with the counts of held-out prompts.

    Raises DisaError where the arrays do not fit together, or a prompt has no draws.
    """
    mean = regressor.mean_logit(features)
    k, n = check_counts(k, n, len(mean))
    if len(n) == 0 or not n.all():
        raise DisaError("a report needs prompts that all have draws", where="n", fix="leave out prompts with n = 0")
    constant = np.full_like(mean, regressor.constant_mean)
    models = ((mean, regressor.width), (constant, regressor.constant_width))

    nll = [-float(log_marginal(k, n, *model)[0].mean()) for model in models]
    widths = [_likeliest_width(k, n, m) for m in (mean, constant)]
    own = log_z_from_q((k + 0.5) / (n + 1.0), beta, reward_range)
    none = np.zeros_like(n)
    predicted = [log_z_posterior(none, none, *m, beta=beta, reward_range=reward_range).log_z for m in models]
    rmse = [float(np.sqrt(np.mean((p - own) ** 2))) for p in predicted]
    return RegressorReport(
        prompts=len(n),
        nll=nll[0],
        nll_constant=nll[1],
        r2_logit_q=1.0 - (widths[0] / widths[1]) ** 2,
        coverage=_coverage(k, n, mean, regressor.width, level),
        level=level,
        rmse=rmse[0],
        rmse_constant=rmse[1],
    )


def _likeliest_width(k: Array, n: Array, mean: Array) -> float:
    def loss(log_width: float) -> float:
        return -float(log_marginal(k, n, mean, np.exp(log_width))[0].sum())

    return float(np.exp(minimize_scalar(loss, bounds=LOG_WIDTH_RANGE, method="bounded").x))


def _coverage(k: Array, n: Array, mean: Array, width: float, level: float) -> float:
    """Mean over prompts of the part of [P(K < k), P(K <= k)] inside the central interval of probabilities."""
    # Equal shares of the prior: many draws turn the binomial into a step, which moves u by at most half a share.
    shares = (np.arange(_PRIOR_SHARES) + 0.5) / _PRIOR_SHARES
    nodes = mean[:, None] + width * ndtri(shares)
    hits, misses, failure = k[:, None], (n - k)[:, None], expit(-nodes)
    # Binomial distribution function by the incomplete beta function, which also takes pseudo-counts.
    below = np.where(hits > 0, betainc(misses + 1.0, np.maximum(hits, 1e-300), failure), 0.0)
    up_to = np.where(misses > 0, betainc(np.maximum(misses, 1e-300), hits + 1.0, failure), 1.0)
    below, up_to = below.mean(axis=1), up_to.mean(axis=1)
    up_to = np.maximum(up_to, below + 1e-9)  # a count among very many still has an inside
    tail = 0.5 * (1.0 - level)
    inside = np.minimum(up_to, 1.0 - tail) - np.maximum(below, tail)
    return float(np.mean(np.clip(inside / (up_to - below), 0.0, 1.0)))
