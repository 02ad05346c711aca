"""Stored trajectories as training data: drawn in proportion to a weight, batch by batch, from a seed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from disa.errors import DisaError
from disa.runs.records import ScoredTrajectory


def padded_ids(
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    tool_masks: Sequence[Sequence[int]],
    pad_token_id: int,
    device: torch.device | str,
) -> dict[str, Tensor]:
    """Token ids of rows as a trainer takes them: prompts padded on the left, completions on the right, with masks."""

    def pad(rows: Sequence[Sequence[int]], side: str, value: int = 0) -> Tensor:
        tensors = [torch.tensor(list(row)) for row in rows]
        return pad_sequence(tensors, batch_first=True, padding_value=value, padding_side=side).to(device)

    return {
        "prompt_ids": pad(prompts, "left", pad_token_id),
        "prompt_mask": pad([[1] * len(ids) for ids in prompts], "left"),
        "completion_ids": pad(completions, "right", pad_token_id),
        "completion_mask": pad([[1] * len(ids) for ids in completions], "right"),
        "tool_mask": pad(tool_masks, "right"),
    }


@dataclasses.dataclass(frozen=True)
class StoredBatch:
    """Padded token ids of some trajectories, prompts on the left, completions on the right, and what is known of each.

    All but the ids and masks have shape (batch,) and are float64.
    """

    prompt_ids: Tensor
    prompt_mask: Tensor
    completion_ids: Tensor
    completion_mask: Tensor
    weight: Tensor
    """Weight of each row in the loss: the same for all, because rows are drawn in proportion to theirs."""
    log_ref: Tensor
    reward: Tensor
    log_z: Tensor
    """NaN where no log Z was given."""
    tool_mask: Tensor
    """Shape of ``completion_ids``: 0 for tokens that tools wrote, which are in no sum."""
    tokens: Tensor
    """The model's own tokens of the whole batch, in all its parts, divided by the number of parts."""


class StoredTrajectories:
    """Trajectories with a weight W each, as an endless sequence of numbered batches.

    Rows are drawn in proportion to W, and every one then weighs mean(W): the same expected gradient as uniform draws
    weighted by W, without computing rows that weigh nothing. ``log_z`` is that of each row's prompt, for losses that
    need it; a trainer may be held to the ``temperature`` of the draws. Raises DisaError where there are no rows, or
    none has a weight.
    """

    def __init__(
        self,
        rows: Sequence[ScoredTrajectory],
        prompt_ids: Mapping[str, Sequence[int]],
        weights: Tensor,
        *,
        seed: int,
        log_z: Tensor | None = None,
        temperature: float | None = None,
    ) -> None:
        if not rows:
            raise DisaError("no offline trajectories", where="training", fix="run proposals and scoring")
        if not float(weights.sum()) > 0:
            raise DisaError(
                f"none of {len(rows)} offline trajectories has a weight: no completion was rewarded",
                where="training",
                fix="draw more trajectories, or use a stronger proposal",
            )
        self.weights, self.temperature = weights, temperature
        self.prompts = frozenset(row.prompt_id for row in rows)
        self._prompt_of, self._prompt_ids = [row.prompt_id for row in rows], prompt_ids
        self._completion_ids = [row.completion_ids for row in rows]  # those on disk stay there
        self._own_length, self._tool_mask = [row.own_length for row in rows], [row.tool_mask for row in rows]
        self._log_ref = torch.tensor([row.log_ref for row in rows], dtype=torch.float64)
        self._reward = torch.tensor([row.reward for row in rows], dtype=torch.float64)
        self._log_z = torch.full_like(self._reward, torch.nan) if log_z is None else log_z
        self._probability = (weights / weights.sum()).numpy()
        self._mean_weight = float(weights.mean())
        self._seed = seed

    def __len__(self) -> int:
        return len(self._completion_ids)

    def batch(
        self,
        number: int,
        size: int,
        device: torch.device | str,
        pad_token_id: int,
        *,
        part: int = 0,
        parts: int = 1,
    ) -> StoredBatch:
        """``size`` rows of the ``number``-th batch, whose other ``parts`` are other processes' rows.

        A batch is a pure function of the seed, so that a resumed run sees the same ones, and one process sees the rows
        that several see together.
        """
        rng = np.random.default_rng([self._seed, number])
        whole = rng.choice(len(self), size=size * parts, p=self._probability)
        tokens = sum(self._own_length[i] for i in whole) / parts
        rows = whole[part * size : (part + 1) * size]
        prompts = [self._prompt_ids[self._prompt_of[i]] for i in rows]
        completions = [self._completion_ids[i] for i in rows]
        own = [self._tool_mask[i] or [1] * self._own_length[i] for i in rows]
        return StoredBatch(
            **padded_ids(prompts, completions, own, pad_token_id, device),
            weight=torch.full((size,), self._mean_weight, dtype=torch.float64, device=device),
            log_ref=self._log_ref[rows].to(device),
            reward=self._reward[rows].to(device),
            log_z=self._log_z[rows].to(device),
            tokens=torch.full((size,), tokens, dtype=torch.float64, device=device),
        )
