"""Log-probabilities of given completions under a given model: sums for scoring, tokens with gradient for training.

A prompt is computed once for all its completions (:mod:`disa.lm.shared_prefix`), only positions that predict a
completion token pass the LM head (:mod:`disa.lm.head`), and nothing but attention sees padding. Architectures that
cannot share prompts go the plain way, one padded row per completion.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from accelerate.utils import align_module_device
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from disa.lm.batches import batches_by_length
from disa.lm.head import Transform, head_log_probs
from disa.lm.shared_prefix import PackedGroups, hidden_states, why_not_shared

Ids = Sequence[Sequence[int]]


@torch.inference_mode()
def sequence_log_probs(
    model: PreTrainedModel,
    prompt_ids: Ids,
    completion_ids: Ids,
    *,
    own: Sequence[Sequence[int] | None] | None = None,
    temperature: float = 1.0,
    tokens_per_batch: int = 16384,
    advance: Callable[[int], None] = lambda rows: None,
) -> np.ndarray:
    """``log p(y | x) = sum_t log softmax(logits_t / T)[y_t]`` of every completion, nats in float64.

    A completion includes its stop token unless it is truncated. ``own`` has 1 for each token that is summed, 0 for
    those of tools; None for all of them. ``tokens_per_batch`` counts prompt and completion tokens, padding included;
    ``advance`` is called with the number of rows of every batch that is done.
    """
    _check(prompt_ids, completion_ids)
    shared = why_not_shared(model) is None
    batches = group_batches(prompt_ids, completion_ids, tokens_per_batch)
    if not shared:
        lengths = [len(p) + len(c) for p, c in zip(prompt_ids, completion_ids, strict=True)]
        batches = batches_by_length(lengths, tokens_per_batch)
    result = np.zeros(len(completion_ids), dtype=np.float64)
    for rows in batches:
        make = PackedCompletions if shared else PaddedCompletions
        batch = make([prompt_ids[i] for i in rows], [completion_ids[i] for i in rows], model.device)
        log_p, _ = token_log_probs(model, batch, temperature=temperature)
        if own is not None:
            kept = [k for i in rows for k in own[i] or [1] * len(completion_ids[i])]
            log_p = log_p * torch.tensor(kept, device=log_p.device)
        sums = torch.zeros(len(rows), dtype=torch.float64, device=model.device)
        result[rows] = sums.index_add_(0, batch.row, log_p.double()).cpu().numpy()
        advance(len(rows))
    return result


def token_log_probs(
    model: PreTrainedModel,
    batch: PackedCompletions | PaddedCompletions,
    *,
    temperature: float = 1.0,
    entropy: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Log-probability of every completion token of a batch, with gradient, and on request the entropies, without.

    Token i belongs to completion ``batch.row[i]`` and stands at ``batch.step[i]`` in it. Returns nats, float32 (float64
    for a float64 model), each of shape (tokens,).
    """
    hidden, head = batch.hidden_states(model), model.get_output_embeddings()
    hidden = hidden.index_select(0, batch.predicting.to(hidden.device))
    with align_module_device(head):  # a device map may have laid its weights aside
        device = head.weight.device
        log_p, entropies = head_log_probs(
            hidden.to(device),
            head,
            batch.targets.to(device),
            transform=Transform.of(model.config),
            temperature=temperature,
            entropy=entropy,
        )
    return log_p.to(batch.row.device), entropies if entropies is None else entropies.to(batch.row.device)


class _Completions:
    """What both layouts say of their completion tokens, each a Tensor of shape (tokens,)."""

    def __init__(self, completions: Ids, first: Sequence[int], then: Sequence[int], device: torch.device) -> None:
        # A token is predicted one position earlier: the first by the prompt's last, the others by their predecessor.
        lengths = [len(c) for c in completions]
        predicting = [i for f, t, n in zip(first, then, lengths, strict=True) for i in (f, *range(t, t + n - 1))[:n]]
        self.predicting = torch.tensor(predicting, dtype=torch.long, device=device)
        self.targets = torch.tensor([i for c in completions for i in c], dtype=torch.long, device=device)
        self.row = torch.repeat_interleave(torch.tensor(lengths)).to(device)
        self.step = torch.tensor([t for n in lengths for t in range(n)], dtype=torch.long, device=device)


class PackedCompletions(_Completions):
    """Completions in a flat row with every distinct prompt once."""

    def __init__(self, prompt_ids: Ids, completion_ids: Ids, device: torch.device) -> None:
        trunks: list[list[int]] = []
        branches: list[Sequence[int]] = []
        parents: list[int] = []
        # Which trunk a row's prompt is in, and which branch the row itself is, where it is one.
        branch_of: dict[int, int] = {}
        trunk_of: dict[int, int] = {}
        for prompt, rows in _by_prompt(prompt_ids).items():
            trunk_of |= dict.fromkeys(rows, len(trunks))
            if len(rows) == 1:
                # Nothing to share: the row is one trunk, attention and all.
                trunks.append([*prompt, *completion_ids[rows[0]][:-1]])
                continue
            for row in rows:
                branch_of[row] = len(branches)
                # The last token predicts nothing.
                branches.append(completion_ids[row][:-1])
                parents.append(len(trunks))
            trunks.append(list(prompt))
        trunk_starts = _starts(trunks, 0)
        branch_starts = _starts(branches, sum(map(len, trunks)))
        first = [trunk_starts[trunk_of[row]] + len(prompt) - 1 for row, prompt in enumerate(prompt_ids)]
        then = [branch_starts[branch_of[row]] if row in branch_of else f + 1 for row, f in enumerate(first)]
        super().__init__(completion_ids, first, then, device)
        self.groups = PackedGroups(trunks, branches, parents, device)

    def hidden_states(self, model: PreTrainedModel) -> Tensor:
        """Hidden states of all tokens, shape (tokens, width)."""
        return hidden_states(model, self.groups.input_ids, self.groups.position_ids, self.groups)


class PaddedCompletions(_Completions):
    """One padded row per completion, its prompt in front of it: what any causal language model takes."""

    def __init__(self, prompt_ids: Ids, completion_ids: Ids, device: torch.device) -> None:
        ids = [torch.tensor([*p, *c]) for p, c in zip(prompt_ids, completion_ids, strict=True)]
        self.input_ids = pad_sequence(ids, batch_first=True).to(device)
        self.attention_mask = pad_sequence([torch.ones_like(row) for row in ids], batch_first=True).to(device)
        first = [i * self.input_ids.shape[1] + len(p) - 1 for i, p in enumerate(prompt_ids)]
        super().__init__(completion_ids, first, [f + 1 for f in first], device)

    def hidden_states(self, model: PreTrainedModel) -> Tensor:
        """Hidden states of all tokens and the padding, shape (rows * length, width)."""
        output = model.base_model(input_ids=self.input_ids, attention_mask=self.attention_mask, use_cache=False)
        return output.last_hidden_state.flatten(0, 1)


def _check(prompt_ids: Ids, completion_ids: Ids) -> None:
    if len(prompt_ids) != len(completion_ids):
        raise ValueError(f"{len(prompt_ids)} prompts but {len(completion_ids)} completions")
    if not all(len(p) for p in prompt_ids):
        raise ValueError("a prompt without tokens: no position predicts its completion's first token")


def _by_prompt(prompt_ids: Ids) -> dict[tuple[int, ...], list[int]]:
    """Rows of each distinct prompt, in the order of first appearance."""
    rows: dict[tuple[int, ...], list[int]] = {}
    for row, prompt in enumerate(prompt_ids):
        rows.setdefault(tuple(prompt), []).append(row)
    return rows


def _starts(rows: Ids, start: int) -> list[int]:
    starts = []
    for row in rows:
        starts.append(start)
        start += len(row)
    return starts


def group_batches(prompt_ids: Ids, completion_ids: Ids, tokens_per_batch: int) -> Iterator[list[int]]:
    """Row indices in batches of similar lengths within the budget, completions of a prompt together.

    A prompt counts once per batch; only where its completions alone exceed the budget is it computed again.
    """
    units: list[tuple[int, int, list[int]]] = []
    for prompt, rows in _by_prompt(prompt_ids).items():
        unit: list[int] = []
        for row in sorted(rows, key=lambda i: (len(completion_ids[i]), i)):
            if unit and len(prompt) + (len(unit) + 1) * len(completion_ids[row]) > tokens_per_batch:
                units.append((len(prompt), len(completion_ids[unit[-1]]), unit))
                unit = []
            unit.append(row)
        units.append((len(prompt), len(completion_ids[unit[-1]]), unit))
    batch: list[int] = []
    prompts = longest = 0
    for length, completion, rows in sorted(units):
        longest = max(longest, completion)
        if batch and (prompts + 1) * length + (len(batch) + len(rows)) * longest > tokens_per_batch:
            yield batch
            batch, prompts, longest = [], 0, completion
        batch, prompts = batch + rows, prompts + 1
    if batch:
        yield batch
