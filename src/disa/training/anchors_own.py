"""The anchor's own trajectories as data of the forward projection, for a trainer used from Python."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from disa.anchor import Anchor
from disa.lm.sampling import SamplingConfig, encode_prompt
from disa.training.disa_config import DISAConfig
from disa.training.flags import FlagPlan, with_frozen_log_z
from disa.training.stored import StoredTrajectories
from disa.training.trajectory_weights import equal_prompts, target_weights


def anchors_own(
    anchor: Anchor, prompts: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, args: DISAConfig, plan: FlagPlan
) -> StoredTrajectories:
    """Trajectories of the prompts, by id, that log Z was estimated from, weighted towards the target."""
    messages = not isinstance(next(iter(prompts.values())), str)
    sampling = SamplingConfig(
        conversational=messages, messages=messages, chat_template_kwargs=dict(anchor.chat_template_kwargs)
    )
    ids = {
        key: encode_prompt(tokenizer, json.dumps(prompt) if messages else prompt, sampling)
        for key, prompt in prompts.items()
    }
    rows = with_frozen_log_z([row for row in anchor.trajectories(thin=True) if row.prompt_id in ids], plan)
    weights = target_weights(rows, anchor, cap=args.offline_weight_cap) * equal_prompts(rows)
    return StoredTrajectories(rows, ids, weights, seed=args.seed)


def reference_name(model: Any) -> str:
    """Name or folder that a policy was loaded from, beside which its tokenizer lies."""
    return str(model) if isinstance(model, str | Path) else model.config._name_or_path
