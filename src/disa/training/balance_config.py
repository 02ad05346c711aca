"""Arguments every trajectory-balance trainer shares: TRL's GRPO arguments with the inverse temperature in front."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from trl import GRPOConfig

from disa.errors import DisaError

# Settings under which no log Z means what the residual takes it for, with the reason.
_REFUSED: dict[str, tuple[Any, str]] = {
    "top_p": (1.0, "it removes support from the policy's samples"),
    "top_k": (0, "it removes support from the policy's samples"),
    "min_p": (None, "it removes support from the policy's samples"),
    "repetition_penalty": (1.0, "sampling then differs from the log-probabilities in the loss"),
    "generation_kwargs": (None, "it changes how completions are drawn, but not the log-probabilities in the loss"),
    "chat_template_kwargs": (None, "it renders other prompts than those that log Z was estimated for"),
    "num_iterations": (1, "the on-policy gradient needs fresh completions for every optimiser step"),
    "sync_ref_model": (False, "the reference is frozen: log Z belongs to it"),
    "mask_truncated_completions": (False, "a truncated completion is an atom of its own, not a missing one"),
    "use_liger_kernel": (False, "its fused loss does not know trajectory balance"),
}

# Settings of GRPO's loss and advantages. Trajectory balance has neither, so another value would change nothing.
_UNREAD = (
    "loss_type",
    "epsilon",
    "epsilon_high",
    "delta",
    "importance_sampling_level",
    "scale_rewards",
    "multi_objective_aggregation",
    "entropy_coef",
    "use_adaptive_entropy",
    "entropy_coef_min",
    "entropy_coef_max",
    "entropy_coef_delta",
    "entropy_target",
    "top_entropy_quantile",
    "off_policy_mask_threshold",
    "use_bias_correction_kl",
    "router_aux_loss_coef",
    "sapo_temperature_neg",
    "sapo_temperature_pos",
    "vespo_k_pos",
    "vespo_lambda_pos",
    "vespo_k_neg",
    "vespo_lambda_neg",
)


@dataclass
class BalanceConfig(GRPOConfig):
    """Configuration of a trajectory-balance trainer.

    Everything of :class:`trl.GRPOConfig` applies, except what would change the meaning of the residual and what only
    GRPO's own loss reads, which is refused. ``num_generations`` may be 1 where the method allows groups of one.
    """

    groups_of_one: ClassVar[bool] = True
    """Whether a completion alone in its group teaches the method anything."""
    reuses_completions: ClassVar[bool] = False
    """Whether the loss carries the importance weight that more than one optimiser step a batch needs."""
    lengths: ClassVar[tuple[str, ...]] = ("sum", "mean")
    """Length handlings the method is defined for."""

    inverse_temperature: float | None = field(
        default=None,
        metadata={"help": "beta: the target is the reference times exp(beta * reward). Must equal the anchor's."},
    )
    length: str = field(
        default="sum",
        metadata={"help": "'sum': log-ratios of whole completions; 'mean': per token, which has another target."},
    )
    beta: float = field(
        default=0.0,
        metadata={"help": "TRL's KL coefficient. Set from inverse_temperature as its reciprocal; leave it alone."},
    )
    vllm_importance_sampling_correction: bool = field(
        default=False,
        metadata={"help": "TRL's correction of vLLM's rounding; it costs a pass that the residual never reads."},
    )

    def __post_init__(self) -> None:
        """Derive TRL's beta and refuse what a log Z cannot live with."""
        where = type(self).__name__
        if self.inverse_temperature is None or not self.inverse_temperature > 0:
            raise DisaError(
                f"inverse_temperature is {self.inverse_temperature}, expected a number above 0",
                where=where,
                fix="set it to the anchor's, anchor.fingerprint.inverse_temperature",
            )
        reciprocal = 1.0 / self.inverse_temperature
        if self.beta not in (0.0, reciprocal):
            raise DisaError(
                f"beta={self.beta} conflicts with inverse_temperature={self.inverse_temperature}: "
                f"TRL's beta is its reciprocal, {reciprocal:.6g}",
                where=where,
                fix="leave beta out; set inverse_temperature only",
            )
        self.beta = reciprocal
        if self.use_vllm:
            # On by default, it costs a forward pass for weights that these losses do not read.
            self.vllm_importance_sampling_correction = False
        if self.length not in self.lengths:
            expected = " or ".join(repr(length) for length in self.lengths)
            raise DisaError(f"length={self.length!r}, expected {expected}", where=where)
        self._accept_groups_of_one()
        for name, (neutral, reason) in _REFUSED.items():
            if name == "num_iterations" and self.reuses_completions:
                continue
            if getattr(self, name) != neutral:
                raise DisaError(
                    f"{name}={getattr(self, name)} is refused: {reason}", where=where, fix=f"use {name}={neutral}"
                )
        for name in _UNREAD:
            default = GRPOConfig.__dataclass_fields__[name].default
            if getattr(self, name) != default:
                raise DisaError(
                    f"{name}={getattr(self, name)} would change nothing: trajectory balance does not read this setting "
                    f"of GRPO's loss, expected its default {default}",
                    where=where,
                    fix=f"leave {name} out",
                )
        if not self.reuses_completions and self.gradient_accumulation_steps % self.steps_per_generation:
            raise DisaError(
                f"steps_per_generation={self.steps_per_generation} draws completions for more than one optimiser step",
                where=where,
                fix=f"use a divisor of gradient_accumulation_steps={self.gradient_accumulation_steps}",
            )

    def _accept_groups_of_one(self) -> None:
        """Run GRPO's checks; they refuse groups of one, for the sake of advantages that these losses never read."""
        alone = self.num_generations == 1
        if alone and not self.groups_of_one:
            raise DisaError(
                "num_generations=1: a group's own mean is its log Z, so the residual of a group of one is zero",
                where=type(self).__name__,
                fix="use num_generations of 2 or more, or a method with a frozen or learned log Z",
            )
        if alone:
            # Any number of two or more that divides the batch; the batch itself does.
            self.num_generations, self.num_generations_eval = max(2, self.per_device_train_batch_size), 1
        super().__post_init__()
        if alone:
            self.num_generations = 1
