"""Sequence log-probabilities of given completions under a given model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from disa.engine import autocast
from disa.errors import DisaError

# Rows of the LM head computed at once: bounds the (tokens x vocabulary) block at any batch size.
_HEAD_ROWS = 2048
# Settings that change logits behind the LM head; projecting hidden states directly would miss them.
_LOGIT_TRANSFORMS = ("final_logit_softcapping", "logit_scale", "logits_scaling")


@torch.inference_mode()
def sequence_log_probs(
    model: PreTrainedModel,
    prompt_ids: Sequence[Sequence[int]],
    completion_ids: Sequence[Sequence[int]],
    *,
    temperature: float = 1.0,
    compute: str = "float32",
    tokens_per_batch: int = 16384,
) -> np.ndarray:
    """``log p(y | x) = sum_t log softmax(logits_t / T)[y_t]`` of every completion.

    Only completion positions pass the LM head, and they do so as a contiguous 2-D block.

    Parameters
    ----------
    model : PreTrainedModel
        A causal language model with a separate output embedding.
    prompt_ids, completion_ids : sequences of token id sequences, one a row
        A completion includes its stop token unless it is truncated.
    temperature : float
        Divides the logits, as it did when the completions were sampled.
    compute : {"float32", "bfloat16"}
    tokens_per_batch : int
        Prompt plus completion tokens at once, padding included.

    Returns
    -------
    ndarray, shape (rows,), float64
        Nats, in the order of the rows.

    Raises
    ------
    DisaError
        Where the model transforms its logits behind the LM head.
    """
    transforms = [n for n in _LOGIT_TRANSFORMS if getattr(model.config.get_text_config(), n, None) not in (None, 1.0)]
    if transforms:
        raise DisaError(
            f"model setting {transforms[0]} changes logits behind the LM head, which scoring does not support",
            where=str(model.config.name_or_path),
            fix="use a model without it (Llama, Qwen2/3, Mistral and Gemma 3 have none)",
        )
    if len(prompt_ids) != len(completion_ids):
        raise ValueError(f"{len(prompt_ids)} prompts but {len(completion_ids)} completions")
    if not all(len(p) for p in prompt_ids):
        raise ValueError("a prompt without tokens: no position predicts its completion's first token")
    result = np.zeros(len(completion_ids), dtype=np.float64)
    lengths = [len(p) + len(c) for p, c in zip(prompt_ids, completion_ids, strict=True)]
    for rows in _batches(lengths, tokens_per_batch):
        with autocast(compute):
            result[rows] = _score_batch(
                model, [prompt_ids[i] for i in rows], [completion_ids[i] for i in rows], temperature
            )
    return result


def _batches(lengths: Sequence[int], tokens_per_batch: int) -> Iterator[list[int]]:
    """Row indices in batches of similar length whose padded size stays within the budget."""
    batch: list[int] = []
    for row in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        if batch and (len(batch) + 1) * lengths[row] > tokens_per_batch:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def _score_batch(
    model: PreTrainedModel, prompts: list[Sequence[int]], completions: list[Sequence[int]], temperature: float
) -> np.ndarray:
    ids = [torch.tensor([*p, *c]) for p, c in zip(prompts, completions, strict=True)]
    input_ids = pad_sequence(ids, batch_first=True).to(model.device)
    attention_mask = pad_sequence([torch.ones_like(row) for row in ids], batch_first=True).to(model.device)
    hidden = model.base_model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state
    # The hidden state one position earlier predicts a token, so completion token t reads position len(p) + t - 1.
    row = torch.cat([torch.full((len(c),), i) for i, c in enumerate(completions)])
    position = torch.cat([torch.arange(len(c)) + len(p) for p, c in zip(prompts, completions, strict=True)])
    row, position = row.to(model.device), position.to(model.device)
    predicting, targets = hidden[row, position - 1], input_ids[row, position]
    token_log_probs = torch.cat(
        [
            _token_log_probs(model, h, t, temperature)
            for h, t in zip(predicting.split(_HEAD_ROWS), targets.split(_HEAD_ROWS), strict=True)
        ]
    )
    sums = torch.zeros(len(completions), dtype=torch.float64, device=model.device)
    return sums.index_add_(0, row, token_log_probs.double()).cpu().numpy()


def _token_log_probs(
    model: PreTrainedModel, hidden: torch.Tensor, targets: torch.Tensor, temperature: float
) -> torch.Tensor:
    logits = model.get_output_embeddings()(hidden).float() / temperature
    return torch.log_softmax(logits, dim=-1).gather(1, targets[:, None]).squeeze(1)
