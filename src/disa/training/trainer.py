"""DISA: trajectory balance with the log Z that an anchor froze, under the conditions that it was frozen for."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from hashlib import sha256
from typing import Any

from trl.data_utils import is_conversational

from disa.anchor import Anchor
from disa.errors import DisaError
from disa.lm.fingerprint import take_fingerprint
from disa.lm.sampling import SamplingConfig
from disa.runs.provenance import Fingerprint
from disa.training.balance_trainer import BalanceTrainer
from disa.training.disa_config import DISAConfig
from disa.training.flags import flag_plan, require_frozen_log_z
from disa.training.log_z import Frozen
from disa.training.stored import StoredTrajectories

_DATA = "DISATrainer, train_dataset or eval_dataset"


class DISATrainer(BalanceTrainer):
    """Trajectory balance with a frozen, per-prompt log Z (DISA, arXiv 2605.17295).

    Minimises ``(log Z(x) + log pi(y|x) - log pi_ref(y|x) - beta r(x, y))^2`` over on-policy
    completions, log-probabilities being sums over tokens.

    Parameters
    ----------
    model, reward_funcs, reference, others
        As in :class:`disa.training.balance_trainer.BalanceTrainer`.
    anchor : Anchor
        Frozen log Z. Its fingerprint must equal the trainer's in every field.
    args : DISAConfig
    train_dataset : datasets.Dataset
        Columns ``prompt`` (text or messages), ``prompt_id`` (as in the anchor), ``task`` (as in the
        anchor's fingerprint), and whatever the reward functions read. Evaluation rows need them, and a log Z, too.
    offline : StoredTrajectories, optional
        Trajectories for the forward projection; needed exactly when ``args.offline_share`` is above 0. None of
        prompts whose frozen log Z ``args.flagged`` does not use.

    Raises
    ------
    DisaError
        Where the anchor does not fit, a prompt has no log Z, a column is missing, or ``args.flagged`` forbids.
    """

    def __init__(
        self,
        model: Any,
        reward_funcs: Callable[..., Any] | list[Callable[..., Any]],
        anchor: Anchor,
        args: DISAConfig,
        train_dataset: Any,
        *,
        offline: StoredTrajectories | None = None,
        eval_dataset: Any = None,
        **others: Any,
    ) -> None:
        datasets = [d for d in (train_dataset, eval_dataset) if d is not None]
        check_prompts(datasets)
        per_step = args.generation_batch_size // args.num_generations
        plan = flag_plan(anchor, train_dataset.unique("prompt_id"), args.flagged, prompts_per_step=per_step)
        if offline is not None:
            require_frozen_log_z(offline.prompts, plan)
        if plan.count("skip"):
            kept = [i for i, p in enumerate(train_dataset["prompt_id"]) if plan.source[p] != "skip"]
            train_dataset = train_dataset.select(kept)
        log_z = Frozen(
            {prompt_id: row.log_z for prompt_id, row in anchor.estimates.items()},
            from_group=[p for p, source in plan.source.items() if source == "group"],
            facts={f"flagged/{s}": count for s in ("group", "skip") if (count := plan.count(s))},
        )
        super().__init__(
            model, reward_funcs, log_z, args, train_dataset, offline=offline, eval_dataset=eval_dataset, **others
        )
        anchor.verify(self.fingerprint(train_dataset))

    def fingerprint(self, dataset: Any) -> Fingerprint:
        """Everything the anchor must have been estimated under, as this trainer has it."""
        conversational = is_conversational(dataset[0])
        first = dataset[0]["prompt"][0] if conversational else {}
        sampling = SamplingConfig(
            temperature=self.temperature,
            max_completion_length=self.max_completion_length,
            conversational=conversational,
            system_prompt=first["content"] if first.get("role") == "system" else None,
        )
        return take_fingerprint(
            self.accelerator.unwrap_model(self.model if self.ref_model is None else self.ref_model),
            self._tokenizer,
            sampling,
            stops=self.eos_token_ids,
            reward=reward_fingerprint(self.reward_funcs, self.reward_weights.tolist()),
            inverse_temperature=self.args.inverse_temperature,
            task="+".join(sorted(dataset.unique("task"))),
        )


def check_prompts(datasets: Sequence[Any]) -> None:
    """Refuse prompts that differ in more than the question: a fingerprint describes one form, and log Z belongs to it.

    Raises
    ------
    DisaError
        Where a column is missing, or a prompt has other messages than a question and perhaps a system prompt before it,
        or another form or system prompt than the first one.
    """
    first = None
    for dataset in datasets:
        for column in ("prompt", "prompt_id", "task"):
            if column not in dataset.column_names:
                raise DisaError(
                    f"column '{column}' is missing, found {', '.join(dataset.column_names)}",
                    where=_DATA,
                    fix="build rows from the run's 1_tasks prompts; prompt_id is how a row finds its log Z",
                )
    fix = "build all rows by disa.training.run.dataset(prompts, task, law)"
    for prompt_id, prompt in (row for d in datasets for row in zip(d["prompt_id"], d["prompt"], strict=True)):
        roles = [] if isinstance(prompt, str) else [message["role"] for message in prompt]
        if roles not in ([], ["user"], ["system", "user"]):
            found = f"prompt {prompt_id} has messages of {', '.join(roles)}"
            raise DisaError(f"{found}, expected one of user, and one of system at most before it", where=_DATA, fix=fix)
        system = repr(prompt[0]["content"]) if roles[:1] == ["system"] else "none"
        form = f"messages with system prompt {system}" if roles else "text"
        first = first or form
        if form != first:
            raise DisaError(f"prompt {prompt_id} is {form}, expected {first} as before it", where=_DATA, fix=fix)


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
