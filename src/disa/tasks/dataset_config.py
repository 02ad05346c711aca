"""Settings of the ``dataset`` task: rows of the Hugging Face hub or of local files."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from disa.config import Seed, StageConfig, speed_only
from disa.tasks.benchmarks import BENCHMARKS

Column = Literal[
    "prompt", "answer", "id", "solution", "multiple", "unit", "error", "context", "tests", "setup", "entry_point"
]
Use = Literal["hash", "train", "validation", "heldout", "warmup"]


class SourceConfig(StageConfig):
    """Where some rows come from, what their columns mean, and which split they go to."""

    benchmark: str | None = None
    """Name of a ready-made entry (``disa.tasks.benchmarks``), whose settings the fields below override."""
    hub: str | None = None
    """Hugging Face data set id, such as ``openai/gsm8k``."""
    config: str | None = None
    """Configuration of the data set on the hub."""
    split: str = "train"
    """Split of the data set on the hub; not read for a benchmark or a local file."""
    revision: str | None = None
    """Commit, tag or branch on the hub. Name a commit: a branch can change under the same name."""
    path: str | None = None
    """Local ``.jsonl`` or ``.parquet`` file, instead of the hub or standing in for a benchmark's file."""
    columns: dict[Column, str] = {}
    """Column of the data for each of ours; ``a.0.b`` reaches into lists and structures. By default the same names."""
    answer_after: str | None = None
    """The gold answer is what follows the last occurrence of this text in the answer column, such as ``####``."""
    verifier: str | None = None
    """``maths``, ``code``, ``exact``, or a reward function as ``module:function`` or ``file.py:function``."""
    answer_pattern: str | None = None
    r"""Regular expression whose group holds the answer in a completion; by default the last ``\boxed`` (``maths``), or
    the whole completion (``exact``)."""
    prompt_template: str | None = None
    """Prompt text around ``{prompt}``; ``{tests}`` shows a program's assertions, other braces are left alone. By
    default the benchmark's own; for ``maths`` without ``answer_pattern``, a request for a box; else nothing more."""
    few_shot: str = ""
    """Text in front of every prompt, such as worked examples."""
    drop_incomplete: bool = False
    """Leave out rows that lack a prompt, an answer or tests, and report them, instead of refusing the source."""
    keep: dict[str, tuple[str | float, ...]] = {}
    """Only rows whose columns hold one of these values, such as ``{level: [1, 2, 3]}``; the others are counted."""
    use: Use | None = None
    """Split of the run, or ``hash`` to divide the rows over splits by their text. By default ``hash``, and for a
    benchmark the split it is made for."""

    @model_validator(mode="after")
    def _one_origin(self) -> SourceConfig:
        if self.benchmark is not None:
            if self.benchmark not in BENCHMARKS:
                raise ValueError(f"unknown benchmark {self.benchmark!r}, there are {', '.join(BENCHMARKS)}")
            if self.hub is not None or self.config is not None or self.revision is not None:
                raise ValueError("a benchmark names its own hub, config and revision; leave them out, or the benchmark")
        elif (self.hub is None) == (self.path is None):
            raise ValueError("give benchmark, hub or path")
        elif self.verifier is None:
            raise ValueError("give a verifier: maths, code, exact, or module:function")
        if self.verifier not in (None, "maths", "code", "exact") and ":" not in self.verifier:
            raise ValueError(f"verifier {self.verifier!r} is not maths, code, exact or module:function")
        if self.prompt_template is not None and "{prompt}" not in self.prompt_template:
            raise ValueError("prompt_template has no {prompt}")
        return self


class DatasetConfig(StageConfig):
    """Rows of data sets as prompts, judged by a verifier chosen by name."""

    name: Literal["dataset"]
    """Selects this task."""
    sources: tuple[SourceConfig, ...] = Field(min_length=1)
    """Where the rows come from, in order: of equal rows the first is kept."""
    train_prompts: int | None = Field(None, ge=1)
    """At most so many prompts to train on, chosen by hash; null for all."""
    validation_prompts: int | None = Field(None, ge=0)
    """At most so many prompts for choosing settings; null for all."""
    heldout_prompts: int | None = Field(None, ge=1)
    """At most so many prompts for reporting only; null for all."""
    warmup_prompts: int | None = Field(None, ge=0)
    """At most so many prompts of the supervised warm-up; null for all."""
    validation_share: float = Field(0.0, ge=0, lt=1)
    """Share of the rows of ``hash`` sources that goes to validation."""
    heldout_share: float = Field(0.1, ge=0, lt=1)
    """Share of the rows of ``hash`` sources that is held out."""
    warmup_share: float = Field(0.0, ge=0, lt=1)
    """Share of the rows of ``hash`` sources that goes to the warm-up; the rest is trained on."""
    overlap: Literal["normalised", "exact"] = "normalised"
    """When two problems count as one: equal after unifying case, spacing and punctuation, or letter by letter."""
    reward_range: tuple[float, float] | None = None
    """Range of the custom rewards; by default what the function declares, else 0 to 1."""
    reward_messages: bool = False
    """Hand prompts and completions to custom rewards as lists of messages, as TRL does for chat data."""
    verifier_workers: int = speed_only(2, ge=1)
    """Worker processes of the maths verifier, and programs the code verifier runs at once."""
    seed: Seed = 0
    """Seed of the hash split and of which prompts are kept where there are too many."""

    @model_validator(mode="after")
    def _shares_leave_something(self) -> DatasetConfig:
        total = self.validation_share + self.heldout_share + self.warmup_share
        if total >= 1:
            raise ValueError(f"validation_share, heldout_share and warmup_share add up to {total:g}, nothing is left")
        return self

    def limit(self, split: str) -> int | None:
        """Largest number of prompts of a split, None for all."""
        return getattr(self, f"{split}_prompts")
