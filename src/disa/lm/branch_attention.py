"""Attention of branches to their trunk and to themselves, without a mask of queries times keys.

For the branches of one trunk, with keys ``[k_t, k_b]`` aligned to the right::

    out = softmax(q [k_t, k_b]' / sqrt(d)) [v_t, v_b]                      causal in b, all of t

On a CPU the two halves are fused kernels' own, joined by their normalisers (as in ring attention, Liu et al.,
arXiv 2310.01889)::

    lse = log(exp(lse_t) + exp(lse_b)),    out = exp(lse_t - lse) out_t + exp(lse_b - lse) out_b

The backward pass of each half, given the joint ``out`` and ``lse``, is exactly its share of the gradient: a fused
kernel makes its probabilities anew as ``exp(q k' - lse)``. Keys and values of the trunk are never copied. On other
devices both halves are one call with a bias aligned to the lower right, which flash kernels know without a mask.
Windows, and scores that are capped by ``c tanh(z / c)``, are cut into blocks of queries, each with the keys it can see.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

_BLOCK = 256
"""Queries of a block where no window says how many."""

_FUSED = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_FUSED_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class AttentionKind(NamedTuple):
    """What a layer's attention is beside causal."""

    scale: float
    """Of the products of queries and keys."""
    window: int | None = None
    """Number of tokens that a query sees, its own included; None for all."""
    cap: float | None = None
    """c of scores that are capped by ``c tanh(z / c)``."""


class AttentionBlock(Protocol):
    """Rows of different lengths as a block padded on the right, and back."""

    def pad(self, flat: Tensor, padding: float | None = None) -> Tensor:
        """Shape (tokens, heads, size) to (rows, heads, width, size); padding is arbitrary where it is not stated."""
        ...

    def flat(self, block: Tensor) -> Tensor:
        """The way back."""
        ...


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Any, kind: AttentionKind) -> Tensor:
    """Scaled dot-product attention where each key head may serve several query heads, keys not being copied for it.

    ``mask`` is additive or boolean; None stands for causal attention of as many queries as keys. Capped scores need a
    tensor.
    """
    rows, heads = query.shape[:2]
    shared = heads // key.shape[1]
    query, key, value = _by_key_head(query, shared), *(_for_queries(x, shared) for x in (key, value))
    if isinstance(mask, Tensor) and mask.ndim == 4 and len(mask) > 1:
        mask = mask.repeat_interleave(heads // shared, dim=0)
    if kind.cap is None:
        out = scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=mask is None, scale=kind.scale)
    else:  # probabilities of a block are made anew in the backward pass
        out = checkpoint(_capped, query, key, value, mask, kind, use_reentrant=False, preserve_rng_state=False)
    return out.unflatten(0, (rows, -1)).flatten(1, 2)


def _capped(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, kind: AttentionKind) -> Tensor:
    scores = softcap(query @ key.transpose(2, 3) * kind.scale, kind.cap)
    scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    reduction = torch.promote_types(scores.dtype, torch.float32)
    return scores.softmax(dim=-1, dtype=reduction).to(value.dtype) @ value


def softcap(scores: Tensor, limit: float | None) -> Tensor:
    """``c tanh(z / c)``, or the scores themselves without a limit."""
    return scores if limit is None else limit * (scores / limit).tanh()


def causal_attention(query: Tensor, key: Tensor, value: Tensor, kind: AttentionKind) -> Tensor:
    """Attention of rows whose last query sees the last key, each tensor of shape (rows, heads, tokens, size)."""
    width, length = query.shape[2], key.shape[2]
    if kind.cap is not None or (kind.window is not None and kind.window < length):
        return _blocks(query, key, value, kind)
    return attend(query, key, value, None if width == length else causal_lower_right(width, length), kind)


def branch_attention(
    query: Tensor,
    trunk: tuple[Tensor, Tensor],
    own: tuple[Tensor, Tensor],
    rows: AttentionBlock,
    kind: AttentionKind,
) -> Tensor:
    """Attention of all branches of one trunk: the shape of ``query``.

    ``query`` has shape (tokens, heads, size), of the branches one after the other; keys and values of the ``trunk``
    have shape (length, key heads, size), those of the branches (``own``) shape (tokens, key heads, size). ``rows`` says
    where each branch lies.
    """
    if kind[1:] == (None, None) and _fused(query):
        return _Joined.apply(query, *trunk, *own, rows, kind.scale)
    queries = rows.pad(query)
    key, value = (
        torch.cat([t.transpose(0, 1).expand(len(queries), -1, -1, -1), rows.pad(b)], dim=2)
        for t, b in zip(trunk, own, strict=True)
    )
    return rows.flat(causal_attention(queries, key, value, kind))


def _fused(query: Tensor) -> bool:
    """Whether the CPU's fused kernel is at hand."""
    return query.device.type == "cpu"


def _blocks(query: Tensor, key: Tensor, value: Tensor, kind: AttentionKind) -> Tensor:
    """The same by blocks of queries with a small mask each."""
    ahead, width = key.shape[2] - query.shape[2], query.shape[2]
    size = kind.window or _BLOCK
    blocks = []
    for start in range(0, width, size):
        end = min(start + size, width)
        first = 0 if kind.window is None else max(0, ahead + start - kind.window + 1)
        mask = _band(end - start, ahead + end - first, kind.window, query.device)
        seen = slice(first, ahead + end)
        blocks.append(attend(query[:, :, start:end], key[:, :, seen], value[:, :, seen], mask, kind))
    return torch.cat(blocks, dim=2)


@functools.lru_cache(maxsize=8)
def _band(queries: int, keys: int, window: int | None, device: torch.device) -> Tensor:
    """Which keys each query sees, the last query being the last key."""
    with torch.inference_mode(False):  # made when completions are drawn, and kept for the training behind it
        seen = torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)
        return seen if window is None else seen.triu(keys - queries - window + 1)


class _Joined(torch.autograd.Function):
    """Both halves on a CPU, by its fused kernel, with their gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        trunk_key: Tensor,
        trunk_value: Tensor,
        own_key: Tensor,
        own_value: Tensor,
        rows: AttentionBlock,
        scale: float,
    ) -> Tensor:
        shared = query.shape[1] // own_key.shape[1]
        at_trunk, lse_t = _FUSED(*_to_trunk(query, trunk_key, trunk_value), scale=scale)
        at_own, lse_b = _FUSED(*_to_own(rows, query, own_key, own_value), is_causal=True, scale=scale)
        out_t, lse_t = _tokens(at_trunk, shared), _tokens(lse_t[..., None], shared)
        heads = own_key.shape[1]
        out_b, lse_b = (rows.flat(x.unflatten(0, (-1, heads)).flatten(1, 2)) for x in (at_own, lse_b[..., None]))
        lse = torch.logaddexp(lse_t, lse_b)
        out = ((lse_t - lse).exp() * out_t + (lse_b - lse).exp() * out_b).to(query.dtype)
        ctx.save_for_backward(query, trunk_key, trunk_value, own_key, own_value, out, lse)
        ctx.rows, ctx.scale = rows, scale
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, trunk_key, trunk_value, own_key, own_value, out, lse = ctx.saved_tensors
        rows, shared = ctx.rows, query.shape[1] // own_key.shape[1]
        parts = _to_trunk(query, trunk_key, trunk_value)
        of_out, joint, normaliser = (_fold(x, shared) for x in (grad, out, lse))
        back = _FUSED_BACKWARD(of_out, *parts, joint, normaliser[..., 0], 0.0, False, scale=ctx.scale)
        grad_query = _tokens(back[0], shared)
        of_trunk = [x.squeeze(1).transpose(0, 1) for x in back[1:]]
        parts = _to_own(rows, query, own_key, own_value)
        of_out, joint = (_by_key_head(rows.pad(x), shared) for x in (grad, out))
        normaliser = _by_key_head(rows.pad(lse, torch.inf), shared)  # queries of the padding: exp(q k' - inf) = 0
        back = _FUSED_BACKWARD(of_out, *parts, joint, normaliser[..., 0], 0.0, True, scale=ctx.scale)
        own = [x.unflatten(0, (-1, own_key.shape[1])) for x in back]
        grad_query = grad_query + rows.flat(own[0].flatten(1, 2))
        return grad_query, *of_trunk, *(rows.flat(x.sum(dim=2)) for x in own[1:]), None, None


def _to_trunk(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """All queries that share a key head as one row of queries of that head, which see every key."""
    shared = query.shape[1] // key.shape[1]
    return _fold(query, shared), *(x.transpose(0, 1)[:, None] for x in (key, value))


def _to_own(rows: AttentionBlock, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    shared = query.shape[1] // key.shape[1]
    return _by_key_head(rows.pad(query), shared), *(_for_queries(rows.pad(x), shared) for x in (key, value))


def _fold(flat: Tensor, shared: int) -> Tensor:
    """Shape (tokens, heads, size) to (key heads, 1, sharing * tokens, size)."""
    return flat.unflatten(1, (-1, shared)).permute(1, 2, 0, 3).flatten(1, 2)[:, None]


def _tokens(folded: Tensor, shared: int) -> Tensor:
    """The way back."""
    return folded.squeeze(1).unflatten(1, (shared, -1)).permute(2, 0, 1, 3).flatten(1, 2)


def _by_key_head(query: Tensor, shared: int) -> Tensor:
    """Shape (rows, heads, queries, size) to (rows * key heads, sharing, queries, size)."""
    return query.unflatten(1, (-1, shared)).flatten(0, 1)


def _for_queries(key: Tensor, shared: int) -> Tensor:
    """Shape (rows, key heads, keys, size) to the same, seen once by each query head that shares a key head."""
    return key.flatten(0, 1)[:, None].expand(-1, shared, -1, -1)
