"""Log-probabilities of completions with every prompt computed once, asked of a model as any wrapper of it can be asked.

DistributedDataParallel synchronises gradients, and accelerate sets the precision, in the call of the model. So a model
is taught to answer ``model(completions=...)``, and is called, not entered.
"""

from __future__ import annotations

import functools
import logging
import types
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn
from transformers import PreTrainedModel

from disa.lm.log_probs import PackedCompletions, token_log_probs
from disa.lm.shared_prefix import causal_lm, why_not_shared

# Where a process holds whole models: pieces of one are only put together in their wrapper's own forward.
_WHOLE = {DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU}

_log = logging.getLogger(__name__)


def answer_log_probs(models: Sequence[nn.Module], accelerator: Accelerator) -> str | None:
    """Let ``model(completions=batch, temperature=..., entropy=...)`` return :func:`token_log_probs`.

    Without ``completions`` the forward is the one it was. Adapters pass the call on. Returns why one of the models, in
    training, cannot compute a prompt once for all its completions: then none is changed, and the log says it.
    """
    kind = accelerator.distributed_type
    reasons = [f"weights are in pieces ({kind.value})"] if kind not in _WHOLE else []
    reasons += [reason for model in models if (reason := why_not_shared(model, training=True))]
    if reasons:
        _log.warning("training: prompts are computed once per completion, not once per prompt: %s", reasons[0])
        return reasons[0]
    for model in models:
        _answer(causal_lm(model))
    return None


def _answer(model: PreTrainedModel) -> None:
    plain = model.forward

    # The model's own signature: generate checks its arguments against it.
    @functools.wraps(type(model).forward)
    def forward(
        self: Any, *args: Any, completions: PackedCompletions | None = None, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None] | Any:
        if completions is None:
            return plain(*args, **kwargs)
        settings = {name: kwargs[name] for name in ("temperature", "entropy")}
        return token_log_probs(self, completions, **settings)

    model.forward = types.MethodType(forward, model)


def completion_log_probs(
    model: nn.Module,
    prompt_ids: Tensor,
    prompt_mask: Tensor,
    completion_ids: Tensor,
    completion_mask: Tensor,
    *,
    temperature: float,
    entropy: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Token log-probabilities of a padded batch, with gradient, and on request the entropies, without.

    The model was taught by :func:`answer_log_probs`, wrapped or not. Nats, shape (rows, length), 0 at padding.
    """
    batch = PackedCompletions(
        _unpadded(prompt_ids, prompt_mask), _unpadded(completion_ids, completion_mask), completion_ids.device
    )
    log_p, entropies = model(completions=batch, temperature=temperature, entropy=entropy)

    def padded(values: Tensor) -> Tensor:
        table = torch.zeros(completion_ids.shape, dtype=values.dtype, device=values.device)
        return table.index_put((batch.row, batch.step), values)

    return padded(log_p), None if entropies is None else padded(entropies)


def own_mask(batch: Mapping[str, Tensor]) -> Tensor:
    """1 for every token that the policy wrote itself, 0 for padding and for what tools and environments wrote."""
    mask = batch["completion_mask"]
    return mask if batch.get("tool_mask") is None else mask * batch["tool_mask"]


def _unpadded(ids: Tensor, mask: Tensor) -> list[list[int]]:
    rows = zip(ids.tolist(), mask.tolist(), strict=True)
    return [[token for token, kept in zip(*row, strict=True) if kept] for row in rows]
