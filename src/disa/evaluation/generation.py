"""How evaluated completions are drawn: settings that belong to the number they lead to."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from disa.config import Compute, Seed, StageConfig, speed_only
from disa.evaluation.config import EvaluationConfig
from disa.lm.sampling_config import SamplingConfig


class GenerationSettings(StageConfig):
    """Everything, besides model and prompt, that the distribution of a completion depends on.

    Unlike ``sampling`` of a recipe it allows top-p and greedy decoding: nothing is estimated from these draws
    but the success of the procedure that drew them.
    """

    samples: int = Field(8, ge=1)
    """Completions of each problem."""
    temperature: float = Field(1.0, ge=0)
    """Divides the logits; 0 is greedy decoding."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Draw from the smallest set of most likely tokens with at least this probability."""
    max_tokens: int = Field(1024, ge=1)
    """Length limit in tokens."""
    seed: Seed = 0
    """Seed of the draws, and of the choice of problems where there is a limit."""
    prompt_format: Literal["auto", "chat", "text"] = "auto"
    """``chat`` sends one user message, ``text`` the bare prompt; ``auto`` is ``chat`` where the tokenizer has a
    chat template, and at endpoints."""
    system_prompt: str | None = None
    """System message in front of the user message."""
    request: dict[str, Any] = {}
    """Further fields of every request to an endpoint, such as ``reasoning_effort``; null leaves a field out."""
    compute: Compute = "checkpoint"
    """Precision in which a local model is held and computes: its checkpoint's, or a stated one."""
    batch_size: int = speed_only(64, ge=1)
    """Completions drawn at once by local models, at most those of a part."""
    problems_per_part: int = speed_only(16, ge=1)
    """Problems written together: what a kill can cost."""

    @classmethod
    def of_run(cls, evaluation: EvaluationConfig, sampling: SamplingConfig) -> GenerationSettings:
        """The settings that a recipe's evaluation stage draws with."""
        return cls(
            samples=evaluation.samples_per_prompt,
            temperature=sampling.temperature,
            max_tokens=sampling.max_completion_length,
            seed=evaluation.seed,
            prompt_format="chat" if sampling.conversational else "text",
            system_prompt=sampling.system_prompt,
            compute=evaluation.compute,
            batch_size=evaluation.batch_size,
            problems_per_part=evaluation.prompts_per_part,
        )

    @model_validator(mode="after")
    def _consistent(self) -> GenerationSettings:
        if self.temperature == 0 and self.samples > 1:
            raise ValueError(f"temperature 0 draws the same completion {self.samples} times; allowed: samples 1")
        if self.system_prompt is not None and self.prompt_format == "text":
            raise ValueError("system_prompt needs a chat: prompt_format chat or auto")
        return self
