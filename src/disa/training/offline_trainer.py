"""Training on stored trajectories alone: no generation, no reference in memory, no groups.

Four losses share the trainer: DISA's forward projection, two kinds of supervised fine-tuning, and, with a
warning, the squared residual on trajectories of a fixed other distribution.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import SequentialSampler
from transformers import Trainer, TrainingArguments, set_seed

from disa.anchor import Anchor
from disa.errors import DisaError
from disa.lm.loading import trainable_model, without_dropout
from disa.lm.shared_prefix import shared_attention
from disa.objectives.forward_projection import forward_projection_loss
from disa.objectives.supervised import supervised_loss
from disa.objectives.trajectory_balance import Length, trajectory_balance_loss, trajectory_balance_residual
from disa.training.policy_log_probs import answer_log_probs, completion_log_probs
from disa.training.stored import StoredBatch, StoredTrajectories

OfflineLoss = Callable[[Tensor, StoredBatch], Tensor]
"""Loss of one batch, given log pi of its completions (float64, with gradient)."""


def forward_loss(log_pi: Tensor, batch: StoredBatch) -> Tensor:
    """``-mean(W log pi)``: with weights towards the target, KL(pi* || pi) up to a constant."""
    return forward_projection_loss(log_pi, batch.weight)


def supervised_batch_loss(length: Length) -> OfflineLoss:
    """Cross-entropy of the drawn completions; the weights say what was kept, and how often."""

    def loss(log_pi: Tensor, batch: StoredBatch) -> Tensor:
        lengths = batch.tool_mask.sum(dim=1)
        own = supervised_loss(log_pi, torch.ones_like(log_pi), length=length, lengths=lengths)
        # transformers averages over processes: the mean over all tokens gives each one the weight of its tokens.
        return own * (lengths.sum() / batch.tokens[0]) if length == "mean" else own

    return loss


def balance_batch_loss(inverse_temperature: float) -> OfflineLoss:
    """Squared residual on stored trajectories; warns.

    What the trajectories never show is unconstrained, and probability leaks there; the loss does not reveal it. An
    overestimated log Z repels the policy from them without bound, an underestimated one only adds cloning of
    them: so give :func:`conservative_log_z`.
    """
    warnings.warn(
        "the squared residual on offline trajectories alone leaves completions they never show unconstrained, and "
        "probability leaks there; use the forward projection, or mix with on-policy trajectory balance "
        "(offline_share)",
        UserWarning,
        stacklevel=2,
    )

    def loss(log_pi: Tensor, batch: StoredBatch) -> Tensor:
        residual = trajectory_balance_residual(
            log_pi, batch.log_ref, batch.reward, batch.log_z, beta=inverse_temperature
        )
        return trajectory_balance_loss(residual)

    return loss


def conservative_log_z(anchor: Anchor, prompt_ids: Sequence[str]) -> Tensor:
    """Lower end of each prompt's interval, the safe side where trajectories are off-policy."""
    anchor.log_z(prompt_ids)  # refuses prompts without an estimate
    return torch.tensor([anchor.estimates[p].interval_low for p in prompt_ids], dtype=torch.float64)


@dataclass
class OfflineConfig(TrainingArguments):
    """Configuration of :class:`OfflineTrainer`."""

    temperature: float = field(
        default=1.0, metadata={"help": "Divides the logits, as it did when the trajectories were drawn."}
    )
    disable_dropout: bool = field(default=True, metadata={"help": "Train the policy that samples, without dropout."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "There are no columns."})


class OfflineTrainer(Trainer):
    """One loss on stored trajectories, on :class:`transformers.Trainer`.

    Parameters
    ----------
    model : str, Path or PreTrainedModel
        The policy, initialised from the reference.
    args : OfflineConfig
        ``max_steps`` must be set: batches have no end.
    trajectories : StoredTrajectories
    loss : callable
        :func:`forward_loss`, the default, ``supervised(length)`` or ``balance(inverse_temperature)``.
    processing_class : PreTrainedTokenizerBase
    peft_config : PeftConfig, optional
    others
        As in :class:`transformers.Trainer`.

    Raises
    ------
    DisaError
        Where ``max_steps`` is missing, or the temperature is not that of the trajectories.
    """

    def __init__(
        self,
        model: Any,
        args: OfflineConfig,
        trajectories: StoredTrajectories,
        loss: OfflineLoss = forward_loss,
        *,
        processing_class: Any,
        peft_config: Any = None,
        **others: Any,
    ) -> None:
        if args.max_steps < 1:
            raise DisaError("max_steps is not set: batches have no end", where="OfflineConfig", fix="set max_steps")
        if trajectories.temperature not in (None, args.temperature):
            raise DisaError(
                f"temperature is {args.temperature}, the trajectories were drawn at {trajectories.temperature}",
                where="OfflineConfig",
                fix=f"use temperature={trajectories.temperature}",
            )
        if isinstance(model, str | Path):
            model = trainable_model(model)
        if peft_config is not None:
            from peft import get_peft_model

            # Adapters start at random: from the seed, and alike in every process.
            set_seed(args.seed)
            model = get_peft_model(model, peft_config)
        if args.disable_dropout:
            without_dropout(model)
        self._trajectories, self._loss, self.pad_token_id = trajectories, loss, processing_class.pad_token_id
        rows = args.max_steps * args.gradient_accumulation_steps * args.world_size * args.per_device_train_batch_size
        super().__init__(
            model=model,
            args=args,
            # Only numbers pass the data path: a batch is made from its number, so a resumed run repeats none.
            train_dataset=range(rows),
            data_collator=self._collate,
            processing_class=processing_class,
            **others,
        )
        self.prompts_not_shared = answer_log_probs([self.model], self.accelerator)
        # The loss is a mean over one batch, whatever keyword arguments the model's own forward takes.
        self.model_accepts_loss_kwargs = False

    def _collate(self, numbers: list[int]) -> dict[str, Tensor]:
        # transformers hands out batches of numbers in turn: one of each process make up one batch of trajectories.
        number, parts = numbers[0] // len(numbers), self.args.world_size
        batch = self._trajectories.batch(
            number // parts, len(numbers), "cpu", self.pad_token_id, part=number % parts, parts=parts
        )
        return vars(batch)

    def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)

    def compute_loss(
        self, model: Any, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        """Loss of one batch; transformers divides it by the accumulation steps."""
        batch = StoredBatch(**inputs)
        return self._loss(self.sequence_log_probs(model, batch), batch)

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """One micro-batch, the backward pass included, in which checkpointed layers are computed again."""
        with contextlib.nullcontext() if self.prompts_not_shared else shared_attention(self.model):
            return super().training_step(*args, **kwargs)

    def sequence_log_probs(self, model: Any, batch: StoredBatch) -> Tensor:
        """``log pi(y | x)``, nats, float64; only positions that predict a completion token pass the LM head."""
        if self.prompts_not_shared is None:
            token_log_pi, _ = completion_log_probs(
                model,
                batch.prompt_ids,
                batch.prompt_mask,
                batch.completion_ids,
                batch.completion_mask,
                temperature=self.args.temperature,
            )
            return (token_log_pi.double() * batch.tool_mask).sum(dim=1)
        kept = batch.completion_ids.size(1)
        logits = model(
            input_ids=torch.cat([batch.prompt_ids, batch.completion_ids], dim=1),
            attention_mask=torch.cat([batch.prompt_mask, batch.completion_mask], dim=1),
            logits_to_keep=kept + 1,
        ).logits[:, :-1]
        log_probs = torch.log_softmax(logits.float() / self.args.temperature, dim=-1)
        # Padding ids may lie outside the head's vocabulary; their entries are masked out below.
        targets = batch.completion_ids.clamp(max=logits.size(-1) - 1)[..., None]
        token_log_pi = log_probs.gather(2, targets).squeeze(-1)
        return (token_log_pi.double() * batch.tool_mask).sum(dim=1)
