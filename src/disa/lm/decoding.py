"""Decoding that keeps every prompt's keys and values once, however many completions continue it.

At step t a row attends to its prompt (stored once per prompt) and to its own t tokens::

    out = softmax([q k_prompt', q k_own'] / sqrt(d)) [v_prompt, v_own]

The queries of all rows of a prompt meet its keys in one matrix product, so a long shared prompt is read from memory
once per step, not once per completion. Rows that ended are dropped, and not carried to the longest one's end.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from disa.lm.branch_attention import AttentionKind, softcap
from disa.lm.shared_prefix import PackedGroups, hidden_states

# Tokens that own keys and values get room for at first; the room doubles when it is used up.
_ROOM = 16


class Decoding:
    """State of some rows, one token behind their last ones; a layout of :mod:`disa.lm.shared_prefix`.

    ``parents`` says in ascending order which prompt each row continues.
    """

    def __init__(self, prompts: Sequence[Sequence[int]], parents: Sequence[int], device: torch.device) -> None:
        self._packed = PackedGroups(prompts, [], [], device)
        self._lengths = self._packed.trunks.lengths
        self._prompt: dict[int, tuple[Tensor, Tensor]] = {}
        self._own: dict[int, tuple[Tensor, Tensor]] = {}
        self._steps = 0
        self._group(torch.tensor(parents, device=device))

    def prefill(self, model: PreTrainedModel) -> Tensor:
        """Hidden state of each row's last prompt token, shape (rows, width); every prompt is computed once."""
        hidden = hidden_states(model, self._packed.input_ids, self._packed.position_ids, self)
        return hidden[(self._lengths.cumsum(0) - 1)[self._parents]]

    def append(self, model: PreTrainedModel, tokens: Tensor) -> Tensor:
        """Hidden state of one further token of each row, shape (rows, width)."""
        self._steps += 1
        return hidden_states(model, tokens, (self._lengths + self._steps - 1)[self._parents], self)

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows only, given by number in ascending order."""
        self._own = {layer: (k[rows], v[rows]) for layer, (k, v) in self._own.items()}
        prompts, parents = torch.unique(self._parents[rows], return_inverse=True)
        if len(prompts) < len(self._lengths):
            self._prompt = {layer: (k[prompts], v[prompts]) for layer, (k, v) in self._prompt.items()}
            self._lengths = self._lengths[prompts]
        self._group(parents)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, kind: AttentionKind) -> Tensor:
        """Attention of one layer, each tensor of shape (tokens, heads, size)."""
        if self._steps == 0:
            self._prompt[layer] = self._packed.trunks.pad(key), self._packed.trunks.pad(value)
            return self._packed.attend(layer, query, key, value, kind)
        prompt_keys, prompt_values = self._prompt[layer]
        keys, values = self._extend(layer, key, value, kind.window)
        # Query heads that share a key head stand side by side: (rows, key heads, sharing, size).
        query = (query * kind.scale).unflatten(1, (key.shape[1], -1))
        to_prompt = softcap(self._grouped(query) @ prompt_keys.transpose(2, 3), kind.cap)
        to_prompt = self._rows(to_prompt + self._mask(kind.window, query.dtype))
        to_own = softcap(query @ keys.transpose(2, 3), kind.cap)
        weight = torch.cat([to_prompt, to_own], dim=-1).softmax(
            dim=-1, dtype=torch.promote_types(query.dtype, torch.float32)
        )
        on_prompt, on_own = weight.to(values.dtype).split([to_prompt.shape[-1], to_own.shape[-1]], dim=-1)
        out = self._rows(self._grouped(on_prompt) @ prompt_values) + on_own @ values
        return out.flatten(1, 2)

    def _group(self, parents: Tensor) -> None:
        """Arrange rows by prompt: place g of prompt p holds a row, or where it has fewer any row."""
        counts = torch.bincount(parents, minlength=len(self._lengths))
        self._parents, self._size = parents, int(counts.max())
        self._even = len(parents) == self._size * len(counts)
        if not self._even:
            place = torch.arange(self._size, device=parents.device)
            valid = place < counts[:, None]
            self._places = torch.where(valid, (counts.cumsum(0) - counts)[:, None] + place, 0).flatten()
            self._valid = valid.flatten().nonzero().squeeze(1)

    def _grouped(self, rows: Tensor) -> Tensor:
        """(rows, key heads, sharing, size) to (prompts, key heads, size of a group * sharing, size)."""
        places = rows if self._even else rows[self._places]
        return places.unflatten(0, (-1, self._size)).transpose(1, 2).flatten(2, 3)

    def _rows(self, grouped: Tensor) -> Tensor:
        """The way back."""
        places = grouped.unflatten(2, (self._size, -1)).transpose(1, 2).flatten(0, 1)
        return places if self._even else places[self._valid]

    def _mask(self, window: int | None, dtype: torch.dtype) -> Tensor:
        """Which prompt tokens the current token sees, additive, shape (prompts, 1, 1, longest prompt)."""
        position = torch.arange(self._packed.trunks.width, device=self._lengths.device)
        hidden = position >= self._lengths[:, None]
        if window is not None:
            hidden = hidden | (position <= (self._lengths + self._steps - 1)[:, None] - window)
        return torch.zeros_like(hidden, dtype=dtype).masked_fill(hidden, -torch.inf)[:, None, None, :]

    def _extend(self, layer: int, key: Tensor, value: Tensor, window: int | None) -> tuple[Tensor, Tensor]:
        """Store one token's keys and values; return all own ones within the window, (rows, key heads, tokens, size)."""
        room = self._own[layer][0].shape[2] if layer in self._own else 0
        if self._steps > room:
            fresh = tuple(x[:, :, None].new_empty(*x.shape[:2], max(room, _ROOM), x.shape[2]) for x in (key, value))
            old = self._own.get(layer)
            self._own[layer] = fresh if old is None else tuple(torch.cat(p, 2) for p in zip(old, fresh, strict=True))
        first = 0 if window is None else max(0, self._steps - window)
        stored = self._own[layer]
        for store, token in zip(stored, (key, value), strict=True):
            store[:, :, self._steps - 1] = token
        return tuple(store[:, :, first : self._steps] for store in stored)
