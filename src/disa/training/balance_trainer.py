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
Sampling and log-probabilities are those of :class:`disa.training.shared_prompt_trainer.SharedPromptTrainer`. Of TRL's
own methods the loss is replaced and the others are extended around ``super()``. Nothing of TRL's is copied.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from disa.anchor import Anchor
from disa.errors import DisaError
from disa.lm.loading import load_tokenizer
from disa.objectives.forward_projection import forward_projection_loss
from disa.objectives.trajectory_balance import (
    anchored_baseline,
    clip_gap,
    importance_weight,
    per_length,
    trajectory_balance_loss,
    trajectory_balance_residual,
)
from disa.training.audit import ResidualRecord
from disa.training.card import model_card
from disa.training.completions_table import CompletionsTable
from disa.training.data import check_args, check_datasets, check_steps
from disa.training.disa_config import DISAConfig
from disa.training.log_z import LogZ
from disa.training.policy_log_probs import own_mask
from disa.training.prompt_sampler import SignalSampler
from disa.training.reference import check_frozen, hold_reference, policy
from disa.training.reuse import Reuse
from disa.training.shared_prompt_trainer import SharedPromptTrainer
from disa.training.stored import StoredTrajectories

MODULE_FILE = "log_z_head.pt"
"""What a learned log Z trained beside the policy, in a checkpoint."""


class BalanceTrainer(SharedPromptTrainer):
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
        environment_factory: Callable[[], Any] | None = None,
        rollout_func: Callable[..., Any] | None = None,
    ) -> None:
        check_args(args)
        args.complete()
        train_dataset, eval_dataset, datasets = check_datasets(train_dataset, eval_dataset)
        check_steps(train_dataset, args)
        _check(log_z, args, datasets, offline)
        model = policy(model, reference, peft_config, args)
        if processing_class is None:
            processing_class = load_tokenizer(model.config._name_or_path)
        self.log_z, self._offline, self._offline_batches = log_z, offline, (-1, 0)
        self._rewards_per_func = torch.empty(0)
        self._sampler: SignalSampler | None = None
        self._sampler_state: Any = None
        self._audits, self._reuse = {"train": ResidualRecord(), "eval": ResidualRecord()}, Reuse(args)
        self._table = CompletionsTable(self)
        self._tag_names = ["trl", log_z.name.lower()]
        super().__init__(
            model=model,
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

    # A step's completions

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any) -> Tensor:
        self._rewards_per_func = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        return self._rewards_per_func

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        batch = super()._generate_and_score_completions(inputs)
        device, own = batch["completion_ids"].device, self.own_rows(len(inputs))
        # Rewards come gathered over processes, in their order; this process's rows are one slice.
        rewards = self._rewards_per_func[own]
        weights = self.reward_weights.to(device)
        # A row that a function which counts left undecided is NaN, has no residual, and is not in the loss.
        batch["raw_reward"] = torch.where(weights == 0, 0.0, rewards * weights).sum(dim=1)
        undecided = self.accelerator.gather(batch["raw_reward"]).isnan()
        self._check_rewards(batch["raw_reward"], inputs)
        # Decided rows per process and micro-batch, by which every micro-batch's sum is divided.
        parts = self.args.steps_per_generation if self.model.training else 1
        batch["decided"] = (~undecided).sum() / (self.accelerator.num_processes * parts)
        step = self.state.global_step
        batch["drawn"] = torch.full((len(inputs),), step, device=device)
        batch["group"] = self.groups(len(inputs))[own] + step * len(inputs) * self.accelerator.num_processes
        batch["row"] = torch.arange(own.start, own.stop, device=device)
        if self.log_completions:
            self._table.open(len(undecided))
        batch["audited"] = torch.tensor([self.log_z.audited(row) for row in inputs], device=device)
        reuses = self.model.training and self.args.reuses
        if reuses:
            batch["old_per_token_logps"] = self.sampler_log_probs(batch)
        sampled = self.log_z.sampled(self, batch, inputs)
        if sampled is not None:
            batch["log_z"] = sampled
        if self._sampler is not None and self.model.training:
            self._measure(batch, inputs)
        if reuses:
            self._reuse.keep(batch)
        elif self.model.training and self._has_baseline and self.args.steps_per_generation > 1:
            # Before TRL scatters the rows of a group over micro-batches.
            batch["baseline"] = self._group_baseline(batch)
        return batch

    @torch.no_grad()
    def sampler_log_probs(self, batch: dict[str, Any]) -> Tensor:
        """Token log-probabilities of fresh completions under their sampler, by a pass where nobody kept them."""
        known = batch.get("old_per_token_logps", batch.get("sampling_per_token_logps"))
        size = self.args.per_device_train_batch_size
        return self._token_log_probs(self.model, batch, batch_size=size)[0] if known is None else known

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:
        inputs = super()._prepare_inputs(generation_batch)
        if self.model.training:
            part = self.accelerator.process_index
            inputs = self._reuse.replay(inputs, self._step, part, self._tokenizer.pad_token_id)
        return inputs

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """One micro-batch; none where too little is left of the generation, and the weights then stay as they are."""
        if self._step % (self.args.steps_per_generation * self.num_iterations) == 0:
            self._reuse.spent = False
        if self._reuse.spent:
            self._step += 1
            # No gradient at all: the optimiser passes every weight over, its momentum too.
            loss, metrics = torch.zeros((), device=self.accelerator.device), {"reuse/skipped": 1.0}
        else:
            loss, metrics = super().training_step(*args, **kwargs), {}
        if self.accelerator.sync_gradients and self.args.reuses:
            metrics = metrics or {"reuse/skipped": 0.0, **self._reuse.end_step(self.state.global_step)}
            for name, value in metrics.items():
                self._metrics["train"][name].append(value)
        return loss

    def _check_rewards(self, rewards: Tensor, rows: list[dict[str, Any]]) -> None:
        """Refuse rewards that log Z was not estimated for, before they reach the weights."""
        low, high = self.log_z.reward_range
        slack = 1e-5 * max(1.0, *(abs(end) for end in (low, high) if math.isfinite(end)), 1.0)  # float32 in TRL
        for row, reward in zip(rows, rewards.tolist(), strict=True):
            if not (math.isnan(reward) or (math.isfinite(reward) and low - slack <= reward <= high + slack)):
                raise DisaError(
                    f"a reward is {reward:g}, expected a number in [{low:g}, {high:g}], or None where undecided",
                    where=f"reward_funcs, prompt {row.get('prompt_id', row['prompt'])!r}",
                    fix="return rewards in the range that log Z was estimated for",
                )

    def _get_train_sampler(self, dataset: Any = None) -> Any:
        plain = super()._get_train_sampler(dataset)
        if self.args.prompts == "uniform":
            return plain
        ids, known = self.train_dataset["prompt_id"], self.log_z.signal or {}
        names = ("batch_size", "mini_repeat_count", "repeat_count", "seed")
        self._sampler = SignalSampler([known[i] for i in ids], **{name: getattr(plain, name) for name in names})
        self._rows = {prompt_id: row for row, prompt_id in enumerate(ids)}
        if self._sampler_state is not None:
            self._sampler.load(self._sampler_state)
        return self._sampler

    def _measure(self, batch: dict[str, Any], rows: list[dict[str, Any]]) -> None:
        """Tell the sampler the spread of each group's residuals."""
        gather, row = self.accelerator.gather, torch.tensor([self._rows[r["prompt_id"]] for r in rows])
        residual, row = gather(self._residual(batch)), gather(row.to(batch["drawn"].device))
        found = {}
        for number in row.unique().tolist():
            group = residual[(row == number) & ~residual.isnan()]
            if len(group):
                found[number] = (group.std(correction=0) if len(group) > 1 else group[0].abs()).item()
        assert self._sampler is not None
        self._sampler.measured(list(found), list(found.values()))

    def _residual(self, batch: dict[str, Any]) -> Tensor:
        """Residual of fresh completions; NaN where undecided."""
        mask = own_mask(batch)
        log_pi, log_ref = (
            (x.double() * mask).sum(dim=1) for x in (self.sampler_log_probs(batch), batch["ref_per_token_logps"])
        )
        reward, log_z = batch["raw_reward"].double(), batch["log_z"].double()
        return trajectory_balance_residual(log_pi, log_ref, reward, log_z, beta=self.args.inverse_temperature)

    @property
    def _has_baseline(self) -> bool:
        return self.log_z.frozen and self.args.baseline == "anchored"

    def _group_baseline(self, batch: dict[str, Any]) -> Tensor:
        """Anchored baseline of every row, from the residuals that its whole group had when it was drawn."""
        residual, gather = self._residual(batch), self.accelerator.gather
        shaped, group = gather(self._shaped(residual, torch.zeros_like(residual))), gather(batch["group"])
        decided, strength = ~shaped.isnan(), self.args.baseline_prior_strength
        found = torch.zeros_like(shaped)
        found[decided] = anchored_baseline(shaped[decided], group[decided], prior_strength=strength)
        return found[self.own_rows(len(residual))]

    def _shaped(self, residual: Tensor, moved: Tensor) -> Tensor:
        """What is squared, but for the baseline; ``moved`` is what the policy has moved since it drew."""
        bound = self.args.residual_clip
        clip = self.log_z.clip if bound is None else {"low": bound, "high": bound}
        return self.log_z.scale * (residual if clip is None else clip_gap(residual, moved, **clip))

    def own_rows(self, rows: int) -> slice:
        """Which of all processes' rows are this process's."""
        first = self.accelerator.process_index * rows
        return slice(first, first + rows)

    def groups(self, rows: int) -> Tensor:
        """Group number of every process's rows, which TRL's sampler puts side by side."""
        size = self.num_generations if self.model.training else self.num_generations_eval
        return torch.arange(rows * self.accelerator.num_processes, device=self.accelerator.device) // size

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

        gather = self.accelerator.gather
        if length == "sum":  # means over tokens are residuals of another target, which the audit knows nothing of
            log_ratio = (log_pi - log_ref).detach()
            # Its identities are those of the policy's own completions.
            own = gather(torch.where(fresh, residual.detach(), torch.nan))
            self._audits[mode].add(own, gather(log_ratio), gather(inputs["audited"]))
        if mode == "train" and self.args.reuses:
            decided, log_weight = gather(decided), gather((log_pi - log_sampler).detach())
            self._reuse.note(log_weight[decided], gather(inputs["drawn"])[decided])
        if self.log_completions:
            self._table.note(*map(gather, (inputs["row"], inputs["drawn"], residual.detach(), log_z.detach())))
        self._metrics[mode]["log_z"].append(gather(log_z.detach()).nanmean().item())
        if entropy is not None:
            over_tokens = torch.stack([(entropy.detach() * mask).sum(), mask.sum()])
            total, tokens = gather(over_tokens).view(-1, 2).sum(dim=0)
            self._metrics[mode]["entropy"].append((total / tokens.clamp(min=1)).item())
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

    def sequence_log_probs(
        self, model: Any, inputs: dict[str, Any], *, batch_size: int | None = None, entropy: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Sequence log-probabilities, float64, and on request token entropies."""
        token_log_pi, entropies = self._token_log_probs(model, inputs, batch_size=batch_size, entropy=entropy)
        return (token_log_pi.double() * own_mask(inputs)).sum(dim=1), entropies

    def _token_log_probs(
        self, model: Any, inputs: dict[str, Any], *, batch_size: int | None = None, entropy: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        mask = inputs["completion_mask"]
        token_log_pi, entropies, _ = self._get_per_token_logps_and_entropies(
            model,
            torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1),
            torch.cat([inputs["prompt_mask"], mask], dim=1),
            mask.size(1),
            batch_size=batch_size,
            compute_entropy=entropy,
        )
        return token_log_pi, entropies

    # The log

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

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the audit of all residuals since the last line, and what the source of log Z says."""
        mode = "train" if self.model.training else "eval"
        for name, value in self._audits[mode].metrics().items():
            self._metrics[mode][name].append(value)
        logs.update(self.log_z.facts())  # in place, as TRL does it: evaluate returns what is logged
        if mode == "eval":
            # TRL names the metrics of all evaluation sets alike; the loss has its set's name.
            own = next((name[5:-4] for name in logs if name.startswith("eval_") and name.endswith("_loss")), "")
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

    # What a learned log Z trains beside the policy

    def generation_state(self) -> dict[str, Any] | None:
        """With what is remembered of earlier completions, and of prompts."""
        state, sampler = super().generation_state(), self._sampler
        if not self.args.reuses and sampler is None:
            return None
        own = {"reuse": self._reuse.state(), "sampler": sampler and sampler.state()}
        return (state or {"step": self._step, "buffered": None}) | own

    def load_generation_state(self, state: dict[str, Any]) -> None:
        """Likewise."""
        super().load_generation_state(state)
        self._reuse.load(state["reuse"])
        self._sampler_state = state["sampler"]
        if self._sampler is not None:
            self._sampler.load(state["sampler"])

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Give it its own parameter group, without weight decay: log Z has no reason to shrink to 0."""
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


def _check(log_z: LogZ, args: DISAConfig, datasets: list[Any], offline: StoredTrajectories | None) -> None:
    """Refuse settings that do not go together, before a model is loaded."""
    log_z.check(args, datasets)
    if (offline is None) == (args.offline_share > 0):
        raise DisaError(
            f"offline_share is {args.offline_share}, but offline trajectories are "
            f"{'missing' if offline is None else 'given'}",
            where=log_z.name,
            fix="give both, or leave both out",
        )
    if args.prompts == "signal":
        if log_z.signal is None:
            raise DisaError(
                "prompts='signal' needs the anchor of DISA, whose intervals say what each prompt may teach",
                where=f"DISAConfig, {log_z.name}",
                fix="leave prompts out",
            )
        if args.steps_per_generation % args.gradient_accumulation_steps:
            raise DisaError(
                f"steps_per_generation={args.steps_per_generation} with prompts='signal', expected a multiple of "
                f"gradient_accumulation_steps={args.gradient_accumulation_steps}: a step's prompts are drawn at once",
                where="DISAConfig",
                fix="leave steps_per_generation out",
            )
    if not log_z.frozen:
        own = "prompts baseline baseline_prior_strength length_scale residual_clip offline_share flagged"
        for name in own.split():
            default = DISAConfig.__dataclass_fields__[name].default
            if getattr(args, name) != default:
                raise DisaError(
                    f"{name}={getattr(args, name)!r} belongs to a frozen log Z, expected its default {default!r}",
                    where=f"DISAConfig, {log_z.name}",
                    fix=f"leave {name} out",
                )
