"""Features of a prompt for the regressor: mean-pooled last hidden states of the frozen reference.

``f(x) = (1 / |x|) sum_t h_t(x)``, h_t the hidden state behind the last layer at the t-th prompt token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from disa.errors import DisaError
from disa.lm.batches import batches_by_length
from disa.partition.log_weights import Array
from disa.runs.provenance import Fingerprint, digest

if TYPE_CHECKING:
    from torch import nn

FEATURES = "mean of the last hidden states over the prompt's tokens, version 1"

_STATE_FIELDS = ("reference", "tokenizer", "chat_template")
"""What the hidden states of a prompt depend on."""

_TARGET_FIELDS = ("temperature", "max_completion_length", "stop_token_ids", "reward", "task", "tools")
"""What q depends on besides; beta is left out, since rewards of 0 and 1 have the same q at every beta."""


def features_fingerprint(fingerprint: Fingerprint) -> str:
    """Digest of what the features and the regressed q depend on, given the run's fingerprint."""
    values = fingerprint.as_dict()
    return digest({"features": FEATURES} | {name: values[name] for name in _STATE_FIELDS + _TARGET_FIELDS})


def prompt_features(
    reference: nn.Module, prompt_ids: Sequence[Sequence[int]], *, tokens_per_batch: int = 16384
) -> Array:
    """Mean-pooled last hidden states of each prompt's tokens under the reference.

    Raises DisaError where the model is in training mode or has trainable parameters, or a prompt has no token.
    ``prompt_ids`` are as the reference reads them (:func:`disa.lm.sampling_config.encode_prompt`). Returns float64,
    shape (prompts, d), independent of how prompts are batched up to float32 rounding.
    """
    import torch
    from torch.nn.utils.rnn import pad_sequence

    trainable = [name for name, parameter in reference.named_parameters() if parameter.requires_grad]
    if reference.training or trainable:
        found = f"parameter {trainable[0]} is trainable" if trainable else "the model is in training mode"
        raise DisaError(found, where="prompt_features", fix="load the reference with disa.lm.loading.load_model")
    lengths = [len(ids) for ids in prompt_ids]
    if 0 in lengths:
        raise DisaError("has no token", where=f"prompt {lengths.index(0)}", fix="give every prompt some text")
    rows: list[Any] = [None] * len(lengths)
    model: Any = reference.base_model  # the decoder without its LM head
    device: Any = reference.device
    with torch.inference_mode():
        for batch in batches_by_length(lengths, tokens_per_batch):
            ids = [torch.tensor(prompt_ids[i]) for i in batch]
            # Padding on the right: causal attention never looks at it, and the mask leaves it out of the mean.
            mask = pad_sequence([torch.ones_like(row) for row in ids], batch_first=True).to(device)
            states = model(
                input_ids=pad_sequence(ids, batch_first=True).to(device), attention_mask=mask, use_cache=False
            ).last_hidden_state
            sums = torch.einsum("btd,bt->bd", states.double(), mask.double())
            for i, row in zip(batch, (sums / mask.sum(dim=1, keepdim=True)).cpu().numpy(), strict=True):
                rows[i] = row
    return np.array(rows)
