"""FlowRL: log Z from a head on the prompt's hidden states, trained with the policy (arXiv 2509.15207).

The published code masks out the prompt's last token, leaves dropout on in the head, lets the head's gradient
reach the backbone and trains it with the policy's learning rate. Here the whole prompt is read, there is no
dropout, the backbone is detached, and the head has a parameter group of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from disa.errors import DisaError
from disa.lm.shared_prefix import causal_lm
from disa.objectives.log_z import masked_mean
from disa.training.log_z import LogZ

if TYPE_CHECKING:
    from disa.training.balance_trainer import BalanceTrainer
    from disa.training.disa_config import DISAConfig


class LogZHead(nn.Module):
    """Three linear layers with GELU and layer norm between them, from a prompt's mean hidden state to log Z.

    The last layer starts at zero, so that training starts from log Z = 0 for every prompt.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = [layer for _ in range(2) for layer in (nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width))]
        self.layers = nn.Sequential(*hidden, nn.Linear(width, 1))
        nn.init.zeros_(self.layers[-1].weight)
        nn.init.zeros_(self.layers[-1].bias)

    def forward(self, features: Tensor) -> Tensor:
        """Shape (batch, width) to (batch,)."""
        return self.layers(features).squeeze(-1)


class Learned(LogZ):
    """A head's log Z. It is saved with the optimiser's state in a checkpoint and is no part of the policy's folder.

    The policy's ``learning_rate`` is far too small for it. ``detach_backbone`` keeps its gradient out of the policy;
    the published code lets it in. ``normalised_rewards`` normalises rewards within the group, as published.
    """

    name, paper = "FlowRL", "2509.15207"
    module: nn.Module

    def __init__(
        self, learning_rate: float = 1e-3, *, detach_backbone: bool = True, normalised_rewards: bool = False
    ) -> None:
        self.learning_rate, self.detach_backbone = learning_rate, detach_backbone
        self.normalised_rewards = normalised_rewards

    def check(self, args: DISAConfig, datasets: Sequence[Any]) -> None:
        """Refuse normalised rewards in groups of one."""
        if self.normalised_rewards and args.num_generations == 1:
            raise DisaError(
                "num_generations=1: a reward normalised within a group of one is zero, so it would teach nothing",
                where="FlowRL, normalised_rewards=True",
                fix="use num_generations of 2 or more, or raw rewards",
            )

    def attach(self, trainer: BalanceTrainer) -> None:
        """Make the head."""
        if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
            raise DisaError(
                "its log Z head is trained beside the policy, which FSDP and DeepSpeed do not wrap together",
                where="FlowRL",
                fix="launch with recipes/accelerate/ddp.yaml",
            )
        width = trainer.accelerator.unwrap_model(trainer.model).get_output_embeddings().weight.shape[1]
        self.module = trainer.accelerator.prepare_model(LogZHead(width))

    def learned(self, trainer: BalanceTrainer, model: Any, inputs: dict[str, Any]) -> Tensor:
        """The head's value of each row's prompt."""
        ids, mask = inputs["prompt_ids"], inputs["prompt_mask"]
        policy = causal_lm(trainer.accelerator.unwrap_model(model))
        learning = torch.is_grad_enabled() and not self.detach_backbone
        with torch.set_grad_enabled(learning), trainer.accelerator.autocast():
            hidden = policy.base_model(input_ids=ids, attention_mask=mask).last_hidden_state
        return self.module(masked_mean(hidden.float(), mask))
