"""Seeded sampling on top of transformers' ``generate``.

``generate`` draws a whole batch from one random stream, so its samples change with the batch.
Here every trajectory has its own stream of uniform numbers, and a logits processor picks the token
by inversion, ``min {v : F(v) >= u}``: the engine's cache and stopping stay the library's, and a
trajectory is the same in any batch (up to float rounding exactly at a boundary of F).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from disa.engine import autocast, without_own_defaults
from disa.sampling import SamplingConfig, stop_token_ids


class Draw(NamedTuple):
    """One sampled completion."""

    completion_ids: list[int]
    truncated: bool
    log_prob: float | None
    """Sum over the completion's tokens, stop token included, in nats; None where an engine does not say."""
    retokenised: bool = False
    """Only the text was known, and the ids are what the reference's tokenizer makes of it."""


def uniforms(seed: int, prompt_id: str, source: str, draw: int, length: int) -> np.ndarray:
    """The ``length`` uniform numbers of one trajectory, a pure function of its identity."""
    key = hashlib.sha256(f"{seed}\0{prompt_id}\0{source}\0{draw}".encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(key[:16], "big"))).random(length)


class _Inversion(LogitsProcessor):
    """Picks each row's next token by inverting its distribution function at the row's uniform number."""

    def __init__(self, numbers: torch.Tensor, temperature: float) -> None:
        self._numbers, self._temperature = numbers, temperature
        self.log_probs: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        log_p = torch.log_softmax(scores.double() / self._temperature, dim=-1)
        cumulative = log_p.exp().cumsum(dim=-1)
        u = self._numbers[:, len(self.log_probs), None] * cumulative[:, -1:]
        token = torch.searchsorted(cumulative, u).clamp(max=scores.shape[-1] - 1)
        self.log_probs.append(log_p.gather(1, token).squeeze(1))
        # Greedy decoding over scores that leave one token is how generate is told what was picked.
        return torch.full_like(scores, -torch.inf).scatter(1, token, 0.0)


@torch.inference_mode()
def sample(
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    prompt_ids: Sequence[Sequence[int]],
    numbers: np.ndarray,
    law: SamplingConfig,
    compute: str = "float32",
) -> list[Draw]:
    """One completion per prompt row.

    Parameters
    ----------
    model : PreTrainedModel
    tokenizer : PreTrainedTokenizerBase
    prompt_ids : sequence of token id sequences, one a row
    numbers : ndarray, shape (rows, law.max_completion_length)
        Uniform numbers in [0, 1), one a row and step.
    law : SamplingConfig
        Temperature and length limit.
    compute : {"float32", "bfloat16"}

    Returns
    -------
    list of Draw
        In the order of the rows.
    """
    stops = stop_token_ids(model, tokenizer)
    padded = tokenizer.pad({"input_ids": [list(ids) for ids in prompt_ids]}, padding_side="left", return_tensors="pt")
    padded = padded.to(model.device)
    inversion = _Inversion(torch.as_tensor(numbers, device=model.device), law.temperature)
    generation = GenerationConfig(
        do_sample=False,
        max_new_tokens=law.max_completion_length,
        eos_token_id=list(stops),
        pad_token_id=tokenizer.pad_token_id,
        repetition_penalty=1.0,
    )
    with autocast(compute), without_own_defaults(model):
        output = model.generate(
            **padded, generation_config=generation, logits_processor=LogitsProcessorList([inversion])
        )
    completions = output[:, padded["input_ids"].shape[1] :].tolist()
    log_probs = torch.stack(inversion.log_probs, dim=1).tolist()
    return [_cut(ids, row, stops) for ids, row in zip(completions, log_probs, strict=True)]


def _cut(ids: list[int], log_probs: list[float], stops: tuple[int, ...]) -> Draw:
    """Keep tokens up to and including the first stop token; without one the completion is truncated."""
    end = next((i + 1 for i, token in enumerate(ids) if token in stops), None)
    length = len(ids) if end is None else end
    return Draw(ids[:length], end is None, float(sum(log_probs[:length])))
