"""One trainer for every method with a log Z: trajectory balance on TRL's GRPOTrainer.

Public interface::

    trainer = BalanceTrainer(model, reward_funcs, log_z, args, train_dataset, reference=..., offline=...)
    trainer.train()

``log_z`` is a part of it (:mod:`disa.training.log_z`): ``Frozen(values)`` for DISA and A*-PO, ``Group()`` for VarGrad
and GFlowRL, ``Learned()`` for FlowRL. ``args`` is a :class:`disa.DISAConfig`. :class:`disa.DISATrainer` is this trainer
with the log Z of an anchor, whose conditions it checks.

A step draws completions, asks reward functions and log Z about them, and minimises the mean of

    (log Z + log pi - log pi_ref - beta r - b)^2,    b the anchored baseline where log Z is frozen,

mixed with the forward projection of ``offline`` trajectories where ``args.offline_share`` is above 0. A square counts
``min(pi / pi_sampler, weight_cap)`` where the completion was drawn before the step (:mod:`disa.training.reuse`).
Drawing is :class:`disa.training.step_completions.StepCompletions`'s. Of TRL's own methods the loss is replaced and the
others are extended around ``super()``. Nothing of TRL's is copied.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from disa.anchor import Anchor
from disa.lm.loading import load_tokenizer
from disa.objectives.forward_projection import forward_projection_loss
from disa.objectives.trajectory_balance import (
    anchored_baseline,
    importance_weight,
    per_length,
    trajectory_balance_loss,
    trajectory_balance_residual,
)
from disa.tasks.tools import Environments
from disa.training.audit import ResidualRecord
from disa.training.card import model_card
from disa.training.checks import check_args, check_steps, check_together
from disa.training.data import check_datasets
from disa.training.disa_config import DISAConfig
from disa.training.log_z import LogZ
from disa.training.policy_log_probs import own_mask
from disa.training.reference import check_frozen, hold_reference, load_policy
from disa.training.step_completions import StepCompletions
from disa.training.stored import StoredTrajectories


class BalanceTrainer(StepCompletions):
    """Squared trajectory-balance residual of the policy's own completions.

    Parameters
    ----------
    model : str, Path, PreTrainedModel or PeftModel
        The policy, initialised from the reference (or from anything with its support). With trained adapters of its
        own it needs ``reference``.
    reward_funcs : callable or list of callables
        TRL reward functions. Raw rewards reach the loss; nothing is normalised within a group. None from any of them
        leaves a completion undecided and out of the loss.
    log_z : LogZ
        Where log Z comes from.
    args : DISAConfig
    train_dataset : datasets.Dataset or list of dict
        Column ``prompt`` (text or messages) and whatever the reward functions and ``log_z`` read.
    reference : str or Path, optional
        Folder or hub id of the frozen reference for full fine-tuning; by default where ``model`` was
        loaded from. With adapters the reference is the base model with adapters off, and must be this one.
    offline : StoredTrajectories, optional
        Trajectories for the forward projection; needed exactly when ``args.offline_share`` is above 0.
    eval_dataset, processing_class, reward_processing_classes, callbacks, optimizers, peft_config
        As in :class:`trl.GRPOTrainer`.
    tools, environment_factory, rollout_func
        As there. What they write into a completion is in no log-probability, length or entropy.

    Raises
    ------
    DisaError
        Where settings, log Z and data do not go together.
    """

    _anchor: Anchor | None = None

    def __init__(
        self,
        model: Any,
        reward_funcs: Callable[..., Any] | list[Callable[..., Any]],
        log_z: LogZ,
        args: DISAConfig,
        train_dataset: Any,
        *,
        reference: str | Path | None = None,
        offline: StoredTrajectories | None = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        reward_processing_classes: Any = None,
        callbacks: Any = None,
        optimizers: tuple[Any, Any] = (None, None),
        peft_config: Any = None,
        tools: list[Callable[..., Any]] | None = None,
        environment_factory: Environments | None = None,
        rollout_func: Callable[..., Any] | None = None,
    ) -> None:
        check_args(args)
        args.complete()
        train_dataset, eval_dataset, datasets = check_datasets(
            train_dataset, eval_dataset, speaks_first=environment_factory is not None
        )
        check_steps(train_dataset, args)
        check_together(log_z, args, datasets, offline)
        model = load_policy(model, reference, peft_config, args)
        if processing_class is None:
            processing_class = load_tokenizer(model.config._name_or_path)
        self._offline, self._offline_batches = offline, (-1, 0)
        self._audits = {"train": ResidualRecord(), "eval": ResidualRecord()}
        self._tag_names = ["trl", log_z.name.lower()]
        super().__init__(
            model=model,
            log_z=log_z,
            reward_funcs=reward_funcs,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            reward_processing_classes=reward_processing_classes,
            callbacks=callbacks,
            optimizers=optimizers,
            peft_config=peft_config,
            tools=tools,
            environment_factory=environment_factory,
            rollout_func=rollout_func,
        )
        unwrapped = self.accelerator.unwrap_model(self.model)
        if "ref" in getattr(unwrapped, "peft_config", {}):
            unwrapped.delete_adapter("ref")  # TRL's copy of the policy's own adapters; the reference has none
        hold_reference(self)
        check_frozen(self)
        log_z.attach(self)

    @property
    def reference_model(self) -> Any:
        """The frozen reference; with adapters the policy, whose adapters are off in it."""
        return self.accelerator.unwrap_model(self.model if self.ref_model is None else self.ref_model)

    def create_model_card(
        self, model_name: str | None = None, dataset_name: str | None = None, tags: str | list[str] | None = None
    ) -> None:
        """Write the card that goes to the hub with the policy: base, log Z, beta, reward, flags, the last log."""
        if self.is_world_process_zero():
            text = self.card(model_name or Path(self.args.output_dir).name, dataset_name, tags)
            (Path(self.args.output_dir) / "README.md").write_text(text, encoding="utf-8")

    def card(self, name: str, dataset_name: str | None = None, tags: str | list[str] | None = None) -> str:
        """Text of the policy's card."""
        shown = ("inverse_temperature", "temperature", "max_completion_length", "learning_rate", "offline_share")
        return model_card(
            name,
            self.log_z.name,
            self.reference_model.config._name_or_path,
            paper=self.log_z.paper,
            rewards=self.reward_func_names,
            anchor=self._anchor,
            settings={key.replace("_", " "): getattr(self.args, key) for key in shown}
            | {"steps": self.state.global_step, "completions per prompt": self.num_generations},
            logged={key: value for line in self.state.log_history for key, value in line.items()},
            tags=[*self._tag_names, *([tags] if isinstance(tags, str) else tags or [])],
            dataset_name=dataset_name,
        )

    # The loss

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        """Objective of one micro-batch: trajectory balance, mixed with the forward projection of an offline one."""
        training = self.model.training
        loss = self._balance(model, inputs, "train" if training else "eval")
        if self._offline is not None and training:
            # Twice: the squared residual's gradient is 2 grad KL(pi || pi*), the projection's is grad KL(pi* || pi).
            share = self.args.offline_share
            projection = self._forward_projection(model, len(inputs["completion_ids"]))
            loss = (1 - share) * loss + share * 2 * projection
        loss = loss / self.args.length_scale
        return loss / (self.current_gradient_accumulation_steps if training else 1)

    def _balance(self, model: Any, inputs: dict[str, Any], mode: str) -> Tensor:
        """Mean squared residual of the completions whose reward is decided."""
        source, mask, length = self.log_z, own_mask(inputs), self.args.length
        lengths, reward = mask.sum(dim=1), inputs["raw_reward"]
        log_pi, entropy = self.sequence_log_probs(model, inputs, entropy=mode == "eval" or self._logs_this_step)
        log_ref = (inputs["ref_per_token_logps"].double() * mask).sum(dim=1)
        log_sampler = log_pi.detach()
        if "old_per_token_logps" in inputs:
            log_sampler = (inputs["old_per_token_logps"].double() * mask).sum(dim=1)
        if source.normalised_rewards:
            reward = inputs["advantages"].masked_fill(reward.isnan(), torch.nan)
        learned = "log_z" not in inputs
        log_z = (source.learned(self, model, inputs) if learned else inputs["log_z"]).double()
        residual = trajectory_balance_residual(
            log_pi,
            log_ref,
            reward.double(),
            log_z,
            beta=self.args.inverse_temperature,
            length=length,
            lengths=lengths,
            learned=learned,
        )
        # A pass of its own gave the sampler's: fresh rows differ from it by rounding, and are 0 by identity.
        fresh = inputs["drawn"] == self.state.global_step
        log_sampler = torch.where(fresh, log_pi.detach(), log_sampler)
        moved = per_length(log_pi - log_sampler, length, lengths)
        shaped = self._shaped(residual, moved)
        if (clip := self._clip) is not None:
            gap = self.accelerator.gather((residual - moved).detach())
            outside = ((gap < -clip["low"]) | (gap > clip["high"]))[~gap.isnan()]
            self._metrics[mode]["residual/clipped"].append(outside.double().mean().item() if len(outside) else 0.0)
        # Undecided rows (a NaN reward) carry no gradient; a micro-batch of only such rows gives a zero loss.
        decided = ~residual.isnan()
        weight, baseline = importance_weight(log_pi, log_sampler, cap=self.args.weight_cap)[decided], None
        if source.ratio_range is not None:
            weight = weight.clamp(*source.ratio_range)
        if "baseline" in inputs:
            baseline = inputs["baseline"][decided]
        elif self._has_baseline:
            strength = self.args.baseline_prior_strength
            members = inputs["group"][decided]
            baseline = anchored_baseline(shaped[decided], members, prior_strength=strength, weight=weight)
        # By the step's decided rows, not the micro-batch's: how a step is cut changes nothing.
        loss = trajectory_balance_loss(shaped[decided], baseline, weight) if decided.any() else 0.0 * log_pi.sum()
        loss = loss * (decided.sum() / inputs["decided"].clamp(min=1e-9))
        log_pi = log_pi.detach()
        self._note(
            mode, inputs, fresh, residual.detach(), log_pi - log_ref, log_pi - log_sampler, log_z.detach(), entropy
        )
        return loss

    def _forward_projection(self, model: Any, size: int) -> Tensor:
        """Loss of the next batch of offline trajectories, of the same size as the on-policy one."""
        step, count = self._offline_batches
        count = count + 1 if step == self.state.global_step else 0
        self._offline_batches = (self.state.global_step, count)
        # A batch's number depends on step and micro-batch only, so resuming repeats no batch.
        assert self._offline is not None
        batch = self._offline.batch(
            self.state.global_step * self.current_gradient_accumulation_steps + count,
            size,
            self.accelerator.device,
            self._tokenizer.pad_token_id,
            part=self.accelerator.process_index,
            parts=self.accelerator.num_processes,
        )
        log_pi, _ = self.sequence_log_probs(model, vars(batch))
        loss = forward_projection_loss(log_pi, batch.weight)
        self._metrics["train"]["forward_projection"].append(self.accelerator.gather(loss.detach()).mean().item())
        return loss

    # The log

    def _note(
        self,
        mode: str,
        inputs: dict[str, Any],
        fresh: Tensor,
        residual: Tensor,
        log_ratio: Tensor,
        log_weight: Tensor,
        log_z: Tensor,
        entropy: Tensor | None,
    ) -> None:
        """Keep for the log what one micro-batch shows, of all processes."""
        gather, mask = self.accelerator.gather, own_mask(inputs)
        if (
            self.args.length == "sum"
        ):  # means over tokens are residuals of another target, which the audit knows nothing of
            # Its identities are those of the policy's own completions.
            own = gather(torch.where(fresh, residual, torch.nan))
            self._audits[mode].add(own, gather(log_ratio), gather(inputs["audited"]))
        if mode == "train" and self.args.reuses:
            decided = gather(~residual.isnan())
            self._reuse.note(gather(log_weight)[decided], gather(inputs["drawn"])[decided])
        if self.log_completions:
            self._table.note(*map(gather, (inputs["row"], inputs["drawn"], residual, log_z)))
        self._metrics[mode]["log_z"].append(gather(log_z).nanmean().item())
        if entropy is not None:
            total, tokens = gather(torch.stack([(entropy.detach() * mask).sum(), mask.sum()])).view(-1, 2).sum(dim=0)
            self._metrics[mode]["entropy"].append((total / tokens.clamp(min=1)).item())

    @property
    def _logs_this_step(self) -> bool:
        """Whether a line of the log follows the optimiser step under way; the entropy is only computed for those.

        They are TRL's, and those that :class:`disa.runs.step_log.StepLog` adds: at checkpoints and after the
        last step.
        """
        step, args, state = self.state.global_step + 1, self.args, self.state
        if args.logging_strategy != "steps" or step == state.max_steps or (args.logging_first_step and step == 1):
            return True
        saves = args.save_strategy == "steps" and state.save_steps > 0 and step % state.save_steps == 0
        return saves or step % state.logging_steps == 0

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the audit of all residuals since the last line, and what the source of log Z says."""
        mode = "train" if self.model.training else "eval"
        for name, value in self._audits[mode].metrics().items():
            self._metrics[mode][name].append(value)
        logs.update(self.log_z.facts())  # in place, as TRL does it: evaluate returns what is logged
        if mode == "eval":
            # TRL names the metrics of all evaluation sets alike; the loss has its set's name.
            own = next((found[1] for name in logs if (found := re.match("eval_(.+_)loss$", name))), "")
            named = {own + name: values for name, values in self._metrics["eval"].items()}
            self._metrics["eval"] = defaultdict(list, named)
        shown: bool = self.log_completions
        self.log_completions: bool = False  # TRL's own table has GRPO's advantage
        try:
            super().log(logs, start_time)
        finally:
            self.log_completions = shown
        if shown:
            self._table.write()
