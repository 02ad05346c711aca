"""A log Z that is trained beside the policy: its place in the optimiser and in checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from disa.training.log_z import LogZ
from disa.training.shared_prompt_trainer import SharedPromptTrainer

MODULE_FILE = "log_z_head.pt"
"""What a learned log Z trained beside the policy, in a checkpoint."""


class LogZModuleTrainer(SharedPromptTrainer):
    """Trains ``log_z.module`` with the policy, where there is one."""

    log_z: LogZ

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Give log Z a parameter group of its own, without weight decay: it has no reason to shrink to 0."""
        optimizer, module = super().create_optimizer(model), self.log_z.module
        known = {id(p) for group in optimizer.param_groups for p in group["params"]}
        if module is not None and not known & {id(p) for p in module.parameters()}:
            group = {"params": list(module.parameters()), "lr": self.log_z.learning_rate, "weight_decay": 0.0}
            optimizer.add_param_group(group)
            # TRL clears the policy's gradients only: without this the module's would add up over all steps.
            optimizer.register_step_post_hook(lambda *_: module.zero_grad())
        return optimizer

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.log_z.module is not None and self.args.should_save:
            torch.save(self.accelerator.unwrap_model(self.log_z.module).state_dict(), Path(output_dir) / MODULE_FILE)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if self.log_z.module is not None and checkpoint is not None:
            state = torch.load(Path(checkpoint) / MODULE_FILE, map_location=self.accelerator.device, weights_only=True)
            self.accelerator.unwrap_model(self.log_z.module).load_state_dict(state)
