"""A step's completions: drawn, rewarded, given their log Z and baseline, and used in one step or several.

:class:`disa.training.balance_trainer.BalanceTrainer` says what is minimised over them. Of TRL's methods none is
replaced: all go on around ``super()``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from disa.objectives.trajectory_balance import anchored_baseline, clip_gap, trajectory_balance_residual
from disa.tasks.checked_rewards import check_range
from disa.training.completions_table import CompletionsTable
from disa.training.log_z import LogZ
from disa.training.log_z_module import LogZModuleTrainer
from disa.training.policy_log_probs import own_mask
from disa.training.prompt_sampler import SignalSampler
from disa.training.reuse import Reuse


class StepCompletions(LogZModuleTrainer):
    """Everything of a step but its loss."""

    def __init__(self, *others: Any, log_z: LogZ, args: Any, **settings: Any) -> None:
        self.log_z, self._reuse = log_z, Reuse(args)
        self._sampler: SignalSampler | None = None
        self._sampler_state: Any = None
        self._table = CompletionsTable(self)
        super().__init__(*others, args=args, **settings)

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        batch = super()._generate_and_score_completions(inputs)
        device, own = batch["completion_ids"].device, self.own_rows(len(inputs))
        rewards = self.raw_rewards()
        # An undecided row has no residual, and is not in the loss.
        batch["raw_reward"], undecided = rewards[own], rewards.isnan()
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

    def _check_rewards(self, rewards: Tensor, rows: list[dict[str, Any]]) -> None:
        """Refuse rewards that log Z was not estimated for, before they reach the weights."""
        for row, reward in zip(rows, rewards.tolist(), strict=True):
            check_range(
                reward,
                self.log_z.reward_range,
                where=f"reward_funcs, prompt {row.get('prompt_id', row['prompt'])!r}",
                fix="return rewards in the range that log Z was estimated for",
            )

    # Log-probabilities and baselines

    def sequence_log_probs(
        self, model: Any, inputs: dict[str, Any], *, batch_size: int | None = None, entropy: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Sequence log-probabilities, float64, and on request token entropies."""
        token_log_pi, entropies = self.token_log_probs(model, inputs, batch_size=batch_size, entropy=entropy)
        return (token_log_pi.double() * own_mask(inputs)).sum(dim=1), entropies

    def sampler_log_probs(self, batch: dict[str, Any]) -> Tensor:
        """Token log-probabilities of fresh completions under their sampler, by a pass where nobody kept them."""
        known = batch.get("old_per_token_logps", batch.get("sampling_per_token_logps"))
        return self.fresh_log_probs(batch) if known is None else known

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
        clip = self._clip
        return self.log_z.scale * (residual if clip is None else clip_gap(residual, moved, **clip))

    @property
    def _clip(self) -> dict[str, float] | None:
        """Bounds of a residual, ``low`` below 0 and ``high`` above; None for none."""
        bound = self.args.residual_clip
        return self.log_z.clip if bound is None else {"low": bound, "high": bound}

    def groups(self, rows: int) -> Tensor:
        """Group number of every process's rows, which TRL's sampler puts side by side."""
        size = self.num_generations if self.model.training else self.num_generations_eval
        return torch.arange(rows * self.accelerator.num_processes, device=self.accelerator.device) // size

    # Several steps per completion

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

    # Which prompts

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
