"""Settings of the training stage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from disa.config import Compute, Seed, StageConfig, speed_only
from disa.training.methods import METHOD_SPECIFIC_FIELDS, METHODS, MethodName


class LoRAConfig(StageConfig):
    """Low-rank adapters instead of full fine-tuning."""

    rank: int = Field(16, ge=1)
    """Rank of the update."""
    alpha: int = Field(32, ge=1)
    """Scale of the update, relative to the rank."""
    target_modules: str | tuple[str, ...] = "all-linear"
    """Which modules get adapters, as PEFT names them: a list of names, or one text (a pattern)."""


class RolloutConfig(StageConfig):
    """Completions in training drawn by vLLM, as TRL's trainers drive it."""

    mode: Literal["colocate", "server"] = "colocate"
    """In the training processes on the same devices, or a server that ``vllm serve`` started."""
    options: dict[str, Any] = {}
    """Further ``vllm_...`` arguments of ``trl.GRPOConfig``, without that prefix, such as ``gpu_memory_utilization``."""
    parity_bound: float | None = Field(None, gt=0)
    """Largest allowed gap between vLLM's log-probabilities and the trainer's, as ``scoring.parity_bound``; null for
    0.001 nats per token, 0.02 with ``compute: bfloat16``. Checked at the 1st, 2nd, 4th, 8th, ... step."""


class TrainingConfig(StageConfig):
    """How the policies are trained."""

    methods: tuple[MethodName, ...] = ("disa", "grpo")
    """Methods to train, all from the reference, on the same prompts, with the same budget."""
    inverse_temperature: float = Field(4.0, gt=0)
    """beta: the target is the reference times exp(beta * reward). TRL's own ``beta`` is 1/beta."""
    steps: int = Field(200, ge=1)
    """Batches of completions. Each is drawn, or read from the stored ones, once."""
    steps_of: dict[MethodName, Annotated[int, Field(ge=1)]] = {}
    """Batches of single methods, where they are not steps: GRPO, which needs no offline trajectories, may
    get in steps the completions that DISA's anchor was estimated from."""
    steps_per_completion: int = Field(1, ge=1)
    """Optimiser steps that use each batch. There are steps * steps_per_completion of them; methods that draw no
    completions take as many, each with stored trajectories of its own."""
    steps_per_completion_of: dict[MethodName, Annotated[int, Field(ge=1)]] = {}
    """Those of single methods, where they are not steps_per_completion."""
    weight_cap: float = Field(2.0, ge=1)
    """Bound on the importance weight pi / pi_sampler of a completion that is used again. Of methods with a log Z."""
    min_ess: float = Field(0.2, ge=0, lt=1)
    """A batch is used in no further step once the effective share of its completions, (sum w)^2 / (n sum w^2) of their
    weights before the cap, falls below this; its remaining steps are skipped. Of methods with a log Z."""
    replay_share: float = Field(0.0, ge=0, lt=1)
    """Share of earlier batches' completions in a step, on top of its own. Of methods with a log Z."""
    replay_generations: int = Field(4, ge=1)
    """How many earlier batches they are drawn from."""
    prompts_per_step: int = Field(32, ge=1)
    """Distinct prompts per step."""
    prompts: Literal["uniform", "signal"] = "uniform"
    """How DISA's batches get their prompts: every prompt once per epoch, or in proportion to what there is to learn
    from it, by the anchor and then by its own residuals. The target is the same."""
    completions_per_prompt: int = Field(8, ge=1)
    """Completions drawn for each prompt of a step (TRL's num_generations). 1 for methods that need no groups; A*-PO
    always draws one completion each for more prompts."""
    micro_batch: int | None = Field(None, ge=1)
    """Completions of one forward and backward pass; null for a whole step at once. A divisor of
    prompts_per_step * completions_per_prompt."""
    learning_rate: float = Field(1e-3, gt=0)
    """Peak learning rate (AdamW). With ``models`` given 1e-6, with adapters 2e-5."""
    learning_rates: dict[MethodName, Annotated[float, Field(gt=0)]] = {}
    """Peak learning rates of single methods, where they are not learning_rate."""
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    """Learning-rate schedule after warm-up."""
    warmup_steps: int = Field(10, ge=0)
    """Optimiser steps of linear learning-rate warm-up."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradient clipping."""
    optim: str | None = None
    """Optimiser, by the name that transformers has for it, such as ``adamw_8bit`` or ``paged_adamw_8bit`` (both need
    bitsandbytes), whose states take a quarter of AdamW's; null for AdamW."""
    baseline: Literal["anchored", "none"] = "anchored"
    """Leave-one-out baseline shrunk towards the frozen log Z, or none."""
    baseline_prior_strength: float = Field(1.0, ge=0)
    """n0 of the anchored baseline, in completions."""
    length_scale: float = Field(1.0, gt=0)
    """Tokens by which the loss is divided, the same number for every completion, so that the target stays: gradients of
    log-probabilities of long completions are sums of many terms, which ``max_grad_norm`` would cut."""
    residual_clip: float | None = Field(None, gt=0)
    """Bound in nats on a residual, on either side; null for none. What lies beyond pulls as hard as the bound: the
    target stays a fixed point, and the way to it is biased."""
    offline_share: float = Field(0.0, ge=0, lt=1)
    """Share of the forward projection in DISA's objective: importance-weighted likelihood of the anchor's own
    trajectories. 0 is on-policy trajectory balance alone."""
    offline_weight_cap: float = Field(8.0, gt=0)
    """Bound on a trajectory's weight in the forward projection."""
    offline_weight_tail: Literal["cap", "pareto"] = "cap"
    """How large weights are tamed before the bound: not at all, or by Pareto smoothing."""
    flagged: Literal["train", "group", "skip", "refuse"] = "train"
    """Prompts whose log Z is flagged: train on them all the same, take their log Z from the group, skip them, or
    refuse to train. ``proposals.resample`` draws more for them before log Z is frozen."""
    log_z_learning_rate: float = Field(1e-3, gt=0)
    """Peak learning rate of FlowRL's log Z head."""
    gflowrl_clip: Literal["none", "gap", "ratio"] = "none"
    """What GFlowRL's thresholds of .2 and .28 bound: nothing, the residual at sampling time, or pi / pi_sampler."""
    value_samples: int = Field(8, ge=1)
    """Reference trajectories that A*-PO takes a prompt's value from."""
    lora: LoRAConfig | None = None
    """Adapters of every method; null for full fine-tuning, except of lora_sft, which takes the defaults."""
    vllm: RolloutConfig | None = None
    """Draw the completions with vLLM; null draws them with transformers."""
    compute: Compute = "checkpoint"
    """Arithmetic of the passes: that of the reference's checkpoint, or a stated one. In bfloat16, frozen weights of a
    bfloat16 checkpoint are held in it; trained weights are float32."""
    seed: Seed = 0
    """Seed of prompt order and sampling."""
    save_every: int = speed_only(50, ge=1)
    """Steps between checkpoints: what a kill can cost."""
    log_every: int = speed_only(1, ge=1)
    """Steps between lines of the step log."""
    report_to: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = speed_only(())
    """Where each line of the step log goes besides; the packages of these names must be installed."""
    log_completions: bool = speed_only(False)
    """Print completions at every line of the step log and keep all in
    ``6_training/METHOD/checkpoints/completions``, with residual and log Z of methods with a log Z."""

    @model_validator(mode="after")
    def _whole_micro_batches(self) -> TrainingConfig:
        if self.micro_batch is not None and self.completions_per_step % self.micro_batch:
            raise ValueError(
                f"micro_batch {self.micro_batch} does not divide prompts_per_step * completions_per_prompt = "
                f"{self.completions_per_step}"
            )
        return self

    @model_validator(mode="after")
    def _warmup_within_steps(self) -> TrainingConfig:
        # The default is cut to a shorter run (disa.training.run); a number that was given is meant.
        for method in self.methods if "warmup_steps" in self.model_fields_set else ():
            if self.warmup_steps > (steps := self.optimizer_steps(method)):
                raise ValueError(
                    f"warmup_steps {self.warmup_steps} is more than {method}'s {steps} steps, so "
                    "the learning rate would never reach its peak"
                )
        return self

    @model_validator(mode="after")
    def _groups_where_needed(self) -> TrainingConfig:
        needing = [method for method in self.methods if not METHODS[method].allows_group_of_one]
        if self.completions_per_prompt == 1 and needing:
            raise ValueError(f"completions_per_prompt 1 leaves {', '.join(needing)} without groups to learn from")
        return self

    def check_prompts(self, methods: Sequence[str], prompts: int) -> None:
        """Refuse steps of more distinct prompts than there are, of methods that draw and do not repeat prompts."""
        for method in methods:
            needs_distinct = METHODS[method].generates and not METHODS[method].repeats_prompts
            if needs_distinct and self.prompts_per_step > prompts:
                asked = f"training.prompts_per_step is {self.prompts_per_step}"
                raise ValueError(
                    f"{asked}, but {method} has {prompts} training prompts: lower it, or give more prompts"
                )

    @property
    def completions_per_step(self) -> int:
        """Completions an optimiser step sees."""
        return self.prompts_per_step * self.completions_per_prompt

    def method_steps(self, method: str) -> int:
        """Batches of one method."""
        return self.steps_of.get(method, self.steps)

    def method_uses(self, method: str) -> int:
        """Optimiser steps of one method that use each batch."""
        return self.steps_per_completion_of.get(method, self.steps_per_completion)

    def optimizer_steps(self, method: str) -> int:
        """Optimiser steps of one method."""
        return self.method_steps(method) * self.method_uses(method)

    def method_learning_rate(self, method: str) -> float:
        """Peak learning rate of one method."""
        return self.learning_rates.get(method, self.learning_rate)

    def method_lora(self, method: str) -> LoRAConfig | None:
        """Adapters of one method."""
        return self.lora or (LoRAConfig() if METHODS[method].adapters else None)

    def learns_from_stored(self, method: str) -> bool:
        """Whether the steps of one method learn from stored trajectories."""
        return METHODS[method].reads == "all" or (method == "disa" and self.offline_share > 0)

    def reads_trajectories(self, method: str) -> bool:
        """Whether one method reads the stored trajectories, to learn from or for a prompt's value."""
        return METHODS[method].reads == "values" or self.learns_from_stored(method)

    def method_identity(self, method: str) -> dict[str, Any]:
        """What one method's result depends on: the list of methods and the others' settings do not."""
        resolved = ("methods", "steps", "steps_of", "steps_per_completion_of", "learning_rate", "learning_rates")
        foreign = {*resolved} | METHOD_SPECIFIC_FIELDS - set(METHODS[method].settings)
        foreign |= set() if METHODS[method].generates else {"vllm"}
        own = {name: value for name, value in self.identity().items() if name not in foreign}
        lora = self.method_lora(method)
        return own | {
            "method": method,
            "steps": self.method_steps(method),
            "steps_per_completion": self.method_uses(method),
            "learning_rate": self.method_learning_rate(method),
            "lora": lora and lora.identity(),
        }
