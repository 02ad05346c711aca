"""Completions in more than one optimiser step: earlier ones mixed in, weights watched, and a rule that stops.

A completion drawn by the policy of an earlier step counts ``w = min(pi / pi_sampler, cap)``. The further the policy has
moved, the fewer completions carry the weight: with n completions their effective share is ``(sum w)^2 / (n sum w^2)``,
of the weights before the cap. A generation whose share falls below ``min_ess`` in a step is used in no later one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from disa.objectives.trajectory_balance import effective_share

if TYPE_CHECKING:
    from disa.training.disa_config import DISAConfig

Batch = dict[str, Any]


class Reuse:
    """What a trainer remembers of completions that it uses again; ``drawn``, their step, names a generation."""

    def __init__(self, args: DISAConfig) -> None:
        self._args = args
        self.spent = False
        """Whether the generation in use is left alone until the next one is drawn."""
        self._kept: list[Batch] = []  # the newest last
        self._log_weights: list[Tensor] = []
        self._drawn: list[Tensor] = []

    # Replay

    def keep(self, batch: Batch) -> None:
        """Remember a generation's rows, and forget the oldest generation beyond ``replay_generations``."""
        if self._args.replay_share:
            rows = {k: v.cpu() for k, v in batch.items() if isinstance(v, Tensor) and v.ndim}
            # The newest is in use itself, and not replayed meanwhile.
            self._kept = [*self._kept, rows][-self._args.replay_generations - 1 :]

    def replay(self, batch: Batch, number: int, part: int, pad_token_id: int) -> Batch:
        """Add earlier generations' rows, so many that they are ``replay_share`` of all; none where there are none.

        ``number`` of the micro-batch and ``part`` of the process decide with the seed which rows, so resuming repeats
        none.
        """
        earlier, share = self._kept[:-1], self._args.replay_share
        wanted = round(len(batch["drawn"]) * share / (1 - share))
        if not earlier or not wanted:
            return batch
        pool = earlier[0]
        for rows in earlier[1:]:
            pool = _joined(pool, rows, pad_token_id)
        # Whole groups, for the sake of their baselines, until there are enough rows.
        rng = np.random.default_rng([self._args.seed, number, part])
        members, group = np.unique(pool["group"].numpy(), return_inverse=True)
        order = np.argsort(rng.permutation(len(members))[group], kind="stable")[:wanted]
        rows = {name: value[torch.from_numpy(order)].to(batch["drawn"].device) for name, value in pool.items()}
        joined = _joined({name: batch[name] for name in rows}, rows, pad_token_id)
        return batch | joined | {"decided": batch["decided"] + (~rows["raw_reward"].isnan()).sum()}

    # Weights

    def note(self, log_weight: Tensor, drawn: Tensor) -> None:
        """Log weights before the cap of one micro-batch's decided rows, of all processes, and when each was drawn."""
        self._log_weights.append(log_weight)
        self._drawn.append(drawn)

    def end_step(self, step: int) -> dict[str, float]:
        """Say what the step's weights were, and give up the generations that too little is left of."""
        if not sum(len(drawn) for drawn in self._drawn):
            return {}
        log_weight, drawn = torch.cat(self._log_weights), torch.cat(self._drawn)
        self._log_weights, self._drawn = [], []
        shares = {d: effective_share(log_weight[drawn == d]).item() for d in drawn.unique().tolist()}
        gone = {d for d, share in shares.items() if share < self._args.min_ess}
        self.spent = max(shares) in gone
        self._kept = [rows for rows in self._kept if rows["drawn"][0].item() not in gone]
        return {
            "reuse/staleness": (step - drawn).double().mean().item(),
            "reuse/ess": effective_share(log_weight).item(),
            "reuse/capped": (log_weight.exp() > self._args.weight_cap).double().mean().item(),
            "reuse/kl_sampler": -log_weight.mean().item(),
        }

    # Checkpoints

    def state(self) -> dict[str, Any]:
        """Everything, as tensors and plain values."""
        return {"spent": self.spent, "kept": self._kept}

    def load(self, state: dict[str, Any]) -> None:
        """Take up what :meth:`state` gave."""
        self.spent = state["spent"]
        self._kept = [{name: value.cpu() for name, value in rows.items()} for rows in state["kept"]]


def _joined(first: Batch, second: Batch, pad_token_id: int) -> Batch:
    """Rows of both, padded to equal widths: prompts on the left, completions on the right."""

    def widened(name: str, rows: Tensor, width: int) -> Tensor:
        more = width - rows.shape[1]
        side = (more, 0) if name.startswith("prompt") else (0, more)
        return pad(rows, side, value=pad_token_id if name.endswith("ids") else 0)

    found = {}
    for name, rows in first.items():
        pair = [rows, second[name]]
        if rows.ndim > 1:
            pair = [widened(name, r, max(r.shape[1] for r in pair)) for r in pair]
        found[name] = torch.cat(pair)
    return found
