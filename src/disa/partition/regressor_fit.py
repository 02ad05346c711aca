"""Fit the regressor of log Z: pseudo-counts, marginal likelihood, left-out prompts."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import minimize

from disa.errors import DisaError
from disa.partition.estimate import LogPartitionBatch
from disa.partition.log_weights import Array
from disa.partition.logit_normal import log_marginal
from disa.partition.regressor import Regressor, check_counts, check_features

MIN_PROMPTS = 20
"""Fewer prompts do not tell the width of the random effect."""

SIGNAL_SDS = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0)
"""Candidates for g in logits; 4 lets features move q between 0.02% and 99.98%."""

FOLDS = 5

_INTERCEPT_SD, _LOG_WIDTH_SD = 10.0, 1.5
"""Weak priors, a ~ N(0, 10^2) and log s ~ N(0, 1.5^2): a fit without a single hit stays finite."""

_SLOPE_SD = 0.25
"""Prior spread of the recalibrated slope around 1: features that carry nothing leave it there."""

LOG_WIDTH_RANGE = (-5.0, 3.0)
"""Widths from 0.007, where a random effect no longer matters, to 20 logits."""

_INFORMATION = 0.25
"""Typical curvature of a prompt's likelihood in logits; only scales the optimiser's steps."""


def pseudo_counts(batch: LogPartitionBatch) -> tuple[Array, Array]:
    """Return the counts of a binomial that carries as much as each estimate: k hits in n draws.

    ``k = hits_ess``, and n such that the estimate is their Jeffreys mean, ``q = (k + 1/2) / (n + 1)``: the number of
    draws over the weight of a hit. Methods without a prior have q = 0 without hits; n is then the number of reference
    draws, the only ones that are certain to find what is there.
    """
    k, some = batch.hits_ess, batch.q > 0
    n = (k + 0.5) / np.where(some, batch.q, 1.0) - 1.0
    return k, np.where(some, np.maximum(n, k), batch.n_reference)


def fit_regressor(k: ArrayLike, n: ArrayLike, features: ArrayLike, *, features_fingerprint: str) -> Regressor:
    """Fit the regression to the counts of many prompts; the same arguments give the same result.

    Raises DisaError with fewer than 20 prompts, where shapes differ, counts are not 0 <= k <= n, or features are not
    finite. With more features than prompts, the fit takes place in the prompts' span.
    """
    features = check_features(features, None)
    k, n = check_counts(k, n, len(features))
    prompts = len(k)
    if prompts < MIN_PROMPTS:
        raise DisaError(
            f"{prompts} prompts, expected at least {MIN_PROMPTS}",
            where="fit_regressor",
            fix="use the estimates as they are, or add prompts",
        )
    centre, spread = features.mean(axis=0), features.std(axis=0)
    # A feature that varies by rounding alone carries nothing; scale 1 leaves it near zero.
    scale = np.where(spread > 1e-9 * np.abs(centre), spread, 1.0)
    left, singular, axes = np.linalg.svd((features - centre) / scale, full_matrices=False)
    scores = left * singular

    signal_sd, left_out = _cross_validate(k, n, scores)
    fitted, constant = _fit(k, n, scores, signal_sd), _fit(k, n, scores, 0.0)
    shift, slope, width = _recalibrate(k, n, left_out)
    return Regressor(
        centre=centre,
        scale=scale,
        weights=slope * (fitted[1:-1] @ axes),
        intercept=float(fitted[0] + shift),
        width=width,
        signal_sd=signal_sd,
        constant_mean=float(constant[0]),
        constant_width=float(np.exp(constant[-1])),
        prompts=prompts,
        features_fingerprint=features_fingerprint,
    )


def _cross_validate(k: Array, n: Array, scores: Array) -> tuple[float, Array]:
    """Return the g whose fits predict the counts of left-out prompts best, and those predictions."""
    fold = np.random.default_rng(0).permutation(len(k)) % FOLDS
    mean = np.empty((len(SIGNAL_SDS), len(k)))
    value = np.zeros(len(SIGNAL_SDS))
    for out in (fold == i for i in range(FOLDS)):
        start = None
        for i, signal_sd in enumerate(SIGNAL_SDS):
            start = _fit(k[~out], n[~out], scores[~out], signal_sd, start)
            mean[i, out] = start[0] + scores[out] @ start[1:-1]
            value[i] += log_marginal(k[out], n[out], mean[i, out], np.exp(start[-1]))[0].sum()
    best = int(np.argmax(value))
    return SIGNAL_SDS[best], mean[best]


def _recalibrate(k: Array, n: Array, mean: Array) -> tuple[float, float, float]:
    """Shift, slope about the average and width of logit q that left-out prompts' counts ask for, given their means.

    The ridge shrinks means too far where the features' directions matter unequally, and the random
    effect of left-out prompts is wider than that of the fit, which adapts to its own prompts.
    """
    apart = mean - mean.mean()
    prior_sd = np.array([_INTERCEPT_SD, _SLOPE_SD, _LOG_WIDTH_SD])

    def loss(at: Array) -> tuple[float, Array]:
        value, by_mean, by_log_width = log_marginal(k, n, mean + at[0] + at[1] * apart, np.exp(at[2]))
        slope = np.array([by_mean.sum(), by_mean @ apart, by_log_width.sum()])
        return 0.5 * np.sum((at / prior_sd) ** 2) - value.sum(), at / prior_sd**2 - slope

    bounds = [(None, None), (None, None), LOG_WIDTH_RANGE]
    shift, excess, log_width = minimize(loss, np.zeros(3), jac=True, method="L-BFGS-B", bounds=bounds).x
    return float(shift), 1.0 + float(excess), float(np.exp(log_width))


def _fit(k: Array, n: Array, scores: Array, signal_sd: float, start: Array | None = None) -> Array:
    """Maximise the penalised marginal likelihood; returns (a, c in the scores' coordinates, log s)."""
    squares = (scores * scores).sum(axis=0)
    prior_sd = signal_sd / np.sqrt(max(squares.sum() / len(k), 1e-300))
    # In these units the curvature is about 1 in every direction, whatever the features' spectrum.
    with np.errstate(divide="ignore"):
        unit = 1.0 / np.sqrt(_INFORMATION * squares + np.float64(1.0) / prior_sd**2)
    unit = np.concatenate(([1.0 / np.sqrt(_INFORMATION * len(k))], unit, [1.0 / np.sqrt(len(k))]))
    pooled = np.log((k.sum() + 0.5) / (n.sum() - k.sum() + 0.5))
    precision = np.concatenate(([1 / _INTERCEPT_SD**2], np.zeros(len(squares)), [1 / _LOG_WIDTH_SD**2]))
    if signal_sd:
        precision[1:-1] = 1.0 / prior_sd**2

    def loss(z: Array) -> tuple[float, Array]:
        at = z * unit
        value, by_mean, by_log_width = log_marginal(k, n, at[0] + scores @ at[1:-1], np.exp(at[-1]))
        slope = np.concatenate(([by_mean.sum()], by_mean @ scores, [by_log_width.sum()]))
        return 0.5 * (precision * at) @ at - value.sum(), (precision * at - slope) * unit

    first = np.concatenate(([pooled], np.zeros(len(squares)), [0.0])) if start is None else start
    bounds = [(None, None)] * (len(unit) - 1) + [tuple(end / unit[-1] for end in LOG_WIDTH_RANGE)]
    with np.errstate(invalid="ignore"):
        z = np.where(unit > 0, first / unit, 0.0)
    return minimize(loss, z, jac=True, method="L-BFGS-B", bounds=bounds).x * unit
