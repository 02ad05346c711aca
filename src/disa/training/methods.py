"""The methods of the comparison, one row each: what a method reads and which settings are its own.

Loads no torch: the configuration of the training stage reads it. How each is built is in ``build.py``.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

_BASELINE = ("baseline", "baseline_prior_strength", "flagged")
_PROJECTION = ("offline_weight_cap", "offline_weight_tail")


@dataclasses.dataclass(frozen=True)
class Method:
    """One way to train the policy, all from the reference and on the same prompts."""

    title: str
    settings: tuple[str, ...] = ()
    """Fields of ``TrainingConfig`` that not every method reads and this one does."""
    anchor: bool = False
    """Reads ``5_anchor``."""
    trajectories: bool = False
    """Reads ``3_scoring``; ``disa`` does so only with ``offline_share``."""
    generates: bool = True
    """Draws completions in training."""
    alone: bool = True
    """Learns from groups of one completion."""
    adapters: bool = False
    """Trains low-rank adapters also where ``TrainingConfig.lora`` is null."""


METHODS: dict[str, Method] = {
    "disa": Method(
        "DISA: on-policy trajectory balance, with offline_share of the forward projection",
        ("inverse_temperature", *_BASELINE, "offline_share", *_PROJECTION),
        anchor=True,
    ),
    "disa_forward": Method(
        "DISA: forward projection, offline",
        ("inverse_temperature", *_PROJECTION),
        anchor=True,
        trajectories=True,
        generates=False,
    ),
    "disa_both": Method(
        "DISA: both projections, half each unless offline_share is set",
        ("inverse_temperature", *_BASELINE, "offline_share", *_PROJECTION),
        anchor=True,
        trajectories=True,
    ),
    "disa_offline_balance": Method(
        "DISA: squared residual offline, lower ends of log Z",
        ("inverse_temperature",),
        anchor=True,
        trajectories=True,
        generates=False,
    ),
    "flowrl": Method("FlowRL: learned log Z", ("inverse_temperature", "log_z_learning_rate")),
    "flowrl_published": Method(
        "FlowRL as published: means over tokens, beta 15", ("log_z_learning_rate",), alone=False
    ),
    "gflowrl": Method("GFlowRL: group log Z, sums", ("inverse_temperature",), alone=False),
    "gflowrl_published": Method("GFlowRL as published: means over tokens, beta 8", alone=False),
    "vargrad": Method("VarGrad: group log Z", ("inverse_temperature",), alone=False),
    "a2po": Method(
        "A*-PO: value from reference samples, one completion a prompt",
        ("inverse_temperature", "value_samples"),
        trajectories=True,
    ),
    "grpo": Method("GRPO", alone=False),
    "gspo": Method("GSPO", alone=False),
    "sft": Method("Supervised on the correct trajectories", trajectories=True, generates=False),
    "sft_reward": Method("Supervised on trajectories in proportion to reward", trajectories=True, generates=False),
    "lora_sft": Method(
        "LoRA-SFT: supervised on the correct trajectories, adapters",
        trajectories=True,
        generates=False,
        adapters=True,
    ),
}

MethodName = Literal[
    "disa",
    "disa_forward",
    "disa_both",
    "disa_offline_balance",
    "flowrl",
    "flowrl_published",
    "gflowrl",
    "gflowrl_published",
    "vargrad",
    "a2po",
    "grpo",
    "gspo",
    "sft",
    "sft_reward",
    "lora_sft",
]

FOREIGN = frozenset(name for method in METHODS.values() for name in method.settings)
"""Fields that some method does not read."""
