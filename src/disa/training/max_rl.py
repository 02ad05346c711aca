"""MaxRL (arXiv 2602.02710): policy gradient with the advantage ``(r - mean) / mean`` within the group."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from disa.training.shared_prompt_trainer import SharedPromptTrainer


def max_rl_advantage(reward: Tensor, group_size: int) -> Tensor:
    """``(r - mean) / mean`` over each ``group_size`` rows in turn; 0 where the group has no reward, or none decided.

    For rewards of 0 and 1 its expected policy gradient tends to that of the logarithm of the success probability, the
    more completions the group has.
    """
    rows = reward.view(-1, group_size)
    mean = rows.nanmean(dim=1, keepdim=True)
    return torch.where(mean > 0, (rows - mean) / mean, 0.0).nan_to_num(nan=0.0).flatten()


class MaxRLTrainer(SharedPromptTrainer):
    """GRPO's trainer with MaxRL's advantages; the loss is what its arguments make it."""

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        batch = super()._generate_and_score_completions(inputs)
        size = self.num_generations if self.model.training else self.num_generations_eval
        batch["advantages"] = max_rl_advantage(self.raw_rewards(), size)[self.own_rows(len(inputs))]
        return batch
