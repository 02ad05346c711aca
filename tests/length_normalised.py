"""The normaliser of length-normalised residuals, which is not log Z.

A residual divided by the completion's length (as in FlowRL, arXiv 2509.15207) vanishes for
``pi = pi_ref exp(|y| (beta r - lambda))``: another target than ``pi_ref exp(beta r) / Z``. Its normaliser
is the unique root lambda of ``E_ref[exp(|y| (beta r - lambda))] = 1``.
"""

from __future__ import annotations

import numpy as np

from disa.errors import DisaError
from disa.partition.draws import Draws
from disa.partition.log_weights import Array

_BISECTIONS = 60
"""Halvings of a bracket of width beta (r_max - r_min): exact to rounding."""


def length_normalised_lambda(draws: Draws, beta: float, reward_range: tuple[float, float]) -> Array:
    """Root lambda of ``E_ref[exp(|y| (beta r - lambda))] = 1``, per prompt.

    Solves ``sum_i w_i (exp(|y_i| (beta r_i - lambda)) - 1) = 0``, which decreases in lambda and changes sign
    within beta times the range of the rewards, so that a root always exists.

    Parameters
    ----------
    draws : Draws
        With lengths.
    beta : float
        Inverse temperature, positive.
    reward_range : tuple of float
        Smallest and largest possible reward.

    Returns
    -------
    array, shape (prompts,)
        Nats per token. Not comparable with log Z.

    Raises
    ------
    DisaError
        Without lengths, or where one is 0.
    """
    if draws.lengths is None or not (draws.lengths > 0).all():
        raise DisaError("the length-normalised target needs lengths of at least one token", where="lengths")
    scaled, lengths, log_w = beta * draws.rewards, draws.lengths, draws.log_w
    log_total = _log_sum(draws, log_w)
    low = np.full(len(draws.counts), beta * reward_range[0])
    high = np.full(len(draws.counts), beta * reward_range[1])
    for _ in range(_BISECTIONS):
        middle = 0.5 * (low + high)
        exponent = log_w + lengths * (scaled - draws.spread(middle))
        above = _log_sum(draws, exponent) > log_total
        low, high = np.where(above, middle, low), np.where(above, high, middle)
    return 0.5 * (low + high)


def _log_sum(draws: Draws, exponent: Array) -> Array:
    top = np.maximum(draws.max(exponent), -1e300)
    with np.errstate(divide="ignore"):
        return top + np.log(draws.sum(np.exp(exponent - draws.spread(top))))
