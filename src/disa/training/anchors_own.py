"""The anchor's own trajectories as data of the forward projection, for a trainer used from Python."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from disa.anchor import Anchor
from disa.lm.sampling_config import SamplingConfig, encode_prompt
from disa.tasks.tools import Environments, Tools
from disa.training.data import check_dataset, with_prompt_ids
from disa.training.flags import FlagPlan, with_frozen_log_z
from disa.training.stored import StoredTrajectories
from disa.training.trajectory_weights import equal_prompts, target_weights


def anchors_own(
    anchor: Anchor,
    prompts: Mapping[str, str],
    tokenizer: PreTrainedTokenizerBase,
    *,
    messages: bool,
    cap: float,
    seed: int,
    plan: FlagPlan | None = None,
) -> StoredTrajectories:
    """Trajectories of the prompts, by id, that log Z was estimated from, weighted towards the target."""
    sampling = SamplingConfig(
        conversational=messages, messages=messages, chat_template_kwargs=dict(anchor.chat_template_kwargs)
    )
    ids = {key: encode_prompt(tokenizer, text, sampling) for key, text in prompts.items()}
    anchor.verify_prompts(ids)
    rows = [row for row in anchor.trajectories(thin=True) if row.prompt_id in ids]
    rows = rows if plan is None else with_frozen_log_z(rows, plan)
    weights = target_weights(rows, anchor, cap=cap) * equal_prompts(rows)
    return StoredTrajectories(rows, ids, weights, seed=seed, temperature=anchor.fingerprint.temperature)


def offline_trajectories(
    anchor: Anchor | str | Path,
    train_dataset: Any,
    processing_class: PreTrainedTokenizerBase,
    *,
    environment_factory: Environments | None = None,
    weight_cap: float = 8.0,
    seed: int = 0,
) -> StoredTrajectories:
    """An anchor's trajectories as training data, each weighing the target's density ratio to the mixture it came from.

    Parameters
    ----------
    anchor : Anchor, str or Path
        Of :func:`disa.calibrate`, or the folder it is in.
    train_dataset : datasets.Dataset or list of rows
        As it was calibrated with, or some of its rows.
    processing_class : PreTrainedTokenizerBase
    environment_factory : callable or dict of callables, optional
        As it was calibrated with: what ``reset`` says is part of the prompts.
    weight_cap : float
        Bound on ``W = w exp(beta r) / Zhat``.
    seed : int
        Of the order of batches.

    Raises
    ------
    DisaError
        Where a prompt has no log Z or is rendered in another way, or no trajectory has a weight.
    """
    anchor = anchor if isinstance(anchor, Anchor) else Anchor.load(anchor)
    tools = Tools(environment_factory=environment_factory)
    rows = check_dataset(train_dataset, "train_dataset", speaks_first=bool(tools))
    rows = rows if anchor.key_columns is None else with_prompt_ids(rows, anchor.key_columns)
    prompts = {row["prompt_id"]: tools.text(row) for row in rows}
    anchor.log_z(list(prompts))
    messages = not isinstance(rows[0]["prompt"], str)
    return anchors_own(anchor, prompts, processing_class, messages=messages, cap=weight_cap, seed=seed)


def reference_name(model: Any) -> str:
    """Name or folder that a policy was loaded from, beside which its tokenizer lies."""
    return str(model) if isinstance(model, str | Path) else model.config._name_or_path
