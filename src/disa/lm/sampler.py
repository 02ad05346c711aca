"""Seeded sampling: every trajectory has its own stream of uniform numbers.

transformers' ``generate`` draws a whole batch from one random stream, so its samples change with the batch. Here a
token is picked by inversion, ``min {v : F(v) >= u}``, and a trajectory is the same in any batch (up to float rounding
exactly at a boundary of F). Architectures that can share prompts are decoded with every distinct prompt computed and
stored once (:mod:`disa.lm.decoding`); for the others ``generate`` does it, told by a logits processor what was
picked.
"""

from __future__ import annotations

import functools
import hashlib
import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from disa.lm.decoding import Decoding
from disa.lm.head import next_token_logits
from disa.lm.loading import without_own_defaults
from disa.lm.sampling_config import stop_token_ids
from disa.lm.shared_prefix import why_not_shared

Pick = Callable[[torch.Tensor, torch.Tensor, float], tuple[torch.Tensor, torch.Tensor]]
"""From scores, shape (rows, tokens), a uniform number per row and the temperature to each row's token and the
log-probability with which it is picked (float64)."""

_log = logging.getLogger(__name__)

# Ended rows are dropped from a batch when no more than this share of it goes on.
_KEPT = 0.75


class Draw(NamedTuple):
    """One sampled completion."""

    completion_ids: list[int]
    truncated: bool
    log_prob: float | None
    """Sum over the completion's tokens, stop token included, in nats; None where an engine does not say."""
    retokenised: bool = False
    """Only the text was known, and the ids are what the reference's tokenizer makes of it."""
    tool_mask: list[int] | None = None
    """1 for each of the ids that the model wrote, 0 for those of tools; None where the model wrote all."""
    reward: float | None = None
    """Where it was judged as it was drawn."""


def uniforms(seed: int, prompt_id: str, source: str, draw: int, length: int) -> np.ndarray:
    """The ``length`` uniform numbers of one trajectory, a pure function of its identity."""
    key = hashlib.sha256(f"{seed}\0{prompt_id}\0{source}\0{draw}".encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(key[:16], "big"))).random(length)


def token_by_inversion(scores: torch.Tensor, u: torch.Tensor, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Each row's token by inversion of its distribution function at its number, with its log-probability (float64)."""
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32)) / temperature
    scores = scores - scores.amax(dim=-1, keepdim=True)
    # Sums in float64: in float32 the many small terms of a large vocabulary would be rounded away one by one.
    cumulative = scores.exp().cumsum(dim=-1, dtype=torch.float64)
    total = cumulative[:, -1:]
    token = torch.searchsorted(cumulative, u[:, None] * total).clamp(max=scores.shape[-1] - 1)
    return token.squeeze(1), (scores.gather(1, token).double() - total.log()).squeeze(1)


class _Picking(LogitsProcessor):
    """Tells ``generate`` the picked tokens and remembers their log-probabilities."""

    def __init__(self, numbers: torch.Tensor, temperature: float, pick: Pick) -> None:
        self._numbers, self._temperature, self._pick = numbers, temperature, pick
        self.log_probs: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        token, log_p = self._pick(scores, self._numbers[:, len(self.log_probs)], self._temperature)
        self.log_probs.append(log_p)
        # Greedy decoding over scores that leave one token is how generate is told what was picked.
        return torch.full_like(scores, -torch.inf).scatter(1, token[:, None], 0.0)


@torch.inference_mode()
def draw_rows(
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    prompt_ids: Sequence[Sequence[int]],
    numbers: np.ndarray,
    *,
    temperature: float,
    pick: Pick = token_by_inversion,
) -> list[Draw]:
    """One completion per prompt row, as long as there are numbers, by any way to pick a token.

    Prompts are computed once where the architecture can share them. Log-probabilities are those that ``pick`` says.
    """
    stops = stop_token_ids(model, tokenizer)
    uniform = torch.as_tensor(numbers, device=model.device)
    reason = why_not_shared(model)
    if reason is None:
        ids, log_probs = draw_tokens(model, prompt_ids, uniform, stops, temperature=temperature, pick=pick)
    else:
        _say_not_shared(reason)
        ids, log_probs = _generate(model, tokenizer, prompt_ids, uniform, stops, temperature, pick)
    return [Draw(row, row[-1] not in stops, float(sum(log_p))) for row, log_p in zip(ids, log_probs, strict=True)]


@torch.inference_mode()
def draw_tokens(
    model: PreTrainedModel,
    prompt_ids: Sequence[Sequence[int]],
    numbers: torch.Tensor,
    stops: Sequence[int],
    *,
    temperature: float = 1.0,
    pick: Pick = token_by_inversion,
) -> tuple[list[list[int]], list[list[float]]]:
    """Token ids of one completion per row, with their log-probabilities (nats); every distinct prompt is computed once.

    ``numbers`` has a uniform number in [0, 1) per row and step; by default a token is picked by inversion of its whole
    distribution. ``stops`` end a completion and are part of it. The model's architecture has to be able to share
    prompts.
    """

    def choose(scores: list[torch.Tensor], rows: torch.Tensor, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        return pick(scores[0], numbers[rows, step], temperature)

    return decode([Stream(model, prompt_ids)], numbers.shape[1], stops, choose)


class Stream(NamedTuple):
    """A model behind prompts of its own, one per row."""

    model: PreTrainedModel
    prompt_ids: Sequence[Sequence[int]]


@torch.inference_mode()
def decode(
    streams: Sequence[Stream],
    limit: int,
    stops: Sequence[int],
    choose: Callable[[list[torch.Tensor], torch.Tensor, int], tuple[torch.Tensor, torch.Tensor]],
) -> tuple[list[list[int]], list[Any]]:
    """Write the same completions, of at most ``limit`` tokens, behind the prompts of every stream, all on one device.

    ``choose`` gives, from the logits of every stream, shape (rows, tokens), the rows' numbers and the step, each row's
    token and what is kept of it (float64, one or more values per row). ``stops`` end a completion and are part of it.
    Returns the tokens of each row, and what was kept of them.
    """
    device = streams[0].model.device
    keys = [tuple(map(tuple, prompts)) for prompts in zip(*(s.prompt_ids for s in streams), strict=True)]
    distinct: dict[Any, int] = {}
    parents = [distinct.setdefault(key, len(distinct)) for key in keys]
    order = sorted(range(len(parents)), key=parents.__getitem__)
    rows = torch.tensor(order, device=device)
    stop = torch.tensor(stops, dtype=torch.long, device=device)
    tokens = torch.zeros((len(rows), limit), dtype=torch.long, device=device)
    kept: torch.Tensor | None = None
    running = torch.ones(len(rows), dtype=torch.bool, device=device)
    decodings = [Decoding(prompts, [parents[i] for i in order], device) for prompts in zip(*distinct, strict=True)]
    hidden = [decoding.prefill(stream.model) for decoding, stream in zip(decodings, streams, strict=True)]
    for step in range(limit):
        scores = [next_token_logits(s.model, h) for s, h in zip(streams, hidden, strict=True)]
        token, value = choose(scores, rows, step)
        kept = value.new_zeros((len(order), limit, *value.shape[1:])) if kept is None else kept
        tokens[rows, step], kept[rows, step] = token, value
        running = running & ~torch.isin(token, stop)
        left = int(running.sum())
        if left == 0 or step + 1 == limit:
            break
        # Dropping ended rows copies the others' keys and values: not worth it for every single one.
        if left <= _KEPT * len(rows):
            going = running.nonzero().squeeze(1)
            for decoding in decodings:
                decoding.keep(going)
            rows, token, running = rows[going], token[going], running[going]
        hidden = [decoding.append(s.model, token) for decoding, s in zip(decodings, streams, strict=True)]
    assert kept is not None  # a completion has room for a token
    return _cut_all(tokens.tolist(), kept.tolist(), stops)


@functools.cache
def _say_not_shared(reason: str) -> None:
    _log.warning("sampling: prompts are computed once per completion, not once per prompt: %s", reason)


def _generate(
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    prompt_ids: Sequence[Sequence[int]],
    numbers: torch.Tensor,
    stops: Sequence[int],
    temperature: float,
    pick: Pick = token_by_inversion,
) -> tuple[list[list[int]], list[list[float]]]:
    """The same by transformers' ``generate``, which computes every row's prompt."""
    padded = tokenizer.pad({"input_ids": [list(ids) for ids in prompt_ids]}, padding_side="left", return_tensors="pt")
    padded = padded.to(model.device)
    picking = _Picking(numbers, temperature, pick)
    generation = GenerationConfig(
        do_sample=False,
        max_new_tokens=numbers.shape[1],
        eos_token_id=list(stops),
        pad_token_id=tokenizer.pad_token_id,
        repetition_penalty=1.0,
    )
    with without_own_defaults(model):
        output = model.generate(**padded, generation_config=generation, logits_processor=LogitsProcessorList([picking]))
    ids = output[:, padded["input_ids"].shape[1] :].tolist()
    return _cut_all(ids, torch.stack(picking.log_probs, dim=1).tolist(), stops)


def _cut_all(ids: list[list[int]], log_probs: list[Any], stops: Sequence[int]) -> tuple[list[list[int]], list[Any]]:
    """Keep tokens up to and including the first stop token; without one the completion is truncated."""
    ends = [next((i + 1 for i, token in enumerate(row) if token in stops), len(row)) for row in ids]
    kept = [row[:end] for row, end in zip(ids, ends, strict=True)]
    return kept, [row[:end] for row, end in zip(log_probs, ends, strict=True)]
