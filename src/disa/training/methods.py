"""The methods of the comparison, one row each: what a method reads and which settings are its own.

Loads no torch: the configuration of the training stage reads it. How each is built is in ``build.py``.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Literal

REUSE = ("weight_cap", "min_ess", "replay_share", "replay_generations")
"""Settings of trainers with a log Z for completions that they use again."""
_RESIDUAL = ("inverse_temperature", *REUSE)
_BASELINE = ("prompts", "baseline", "baseline_prior_strength", "flagged", "length_scale", "residual_clip")
_PROJECTION = ("offline_weight_cap", "offline_weight_tail")


@dataclasses.dataclass(frozen=True)
class Method:
    """One way to train the policy, all from the reference and on the same prompts."""

    title: str
    settings: tuple[str, ...] = ()
    """Fields of ``TrainingConfig`` that not every method reads and this one does."""
    anchor: bool = False
    """Reads ``5_anchor``."""
    reads: Literal["nothing", "all", "values"] = "nothing"
    """Stored trajectories (``3_scoring``): all, to learn from, or only the ``value_samples`` of the reference that a
    prompt's value is taken from. ``disa`` learns from them with ``offline_share``."""
    generates: bool = True
    """Draws completions in training."""
    reference: bool = True
    """Compares the policy with the reference where it draws."""
    repeats_prompts: bool = False
    """Takes a prompt as often in a step as there are too few; the others need distinct ones."""
    allows_group_of_one: bool = True
    """Learns from groups of one completion."""
    adapters: bool = False
    """Trains low-rank adapters also where ``TrainingConfig.lora`` is null."""


METHODS: dict[str, Method] = {
    "disa": Method(
        "DISA: on-policy trajectory balance, with offline_share of the forward projection",
        (*_RESIDUAL, *_BASELINE, "offline_share", *_PROJECTION),
        anchor=True,
    ),
    "disa_forward": Method(
        "DISA: forward projection, offline",
        ("inverse_temperature", *_PROJECTION),
        anchor=True,
        reads="all",
        generates=False,
    ),
    "disa_both": Method(
        "DISA: both projections, half each unless offline_share is set",
        (*_RESIDUAL, *_BASELINE, "offline_share", *_PROJECTION),
        anchor=True,
        reads="all",
    ),
    "disa_offline_balance": Method(
        "DISA: squared residual offline, lower ends of log Z",
        ("inverse_temperature",),
        anchor=True,
        reads="all",
        generates=False,
    ),
    "flowrl": Method("FlowRL: learned log Z", (*_RESIDUAL, "log_z_learning_rate")),
    "flowrl_published": Method(
        "FlowRL as published: means over tokens, beta 15",
        (*REUSE[1:], "log_z_learning_rate"),
        allows_group_of_one=False,
    ),
    "gflowrl": Method("GFlowRL: group log Z, sums", (*_RESIDUAL, "gflowrl_clip"), allows_group_of_one=False),
    "gflowrl_published": Method(
        "GFlowRL as published: means over tokens, beta 8", (*REUSE, "gflowrl_clip"), allows_group_of_one=False
    ),
    "vargrad": Method("VarGrad: group log Z", _RESIDUAL, allows_group_of_one=False),
    "a2po": Method(
        "A*-PO: value from reference samples, one completion per prompt",
        (*_RESIDUAL, "value_samples"),
        reads="values",
        repeats_prompts=True,
    ),
    "ctb": Method("Contrastive balance: pairs of a group, no log Z", _RESIDUAL, allows_group_of_one=False),
    "max_rl": Method("MaxRL: advantage (r - mean) / mean", reference=False, allows_group_of_one=False),
    "grpo": Method("GRPO", reference=False, allows_group_of_one=False),
    "gspo": Method("GSPO", reference=False, allows_group_of_one=False),
    "sft": Method("Supervised on the correct trajectories", reads="all", generates=False),
    "sft_reward": Method("Supervised on trajectories in proportion to reward", reads="all", generates=False),
    "lora_sft": Method(
        "LoRA-SFT: supervised on the correct trajectories, adapters",
        reads="all",
        generates=False,
        adapters=True,
    ),
}

if TYPE_CHECKING:
    MethodName = str
else:
    MethodName = Literal[tuple(METHODS)]

METHOD_SPECIFIC_FIELDS = frozenset(name for method in METHODS.values() for name in method.settings)
"""Fields that some method does not read."""
