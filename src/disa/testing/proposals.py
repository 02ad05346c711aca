"""Value-guided proposals of graded strength.

``log mu(token | prefix) = (log pi_ref(token | prefix) + g log v(prefix, token) + noise) / T + const`` with
``v = E_ref[r | prefix, token]``. With g = 1, T = 1 and no noise, mu is the reference given success; a floor under v
keeps its support.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from disa.testing.enumerable import EnumerableModel
from disa.testing.space import EOS

Array = NDArray[np.float64]

VALUE_FLOOR = 0.02
"""Smallest v, relative to the value of the empty prefix: a proposal this strong still errs, rarely."""


class Strength(NamedTuple):
    """How a proposal follows the values."""

    guidance: float
    """g: 0 gives the reference, 1 the reference given success."""
    noise: float = 0.0
    """Standard deviation of the noise on the logits, nats: another model's own habits."""
    temperature: float = 1.0
    """T: below 1 the proposal writes fewer distinct completions."""


PROPOSALS = {
    "weak": Strength(guidance=0.4),
    "strong": Strength(guidance=1.0, noise=0.3),
    "drifted": Strength(guidance=1.0, noise=0.8),
    "sharp": Strength(guidance=1.0, temperature=0.55),
}
"""The proposals of the accuracy benchmark, by name."""


def make_proposal(
    reference: EnumerableModel, reward: Array, strength: Strength, rng: np.random.Generator
) -> EnumerableModel:
    """Guide the reference towards a reward in [0, 1] that is not 0 everywhere; ``rng`` draws the noise.

    The result has full support, and exact log-probabilities like any other table.
    """
    space, prompts = reference.space, len(reference.logits)
    values = reference.values(reward)
    after = np.empty_like(reference.logits)
    # Behind EOS comes nothing: the completion's own reward is its value.
    after[..., EOS] = reward[:, : space.prefixes]
    # Level by level, the children of consecutive strings are consecutive.
    after[..., 1:] = values[:, 1:].reshape(prompts, space.prefixes, space.letters)
    floor = VALUE_FLOOR * values[:, 0, None, None]
    logits = reference.token_log_probs + strength.guidance * np.log(np.maximum(after, floor))
    logits = logits + rng.normal(0.0, strength.noise, logits.shape)
    return EnumerableModel(space, logits / strength.temperature)
