"""Hidden rules with a chosen success probability under the reference.

Each prompt scores letters by place, and a completion passes where its score is high enough. Scores
are sums over places, so that prefixes say something about success, as steps of a solution do.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from disa.testing.enumerable import EnumerableModel

Array = NDArray[np.float64]

GRADES = 4
"""Steps of the graded reward; each halves the probability of the one before."""


def binary_reward(reference: EnumerableModel, success: Array, rng: np.random.Generator) -> Array:
    """Reward 1 for the best-scoring completions that together have the given probability, else 0.

    ``success`` is wanted under the reference, and met up to the mass of one completion; at least one completion passes
    and one fails. ``rng`` draws the prompts' scores.
    """
    return _above(reference, _scores(reference, rng), success)


def graded_reward(reference: EnumerableModel, success: Array, rng: np.random.Generator) -> Array:
    """Reward in {0, 1/4, 1/2, 3/4, 1}: reward 1 has about the given probability, at least 3/4 twice that, and so on.

    Parameters and result are those of :func:`binary_reward`.
    """
    scores = _scores(reference, rng)
    steps = [_above(reference, scores, np.minimum(success * 2.0**g, 1.0)) for g in range(GRADES)]
    return np.mean(steps, axis=0)


def _scores(reference: EnumerableModel, rng: np.random.Generator) -> Array:
    """Sum over places of one normal number per (prompt, place, token), shape (prompts, completions)."""
    space, prompts = reference.space, len(reference.logits)
    by_place = rng.normal(size=(prompts, space.length_limit, space.vocabulary))
    scores = np.zeros((prompts, space.completions))
    for place in range(space.length_limit):
        scores += by_place[:, place, space.tokens[:, place]]
    return scores


def _above(reference: EnumerableModel, scores: Array, success: Array) -> Array:
    order = np.argsort(-scores, axis=1)
    mass = np.cumsum(np.take_along_axis(np.exp(reference.log_probs), order, axis=1), axis=1)
    # The nearest cumulative mass, with at least one success and one failure.
    passing = 1 + np.abs(mass[:, :-1] - success[:, None]).argmin(axis=1)
    reward = np.zeros_like(scores)
    for row, best, count in zip(reward, order, passing, strict=True):
        row[best[:count]] = 1.0
    return reward
