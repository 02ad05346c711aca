"""DISA on TRL's GRPOTrainer: the engine's sampling, data path and scaling, another loss.

Only four methods are overridden, and each calls super() or the engine's own log-prob method:
rewards are noted as they pass, frozen log Z joins the batch, the loss is trajectory balance, and
the audit joins the log. Nothing of the engine is copied.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from trl import GRPOTrainer
from trl.data_utils import is_conversational

from disa.anchor import Anchor
from disa.engine import SeededEpochs
from disa.errors import DisaError
from disa.objectives.forward_projection import forward_projection_loss
from disa.objectives.trajectory_balance import anchored_baseline, trajectory_balance_loss, trajectory_balance_residual
from disa.provenance import Fingerprint, chat_template_digest, tokenizer_digest, weights_digest
from disa.training.audit import ResidualRecord
from disa.training.disa_config import DISAConfig
from disa.training.offline import OfflineTrajectories


class DISATrainer(GRPOTrainer):
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
    offline : OfflineTrajectories, optional
        Trajectories for the forward projection; needed exactly when ``args.offline_share`` is above 0.
    eval_dataset, processing_class, reward_processing_classes, callbacks, optimizers, peft_config
        As in :class:`trl.GRPOTrainer`. Evaluation rows need a log Z too.

    Raises
    ------
    DisaError
        Where the anchor does not fit, a prompt has no log Z, or a column is missing.
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
        offline: OfflineTrajectories | None = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        reward_processing_classes: Any = None,
        callbacks: Any = None,
        optimizers: tuple[Any, Any] = (None, None),
        peft_config: Any = None,
    ) -> None:
        if reference is not None:
            if isinstance(model, str):
                model = AutoModelForCausalLM.from_pretrained(
                    model, **(args.model_init_kwargs or {"dtype": torch.float32})
                )
            # GRPOTrainer loads the frozen reference from here; without this an edited or in-memory policy
            # would silently be compared with whatever its configuration names.
            model.config._name_or_path = str(reference)
        if (offline is None) == (args.offline_share > 0):
            raise DisaError(
                f"offline_share is {args.offline_share}, but offline trajectories are "
                f"{'missing' if offline is None else 'given'}",
                where="DISATrainer",
                fix="give both, or leave both out",
            )
        self._anchor, self._offline = anchor, offline
        self._offline_batches = (-1, 0)
        self._rewards_per_func = torch.empty(0)
        self._audits = {"train": ResidualRecord(), "eval": ResidualRecord()}
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
        )
        self.add_callback(SeededEpochs())
        datasets = [d for d in (train_dataset, eval_dataset) if d is not None]
        for dataset in datasets:
            self._check_columns(dataset)
        anchor.verify(self.fingerprint(train_dataset))
        for dataset in datasets:
            anchor.log_z(dataset.unique("prompt_id"))

    def fingerprint(self, dataset: Any) -> Fingerprint:
        """Everything the anchor must have been estimated under, as this trainer has it."""
        conversational = is_conversational(dataset[0])
        first = dataset[0]["prompt"][0] if conversational else {}
        system_prompt = first["content"] if first.get("role") == "system" else None
        return Fingerprint(
            reference=weights_digest(self.accelerator.unwrap_model(self.ref_model or self.model)),
            tokenizer=tokenizer_digest(self._tokenizer),
            chat_template=chat_template_digest(
                self._tokenizer, conversational=conversational, system_prompt=system_prompt
            ),
            temperature=self.temperature,
            max_completion_length=self.max_completion_length,
            stop_token_ids=tuple(sorted(self.eos_token_ids)),
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

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any) -> torch.Tensor:
        self._rewards_per_func = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        return self._rewards_per_func

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        batch = super()._generate_and_score_completions(inputs)
        prompt_ids = [row["prompt_id"] for row in inputs]
        device = batch["completion_ids"].device
        # Rewards come gathered over processes, in their order; this process's rows are one slice.
        mine = slice(self.accelerator.process_index * len(inputs), (self.accelerator.process_index + 1) * len(inputs))
        rewards = self._rewards_per_func[mine]
        total = (rewards * self.reward_weights.to(device)).nansum(dim=1)
        # A row no reward function decided has no residual; nansum would call it a zero.
        batch["raw_reward"] = total.masked_fill(rewards.isnan().all(dim=1), torch.nan)
        batch["log_z"] = torch.as_tensor(self._anchor.log_z(prompt_ids), device=device)
        batch["group"] = torch.tensor([prompt_ids.index(prompt_id) for prompt_id in prompt_ids], device=device)
        return batch

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """Mean squared trajectory-balance residual of one micro-batch."""
        mode = "train" if self.model.training else "eval"
        mask = inputs["completion_mask"]
        log_pi, entropy = self._sequence_log_probs(
            model, inputs["prompt_ids"], inputs["prompt_mask"], inputs["completion_ids"], mask
        )
        log_ref = (inputs["ref_per_token_logps"].double() * mask).sum(dim=1)
        residual = trajectory_balance_residual(
            log_pi, log_ref, inputs["raw_reward"].double(), inputs["log_z"], beta=self.args.inverse_temperature
        )
        # Undecided rows (a NaN reward) carry no gradient; a micro-batch of only such rows gives a zero loss.
        decided = ~residual.isnan()
        baseline = None
        if self.args.baseline == "anchored":
            group, strength = inputs["group"][decided], self.args.baseline_prior_strength
            baseline = anchored_baseline(residual[decided], group, prior_strength=strength)
        loss = trajectory_balance_loss(residual[decided], baseline) if decided.any() else 0.0 * log_pi.sum()
        if self._offline is not None and mode == "train":
            # Twice: the squared residual's gradient is 2 grad KL(pi || pi*), the projection's is grad KL(pi* || pi).
            share = self.args.offline_share
            loss = (1 - share) * loss + share * 2 * self._forward_projection(model, len(residual))

        gather = self.accelerator.gather
        self._audits[mode].add(gather(residual.detach()), gather((log_pi - log_ref).detach()))
        mean_entropy = (entropy.detach() * mask).sum() / mask.sum().clamp(min=1)
        self._metrics[mode]["entropy"].append(gather(mean_entropy).mean().item())
        return loss / (self.current_gradient_accumulation_steps if mode == "train" else 1)

    def _forward_projection(self, model: Any, size: int) -> torch.Tensor:
        """Loss of the next batch of offline trajectories, of the same size as the on-policy one."""
        step, count = self._offline_batches
        count = count + 1 if step == self.state.global_step else 0
        self._offline_batches = (self.state.global_step, count)
        # A batch's number depends on step, micro-batch and process only, so resuming repeats no batch.
        number = (self.state.global_step * self.current_gradient_accumulation_steps + count) * (
            self.accelerator.num_processes
        ) + self.accelerator.process_index
        batch = self._offline.batch(number, size, self.accelerator.device, self._tokenizer.pad_token_id)
        log_pi, _ = self._sequence_log_probs(
            model, batch.prompt_ids, batch.prompt_mask, batch.completion_ids, batch.completion_mask
        )
        loss = forward_projection_loss(log_pi, batch.weight)
        self._metrics["train"]["forward_projection"].append(self.accelerator.gather(loss.detach()).mean().item())
        return loss

    def _sequence_log_probs(
        self,
        model: Any,
        prompt_ids: torch.Tensor,
        prompt_mask: torch.Tensor,
        completion_ids: torch.Tensor,
        mask: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Sequence log-probabilities, float64, and token entropies, by the engine's own method."""
        token_log_pi, entropy, _ = self._get_per_token_logps_and_entropies(
            model,
            torch.cat([prompt_ids, completion_ids], dim=1),
            torch.cat([prompt_mask, mask], dim=1),
            completion_ids.size(1),
            compute_entropy=True,
        )
        return (token_log_pi.double() * mask).sum(dim=1), entropy

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the audit of all residuals since the last line."""
        mode = "train" if self.model.training else "eval"
        for name, value in self._audits[mode].metrics().items():
            self._metrics[mode][name].append(value)
        super().log(logs, start_time)


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
