"""Settings of the proposals stage."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from disa.config import Compute, Seed, StageConfig, speed_only
from disa.errors import DisaError
from disa.lm.openai_client import Endpoint

DrawPlan = Mapping[str, Mapping[str, range]]
"""Prompt id and source to the numbers of the draws to make."""


class AdaptiveConfig(StageConfig):
    """A pilot for every training prompt, then the rest of the budget where log Z is least certain."""

    pilot: int = Field(16, ge=1)
    """Trajectories of every training prompt before the first allocation."""
    cap: int = Field(512, ge=1)
    """Most trajectories of a prompt."""
    precision: float = Field(0.1, gt=0)
    """Relative error of Z at which a prompt gets no more: hits_ess of 1 / precision^2."""
    rounds: int = Field(3, ge=1)
    """Allocations after the pilot, each from everything drawn so far; each spends an equal part of what is left."""


class ResampleConfig(StageConfig):
    """More trajectories for those training prompts whose log Z is flagged for want of draws."""

    rounds: int = Field(2, ge=1)
    """Rounds of drawing; in each, such a prompt gets as many trajectories as it has already."""


class BlendConfig(StageConfig):
    """Proposals near the reference, token by token (:mod:`disa.lm.blend`); several are drawn from evenly."""

    lambdas: tuple[float, ...] = Field((0.3, 0.5), min_length=1)
    """``bridge``: weights of the proposal's logits, each between 0, the reference, and 1, the proposal itself.
    ``hinted``: of the logits of the reference that was told a solution."""
    temperatures: tuple[float, ...] = Field((1.5,), min_length=1)
    """``tempered``: factors on ``sampling.temperature`` by which the reference is drawn from."""
    hint: str = "{prompt}\n\nHere is a correct solution:\n{solution}\n\nGive a solution of your own, without comment."
    """``hinted``: the prompt by which the reference is told ``{solution}``, a worked solution of the task's."""

    @model_validator(mode="after")
    def _in_range(self) -> BlendConfig:
        if bad := [value for value in self.lambdas if not 0 <= value <= 1]:
            raise ValueError(f"lambdas hold {bad[0]}, allowed are numbers from 0 to 1")
        if bad := [value for value in self.temperatures if not value > 0]:
            raise ValueError(f"temperatures hold {bad[0]}, allowed are numbers above 0")
        if missing := [place for place in ("{prompt}", "{solution}") if place not in self.hint]:
            raise ValueError(f"hint has no {missing[0]}")
        return self


class PilotConfig(StageConfig):
    """What ``source: auto`` chooses by."""

    prompts: int = Field(16, ge=2)
    """Training prompts."""
    draws: int = Field(8, ge=1)
    """Completions of each, from the reference and from every source."""


class OpenAIConfig(StageConfig):
    """Servers of the OpenAI protocol that draw; a source without one is drawn on this machine."""

    proposal: str | None = None
    """Server of the proposal, ``openai:http://HOST:PORT/v1#MODEL``."""
    reference: str | None = None
    """Server of the reference."""
    prompts: Literal["tokens", "text"] = "tokens"
    """Send a prompt as token ids, or as text where a server takes nothing else."""
    concurrency: int = speed_only(8, ge=1)
    """Requests under way at once."""
    timeout: float = speed_only(600.0, gt=0)
    """Seconds one request may take; failed ones are tried again."""

    @field_validator("proposal", "reference")
    @classmethod
    def _an_endpoint(cls, value: str | None) -> str | None:
        try:
            if value is not None:
                Endpoint.parse(value)
        except DisaError as error:
            raise ValueError(error.problem) from error
        return value


class ProposalsConfig(StageConfig):
    """How many trajectories are drawn, and from where."""

    per_prompt: int = Field(64, ge=1)
    """Trajectories of each training prompt."""
    per_heldout_prompt: int = Field(64, ge=0)
    """Trajectories of each held-out or validation prompt: their log Z is for evaluation only."""
    reference_share: float = Field(0.25, ge=0.0, le=1.0)
    """alpha, the share drawn from the reference: it bounds every importance weight by 1/alpha."""
    source: Literal["proposal", "bridge", "hinted", "tempered", "auto"] = "proposal"
    """What the proposal's trajectories are drawn from: the proposal model; a bridge from the reference to it; the
    reference that was told a solution; the reference at other temperatures; or what a pilot finds best for its cost,
    which may be the reference alone."""
    pilot: PilotConfig = PilotConfig()
    """Size of the pilot of ``source: auto``."""
    blend: BlendConfig = BlendConfig()
    """How near to the reference, where ``source`` is not ``proposal``."""
    adaptive: AdaptiveConfig | None = None
    """Spend per_prompt trajectories a training prompt on average, unevenly; null gives every prompt the same."""
    resample: ResampleConfig | None = None
    """Draw again for training prompts whose log Z is flagged for want of draws (``few_hits``, ``wide_interval``,
    ``missing_mass``); null leaves them as they are."""
    engine: Literal["transformers", "vllm", "openai", "import"] = "transformers"
    """What draws: the models on this machine, by transformers or by vLLM; servers of the OpenAI protocol; or nothing
    at all, where the proposal's trajectories are in files already."""
    vllm: dict[str, Any] = {}
    """``engine: vllm``: further arguments of ``vllm.LLM``, such as ``tensor_parallel_size``."""
    openai: OpenAIConfig | None = None
    """``engine: openai``: the servers."""
    files: tuple[str, ...] = ()
    """``engine: import``: JSONL or Parquet files with the proposal's trajectories. All of them are taken; the
    reference's share of ``per_prompt`` is drawn in addition."""
    compute: Compute = "checkpoint"
    """Precision in which each model is held and samples: its checkpoint's, or a stated one."""
    seed: Seed = 0
    """Seed; with prompt id, source and draw index it determines a trajectory's random numbers."""
    batch_size: int = speed_only(256, ge=1)
    """Completions drawn at once."""
    prompts_per_part: int = speed_only(64, ge=1)
    """Prompts whose trajectories are written together: what a kill can cost."""

    @model_validator(mode="after")
    def _room_for_the_pilot(self) -> ProposalsConfig:
        if self.adaptive and self.adaptive.pilot > min(self.per_prompt, self.adaptive.cap):
            raise ValueError(
                f"adaptive.pilot {self.adaptive.pilot} exceeds per_prompt {self.per_prompt} "
                f"or adaptive.cap {self.adaptive.cap}"
            )
        return self

    @model_validator(mode="after")
    def _settings_of_the_engine(self) -> ProposalsConfig:
        given = {"vllm": self.vllm, "openai": self.openai, "import": self.files}
        for engine, settings in given.items():
            if settings and engine != self.engine:
                name = "files" if engine == "import" else engine
                raise ValueError(f"{name} is for engine: {engine}, the engine is {self.engine}")
        if self.source != "proposal" and self.engine != "transformers":
            raise ValueError(f"source: {self.source} needs engine: transformers, which knows every logit")
        if self.engine == "openai" and not (self.openai and (self.openai.proposal or self.openai.reference)):
            raise ValueError("engine: openai needs openai.proposal or openai.reference")
        if self.engine == "import" and not self.files:
            raise ValueError("engine: import needs files")
        if self.engine == "import" and self.rounds:
            raise ValueError("adaptive and resample need an engine that draws, files hold what they hold")
        return self

    @model_validator(mode="after")
    def _one_kind_of_rounds(self) -> ProposalsConfig:
        if self.adaptive and self.resample:
            raise ValueError("adaptive and resample exclude each other, set one of them to null")
        return self

    @property
    def rounds(self) -> int:
        """Rounds of drawing after the first, each from the rewards of those before it."""
        return max((kind.rounds for kind in (self.adaptive, self.resample) if kind), default=0)

    @property
    def drawn_elsewhere(self) -> bool:
        """Whether the proposal need not be on this machine: a server or a file speaks for it."""
        return self.engine == "import" or bool(self.openai and self.openai.proposal)

    def identity(self) -> dict[str, Any]:
        """Without ``resample``, which leaves the first draws as they are: its rounds have an identity of their own."""
        return {name: value for name, value in super().identity().items() if name != "resample"}

    def counts(self, split: str) -> dict[str, int]:
        """Draws per source for a prompt of this split; the pilot's where the budget is adaptive."""
        first = self.adaptive.pilot if self.adaptive else self.per_prompt
        total = first if split == "train" else self.per_heldout_prompt
        reference = round(self.reference_share * total)
        return {"reference": reference, "proposal": total - reference}
