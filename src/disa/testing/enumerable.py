"""An autoregressive model given by a table: one row of next-token logits per prompt and prefix."""

from __future__ import annotations

import dataclasses
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax, logsumexp

from disa.testing.space import EOS, Space

Array = NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class EnumerableModel:
    """A table of conditionals, and the exact distribution over completions that it defines.

    Parameters
    ----------
    space : Space
    logits : array, shape (prompts, space.prefixes, space.vocabulary)
        Next-token logits; all finite for full support.
    """

    space: Space
    logits: Array

    def __post_init__(self) -> None:
        expected = (self.space.prefixes, self.space.vocabulary)
        if self.logits.ndim != 3 or self.logits.shape[1:] != expected:
            raise ValueError(f"logits have shape {self.logits.shape}, expected (prompts, {expected[0]}, {expected[1]})")

    @cached_property
    def token_log_probs(self) -> Array:
        """``log pi(token | prefix)``, nats, shape (prompts, prefixes, vocabulary)."""
        return log_softmax(self.logits, axis=-1)

    @cached_property
    def log_probs(self) -> Array:
        """``log pi(y) = sum_t log pi(y_t | y_<t)`` of every completion, nats, shape (prompts, completions)."""
        offsets, prompts = self.space.offsets, len(self.logits)
        result = np.empty((prompts, self.space.completions))
        log_prefix = np.zeros((prompts, 1))
        for k in range(self.space.length_limit):
            level = slice(offsets[k], offsets[k + 1])
            log_next = log_prefix[..., None] + self.token_log_probs[:, level]
            result[:, level] = log_next[..., EOS]
            log_prefix = log_next[..., 1:].reshape(prompts, -1)
        result[:, offsets[-2] :] = log_prefix
        return result

    def values(self, reward: Array) -> Array:
        """``E_pi[r | prefix]``, with the reward of each completed string behind the prefixes' values.

        Parameters
        ----------
        reward : array, shape (prompts, completions)

        Returns
        -------
        array, shape (prompts, completions)
            Entry i is the value of string i: of the prefix where it lies below the limit.
        """
        offsets, prompts = self.space.offsets, len(self.logits)
        result = np.array(np.broadcast_to(reward, (prompts, self.space.completions)), dtype=np.float64)
        for k in reversed(range(self.space.length_limit)):
            level, below = slice(offsets[k], offsets[k + 1]), slice(offsets[k + 1], offsets[k + 2])
            probability = np.exp(self.token_log_probs[:, level])
            children = result[:, below].reshape(prompts, -1, self.space.letters)
            result[:, level] = probability[..., EOS] * result[:, level] + (probability[..., 1:] * children).sum(-1)
        return result

    def sample(self, rng: np.random.Generator, draws: int) -> NDArray[np.intp]:
        """Completions drawn by inversion of the exact distribution, shape (prompts, draws)."""
        cumulative = np.cumsum(np.exp(self.log_probs), axis=1)
        u = rng.random((len(self.logits), draws)) * cumulative[:, -1:]
        return np.stack([np.searchsorted(c, row, side="right") for c, row in zip(cumulative, u, strict=True)])


def random_model(
    space: Space, prompts: int, rng: np.random.Generator, *, spread: float = 1.0, eos_logit: float = -0.5
) -> EnumerableModel:
    """Model with independent normal logits.

    Parameters
    ----------
    spread : float
        Standard deviation of the logits, nats.
    eos_logit : float
        Mean logit of EOS, against 0 for letters: the lower, the longer the completions.
    """
    logits = rng.normal(0.0, spread, (prompts, space.prefixes, space.vocabulary))
    logits[..., EOS] += eos_logit
    return EnumerableModel(space, logits)


def from_completion_log_probs(space: Space, log_probs: Array) -> EnumerableModel:
    """Return the autoregressive table of any distribution over completions, for example of pi*.

    ``pi(token | prefix)`` is the mass behind the token over the mass behind the prefix.

    Parameters
    ----------
    log_probs : array, shape (prompts, space.completions)
        All finite; need not be normalised.
    """
    offsets, prompts = space.offsets, len(log_probs)
    logits = np.empty((prompts, space.prefixes, space.vocabulary))
    log_mass = log_probs[:, offsets[-2] :]
    for k in reversed(range(space.length_limit)):
        level = slice(offsets[k], offsets[k + 1])
        logits[:, level, EOS] = log_probs[:, level]
        logits[:, level, 1:] = log_mass.reshape(prompts, -1, space.letters)
        log_mass = logsumexp(logits[:, level], axis=-1)
    return EnumerableModel(space, logits)
