"""Arguments of :func:`disa.calibrate`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class CalibrationConfig:
    """How log Z is calibrated. Names are TRL's where TRL has the setting; a change draws or estimates anew.

    ``temperature``, ``max_completion_length`` and ``chat_template_kwargs`` are the sampling law. A
    :class:`disa.DISAConfig` takes them from the anchor.
    """

    output_dir: str = field(metadata={"help": "Folder of the anchor, its trajectories and estimates."})
    inverse_temperature: float = field(
        default=4.0, metadata={"help": "beta: the target is the reference times exp(beta * reward)."}
    )
    num_generations: int = field(default=32, metadata={"help": "Trajectories per training prompt."})
    num_generations_eval: int = field(default=32, metadata={"help": "Trajectories per evaluation prompt."})
    reference_share: float | None = field(
        default=None,
        metadata={"help": "Share of them drawn from the reference; None: .25 with a proposal, 1 without."},
    )
    temperature: float = field(default=1.0, metadata={"help": "Divides the logits, in drawing and scoring."})
    max_completion_length: int = field(
        default=256, metadata={"help": "Tokens per completion; one cut there is an outcome of its own."}
    )
    chat_template_kwargs: dict[str, Any] | None = field(
        default=None, metadata={"help": "Further arguments of the chat template, such as enable_thinking."}
    )
    max_tool_calling_iterations: int | None = field(
        default=None, metadata={"help": "Rounds of tool calls per completion; None: as many as fit."}
    )
    reward_weights: list[float] | None = field(
        default=None, metadata={"help": "Weight of each reward function; a function of weight 0 does not count."}
    )
    reward_range: list[float] = field(
        default_factory=lambda: [0.0, 1.0], metadata={"help": "Smallest and largest weighted sum of rewards."}
    )
    key_columns: list[str] | None = field(
        default=None, metadata={"help": "Columns that, with the prompt, tell prompts apart; None: all."}
    )
    adaptive: dict[str, Any] | None = field(
        default=None, metadata={"help": "Spend the trajectories unevenly: as proposals.adaptive of a recipe."}
    )
    partition: dict[str, Any] | None = field(
        default=None, metadata={"help": "Estimator, interval, regressor: as the partition section of a recipe."}
    )
    compute: str = field(
        default="checkpoint",
        metadata={"help": "Precision of the models: checkpoint (their own), float32 or bfloat16."},
    )
    use_vllm: bool = field(default=False, metadata={"help": "Draw with vLLM; models must then be names or folders."})
    vllm: dict[str, Any] = field(default_factory=dict, metadata={"help": "Further arguments of vllm.LLM."})
    batch_size: int = field(
        default=256, metadata={"help": "Completions drawn at once. With tools another number draws other ones."}
    )
    seed: int = field(default=0, metadata={"help": "Seed of the draws."})
