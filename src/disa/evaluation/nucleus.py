"""Seeded sampling with top-p and greedy decoding, for evaluation only.

Draws are those of ``disa.proposals.sampler`` (inversion at the trajectory's own uniform numbers), from the
distribution cut to its nucleus: the smallest set of most likely tokens with probability at least ``top_p``
(Holtzman et al., arXiv 1904.09751). At ``top_p`` 1 both draw the same completions.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from disa.engine import autocast, without_own_defaults
from disa.evaluation.generation import GenerationSettings
from disa.sampling import stop_token_ids

# Holds the nucleus of a confident model at every step; more are sorted where it does not.
_FIRST_SORTED = 256


class _Pick(LogitsProcessor):
    """Leaves one token a row: the most likely one, or that at the row's uniform number within the nucleus."""

    def __init__(self, numbers: torch.Tensor, temperature: float, top_p: float) -> None:
        self._numbers, self._temperature, self._top_p, self._step = numbers, temperature, top_p, 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        token = self._token(scores)
        self._step += 1
        return torch.full_like(scores, -torch.inf).scatter(1, token, 0.0)

    def _token(self, scores: torch.Tensor) -> torch.Tensor:
        if self._temperature == 0:
            return scores.argmax(dim=-1, keepdim=True)
        p = torch.softmax(scores.double() / self._temperature, dim=-1)
        if self._top_p < 1:
            p = nucleus(p, self._top_p)
        cumulative = p.cumsum(dim=-1)
        u = self._numbers[:, self._step, None] * cumulative[:, -1:]
        # right: the first token whose cumulative probability exceeds u, so never one of probability 0.
        return torch.searchsorted(cumulative, u, right=True).clamp(max=scores.shape[-1] - 1)


def nucleus(p: torch.Tensor, top_p: float) -> torch.Tensor:
    """Probabilities, shape (rows, tokens), with those outside the nucleus set to 0; not normalised again.

    Of equal probabilities the lower token comes first. Only the largest are put in order, as many as it takes:
    sorting a whole vocabulary at every step takes as long as a small model's forward pass.
    """
    size = p.shape[-1]
    k = min(_FIRST_SORTED, size)
    while True:
        index = p.topk(k).indices.sort(dim=-1).values
        ordered, order = p.gather(1, index).sort(dim=-1, descending=True, stable=True)
        # A token belongs to the nucleus while those before it have not reached top_p: the first one always does.
        inside = ordered.cumsum(dim=-1) - ordered < top_p
        smallest = torch.where(inside, ordered, torch.inf).amin(dim=-1)
        # Tokens that were not looked at are at most as likely as the last: they are outside if it is less likely.
        if k == size or bool((smallest > ordered[:, -1]).all()):
            return torch.zeros_like(p).scatter(1, index.gather(1, order), torch.where(inside, ordered, 0.0))
        k = min(8 * k, size)


@torch.inference_mode()
def draw(
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    prompt_ids: Sequence[Sequence[int]],
    numbers: np.ndarray,
    settings: GenerationSettings,
) -> list[tuple[list[int], bool]]:
    """One completion per prompt row: its token ids, the stop token included, and whether it was cut.

    Parameters
    ----------
    model : PreTrainedModel
    tokenizer : PreTrainedTokenizerBase
    prompt_ids : sequence of token id sequences, one a row
    numbers : ndarray, shape (rows, settings.max_tokens)
        Uniform numbers in [0, 1), one a row and step.
    settings : GenerationSettings
    """
    stops = stop_token_ids(model, tokenizer)
    padded = tokenizer.pad({"input_ids": [list(ids) for ids in prompt_ids]}, padding_side="left", return_tensors="pt")
    padded = padded.to(model.device)
    pick = _Pick(torch.as_tensor(numbers, device=model.device), settings.temperature, settings.top_p)
    generation = GenerationConfig(
        do_sample=False,
        max_new_tokens=settings.max_tokens,
        eos_token_id=list(stops),
        pad_token_id=tokenizer.pad_token_id,
        repetition_penalty=1.0,
    )
    with autocast(settings.compute), without_own_defaults(model):
        output = model.generate(**padded, generation_config=generation, logits_processor=LogitsProcessorList([pick]))
    return [_cut(ids, stops) for ids in output[:, padded["input_ids"].shape[1] :].tolist()]


def _cut(ids: list[int], stops: tuple[int, ...]) -> tuple[list[int], bool]:
    end = next((i + 1 for i, token in enumerate(ids) if token in stops), None)
    return (ids, True) if end is None else (ids[:end], False)
