"""The anchor's own trajectories as training data, weighted towards the frozen target."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from disa.anchor import Anchor
from disa.errors import DisaError
from disa.objectives.forward_projection import target_weight
from disa.partition.log_weights import balance_log_weights
from disa.records import ScoredTrajectory


@dataclasses.dataclass(frozen=True)
class OfflineBatch:
    """Padded token ids of some offline trajectories, prompts on the left, completions on the right."""

    prompt_ids: Tensor
    prompt_mask: Tensor
    completion_ids: Tensor
    completion_mask: Tensor
    weight: Tensor
    """Weight of each row in the forward projection, shape (batch,)."""


class OfflineTrajectories:
    """Scored trajectories that the forward projection draws its batches from.

    Trajectories are drawn in proportion to their weight W, and every row then weighs mean(W): the
    same expected gradient as uniform draws weighted by W, without computing rows that weigh nothing.

    Parameters
    ----------
    rows : sequence of ScoredTrajectory
        Those the anchor was estimated from, or some prompts' share of them.
    prompt_ids : mapping of prompt id to token ids
    anchor : Anchor
        Supplies log Z and the inverse temperature.
    weight_cap : float
        Bound on W.
    seed : int

    Raises
    ------
    DisaError
        Where there are no rows, a prompt has no token ids, or none has a log Z.
    """

    def __init__(
        self,
        rows: Sequence[ScoredTrajectory],
        prompt_ids: Mapping[str, Sequence[int]],
        anchor: Anchor,
        *,
        weight_cap: float,
        seed: int,
    ) -> None:
        if not rows:
            raise DisaError(
                "no offline trajectories", where="training", fix="run proposals and scoring, or offline_share: 0"
            )
        self._prompt_ids = [torch.tensor(prompt_ids[row.prompt_id]) for row in rows]
        self._completion_ids = [torch.tensor(row.completion_ids) for row in rows]
        self.weights = _target_weights(rows, anchor, weight_cap)
        self._probability = (self.weights / self.weights.sum()).numpy()
        self._mean_weight = float(self.weights.mean())
        self._seed = seed

    def batch(self, number: int, size: int, device: torch.device, pad_token_id: int) -> OfflineBatch:
        """The ``number``-th batch: a pure function of the seed, so that a resumed run sees the same ones."""
        rng = np.random.default_rng([self._seed, number])
        rows = rng.choice(len(self._probability), size=size, p=self._probability)
        prompts = [self._prompt_ids[i] for i in rows]
        completions = [self._completion_ids[i] for i in rows]

        def pad(ids: list[Tensor], value: int, side: str) -> Tensor:
            return pad_sequence(ids, batch_first=True, padding_value=value, padding_side=side).to(device)

        return OfflineBatch(
            prompt_ids=pad(prompts, pad_token_id, "left"),
            prompt_mask=pad([torch.ones_like(ids) for ids in prompts], 0, "left"),
            completion_ids=pad(completions, pad_token_id, "right"),
            completion_mask=pad([torch.ones_like(ids) for ids in completions], 0, "right"),
            weight=torch.full((size,), self._mean_weight, dtype=torch.float64, device=device),
        )


def _target_weights(rows: Sequence[ScoredTrajectory], anchor: Anchor, cap: float) -> Tensor:
    """W of every row, with each prompt's share of reference draws as the mixture's alpha."""
    _, prompt = np.unique([row.prompt_id for row in rows], return_inverse=True)
    from_reference = np.array([row.source == "reference" for row in rows], dtype=np.float64)
    share = (np.bincount(prompt, from_reference) / np.bincount(prompt))[prompt]
    log_ratio = np.array([row.log_ref - row.log_proposal for row in rows])
    return target_weight(
        torch.from_numpy(balance_log_weights(log_ratio, share)),
        torch.tensor([row.reward for row in rows], dtype=torch.float64),
        torch.from_numpy(anchor.log_z([row.prompt_id for row in rows])),
        beta=anchor.fingerprint.inverse_temperature,
        cap=cap,
    )
