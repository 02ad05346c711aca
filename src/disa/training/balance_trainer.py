"""Trajectory balance on TRL's GRPOTrainer: the engine's sampling, data path and scaling, another loss.

Few methods of the engine are overridden, and each calls super(): rewards are noted as they pass, log Z joins the batch,
the loss is trajectory balance, and the audit joins the log. Where the architecture allows, sampling and log-probabilities
compute a prompt once for all its completions; else they are the engine's. Nothing of the engine is copied. A method says where its log Z comes from by
``_known_log_z`` (before the update: frozen, group) or ``_log_z`` (with it: learned).
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DistributedType
from torch import Tensor
from transformers import AutoModelForCausalLM
from trl import GRPOTrainer

from disa.engine import SeededEpochs
from disa.objectives.log_z import group_log_z
from disa.objectives.trajectory_balance import (
    importance_weight,
    per_length,
    trajectory_balance_loss,
    trajectory_balance_residual,
)
from disa.proposals.sampler import draw_tokens
from disa.shared_prefix import causal_lm, shared_attention, unsupported
from disa.training.audit import ResidualRecord
from disa.training.balance_config import BalanceConfig
from disa.training.merged_adapters import merged_adapters
from disa.training.policy_log_probs import answer_log_probs, completion_log_probs

# Where a process holds whole models: pieces of one can only be entered through their wrapper's own forward.
_WHOLE_MODELS = {DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU}

_log = logging.getLogger(__name__)


class BalanceTrainer(GRPOTrainer):
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
        self._share_prompts()

    def _share_prompts(self) -> None:
        """Let policy and reference compute prompts once, or say why not."""
        models = [self.accelerator.unwrap_model(m) for m in (self.model, self.ref_model) if m is not None]
        kind = self.accelerator.distributed_type
        whole = None if kind in _WHOLE_MODELS else f"weights are spread over processes ({kind.value})"
        self._not_shared = whole or next((r for m in models if (r := unsupported(m, training=True))), None)
        if self._not_shared is None:
            for model in models:
                answer_log_probs(model)
        else:
            _log.warning("training: prompts are computed once a completion, not once a prompt: %s", self._not_shared)

    def _known_log_z(self, batch: dict[str, Any], rows: list[dict[str, Any]]) -> Tensor | None:
        """Log Z of this process's fresh completions where it is known before the update, shape (rows,)."""
        return None

    def _log_z(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """Log Z of one micro-batch, by default what :meth:`_known_log_z` put into it."""
        return inputs["log_z"]

    def _reward(self, inputs: dict[str, Any]) -> Tensor:
        """Reward in the residual: the raw one."""
        return inputs["raw_reward"]

    def _shape(self, residual: Tensor, moved: Tensor) -> Tensor:
        """Residual as the loss squares it; ``moved`` is (log pi - log pi_sampler) / n of each row."""
        return residual

    def _baseline(self, residual: Tensor, group: Tensor) -> Tensor | None:
        """What is subtracted from the residuals of the decided rows."""
        return None

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """One micro-batch, the backward pass included, in which checkpointed layers are computed again."""
        with contextlib.nullcontext() if self._not_shared else shared_attention(self.model):
            return super().training_step(*args, **kwargs)

    def _generate_single_turn(
        self,
        prompt_ids: Any,
        images: Any,
        multimodal_fields: Any,
        num_generations: int,
        has_tool_images: bool = False,
    ) -> tuple[list[list[int]], list[list[float]] | None]:
        elsewhere = self.use_vllm or self.use_transformers_continuous_batching
        if self._not_shared or elsewhere or images is not None or multimodal_fields or self.args.generation_kwargs:
            return super()._generate_single_turn(
                prompt_ids, images, multimodal_fields, num_generations, has_tool_images
            )
        device, policy = self.accelerator.device, self.accelerator.unwrap_model(self.model)
        numbers = torch.rand(len(prompt_ids), self.max_completion_length, dtype=torch.float64, device=device)
        with merged_adapters(policy), self.accelerator.autocast():
            return draw_tokens(causal_lm(policy), prompt_ids, numbers, self.eos_token_ids, temperature=self.temperature)

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        **others: Any,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        if self._not_shared or any(value is not None and value is not False for value in others.values()):
            return super()._get_per_token_logps_and_entropies(
                model, input_ids, attention_mask, logits_to_keep, batch_size, compute_entropy, **others
            )
        first, size = input_ids.size(1) - logits_to_keep, batch_size or len(input_ids)
        parts = []
        for ids, mask in zip(input_ids.split(size), attention_mask.split(size), strict=True):
            with self.accelerator.autocast():
                parts.append(
                    completion_log_probs(
                        model,
                        ids[:, :first],
                        mask[:, :first],
                        ids[:, first:],
                        mask[:, first:],
                        temperature=self.temperature,
                        entropy=compute_entropy,
                    )
                )
        log_p, entropy = zip(*parts, strict=True)
        return torch.cat(log_p), torch.cat(entropy) if compute_entropy else None, None

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
        shaped = self._shape(residual, per_length(log_pi - log_sampler, length, lengths))
        # Undecided rows (a NaN reward) carry no gradient; a micro-batch of only such rows gives a zero loss.
        decided = ~residual.isnan()
        baseline = self._baseline(shaped[decided], inputs["group"][decided])
        weight = importance_weight(log_pi, log_sampler, cap=self._weight_cap)[decided]
        loss = trajectory_balance_loss(shaped[decided], baseline, weight) if decided.any() else 0.0 * log_pi.sum()

        gather = self.accelerator.gather
        if length == "sum":  # means over tokens are residuals of another target, which the audit knows nothing of
            self._audits[mode].add(gather(residual.detach()), gather((log_pi - log_ref).detach()))
        self._metrics[mode]["log_z"].append(gather(log_z.detach()).nanmean().item())
        if entropy is not None:
            mean_entropy = (entropy.detach() * mask).sum() / mask.sum().clamp(min=1)
            self._metrics[mode]["entropy"].append(gather(mean_entropy).mean().item())
        return loss / (self.current_gradient_accumulation_steps if mode == "train" else 1)

    @property
    def _weight_cap(self) -> float:
        """Bound on the importance weight; without one in the configuration, completions are fresh and it is 1."""
        return getattr(self.args, "weight_cap", float("inf"))

    @property
    def _logs_this_step(self) -> bool:
        """Whether a line of the log follows the optimiser step under way; the entropy is only computed for those."""
        step, first = self.state.global_step + 1, self.args.logging_first_step
        return self.args.logging_strategy != "steps" or step % self.state.logging_steps == 0 or (first and step == 1)

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
