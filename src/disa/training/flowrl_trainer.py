"""FlowRL: log Z from a head on the prompt's hidden states, trained with the policy.

The published code masks out the prompt's last token, leaves dropout on in the head, lets the head's gradient
reach the backbone and trains it with the policy's learning rate. Here the whole prompt is read, there is no
dropout, the backbone is detached, and the head has a parameter group of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from disa.errors import DisaError
from disa.objectives.log_z import masked_mean
from disa.training.balance_config import BalanceConfig
from disa.training.balance_trainer import BalanceTrainer

FLOWRL_BETA = 15.0
"""Inverse temperature FlowRL was published with."""

HEAD_FILE = "log_z_head.pt"


@dataclass
class FlowRLConfig(BalanceConfig):
    """Configuration of :class:`FlowRLTrainer`."""

    reuses_completions: ClassVar[bool] = True

    published: bool = field(
        default=False,
        metadata={
            "help": "The published convention, which needs groups: inverse temperature 15, log-ratios as means over "
            "tokens and importance weights capped at 10, whatever inverse_temperature, length and weight_cap say, and "
            "rewards normalised within the group. The head stays this project's (detach_backbone). By default sums and "
            "raw rewards, whose fixed point is the target."
        },
    )
    weight_cap: float = field(default=10.0, metadata={"help": "Bound on pi / pi_sampler of a reused completion."})
    log_z_learning_rate: float = field(
        default=1e-3, metadata={"help": "Peak learning rate of the head; the policy's is far too small for it."}
    )
    detach_backbone: bool = field(
        default=True,
        metadata={
            "help": "Keep the head's gradient out of the policy. The published code lets it in: give false for that, "
            "published=True leaves this setting alone."
        },
    )

    def __post_init__(self) -> None:
        """Resolve the published convention."""
        if self.published:
            self.inverse_temperature, self.length, self.weight_cap = FLOWRL_BETA, "mean", 10.0
            if self.num_generations == 1:
                raise DisaError(
                    "num_generations=1: a reward normalised within a group of one is zero, so it would teach nothing",
                    where="FlowRLConfig, published=True",
                    fix="use num_generations of 2 or more, or published=False",
                )
        super().__post_init__()


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


class FlowRLTrainer(BalanceTrainer):
    """Trajectory balance with a learned log Z (FlowRL, arXiv 2509.15207).

    The head is saved with the optimiser's state in a checkpoint and is no part of the policy's folder.
    """

    _tag_names = ["trl", "flowrl"]
    _name = "FlowRL"
    _paper = {"title": "FlowRL: Matching Reward Distributions for LLM Reasoning", "id": "2509.15207"}
    _learned = True

    def __init__(self, *args: Any, **others: Any) -> None:
        super().__init__(*args, **others)
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise DisaError(
                "its log Z head is trained beside the policy, which FSDP and DeepSpeed do not wrap together",
                where="FlowRLTrainer",
                fix="launch with recipes/accelerate/ddp.yaml",
            )
        width = self.accelerator.unwrap_model(self.model).get_output_embeddings().weight.shape[1]
        self._head = self.accelerator.prepare_model(LogZHead(width))

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Give the head its own parameter group, without weight decay: log Z has no reason to shrink to 0."""
        optimizer = super().create_optimizer(model)
        known = {id(p) for group in optimizer.param_groups for p in group["params"]}
        if not known & {id(p) for p in self._head.parameters()}:
            head = {"params": list(self._head.parameters()), "lr": self.args.log_z_learning_rate, "weight_decay": 0.0}
            optimizer.add_param_group(head)
            # The engine clears the policy's gradients only: without this the head's would add up over all steps.
            optimizer.register_step_post_hook(lambda *_: self._head.zero_grad())
        return optimizer

    def _log_z(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        ids, mask = inputs["prompt_ids"], inputs["prompt_mask"]
        policy = self.accelerator.unwrap_model(model)
        policy = policy.get_base_model() if hasattr(policy, "get_base_model") else policy
        learning = torch.is_grad_enabled() and not self.args.detach_backbone
        with torch.set_grad_enabled(learning), self.accelerator.autocast():
            hidden = policy.base_model(input_ids=ids, attention_mask=mask).last_hidden_state
        return self._head(masked_mean(hidden.float(), mask))

    def _reward(self, inputs: dict[str, Any]) -> Tensor:
        if not self.args.published:
            return super()._reward(inputs)
        return inputs["advantages"].masked_fill(inputs["raw_reward"].isnan(), torch.nan)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.args.should_save:
            torch.save(self.accelerator.unwrap_model(self._head).state_dict(), Path(output_dir) / HEAD_FILE)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            state = torch.load(Path(checkpoint) / HEAD_FILE, map_location=self.accelerator.device, weights_only=True)
            self.accelerator.unwrap_model(self._head).load_state_dict(state)
