"""Settings of the tasks whose prompts are generated."""

from __future__ import annotations

import string
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from disa.config import Seed, StageConfig


class TaskConfig(StageConfig):
    """Sizes of the splits, which share no instance, and the seed."""

    train_prompts: int = Field(512, ge=1)
    """Prompts the policy trains on, each with its own log Z."""
    validation_prompts: int = Field(0, ge=0)
    """Prompts for choosing settings."""
    heldout_prompts: int = Field(128, ge=1)
    """Prompts for reporting only."""
    warmup_prompts: int = Field(1024, ge=0)
    """Prompts of the supervised warm-up's demonstrations."""
    min_solutions: int = Field(1, ge=1)
    """Smallest number of distinct solutions of a prompt."""
    seed: Seed = 0
    """Seed of the instances."""
    prompt_template: str = ""
    """Prompt text; the places are filled in."""

    places: ClassVar[tuple[str, ...]] = ()
    """What the prompt template has to leave room for."""

    @model_validator(mode="after")
    def _complete_template(self) -> TaskConfig:
        if self.places:
            _require_places(self.prompt_template, *self.places)
        return self

    def size(self, split: str) -> int:
        """Number of prompts in a split."""
        return getattr(self, f"{split}_prompts")


class CountdownConfig(TaskConfig):
    """Reach a target with each of some numbers exactly once."""

    places: ClassVar[tuple[str, ...]] = ("{numbers}", "{target}")
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
        return self


class GraphColoringConfig(TaskConfig):
    """Colour a graph's vertices so that no edge joins two of the same colour."""

    places: ClassVar[tuple[str, ...]] = ("{edges}", "{colors}")
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


class Puzzle24Config(TaskConfig):
    """Reach 24 with each of four numbers exactly once."""

    places: ClassVar[tuple[str, ...]] = ("{numbers}",)
    name: Literal["puzzle24"]
    """Selects this task."""
    train_prompts: int = Field(256, ge=1)
    """Prompts the policy trains on; the defaults of all splits fit into the hands that exist."""
    heldout_prompts: int = Field(64, ge=1)
    """Prompts for reporting only."""
    warmup_prompts: int = Field(512, ge=0)
    """Prompts of the supervised warm-up's demonstrations."""
    low: int = Field(1, ge=1)
    """Smallest number."""
    high: int = Field(13, ge=2)
    """Largest number; 13 as in a pack of cards, with 1820 hands, of which 1362 have a solution."""
    prompt_template: str = "{numbers}=24:"
    """Prompt text; ``{numbers}`` (separated by spaces) is filled in."""

    @model_validator(mode="after")
    def _consistent(self) -> Puzzle24Config:
        if self.low >= self.high:
            raise ValueError(f"low {self.low} must be smaller than high {self.high}")
        return self


class NQueensConfig(TaskConfig):
    """Put back the queens removed from a board on which no two attack each other."""

    places: ClassVar[tuple[str, ...]] = ("{board}",)
    name: Literal["n_queens"]
    """Selects this task."""
    warmup_prompts: int = Field(2048, ge=0)
    """Prompts of the supervised warm-up's demonstrations; eight queens have 5148 boards with 5 to 7 removed."""
    queens: int = Field(8, ge=4, le=9)
    """Rows and columns of the board; a digit names a column."""
    min_removed: int = Field(5, ge=1)
    """Fewest queens removed."""
    max_removed: int = Field(7, ge=1)
    """Most queens removed."""
    prompt_template: str = "{board}:"
    """Prompt text; ``{board}`` is filled in: a row's column digit, or ``?`` where its queen was removed."""

    @model_validator(mode="after")
    def _consistent(self) -> NQueensConfig:
        if not self.min_removed <= self.max_removed <= self.queens:
            raise ValueError(
                f"min_removed {self.min_removed} <= max_removed {self.max_removed} <= queens {self.queens} must hold"
            )
        return self


class ShortestPathConfig(TaskConfig):
    """Name a shortest path between two vertices of a small graph."""

    places: ClassVar[tuple[str, ...]] = ("{edges}", "{ends}")
    name: Literal["shortest_path"]
    """Selects this task."""
    vertices: int = Field(10, ge=4, le=12)
    """Vertices of every graph."""
    edge_probability: float = Field(0.3, gt=0, lt=1)
    """Chance of each edge."""
    min_length: int = Field(3, ge=1)
    """Fewest edges of the shortest paths asked for."""
    min_solutions: int = Field(2, ge=1)
    """Smallest number of shortest paths of a prompt: most random pairs of vertices have one."""
    prompt_template: str = "{edges}/{ends}:"
    """Prompt text; ``{edges}`` (such as ``ab bd``) and ``{ends}`` (such as ``ad``) are filled in."""


def _require_places(template: str, *places: str) -> None:
    """Refuse a template that leaves a place out, or in which anything else would be filled in."""
    try:
        found = ["{" + name + "}" for _, name, _, _ in string.Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise ValueError(f"prompt_template: {error}; write a brace of the text twice") from error
    for place in places:
        if place not in found:
            raise ValueError(f"prompt_template has no {place}")
    for place in found:
        if place not in places:
            raise ValueError(f"prompt_template has {place}, which nothing fills in; write a brace of the text twice")
