"""Log-probabilities of given tokens from hidden states, block by block through the LM head.

``log p_i = z_i[y_i] - logsumexp(z_i)`` with ``z = f(h W' + b) / T``, f being what some models do to logits behind the
head: ``f(x) = s x``, or ``f(x) = c tanh(x / c)``. The (tokens x vocabulary) logits are never whole,
neither forward nor backward: a block's logits are made, used and dropped, and made again for the gradient
``dL/dz_i = g_i (onehot(y_i) - softmax(z_i))`` and ``f'(x) = s`` or ``1 - (f(x) / c)^2``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, pad
from transformers import PretrainedConfig, PreTrainedModel

# Logits of one block: 64 MiB in float32, and blocks of a hundred rows even at the largest vocabularies, which is
# what a matrix product needs to run at full speed.
_BLOCK_LOGITS = 2**24


class Transform(NamedTuple):
    """What a model does to the logits of its LM head."""

    scale: float = 1.0
    """s."""
    cap: float | None = None
    """c."""

    @classmethod
    def of(cls, config: PretrainedConfig) -> Transform:
        """Read it from a model's configuration, whose families have their own names for it."""
        config = config.get_text_config()
        scale = (getattr(config, "logit_scale", None) or 1.0) / (getattr(config, "logits_scaling", None) or 1.0)
        return cls(scale, getattr(config, "final_logit_softcapping", None))

    def __call__(self, logits: Tensor) -> Tensor:
        """f, in place."""
        if self.scale != 1.0:
            logits.mul_(self.scale)
        return logits if self.cap is None else logits.div_(self.cap).tanh_().mul_(self.cap)


def next_token_logits(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    """Logits, shape (rows, vocabulary), of hidden states, as the model itself makes them."""
    return Transform.of(model.config)(model.get_output_embeddings()(hidden))


def head_log_probs(
    hidden: Tensor,
    head: nn.Linear,
    targets: Tensor,
    *,
    transform: Transform = Transform(),  # noqa: B008 - a constant
    temperature: float = 1.0,
    entropy: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Log-probability of each target, and on request the entropy of each distribution, which carries no gradient.

    Products run in the precision of the surrounding autocast, reductions in float32 or, for float64 inputs, float64.
    ``hidden`` has shape (tokens, width). Returns nats, each of shape (tokens,).
    """
    weight, bias = head.weight, head.bias
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    with torch.autocast(device, enabled=False):
        log_p, entropies = _HeadLogProbs.apply(hidden, weight, bias, targets, transform, temperature, dtype, entropy)
    return log_p, entropies if entropy else None


def blend_logits(logits: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Weighted sum of logits, shape (rows, tokens); a weight of 0 leaves its part out, whatever that holds.

    Models of a family may pad their vocabularies to different sizes: a token that one part lacks has logit -inf.
    """
    parts = [(part, weight) for part, weight in zip(logits, weights, strict=True) if weight]
    size = max(part.shape[-1] for part, _ in parts)
    total = [pad(part, (0, size - part.shape[-1]), value=-torch.inf) * weight for part, weight in parts]
    return total[0] if len(total) == 1 else torch.stack(total).sum(0)


def blended_log_probs(
    hidden: Sequence[Tensor],
    heads: Sequence[nn.Linear],
    transforms: Sequence[Transform],
    targets: Tensor,
    weights: Sequence[Sequence[float]],
    *,
    temperature: float,
) -> Tensor:
    """Log-probability of each target under every :func:`blend_logits` of some models' logits, without gradient.

    ``hidden`` are states of each model, shape (tokens, width); ``weights`` has one number per blend and model. Returns
    nats, shape (tokens, blends).
    """
    reduction = torch.promote_types(hidden[0].dtype, torch.float32)
    log_p = torch.empty((len(targets), len(weights)), dtype=reduction, device=targets.device)
    for rows in _blocks(len(targets), max(len(head.weight) for head in heads)):
        logits = [
            _logits(h[rows].to(head.weight.dtype), head.weight, head.bias, transform, temperature, reduction)
            for h, head, transform in zip(hidden, heads, transforms, strict=True)
        ]
        for column, weight in enumerate(weights):
            z = blend_logits(logits, weight)
            # A target that the blend cannot write lies behind its vocabulary.
            at = torch.where(targets[rows] < z.shape[1], targets[rows], 0)[:, None]
            value = z.gather(1, at).squeeze(1) - z.logsumexp(dim=1)
            log_p[rows, column] = value.masked_fill(targets[rows] >= z.shape[1], -torch.inf)
    return log_p


class _HeadLogProbs(torch.autograd.Function):
    """The formula above, with its gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        transform: Transform,
        temperature: float,
        dtype: torch.dtype,
        entropy: bool,
    ) -> tuple[Tensor, Tensor]:
        reduction = torch.promote_types(hidden.dtype, torch.float32)
        log_p, normaliser, entropies = (
            torch.empty(len(targets), dtype=reduction, device=hidden.device) for _ in range(3)
        )
        cast = weight.to(dtype)
        for rows in _blocks(len(targets), len(weight)):
            logits = _logits(hidden[rows].to(dtype), cast, bias, transform, temperature, reduction)
            normaliser[rows] = logits.logsumexp(dim=1)
            log_p[rows] = logits.gather(1, targets[rows, None]).squeeze(1) - normaliser[rows]
            if entropy:
                probability = (logits - normaliser[rows, None]).exp_()
                entropies[rows] = normaliser[rows] - probability.mul_(logits).sum(dim=1)
        ctx.save_for_backward(hidden, weight, bias, targets, normaliser)
        ctx.transform, ctx.temperature, ctx.dtype = transform, temperature, dtype
        ctx.mark_non_differentiable(entropies)
        return log_p, entropies

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, normaliser = ctx.saved_tensors
        transform, temperature, dtype = ctx.transform, ctx.temperature, ctx.dtype
        reduction = normaliser.dtype
        cast = weight.to(dtype)
        need_hidden, need_weight, need_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.empty_like(hidden) if need_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=reduction) if need_weight else None
        grad_bias = torch.zeros_like(bias, dtype=reduction) if need_bias else None
        for rows in _blocks(len(targets), len(weight)):
            h = hidden[rows].to(dtype)
            share = (grad[rows] * transform.scale / temperature)[:, None]
            logits = _logits(h, cast, bias, transform, temperature, reduction)
            slope = None if transform.cap is None else 1 - (logits * (temperature / transform.cap)).square_()
            grad_logits = logits.sub_(normaliser[rows, None]).exp_().mul_(-share)
            grad_logits.scatter_add_(1, targets[rows, None], share)
            if slope is not None:
                grad_logits.mul_(slope)
            if grad_bias is not None:
                grad_bias += grad_logits.sum(dim=0)
            grad_logits = grad_logits.to(dtype)
            if grad_hidden is not None:
                grad_hidden[rows] = (grad_logits @ cast).to(hidden.dtype)
            if grad_weight is not None:
                # Added up over blocks in float32, in place: a block's own copy would be as large as the head.
                if dtype == reduction:
                    grad_weight.addmm_(grad_logits.T, h)
                else:
                    grad_weight += grad_logits.T @ h
        grad_weight = None if grad_weight is None else grad_weight.to(weight.dtype)
        grad_bias = None if grad_bias is None else grad_bias.to(bias.dtype)
        return grad_hidden, grad_weight, grad_bias, None, None, None, None, None


def _logits(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    transform: Transform,
    temperature: float,
    reduction: torch.dtype,
) -> Tensor:
    """Logits of one block, in the precision of the reduction."""
    logits = transform(linear(hidden, weight, None if bias is None else bias.to(weight.dtype)).to(reduction))
    return logits if temperature == 1.0 else logits.div_(temperature)


def _blocks(tokens: int, vocabulary: int) -> Iterator[slice]:
    size = max(1, _BLOCK_LOGITS // vocabulary)
    for start in range(0, tokens, size):
        yield slice(start, start + size)
