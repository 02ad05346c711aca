"""Blends of two models: next-token logits that are weighted sums of theirs, in drawing and in scoring.

A component with weights (a, b) is the sampler::

    mu_ab(y) = prod_t softmax((a z_t + b z'_t) / T)[y_t]

with z the logits of the first stream and z' those of the second. A stream is a model behind prompts of its own: the
second may be another model, or the first one that was told more. (1 - lambda, lambda) lies on the geometric path from
the one to the other (Gelman and Meng 1998), token by token; (a, 0) is the first model at temperature T / a. The
normaliser of every token is summed over the vocabulary, so that log mu_ab is exact.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from disa.errors import DisaError
from disa.lm.head import Transform, blend_logits, blended_log_probs
from disa.lm.log_probs import PackedCompletions, group_batches
from disa.lm.sampler import Stream, decode, token_by_inversion
from disa.lm.shared_prefix import why_not_shared

Weights = tuple[float, float]
"""Of the first and the second stream's logits."""


def weighted_streams(
    streams: Sequence[Stream], weights: Sequence[Weights]
) -> tuple[list[Stream], list[tuple[float, ...]]]:
    """Leave out streams that no component weights.

    Raises DisaError where a model's architecture cannot share prompts.
    """
    used = [i for i in range(len(streams)) if any(component[i] for component in weights)]
    for i in used:
        if reason := why_not_shared(model := streams[i].model):
            raise DisaError(
                f"cannot be blended: {reason}",
                where=str(model.config.name_or_path),
                fix="use proposals.source: proposal, or a model of another architecture",
            )
    return [streams[i] for i in used], [tuple(component[i] for i in used) for component in weights]


def draw_blended(
    streams: Sequence[Stream],
    weights: Sequence[Weights],
    component: Tensor,
    numbers: Tensor,
    stops: Sequence[int],
    *,
    temperature: float,
) -> tuple[list[list[int]], np.ndarray]:
    """One completion per row, each by its own ``component``, with its log-probability (nats) under all of them.

    ``weights`` has a pair per component, ``numbers`` a uniform number in [0, 1) per row and step. ``stops`` end a
    completion and are part of it.
    """
    streams, parts = weighted_streams(streams, weights)

    def choose(scores: list[Tensor], rows: Tensor, step: int) -> tuple[Tensor, Tensor]:
        token = torch.zeros_like(rows)
        blends = [
            blend_logits([score.float() if score.dtype.itemsize < 4 else score for score in scores], p) for p in parts
        ]
        for i, z in enumerate(blends):
            if (mine := component[rows] == i).any():
                token[mine], _ = token_by_inversion(z[mine], numbers[rows[mine], step], temperature)
        return token, torch.stack([_log_prob(z, token, temperature) for z in blends], dim=1)

    ids, log_probs = decode(streams, numbers.shape[1], stops, choose)
    return ids, np.array([np.sum(row, axis=0) for row in log_probs])


def _log_prob(scores: Tensor, token: Tensor, temperature: float) -> Tensor:
    """Float64; what one blend can write may lie behind another's vocabulary."""
    scores = (scores - scores.amax(dim=-1, keepdim=True)) / temperature
    at = torch.where(token < scores.shape[1], token, 0)[:, None]
    value = scores.gather(1, at).squeeze(1).double() - scores.exp().sum(dim=-1, dtype=torch.float64).log()
    return value.masked_fill(token >= scores.shape[1], -torch.inf)


@torch.inference_mode()
def blended_sequence_log_probs(
    streams: Sequence[Stream],
    completion_ids: Sequence[Sequence[int]],
    weights: Sequence[Weights],
    *,
    temperature: float = 1.0,
    tokens_per_batch: int = 16384,
    advance: Callable[[int], None] = lambda rows: None,
) -> np.ndarray:
    """Log-probability of every completion under each component.

    The arguments are those of :func:`disa.lm.log_probs.sequence_log_probs`. Returns nats, float64, shape (rows,
    components).
    """
    streams, parts = weighted_streams(streams, weights)
    transforms = [Transform.of(stream.model.config) for stream in streams]
    longest = max((stream.prompt_ids for stream in streams), key=lambda prompts: sum(map(len, prompts)))
    result = np.zeros((len(completion_ids), len(parts)))
    for rows in group_batches(longest, completion_ids, tokens_per_batch):
        hidden, heads = [], []
        completions = [completion_ids[i] for i in rows]
        for model, prompts in streams:
            batch = PackedCompletions([prompts[i] for i in rows], completions, model.device)
            hidden.append(batch.hidden_states(model).index_select(0, batch.predicting))
            heads.append(model.get_output_embeddings())
        log_p = blended_log_probs(hidden, heads, transforms, batch.targets, parts, temperature=temperature).double()
        sums = torch.zeros((len(rows), len(parts)), dtype=torch.float64, device=log_p.device)
        result[rows] = sums.index_add_(0, batch.row, log_p).cpu().numpy()
        advance(len(rows))
    return result
