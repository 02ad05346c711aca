"""DISA: trajectory balance with the log Z that an anchor froze, under the conditions that it was frozen for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from trl.data_utils import is_conversational

from disa.anchor import Anchor
from disa.lm.fingerprint import take_fingerprint
from disa.lm.loading import load_tokenizer
from disa.lm.sampling_config import SamplingConfig
from disa.runs.provenance import Fingerprint
from disa.tasks.python_rows import rows_identity
from disa.tasks.reward_identity import reward_fingerprint
from disa.tasks.tools import TEMPLATE_ARGUMENTS, Environments, Tools
from disa.training.anchors_own import anchors_own, reference_name
from disa.training.balance_trainer import BalanceTrainer
from disa.training.checks import check_args, check_given
from disa.training.data import check_columns, check_datasets, check_prompts, with_prompt_ids
from disa.training.disa_config import DISAConfig
from disa.training.flags import flag_plan, require_frozen_log_z
from disa.training.guard import ReferenceGuard
from disa.training.log_z import Frozen
from disa.training.prompt_sampler import expected_signal
from disa.training.stored import StoredTrajectories


class DISATrainer(BalanceTrainer):
    """Trajectory balance with a frozen, per-prompt log Z (DISA, arXiv 2605.17295).

    Minimises ``(log Z(x) + log pi(y|x) - log pi_ref(y|x) - beta r(x, y))^2`` over on-policy
    completions, log-probabilities being sums over tokens.

    Parameters
    ----------
    model, reward_funcs, others
        As in :class:`disa.training.balance_trainer.BalanceTrainer`, ``reference`` too.
    anchor : Anchor, str or Path
        Frozen log Z, or the folder it is in. Its fingerprint must equal the trainer's in every field.
    args : DISAConfig
    tools, environment_factory, rollout_func
        As in :class:`trl.GRPOTrainer`, and as the anchor was calibrated with.
    train_dataset : datasets.Dataset
        Column ``prompt`` (text or messages) and whatever the reward functions read. With an anchor of a recipe's run
        also ``prompt_id`` and ``task``, as in the anchor. Evaluation rows need the same, and a log Z, too.
    offline : StoredTrajectories, optional
        Trajectories for the forward projection, used exactly when ``args.offline_share`` is above 0; by default the
        anchor's own. None of prompts whose frozen log Z ``args.flagged`` does not use.

    Raises
    ------
    DisaError
        Where the anchor does not fit, a prompt has no log Z, a column is missing, or ``args.flagged`` forbids.
    """

    _anchor: Anchor

    def __init__(
        self,
        model: Any,
        reward_funcs: Callable[..., Any] | list[Callable[..., Any]],
        anchor: Anchor | str | Path,
        args: DISAConfig,
        train_dataset: Any,
        *,
        offline: StoredTrajectories | None = None,
        eval_dataset: Any = None,
        tools: list[Callable[..., Any]] | None = None,
        environment_factory: Environments | None = None,
        rollout_func: Callable[..., Any] | None = None,
        **others: Any,
    ) -> None:
        check_args(args)
        self._tools = Tools(tools or (), environment_factory, rollout_func, args.max_tool_calling_iterations)
        check_given(anchor, reward_funcs, self._tools)
        if not isinstance(anchor, Anchor):
            anchor = Anchor.load(anchor)
        conditions = ("inverse_temperature", "temperature", "max_completion_length")
        args.complete(
            **{name: getattr(anchor.fingerprint, name) for name in conditions},
            chat_template_kwargs={k: v for k, v in anchor.chat_template_kwargs.items() if k not in TEMPLATE_ARGUMENTS}
            or None,
        )
        train_dataset, eval_dataset, datasets = check_datasets(
            train_dataset, eval_dataset, speaks_first=environment_factory is not None
        )
        if anchor.key_columns is None:
            check_columns(datasets)
            check_prompts(datasets)
        else:
            train_dataset = with_prompt_ids(train_dataset, anchor.key_columns)
            several = isinstance(eval_dataset, dict)
            evaluated = eval_dataset if several else {} if eval_dataset is None else {"": eval_dataset}
            evaluated = {name: with_prompt_ids(rows, anchor.key_columns) for name, rows in evaluated.items()}
            datasets = [train_dataset, *evaluated.values()]
            eval_dataset = evaluated if several else evaluated.get("")
        per_step = args.generation_batch_size // args.num_generations
        plan = flag_plan(anchor, train_dataset.unique("prompt_id"), args.flagged, prompts_per_step=per_step)
        if offline is None and args.offline_share > 0 and anchor.path is not None:
            tokenizer = others.get("processing_class") or load_tokenizer(reference_name(model))
            texts = {row["prompt_id"]: self._tools.text(row) for row in train_dataset}
            own = {"cap": args.offline_weight_cap, "seed": args.seed, "plan": plan}
            messages = not isinstance(train_dataset[0]["prompt"], str)
            offline = anchors_own(anchor, texts, tokenizer, messages=messages, **own)
        if offline is not None:
            require_frozen_log_z(offline.prompts, plan)
        if plan.count("skip"):
            kept = [i for i, p in enumerate(train_dataset["prompt_id"]) if plan.source[p] != "skip"]
            train_dataset = train_dataset.select(kept)
        log_z = Frozen(
            {prompt_id: row.log_z for prompt_id, row in anchor.estimates.items()},
            from_group=[p for p, source in plan.source.items() if source == "group"],
            facts={f"flagged/{s}": count for s in ("group", "skip") if (count := plan.count(s))},
            reward_range=anchor.reward_range,
            signal={
                prompt_id: expected_signal(row, anchor.fingerprint.inverse_temperature, anchor.reward_range)
                for prompt_id, row in anchor.estimates.items()
            },
        )
        self._anchor = anchor
        given = others | {"offline": offline, "eval_dataset": eval_dataset} | self._tools.as_given()
        super().__init__(model, reward_funcs, log_z, args, train_dataset, **given)
        anchor.verify(self.fingerprint(train_dataset))
        rows = {row["prompt_id"]: row for dataset in datasets for row in dataset}
        prompts = {prompt_id: self._tools.prompt(row) for prompt_id, row in rows.items()}
        self._batch_environments = [self._tools.environment(row) for row in rows.values()]
        ids = dict(zip(prompts, self._tokenize_prompts(list(prompts.values()))[0], strict=True))
        anchor.verify_prompts(ids)
        self.add_callback(ReferenceGuard(self, anchor, ids))

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        batch = super()._generate_and_score_completions(inputs)
        # A template that prints the date renders other prompts after midnight.
        rows = zip(inputs, batch["prompt_ids"], batch["prompt_mask"].bool(), strict=True)
        self._anchor.verify_prompts({row["prompt_id"]: ids[mask].tolist() for row, ids, mask in rows})
        return batch

    def fingerprint(self, dataset: Any) -> Fingerprint:
        """Everything the anchor must have been estimated under, as this trainer has it."""
        conversational = is_conversational(dataset[0])
        first = dataset[0]["prompt"][0] if conversational else {}
        keys = self._anchor.key_columns
        own_system = keys is None and first.get("role") == "system"
        arguments = (self.args.chat_template_kwargs or {}) | self._tools.template_arguments(self._tokenizer)
        sampling = SamplingConfig(
            temperature=self.temperature,
            max_completion_length=self.max_completion_length,
            conversational=conversational,
            system_prompt=first["content"] if own_system else None,
            messages=conversational and keys is not None,
            chat_template_kwargs=arguments if conversational else {},
        )
        return take_fingerprint(
            self.reference_model,
            self._tokenizer,
            sampling,
            stops=self.eos_token_ids,
            reward=reward_fingerprint(self.reward_funcs, self.reward_weights.tolist()),
            inverse_temperature=self.args.inverse_temperature,
            task="+".join(sorted(dataset.unique("task"))) if keys is None else rows_identity(keys),
            tools=self._tools.identity,
        )
