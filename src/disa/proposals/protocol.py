"""What an engine is: something else than transformers that draws trajectories.

An engine draws from the sampling law, ``softmax(logits / T)`` over the whole vocabulary token by token until a stop
token or the length limit, and says the log-probability of what it drew. The parity check of ``3_scoring`` holds it to
that.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from disa.errors import DisaError
from disa.lm.sampler import Draw

NEUTRAL = {
    "top_p": 1.0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}
"""Sampling settings that leave the distribution alone, under the names that vLLM gave them and others took over. They
are always sent: a server's own defaults, or a checkpoint's, may be others."""


class Job(NamedTuple):
    """A trajectory to be drawn."""

    prompt_id: str
    prompt_ids: Sequence[int]
    draw: int
    seed: int
    """From 0 to 2^31 - 1; the same for the same trajectory in every run."""


class Engine(Protocol):
    """Draws the trajectories of one source."""

    def draw(self, jobs: Sequence[Job]) -> list[Draw]:
        """One trajectory per job, in their order.

        Raises DisaError where the engine does not draw from the sampling law, or fails.
        """

    def close(self) -> None:
        """Free what it holds; a later draw takes it again."""


def job_seed(seed: int, prompt_id: str, source: str, draw: int) -> int:
    """Seed of one trajectory, a pure function of its identity.

    31 bits, which every engine takes: among the draws of one prompt, where alone an equal seed gives an equal
    completion, two of a thousand coincide with probability 2e-4.
    """
    key = hashlib.sha256(f"{seed}\0{prompt_id}\0{source}\0{draw}".encode()).digest()
    return int.from_bytes(key[:4], "big") >> 1


def finished_draw(
    ids: Sequence[int], log_probs: Sequence[float], stops: Sequence[int], limit: int, *, where: str
) -> Draw:
    """Cut what an engine wrote at the first stop token or at the limit.

    Further tokens behind a stop token do no harm: what stands before is drawn from the law that ends there. Raises
    DisaError where it ended early on a token that is no stop token, so that other completions than the law's came out,
    or where tokens and log-probabilities do not match.
    """
    if len(ids) != len(log_probs):
        raise DisaError(
            f"{len(ids)} tokens with {len(log_probs)} log-probabilities",
            where=where,
            fix="report it together with the engine's version",
        )
    ids = list(ids[:limit])
    end = next((i + 1 for i, token in enumerate(ids) if token in stops), None)
    if end is None and len(ids) < limit:
        last = f"with token {ids[-1]}" if ids else "without a token"
        raise DisaError(
            f"a completion ended after {len(ids)} of {limit} tokens {last}, and the stop tokens are {list(stops)}",
            where=where,
            fix="make the engine serve this run's model with its tokenizer and room for the whole completion, and "
            "report stop tokens",
        )
    return Draw(ids[:end], end is None, float(sum(log_probs[: end or limit])))
