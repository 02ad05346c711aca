"""Attention that computes a prompt once for all its completions.

Tokens of many prompts and completions form one flat row without padding: first every *trunk*, then every *branch*.
A branch continues one trunk::

    out_trunk  = softmax(q_t k_t' / sqrt(d)) v_t                      causal
    out_branch = softmax(q_b [k_t, k_b]' / sqrt(d)) [v_t, v_b]        causal in b, all of its own t

which is what attention over each concatenated row gives, with linear layers and the trunk's attention done once per
prompt instead of once per completion. Autograd runs through it, checkpointed layers included.

transformers lets an attention function be registered by name and hands it every keyword argument of the model's
forward, so no model code is replaced: :func:`shared_attention` names the function for a while, and the layout comes
along as ``shared_prefix``.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PretrainedConfig, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from disa.lm.branch_attention import AttentionKind, attend, branch_attention, causal_attention

ARCHITECTURES = frozenset(
    "cohere2 gemma2 gemma3_text granite llama mistral mixtral olmo2 phi phi3 qwen2 qwen3 qwen3_moe smollm3".split()
)
"""Model types whose attention layers call the registered function with nothing but causal, possibly windowed or capped,
attention in mind. Each is compared with its own plain forward in the tests."""

_NAME = "disa_shared_prefix"

# Numbers of a mask up to which all branches go in one call: the copies it takes are then small, and calls are few.
_DENSE = 2**20


class Layout(Protocol):
    """Where the tokens of a flat row belong, and so what each may attend to."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, kind: AttentionKind) -> Tensor:
        """Attention of one layer, each tensor of shape (tokens, heads, width)."""
        ...


def causal_lm(model: nn.Module) -> PreTrainedModel:
    """The causal language model itself, adapters (which live in its layers) or not."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def why_not_shared(model: nn.Module, *, training: bool = False) -> str | None:
    """Why the model, in training where it is to be trained, cannot share prompts, or None where it can."""
    model = causal_lm(model)
    config = model.config
    if config.model_type not in ARCHITECTURES:
        return f"architecture {config.model_type} is not one of {', '.join(sorted(ARCHITECTURES))}"
    if getattr(config, "use_bidirectional_attention", False):
        return "its attention is bidirectional"
    if len(set((getattr(model, "hf_device_map", None) or {}).values())) > 1:
        return "its layers are on several devices"
    if training and any(getattr(module, "attention_dropout", 0.0) for module in model.modules()):
        return "it drops attention weights"
    if not isinstance(model.get_output_embeddings(), nn.Linear):
        return "its LM head is not a plain linear layer"
    if kinds := _rotary_kinds(config) & {"dynamic", "longrope"}:
        return f"its {kinds.pop()} position embedding depends on the longest row of a batch"
    return None


def _rotary_kinds(config: PretrainedConfig) -> set[str]:
    """How positions are embedded, by any of the layers."""
    found = getattr(config, "rope_parameters", None) or {}
    layers = [found, *(kind for kind in found.values() if isinstance(kind, dict))]
    return {kind["rope_type"] for kind in layers if "rope_type" in kind}


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    shared_prefix: Layout | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    if shared_prefix is None:
        assert kwargs.get("softcap") is None, "SDPA knows no capped scores"
        return ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, value, attention_mask, **kwargs)
    query, key, value = (x[0].transpose(0, 1) for x in (query, key, value))
    kind = AttentionKind(kwargs["scaling"], kwargs.get("sliding_window"), kwargs.get("softcap"))
    return shared_prefix.attend(module.layer_idx, query, key, value, kind)[None], None


AttentionInterface.register(_NAME, _attention)
# Of a call without a layout.
AttentionMaskInterface.register(_NAME, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])


@contextlib.contextmanager
def shared_attention(model: nn.Module) -> Iterator[None]:
    """Let the model's layers attend as a layout says, and as SDPA does where a call comes without one.

    Checkpointed layers need it around the backward pass too.
    """
    config = causal_lm(model).base_model.config  # the one its layers hold
    own, config._attn_implementation = config._attn_implementation, _NAME
    try:
        yield
    finally:
        config._attn_implementation = own


def hidden_states(model: PreTrainedModel, input_ids: Tensor, position_ids: Tensor, layout: Layout) -> Tensor:
    """Last hidden states of a flat row of tokens, shape (tokens, width)."""
    # A mask that fits no attention: a layer that did not use the registered function would fail, not be wrong.
    no_mask = torch.zeros(1, 1, 1, 0, device=input_ids.device)
    with shared_attention(model):
        return model.base_model(
            input_ids=input_ids[None],
            attention_mask=no_mask,
            position_ids=position_ids[None],
            use_cache=False,
            shared_prefix=layout,
        ).last_hidden_state[0]


class PackedGroups:
    """Trunks and their branches in one flat row.

    ``parents`` is the index of the trunk that each branch continues, in ascending order.
    """

    def __init__(
        self,
        trunks: Sequence[Sequence[int]],
        branches: Sequence[Sequence[int]],
        parents: Sequence[int],
        device: torch.device,
    ) -> None:
        lengths = [len(t) for t in trunks]
        self.trunks = Rows(lengths, 0, device)
        self.branches = Rows([len(b) for b in branches], self.trunks.end, device)
        self.parents = torch.tensor(parents, dtype=torch.long, device=device)
        self.input_ids = torch.tensor([i for row in (*trunks, *branches) for i in row], device=device)
        starts = [0] * len(trunks) + [lengths[p] for p in parents]
        positions = [s + i for s, row in zip(starts, (*trunks, *branches), strict=True) for i in range(len(row))]
        self.position_ids = torch.tensor(positions, device=device)
        self._masks: dict[Any, Tensor] = {}
        size = len(parents) * self.branches.width * (self.trunks.width + self.branches.width)
        self._dense = size <= _DENSE
        self._groups = [] if self._dense else _groups(lengths, [len(b) for b in branches], parents, device)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, kind: AttentionKind) -> Tensor:
        """Attention of one layer, each tensor of shape (tokens, heads, width)."""
        # Padding stands on the right, where causal attention never looks.
        out = self.trunks.flat(
            causal_attention(self.trunks.pad(query), self.trunks.pad(key), self.trunks.pad(value), kind)
        )
        if not self.branches.end > self.trunks.end:
            return out
        if self._dense:
            return torch.cat([out, self._dense_branches(query, key, value, kind)])
        parts = [out]
        for trunk, rows in self._groups:
            (start, stop), tokens = trunk, slice(rows.start, rows.end)
            prompt, own = ((key[part], value[part]) for part in (slice(start, stop), tokens))
            parts.append(branch_attention(query[tokens], prompt, own, rows.within, kind))
        return torch.cat(parts)

    def _dense_branches(self, query: Tensor, key: Tensor, value: Tensor, kind: AttentionKind) -> Tensor:
        """All branches in one call with a mask, which is quicker where there are many short ones."""
        key, value = (
            torch.cat([self.trunks.pad(x).index_select(0, self.parents), self.branches.pad(x)], dim=2)
            for x in (key, value)
        )
        mask = self._mask(kind.window, query.dtype)
        return self.branches.flat(attend(self.branches.pad(query), key, value, mask, kind))

    def _mask(self, window: int | None, dtype: torch.dtype) -> Tensor:
        """Additive mask of the branches, the same in every layer with this window."""
        if (window, dtype) not in self._masks:
            allowed = self._branch_mask(window)
            self._masks[window, dtype] = torch.zeros_like(allowed, dtype=dtype).masked_fill(~allowed, -torch.inf)
        return self._masks[window, dtype]

    def _branch_mask(self, window: int | None) -> Tensor:
        # One mask for all where all trunks are equally long, else one per branch.
        length = self.trunks.lengths[:1] if self.trunks.even else self.trunks.lengths[self.parents]
        prompt = torch.arange(self.trunks.width, device=length.device)
        own = length[:, None] + torch.arange(self.branches.width, device=length.device)
        # Padding of a trunk gets a position behind everything.
        prompt = torch.where(prompt < length[:, None], prompt, torch.iinfo(torch.long).max)
        return _causal(own[:, None, :, None], torch.cat([prompt, own], dim=1)[:, None, None, :], window)


class Rows:
    """Some rows of a flat sequence of tokens as a block padded on the right, and back."""

    def __init__(self, lengths: Sequence[int], start: int, device: torch.device) -> None:
        self.width, self.end = max(lengths, default=0), start + sum(lengths)
        self.even = all(length == self.width for length in lengths)
        self.lengths = torch.tensor(lengths, dtype=torch.long, device=device)
        self._start = start
        if not self.even:
            starts = start + self.lengths.cumsum(0) - self.lengths
            position = torch.arange(self.width, device=device)
            valid = position < self.lengths[:, None]
            # Padding repeats some token of the sequence; nothing attends to it and its output is dropped.
            self._gather = torch.where(valid, starts[:, None] + position, start).flatten()
            self._valid = valid.flatten().nonzero().squeeze(1)
            self._padding = ~valid.flatten()

    def pad(self, flat: Tensor, padding: float | None = None) -> Tensor:
        """Shape (tokens, heads, size) to (rows, heads, width, size); padding is arbitrary where it is not stated."""
        block = flat[self._start : self.end] if self.even else flat.index_select(0, self._gather)
        if padding is not None and not self.even:
            block = block.masked_fill(self._padding[:, None, None], padding)
        return block.unflatten(0, (len(self.lengths), self.width)).transpose(1, 2)

    def flat(self, block: Tensor) -> Tensor:
        """Shape (rows, heads, width, size) to (this part's tokens, heads, size)."""
        tokens = block.transpose(1, 2).flatten(0, 1)
        return tokens if self.even else tokens.index_select(0, self._valid)


def _causal(query: Tensor, key: Tensor, window: int | None) -> Tensor:
    """Which key positions a query position sees: not the future, and no further back than the window."""
    seen = key <= query
    return seen if window is None else seen & (key > query - window)


class _Group(NamedTuple):
    """Branches of one trunk within a flat row: from ``start`` to ``end``, and as rows of what lies between."""

    start: int
    end: int
    within: Rows


def _groups(
    trunks: Sequence[int], branches: Sequence[int], parents: Sequence[int], device: torch.device
) -> list[tuple[tuple[int, int], _Group]]:
    """Each trunk that has branches, as (start, end), with them; branches follow each other in the order of trunks."""
    ends = list(itertools.accumulate(trunks, initial=0))
    start, found = ends[-1], []
    for parent, rows in itertools.groupby(range(len(parents)), key=parents.__getitem__):
        lengths = [branches[row] for row in rows]
        if sum(lengths):
            found.append(
                ((ends[parent], ends[parent + 1]), _Group(start, start + sum(lengths), Rows(lengths, 0, device)))
            )
        start += sum(lengths)
    return found
