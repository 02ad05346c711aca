"""Seeded sampling with top-p and greedy decoding, for evaluation only.

Draws are those of ``disa.lm.sampler`` (inversion at the trajectory's own uniform numbers, every distinct prompt
computed once where the architecture allows it), from the distribution cut to its nucleus: the smallest set of most
likely tokens with probability at least ``top_p`` (Holtzman et al., arXiv 1904.09751). At ``top_p`` 1 both draw the same
completions.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import torch
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from disa.evaluation.generation import GenerationSettings
from disa.lm.loading import effective_dtype
from disa.lm.sampler import draw_rows

# Holds the nucleus of a confident model at every step; more are sorted where it does not.
_FIRST_SORTED = 256


def pick_in_nucleus(
    scores: torch.Tensor, u: torch.Tensor, temperature: float, *, top_p: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Each row's most likely token at temperature 0, else that at its number within the nucleus.

    Parameters
    ----------
    scores : Tensor, shape (rows, tokens)
    u : Tensor, shape (rows,), float64
        Uniform numbers in [0, 1).
    temperature : float
        Divides the scores.
    top_p : float

    Returns
    -------
    tuple of Tensor, shape (rows,)
        Tokens, and their log-probabilities under the cut distribution (float64, nats).
    """
    if temperature == 0:
        return scores.argmax(dim=-1), torch.zeros(len(scores), dtype=torch.float64, device=scores.device)
    p = torch.softmax(scores.double() / temperature, dim=-1)
    if top_p < 1:
        p = nucleus(p, top_p)
    cumulative = p.cumsum(dim=-1)
    total = cumulative[:, -1:]
    # right: the first token whose cumulative probability exceeds u, so never one of probability 0.
    token = torch.searchsorted(cumulative, u[:, None] * total, right=True).clamp(max=scores.shape[-1] - 1)
    return token.squeeze(1), (p.gather(1, token) / total).log().squeeze(1)


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
    draws = draw_rows(
        model,
        tokenizer,
        prompt_ids,
        numbers,
        temperature=settings.temperature,
        compute=effective_dtype(settings.compute),
        pick=functools.partial(pick_in_nucleus, top_p=settings.top_p),
    )
    return [(d.completion_ids, d.truncated) for d in draws]
