"""Settings of a study."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, StringConstraints, model_validator

from disa.config import StageConfig
from disa.errors import DisaError
from disa.recipe import Recipe, read_section
from disa.training.methods import METHODS, MethodName

StrengthName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9_-]+$")]
"""Also the name of a folder."""
Beta = Annotated[float, Field(gt=0)]
Size = Annotated[int, Field(ge=1)]


class StrengthConfig(StageConfig):
    """One proposal: the reference, trained further on demonstrations as the warm-up section says."""

    steps: int = Field(0, ge=0)
    """Optimiser steps; 0 is the reference itself, from which all trajectories then come."""
    noise: float = Field(0.0, ge=0.0, lt=1.0)
    """Share of demonstrations that are well-formed but, almost always, wrong."""
    prompts: int | None = Field(None, ge=1)
    """Warm-up prompts whose demonstrations it sees, the first so many; null for all. Many steps on few prompts make it
    drift: it grows sure of what it remembers, elsewhere as well."""


class PolicyCells(StageConfig):
    """A block of cells that policies are trained in: every combination of the three lists."""

    strengths: tuple[StrengthName, ...]
    """Names from ``study.strengths``."""
    inverse_temperatures: tuple[Beta, ...]
    """Values from ``study.inverse_temperatures``."""
    trajectories: tuple[Size, ...]
    """Values from ``study.trajectories``."""


class StudyConfig(StageConfig):
    """The cells, how their errors are measured, and in which of them policies are trained."""

    strengths: dict[StrengthName, StrengthConfig]
    """Proposals by name, the weakest first."""
    inverse_temperatures: tuple[Beta, ...]
    """beta of the cells; the trajectories are the same for all."""
    trajectories: tuple[Size, ...]
    """N of the cells: trajectories per prompt."""
    pool: int = Field(512, ge=2)
    """Trajectories of each held-out prompt and strength, drawn once; disjoint blocks of N are a cell's replicates."""
    truth: int = Field(4096, ge=1)
    """Reference draws of each held-out prompt, apart from the pool, behind the log Z that errors are taken from."""
    policies: tuple[PolicyCells, ...] = ()
    """Cells whose anchors policies are trained with."""
    seeds: int = Field(2, ge=1)
    """Policies a cell and method: each has its own training seed and its own block of trajectories."""
    methods: tuple[MethodName, ...] = ("disa",)
    """Methods of the policies; each must read the anchor."""

    @model_validator(mode="after")
    def _consistent(self) -> StudyConfig:
        axes = ("strengths", "inverse_temperatures", "trajectories")
        if empty := [name for name in (*axes, "methods") if not getattr(self, name)]:
            raise ValueError(f"{empty[0]} is empty, expected at least one")
        if 2 * max(self.trajectories) > self.pool:
            raise ValueError(
                f"pool {self.pool} must hold two blocks of the largest trajectories, {max(self.trajectories)}: "
                "a variance needs two replicates"
            )
        largest = max((n for block in self.policies for n in block.trajectories), default=0)
        if self.seeds * largest > self.pool:
            raise ValueError(f"pool {self.pool} must hold a block of {largest} for each of {self.seeds} seeds")
        for name in axes:
            for block in self.policies:
                if strange := [value for value in getattr(block, name) if value not in getattr(self, name)]:
                    raise ValueError(f"policies name {strange[0]!r}, which is not among the study's {name}")
        if foreign := [method for method in self.methods if not METHODS[method].anchor]:
            raise ValueError(f"method {foreign[0]} reads no anchor: no cell's log Z would reach it")
        return self


def read_study(recipe: Recipe, where: str = "recipe") -> StudyConfig:
    """The study section of a recipe.

    Raises DisaError naming the field: where there is no such section, an unknown key, or a value out of range.
    """
    if recipe.study is None:
        raise DisaError("the recipe has no study section", where=where, fix="recipes/study.yaml has one")
    return read_section(StudyConfig, recipe.study, where, "study")
