"""Trajectory balance on TRL's GRPOTrainer: the engine's data path and scaling, another loss.

Sampling and log-probabilities are those of :class:`disa.training.shared_prompt_trainer.SharedPromptTrainer`, which
replaces the engine's own where a prompt can be computed once. Four more methods of the engine are overridden here:
rewards are noted as they pass, log Z joins the batch and the audit joins the log, each around ``super()``, and the
loss is replaced by trajectory balance. Nothing of the engine is copied. A method says where its log Z comes from by
``_known_log_z`` (before the update: frozen, group) or ``_log_z`` (with it: learned).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from disa.lm.hf_trainer import SeededEpochs
from disa.objectives.log_z import group_log_z
from disa.objectives.trajectory_balance import (
    importance_weight,
    per_length,
    trajectory_balance_loss,
    trajectory_balance_residual,
)
from disa.training.audit import ResidualRecord
from disa.training.balance_config import BalanceConfig
from disa.training.shared_prompt_trainer import SharedPromptTrainer


class BalanceTrainer(SharedPromptTrainer):
    """Squared trajectory-balance residual of the policy's own completions; abstract in where log Z comes from.

    Parameters
    ----------
    model : str or PreTrainedModel
        The policy, initialised from the reference (or from anything with its support).
    reward_funcs : callable or list of callables
        TRL reward functions. Raw rewards reach the loss; nothing is normalised within a group.
    args : BalanceConfig
    train_dataset : datasets.Dataset
        Column ``prompt`` (text or messages) and whatever the reward functions and the method read.
    reference : str or Path, optional
        Folder or hub id of the frozen reference for full fine-tuning; by default where ``model`` was
        loaded from. With adapters the reference is the base model with adapters off.
    others
        As in :class:`trl.GRPOTrainer`.
    """

    _learned = False

    def __init__(
        self,
        model: Any,
        reward_funcs: Callable[..., Any] | list[Callable[..., Any]],
        args: BalanceConfig,
        train_dataset: Any,
        *,
        reference: str | Path | None = None,
        **others: Any,
    ) -> None:
        if reference is not None:
            if isinstance(model, str):
                model = AutoModelForCausalLM.from_pretrained(
                    model, **(args.model_init_kwargs or {"dtype": torch.float32})
                )
            # GRPOTrainer loads the frozen reference from here; without this an edited or in-memory policy
            # would silently be compared with whatever its configuration names.
            model.config._name_or_path = str(reference)
        self._rewards_per_func = torch.empty(0)
        self._audits = {"train": ResidualRecord(), "eval": ResidualRecord()}
        super().__init__(model=model, reward_funcs=reward_funcs, args=args, train_dataset=train_dataset, **others)
        self.add_callback(SeededEpochs())

    def _known_log_z(self, batch: dict[str, Any], rows: list[dict[str, Any]]) -> Tensor | None:
        """Log Z of this process's fresh completions where it is known before the update, shape (rows,)."""
        return None

    def _audited(self, rows: list[dict[str, Any]]) -> list[bool]:
        """Which completions' residuals the audit reads: all of them."""
        return [True] * len(rows)

    def _log_z(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """Log Z of one micro-batch, by default what :meth:`_known_log_z` put into it."""
        return inputs["log_z"]

    def _reward(self, inputs: dict[str, Any]) -> Tensor:
        """Reward in the residual: the raw one."""
        return inputs["raw_reward"]

    def _transform_residual(self, residual: Tensor, moved: Tensor) -> Tensor:
        """Residual as the loss squares it; ``moved`` is (log pi - log pi_sampler) / n of each row."""
        return residual

    def _baseline(self, residual: Tensor, group: Tensor) -> Tensor | None:
        """What is subtracted from the residuals of the decided rows."""
        return None

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any) -> Tensor:
        self._rewards_per_func = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        return self._rewards_per_func

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        batch = super()._generate_and_score_completions(inputs)
        device = batch["completion_ids"].device
        # Rewards come gathered over processes, in their order; this process's rows are one slice.
        rewards = self._rewards_per_func[self._own(len(inputs))]
        total = (rewards * self.reward_weights.to(device)).nansum(dim=1)
        # A row no reward function decided has no residual; nansum would call it a zero.
        batch["raw_reward"] = total.masked_fill(rewards.isnan().all(dim=1), torch.nan)
        batch["group"] = self._groups(len(inputs), device)[self._own(len(inputs))]
        batch["audited"] = torch.tensor(self._audited(inputs), device=device)
        known = self._known_log_z(batch, inputs)
        if known is not None:
            batch["log_z"] = known
        return batch

    def _group_log_z(self, batch: dict[str, Any], *, length: str) -> Tensor:
        """Group means, before the engine scatters a group over micro-batches; groups may span processes."""
        mask, rows = batch["completion_mask"], len(batch["completion_mask"])
        known = batch.get("old_per_token_logps", batch.get("sampling_per_token_logps"))
        if known is not None:
            log_sampler = (known.double() * mask).sum(dim=1)
        else:
            with torch.no_grad():
                size = self.args.per_device_train_batch_size
                log_sampler, _ = self._sequence_log_probs(self.model, batch, batch_size=size)
        log_ref = (batch["ref_per_token_logps"].double() * mask).sum(dim=1)
        gather = self.accelerator.gather
        log_z = group_log_z(
            gather(log_sampler),
            gather(log_ref),
            gather(batch["raw_reward"].double()),
            self._groups(rows, mask.device),
            beta=self.args.inverse_temperature,
            length=length,
            lengths=gather(mask.sum(dim=1)),
        )
        return log_z[self._own(rows)]

    def _own(self, rows: int) -> slice:
        """Which of all processes' rows are this process's."""
        first = self.accelerator.process_index * rows
        return slice(first, first + rows)

    def _groups(self, rows: int, device: torch.device) -> Tensor:
        """Group number of every process's rows, which the engine's sampler puts side by side."""
        size = self.num_generations if self.model.training else self.num_generations_eval
        return torch.arange(rows * self.accelerator.num_processes, device=device) // size

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        """Mean squared trajectory-balance residual of one micro-batch."""
        mode = "train" if self.model.training else "eval"
        mask, length = inputs["completion_mask"], self.args.length
        lengths = mask.sum(dim=1)
        log_pi, entropy = self._sequence_log_probs(model, inputs, entropy=mode == "eval" or self._logs_this_step)
        log_ref = (inputs["ref_per_token_logps"].double() * mask).sum(dim=1)
        log_sampler = log_pi.detach()
        if "old_per_token_logps" in inputs:
            log_sampler = (inputs["old_per_token_logps"].double() * mask).sum(dim=1)
        log_z = self._log_z(model, inputs).double()
        residual = trajectory_balance_residual(
            log_pi,
            log_ref,
            self._reward(inputs).double(),
            log_z,
            beta=self.args.inverse_temperature,
            length=length,
            lengths=lengths,
            learned=self._learned,
        )
        shaped = self._transform_residual(residual, per_length(log_pi - log_sampler, length, lengths))
        # Undecided rows (a NaN reward) carry no gradient; a micro-batch of only such rows gives a zero loss.
        decided = ~residual.isnan()
        baseline = self._baseline(shaped[decided], inputs["group"][decided])
        weight = importance_weight(log_pi, log_sampler, cap=self._weight_cap)[decided]
        loss = trajectory_balance_loss(shaped[decided], baseline, weight) if decided.any() else 0.0 * log_pi.sum()

        gather = self.accelerator.gather
        if length == "sum":  # means over tokens are residuals of another target, which the audit knows nothing of
            log_ratio = (log_pi - log_ref).detach()
            self._audits[mode].add(gather(residual.detach()), gather(log_ratio), gather(inputs["audited"]))
        self._metrics[mode]["log_z"].append(gather(log_z.detach()).nanmean().item())
        if entropy is not None:
            over_tokens = torch.stack([(entropy.detach() * mask).sum(), mask.sum()])
            total, tokens = gather(over_tokens).view(-1, 2).sum(dim=0)
            self._metrics[mode]["entropy"].append((total / tokens.clamp(min=1)).item())
        return loss / (self.current_gradient_accumulation_steps if mode == "train" else 1)

    @property
    def _weight_cap(self) -> float:
        """Bound on the importance weight; without one in the configuration, completions are fresh and it is 1."""
        return getattr(self.args, "weight_cap", float("inf"))

    @property
    def _logs_this_step(self) -> bool:
        """Whether a line of the log follows the optimiser step under way; the entropy is only computed for those.

        They are the engine's, and those that :class:`disa.runs.step_log.StepLog` adds: at checkpoints and after the
        last step.
        """
        step, args, state = self.state.global_step + 1, self.args, self.state
        if args.logging_strategy != "steps" or step == state.max_steps or (args.logging_first_step and step == 1):
            return True
        saves = args.save_strategy == "steps" and state.save_steps > 0 and step % state.save_steps == 0
        return saves or step % state.logging_steps == 0

    def _sequence_log_probs(
        self, model: Any, inputs: dict[str, Any], *, batch_size: int | None = None, entropy: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Sequence log-probabilities, float64, and on request token entropies."""
        mask = inputs["completion_mask"]
        token_log_pi, entropies, _ = self._get_per_token_logps_and_entropies(
            model,
            torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1),
            torch.cat([inputs["prompt_mask"], mask], dim=1),
            mask.size(1),
            batch_size=batch_size,
            compute_entropy=entropy,
        )
        return (token_log_pi.double() * mask).sum(dim=1), entropies

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the audit of all residuals since the last line."""
        mode = "train" if self.model.training else "eval"
        for name, value in self._audits[mode].metrics().items():
            self._metrics[mode][name].append(value)
        super().log(logs, start_time)
