"""Arguments of the trainers with a log Z: TRL's GRPO arguments, less what a log Z cannot live with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from trl import GRPOConfig

from disa.errors import DisaError
from disa.objectives.trajectory_balance import Length
from disa.runs import processes
from disa.training.flags import POLICIES, FlagPolicy

_SUPPORT = "it removes support from the policy's samples"

# Settings under which no log Z means what the residual takes it for: the only value, and the reason.
_REFUSED: dict[str, tuple[Any, str]] = {
    "top_p": (1.0, _SUPPORT),
    "top_k": (0, _SUPPORT),
    "min_p": (None, _SUPPORT),
    "repetition_penalty": (1.0, "sampling then differs from the log-probabilities in the loss"),
    "generation_kwargs": (None, "it changes how completions are drawn, but not the log-probabilities in the loss"),
    "sync_ref_model": (False, "the reference is frozen: log Z belongs to it"),
    "mask_truncated_completions": (False, "a truncated completion is an atom of its own, not a missing one"),
    "use_liger_kernel": (False, "its fused loss does not know trajectory balance"),
    "disable_dropout": (True, "log pi would not be that of the policy that sampled"),
    "neftune_noise_alpha": (None, "log pi would not be that of the policy that sampled"),
    "vllm_importance_sampling_correction": (False, "it costs a pass that the residual never reads"),
    "torch_compile": (False, "every step packs its completions into other shapes, each to be compiled anew"),
}

# Settings of GRPO's loss and advantages. Trajectory balance has neither, so another value would change nothing.
_UNREAD = tuple(
    "loss_type epsilon epsilon_high delta importance_sampling_level scale_rewards multi_objective_aggregation "
    "entropy_coef use_adaptive_entropy entropy_coef_min entropy_coef_max entropy_coef_delta entropy_target "
    "top_entropy_quantile off_policy_mask_threshold use_bias_correction_kl router_aux_loss_coef sapo_temperature_neg "
    "sapo_temperature_pos vespo_k_pos vespo_lambda_pos vespo_k_neg vespo_lambda_neg".split()
)


def _option(default: Any, meaning: str) -> Any:
    return field(default=default, metadata={"help": meaning})


@dataclass
class DISAConfig(GRPOConfig):
    """Configuration of :class:`disa.DISATrainer` and of every trainer with a log Z.

    Everything of :class:`trl.GRPOConfig` applies, except what would change the meaning of the residual and what only
    GRPO's own loss reads, which is refused. ``num_generations`` may be 1 where the method allows groups of one.
    ``baseline``, ``baseline_prior_strength``, ``length_scale``, ``residual_clip``, ``offline_share`` and ``flagged``
    are those of a frozen log Z.
    """

    inverse_temperature: float | None = _option(
        None, "beta: the target is the reference times exp(beta * reward). None: the anchor's."
    )
    temperature: float | None = _option(None, "Divides the logits. None: the anchor's, 1 without one.")
    max_completion_length: int | None = _option(
        None, "Tokens per completion. None: the anchor's, TRL's default without one."
    )
    offline_weight_cap: float = _option(
        8.0, "Bound on the target's density ratio of an offline trajectory that the anchor holds."
    )
    length: Length = _option(
        "sum", "'sum': log-ratios of whole completions; 'mean': per token, which has another target."
    )
    baseline: str = _option(
        "anchored", "'anchored': leave-one-out mean of the residuals shrunk towards zero; 'none': none."
    )
    baseline_prior_strength: float = _option(
        1.0, "n0 of the anchored baseline: completions' worth of trust in the frozen log Z."
    )
    length_scale: float = _option(
        1.0, "Tokens by which the loss is divided, the same for every completion: the target stays."
    )
    residual_clip: float | None = _option(
        None,
        "Bound in nats on a residual, on either side; None for none. The target stays a fixed point, the "
        "gradient is biased where the bound binds.",
    )
    offline_share: float = _option(
        0.0, "Share in [0, 1) of the forward projection on offline trajectories in the objective."
    )
    flagged: FlagPolicy = _option(
        "train",
        "Prompts whose log Z is flagged: 'train' on them all the same, take their log Z from the 'group', "
        "'skip' them, or 'refuse' to train.",
    )
    prompts: str = _option(
        "uniform", "'uniform': every prompt once per epoch; 'signal': in proportion to the spread of its residuals."
    )
    weight_cap: float = _option(
        2.0, "Bound on the importance weight pi / pi_sampler of a completion that is used again."
    )
    min_ess: float = _option(
        0.2,
        "A generation is used in no further step once the effective share of its completions, "
        "(sum w)^2 / (n sum w^2) of their weights before the cap, falls below this.",
    )
    replay_share: float = _option(
        0.0, "Share in [0, 1) of earlier generations' completions in a step, on top of its own."
    )
    replay_generations: int = _option(4, "How many earlier generations they are drawn from.")
    beta: float = _option(0.0, "TRL's KL coefficient. Set from inverse_temperature as its reciprocal; leave it alone.")
    vllm_importance_sampling_correction: bool = _option(
        False, "TRL's correction of vLLM's rounding; it costs a pass that the residual never reads."
    )
    disable_dropout: bool = _option(True, "Dropout off everywhere: log pi is that of the policy that samples.")

    def __post_init__(self) -> None:
        """Derive TRL's beta and refuse what a log Z cannot live with."""
        if not torch.accelerator.is_available():
            # TRL asks for bfloat16 by default, which fails on a CPU unless it is said to be meant.
            self.use_cpu = True
            self.bf16: bool = bool(self.bf16)
        if self.greater_is_better is None and str(self.metric_for_best_model).endswith("kl_to_target"):
            self.greater_is_better: bool | None = False
        self._check_own_fields()
        self._derive_beta()
        self._accept_groups_of_one()
        for name, (neutral, reason) in _REFUSED.items():
            if getattr(self, name) != neutral:
                raise _error(f"{name}={getattr(self, name)} is refused: {reason}", f"use {name}={neutral}")
        for name in _UNREAD:
            default = GRPOConfig.__dataclass_fields__[name].default
            if getattr(self, name) != default:
                raise _error(
                    f"{name}={getattr(self, name)} would change nothing: trajectory balance does not read this setting "
                    f"of GRPO's loss, expected its default {default}",
                    f"leave {name} out",
                )

    def _check_own_fields(self) -> None:
        choices = {
            "prompts": ("uniform", "signal"),
            "baseline": ("anchored", "none"),
            "flagged": POLICIES,
            "length": ("sum", "mean"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise _error(f"{name}={getattr(self, name)!r}, expected {' or '.join(map(repr, allowed))}")
        if not self.baseline_prior_strength >= 0.0:
            raise _error(f"baseline_prior_strength={self.baseline_prior_strength}, expected a number of at least 0")
        for name in ("offline_share", "replay_share", "min_ess"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise _error(f"{name}={getattr(self, name)}, expected a number in [0, 1)")
        if not self.weight_cap >= 1.0:
            raise _error(f"weight_cap={self.weight_cap}, expected a number of at least 1, a fresh completion's weight")
        if self.replay_generations < 1:
            raise _error(f"replay_generations={self.replay_generations}, expected at least 1")
        for name in ("length_scale", "residual_clip"):
            if (value := getattr(self, name)) is not None and not value > 0.0:
                raise _error(f"{name}={value}, expected a number above 0")
        for name in ("num_generations", "num_generations_eval"):
            if self.flagged != "group" or getattr(self, name) != 1:
                continue
            raise _error(
                f"flagged='group' needs groups, but {name} is 1",
                f"use {name} of 2 or more, or flagged='skip'",
            )

    @property
    def reuses(self) -> bool:
        """Whether a completion may be in the loss of more optimiser steps than the one it was drawn in."""
        per_generation = self.num_iterations * self.steps_per_generation
        return self.replay_share > 0 or self.gradient_accumulation_steps % per_generation > 0

    def complete(
        self,
        *,
        inverse_temperature: float | None = None,
        temperature: float = 1.0,
        max_completion_length: int = GRPOConfig.__dataclass_fields__["max_completion_length"].default,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        """Fill what was left unset: from an anchor, or by default.

        Raises
        ------
        DisaError
            Where no inverse temperature is known.
        """
        given = locals()
        for name in ("inverse_temperature", "temperature", "max_completion_length", "chat_template_kwargs"):
            if getattr(self, name) is None:
                setattr(self, name, given[name])
        self._derive_beta(needed=True)

    def _derive_beta(self, *, needed: bool = False) -> None:
        if self.inverse_temperature is None and not needed:
            return
        if self.inverse_temperature is None or not self.inverse_temperature > 0:
            raise _error(
                f"inverse_temperature is {self.inverse_temperature}, expected a number above 0",
                "set it to the anchor's, anchor.fingerprint.inverse_temperature",
            )
        reciprocal = 1.0 / self.inverse_temperature
        if self.beta not in (0.0, reciprocal):
            raise _error(
                f"beta={self.beta} conflicts with inverse_temperature={self.inverse_temperature}: "
                f"TRL's beta is its reciprocal, {reciprocal:.6g}",
                "leave beta out; set inverse_temperature only",
            )
        self.beta = reciprocal

    def _accept_groups_of_one(self) -> None:
        """Run GRPO's checks; they refuse groups of one, for the sake of advantages that these losses never read."""
        if self.num_generations != 1:
            super().__post_init__()
            return
        # Any number of two or more that divides the batch: the batch itself does, and one of one is checked as two.
        steps = self.steps_per_generation or self.gradient_accumulation_steps
        batch = self.per_device_train_batch_size * steps * processes.count()
        if batch == 1:
            self.steps_per_generation: int | None = 2
        self.num_generations: int = max(2, batch)
        self.num_generations_eval = 1
        super().__post_init__()
        self.num_generations = 1
        if batch == 1:
            self.steps_per_generation = self.generation_batch_size = 1


def _error(problem: str, fix: str = "") -> DisaError:
    return DisaError(problem, where="DISAConfig", fix=fix)
