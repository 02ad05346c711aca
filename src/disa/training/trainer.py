"""DISA: trajectory balance with the anchor's frozen log Z, and the forward projection onto the same target."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from trl.data_utils import is_conversational

from disa.anchor import Anchor
from disa.errors import DisaError
from disa.lm.fingerprint import take_fingerprint
from disa.lm.sampling import SamplingConfig
from disa.objectives.forward_projection import forward_projection_loss
from disa.objectives.trajectory_balance import anchored_baseline
from disa.runs.provenance import Fingerprint
from disa.training.balance_trainer import BalanceTrainer
from disa.training.disa_config import DISAConfig
from disa.training.flags import flag_plan, require_frozen_log_z
from disa.training.stored import StoredTrajectories


class DISATrainer(BalanceTrainer):
    """Trajectory balance with a frozen, per-prompt log Z (DISA, arXiv 2605.17295).

    Minimises ``(log Z(x) + log pi(y|x) - log pi_ref(y|x) - beta r(x, y))^2`` over on-policy
    completions, log-probabilities being sums over tokens.

    Parameters
    ----------
    model : str or PreTrainedModel
        The policy, initialised from the reference (or from anything with its support).
    reward_funcs : callable or list of callables
        TRL reward functions. Raw rewards reach the loss; nothing is normalised within a group.
    anchor : Anchor
        Frozen log Z. Its fingerprint must equal the trainer's in every field.
    args : DISAConfig
    train_dataset : datasets.Dataset
        Columns ``prompt`` (text or messages), ``prompt_id`` (as in the anchor), ``task`` (as in the
        anchor's fingerprint), and whatever the reward functions read.
    reference : str or Path, optional
        Folder or hub id of the frozen reference for full fine-tuning; by default where ``model`` was
        loaded from. With adapters the reference is the base model with adapters off.
    offline : StoredTrajectories, optional
        Trajectories for the forward projection; needed exactly when ``args.offline_share`` is above 0. None of
        prompts whose frozen log Z ``args.flagged`` does not use.
    eval_dataset, processing_class, reward_processing_classes, callbacks, optimizers, peft_config
        As in :class:`trl.GRPOTrainer`. Evaluation rows need a log Z too.

    Raises
    ------
    DisaError
        Where the anchor does not fit, a prompt has no log Z, a column is missing, or ``args.flagged`` forbids.
    """

    _tag_names = ["trl", "disa"]
    _name = "DISA"
    _paper = {"title": "Decoupled Importance-Sampled Anchoring", "id": "2605.17295"}

    def __init__(
        self,
        model: Any,
        reward_funcs: Callable[..., Any] | list[Callable[..., Any]],
        anchor: Anchor,
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
    ) -> None:
        if (offline is None) == (args.offline_share > 0):
            raise DisaError(
                f"offline_share is {args.offline_share}, but offline trajectories are "
                f"{'missing' if offline is None else 'given'}",
                where="DISATrainer",
                fix="give both, or leave both out",
            )
        datasets = [d for d in (train_dataset, eval_dataset) if d is not None]
        for dataset in datasets:
            self._check_columns(dataset)
        check_prompts(datasets)
        self._anchor, self._offline = anchor, offline
        self._offline_batches = (-1, 0)
        per_step = args.generation_batch_size // args.num_generations
        prompt_ids = train_dataset.unique("prompt_id")
        self._plan = flag_plan(anchor, prompt_ids, args.flagged, prompts_per_step=per_step)
        if offline is not None:
            require_frozen_log_z(offline.prompts, self._plan)
        if self._plan.count("skip"):
            kept = [i for i, p in enumerate(train_dataset["prompt_id"]) if self._plan.source[p] != "skip"]
            train_dataset = train_dataset.select(kept)
        super().__init__(
            model,
            reward_funcs,
            args,
            train_dataset,
            reference=reference,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            reward_processing_classes=reward_processing_classes,
            callbacks=callbacks,
            optimizers=optimizers,
            peft_config=peft_config,
        )
        anchor.verify(self.fingerprint(train_dataset))
        for dataset in datasets:
            anchor.log_z(dataset.unique("prompt_id"))

    def fingerprint(self, dataset: Any) -> Fingerprint:
        """Everything the anchor must have been estimated under, as this trainer has it."""
        conversational = is_conversational(dataset[0])
        first = dataset[0]["prompt"][0] if conversational else {}
        system_prompt = first["content"] if first.get("role") == "system" else None
        sampling = SamplingConfig(
            temperature=self.temperature,
            max_completion_length=self.max_completion_length,
            conversational=conversational,
            system_prompt=system_prompt,
        )
        return take_fingerprint(
            self.accelerator.unwrap_model(self.ref_model or self.model),
            self._tokenizer,
            sampling,
            stops=self.eos_token_ids,
            reward=reward_fingerprint(self.reward_funcs, self.reward_weights.tolist()),
            inverse_temperature=self.args.inverse_temperature,
            task="+".join(sorted(dataset.unique("task"))),
        )

    @staticmethod
    def _check_columns(dataset: Any) -> None:
        for column in ("prompt", "prompt_id", "task"):
            if column not in dataset.column_names:
                raise DisaError(
                    f"column '{column}' is missing, found {', '.join(dataset.column_names)}",
                    where="DISATrainer, train_dataset or eval_dataset",
                    fix="build rows from the run's 1_tasks prompts; prompt_id is how a row finds its log Z",
                )

    def _known_log_z(self, batch: dict[str, Any], rows: list[dict[str, Any]]) -> torch.Tensor:
        """Frozen log Z, with the group's mean in place of a flagged prompt's where the plan says so."""
        prompt_ids = [row["prompt_id"] for row in rows]
        device = batch["completion_ids"].device
        log_z = torch.as_tensor(self._anchor.log_z(prompt_ids), device=device)
        if self._plan.count("group"):
            audited = torch.tensor(self._audited(rows), device=device)
            log_z = torch.where(audited, log_z, self._group_log_z(batch, length="sum"))
        return log_z

    def _audited(self, rows: list[dict[str, Any]]) -> list[bool]:
        # A group's mean follows the policy: its residuals say nothing about the frozen log Z, and average to zero.
        return [self._plan.source.get(row["prompt_id"]) != "group" for row in rows]

    def _baseline(self, residual: torch.Tensor, group: torch.Tensor) -> torch.Tensor | None:
        if self.args.baseline == "none":
            return None
        return anchored_baseline(residual, group, prior_strength=self.args.baseline_prior_strength)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """Trajectory balance of one micro-batch, mixed with the forward projection of an offline one."""
        loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if self._offline is None or not self.model.training:
            return loss
        # Twice: the squared residual's gradient is 2 grad KL(pi || pi*), the projection's is grad KL(pi* || pi).
        share, size = self.args.offline_share, len(inputs["completion_ids"])
        projection = self._forward_projection(model, size) / self.current_gradient_accumulation_steps
        return (1 - share) * loss + share * 2 * projection

    def _forward_projection(self, model: Any, size: int) -> torch.Tensor:
        """Loss of the next batch of offline trajectories, of the same size as the on-policy one."""
        step, count = self._offline_batches
        count = count + 1 if step == self.state.global_step else 0
        self._offline_batches = (self.state.global_step, count)
        # A batch's number depends on step and micro-batch only, so resuming repeats no batch.
        batch = self._offline.batch(
            self.state.global_step * self.current_gradient_accumulation_steps + count,
            size,
            self.accelerator.device,
            self._tokenizer.pad_token_id,
            part=self.accelerator.process_index,
            parts=self.accelerator.num_processes,
        )
        log_pi, _ = self._sequence_log_probs(model, vars(batch))
        loss = forward_projection_loss(log_pi, batch.weight)
        self._metrics["train"]["forward_projection"].append(self.accelerator.gather(loss.detach()).mean().item())
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add how many flagged prompts take their log Z from the group, and how many are left out."""
        for source in ("group", "skip"):
            if count := self._plan.count(source):
                logs[f"flagged/{source}"] = count
        super().log(logs, start_time)


def check_prompts(datasets: Sequence[Any]) -> None:
    """Refuse prompts that differ in more than the question: a fingerprint describes one form, and log Z belongs to it.

    Raises
    ------
    DisaError
        Where a prompt has other messages than a question and perhaps a system prompt before it, or another form or
        system prompt than the first one.
    """
    where = "DISATrainer, train_dataset or eval_dataset"
    fix = "build all rows by disa.training.run.dataset(prompts, task, law)"
    first = None
    for prompt_id, prompt in (row for d in datasets for row in zip(d["prompt_id"], d["prompt"], strict=True)):
        roles = [] if isinstance(prompt, str) else [message["role"] for message in prompt]
        if roles not in ([], ["user"], ["system", "user"]):
            found = f"prompt {prompt_id} has messages of {', '.join(roles)}"
            raise DisaError(f"{found}, expected one of user, and one of system at most before it", where=where, fix=fix)
        system = repr(prompt[0]["content"]) if roles[:1] == ["system"] else "none"
        form = f"messages with system prompt {system}" if roles else "text"
        first = first or form
        if form != first:
            raise DisaError(f"prompt {prompt_id} is {form}, expected {first} as before it", where=where, fix=fix)


def reward_fingerprint(reward_funcs: list[Callable[..., Any]], weights: list[float]) -> str:
    """Identity of a weighted sum of reward functions.

    A function's own ``fingerprint`` attribute where it has one (the project's task rewards do),
    else a digest of its source code.
    """
    names = []
    for function, weight in zip(reward_funcs, weights, strict=True):
        own = getattr(function, "fingerprint", None)
        if own is None:
            source = inspect.getsource(function)
            own = f"{function.__qualname__}:{sha256(source.encode()).hexdigest()[:16]}"
        names.append(own if weight == 1.0 else f"{weight:g}*{own}")
    return "+".join(names)
