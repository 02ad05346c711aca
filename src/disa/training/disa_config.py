"""Arguments of :class:`DISATrainer`: TRL's GRPO arguments with the inverse temperature in front."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from trl import GRPOConfig

from disa.errors import DisaError

# Settings under which a frozen log Z no longer means what it was estimated for, with the reason.
_REFUSED: dict[str, tuple[Any, str]] = {
    "top_p": (1.0, "it removes support from the policy's samples"),
    "top_k": (0, "it removes support from the policy's samples"),
    "min_p": (None, "it removes support from the policy's samples"),
    "repetition_penalty": (1.0, "sampling then differs from the log-probabilities in the loss"),
    "num_iterations": (1, "the on-policy gradient needs fresh completions for every optimiser step"),
    "sync_ref_model": (False, "the reference is frozen: log Z belongs to it"),
    "mask_truncated_completions": (False, "a truncated completion is an atom of its own, not a missing one"),
    "use_liger_kernel": (False, "its fused loss does not know trajectory balance"),
}


@dataclass
class DISAConfig(GRPOConfig):
    """Configuration of :class:`DISATrainer`.

    Everything of :class:`trl.GRPOConfig` applies, except what would break the frozen log Z's
    meaning, which is refused.
    """

    inverse_temperature: float | None = field(
        default=None,
        metadata={"help": "beta: the target is the reference times exp(beta * reward). Must equal the anchor's."},
    )
    baseline: str = field(
        default="anchored",
        metadata={"help": "'anchored': leave-one-out mean of the residuals shrunk towards zero; 'none': none."},
    )
    baseline_prior_strength: float = field(
        default=1.0,
        metadata={"help": "n0 of the anchored baseline: completions' worth of trust in the frozen log Z."},
    )
    offline_share: float = field(
        default=0.0,
        metadata={"help": "Share in [0, 1) of the forward projection on offline trajectories in the objective."},
    )
    beta: float = field(
        default=0.0,
        metadata={"help": "TRL's KL coefficient. Set from inverse_temperature as its reciprocal; leave it alone."},
    )

    def __post_init__(self) -> None:
        """Derive TRL's beta and refuse what a frozen log Z cannot live with."""
        if self.inverse_temperature is None or not self.inverse_temperature > 0:
            raise DisaError(
                f"inverse_temperature is {self.inverse_temperature}, expected a number above 0",
                where="DISAConfig",
                fix="set it to the anchor's, anchor.fingerprint.inverse_temperature",
            )
        reciprocal = 1.0 / self.inverse_temperature
        if self.beta not in (0.0, reciprocal):
            raise DisaError(
                f"beta={self.beta} conflicts with inverse_temperature={self.inverse_temperature}: "
                f"TRL's beta is its reciprocal, {reciprocal:.6g}",
                where="DISAConfig",
                fix="leave beta out; set inverse_temperature only",
            )
        self.beta = reciprocal
        if self.baseline not in ("anchored", "none"):
            raise DisaError(f"baseline={self.baseline!r}, expected 'anchored' or 'none'", where="DISAConfig")
        if not self.baseline_prior_strength >= 0.0:
            raise DisaError(
                f"baseline_prior_strength={self.baseline_prior_strength}, expected a number of at least 0",
                where="DISAConfig",
            )
        if not 0.0 <= self.offline_share < 1.0:
            raise DisaError(f"offline_share={self.offline_share}, expected a number in [0, 1)", where="DISAConfig")
        super().__post_init__()
        for name, (neutral, reason) in _REFUSED.items():
            if getattr(self, name) != neutral:
                raise DisaError(
                    f"{name}={getattr(self, name)} is refused: {reason}",
                    where="DISAConfig",
                    fix=f"use {name}={neutral}",
                )
        if self.gradient_accumulation_steps % self.steps_per_generation:
            raise DisaError(
                f"steps_per_generation={self.steps_per_generation} draws completions for more than one optimiser step",
                where="DISAConfig",
                fix=f"use a divisor of gradient_accumulation_steps={self.gradient_accumulation_steps}",
            )
