"""Settings of the tasks."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from disa.config import StageConfig


class TaskConfig(StageConfig):
    """Sizes of the splits, which share no instance, and the seed."""

    train_prompts: int = Field(512, ge=1)
    """Prompts the policy trains on, each with its own log Z."""
    validation_prompts: int = Field(0, ge=0)
    """Prompts for choosing settings."""
    heldout_prompts: int = Field(128, ge=1)
    """Prompts for reporting only."""
    warmup_prompts: int = Field(4096, ge=0)
    """Prompts of the supervised warm-up's demonstrations."""
    min_solutions: int = Field(1, ge=1)
    """Smallest number of distinct solutions of a prompt."""
    seed: int = 0
    """Seed of the instances."""

    def size(self, split: str) -> int:
        """Number of prompts in a split."""
        return getattr(self, f"{split}_prompts")


class CountdownConfig(TaskConfig):
    """Reach a target with each of some numbers exactly once."""

    name: Literal["countdown"]
    """Selects this task."""
    numbers: int = Field(3, ge=3, le=5)
    """How many numbers a prompt gives."""
    low: int = Field(1, ge=1)
    """Smallest number."""
    high: int = Field(12, ge=2)
    """Largest number."""
    max_target: int = Field(50, ge=1)
    """Largest target; the smallest is 1."""
    operators: str = Field("+-*/", pattern=r"^\+(-)?(\*)?(/)?$")
    """Operators allowed, in this order: fewer make an easier task."""
    prompt_template: str = "{numbers}={target}:"
    """Prompt text; ``{numbers}`` (separated by spaces) and ``{target}`` are filled in."""

    @model_validator(mode="after")
    def _consistent(self) -> CountdownConfig:
        if self.low >= self.high:
            raise ValueError(f"low {self.low} must be smaller than high {self.high}")
        for place in ("{numbers}", "{target}"):
            if place not in self.prompt_template:
                raise ValueError(f"prompt_template has no {place}")
        return self


class GraphColoringConfig(TaskConfig):
    """Colour a graph's vertices so that no edge joins two of the same colour."""

    name: Literal["graph_coloring"]
    """Selects this task."""
    vertices: int = Field(6, ge=3, le=8)
    """Vertices of every graph."""
    colors: int = Field(3, ge=2, le=8)
    """Colours allowed, named 1, 2, ..."""
    edge_probability: float = Field(0.5, gt=0, lt=1)
    """Chance of each edge."""
    prompt_template: str = "{edges}/{colors}:"
    """Prompt text; ``{edges}`` (such as ``ab bd``) and ``{colors}`` are filled in."""

    @model_validator(mode="after")
    def _complete_template(self) -> GraphColoringConfig:
        for place in ("{edges}", "{colors}"):
            if place not in self.prompt_template:
                raise ValueError(f"prompt_template has no {place}")
        return self
