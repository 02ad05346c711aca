"""Exact sums over all completions; log-probabilities and rewards have shape (prompts, completions)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

Array = NDArray[np.float64]


def log_partition(log_ref: Array, reward: Array, beta: float) -> Array:
    """``log Z = log sum_y pi_ref(y) exp(beta r(y))``, nats, shape (prompts,)."""
    return logsumexp(log_ref + beta * reward, axis=-1)


def target(log_ref: Array, reward: Array, beta: float) -> Array:
    """``log pi*(y) = log pi_ref(y) + beta r(y) - log Z``, nats, shape (prompts, completions)."""
    return log_ref + beta * reward - log_partition(log_ref, reward, beta)[..., None]


def expectation(log_p: Array, values: Array) -> Array:
    """``sum_y p(y) f(y)``, shape (prompts,)."""
    return (np.exp(log_p) * values).sum(axis=-1)


def kl(log_p: Array, log_q: Array) -> Array:
    """``KL(p || q) = sum_y p(y) (log p(y) - log q(y))``, nats, shape (prompts,); p and q have full support."""
    return expectation(log_p, log_p - log_q)


def total_variation(log_p: Array, log_q: Array) -> Array:
    """``TV(p, q) = 1/2 sum_y |p(y) - q(y)|``, in [0, 1], shape (prompts,)."""
    return 0.5 * np.abs(np.exp(log_p) - np.exp(log_q)).sum(axis=-1)
