"""Settings of ``disa compare``."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from disa.config import Seed, StageConfig
from disa.errors import DisaError
from disa.recipe import Recipe, first_problem, read_section
from disa.training.config import TrainingConfig
from disa.training.methods import METHOD_SPECIFIC_FIELDS, METHODS, MethodName

Point = dict[str, Any]
"""Settings of training that one candidate of the search differs by."""

SEARCHED = frozenset(
    "learning_rate schedule warmup_steps max_grad_norm baseline baseline_prior_strength length_scale residual_clip "
    "flagged offline_share offline_weight_cap offline_weight_tail log_z_learning_rate prompts steps_per_completion "
    "weight_cap min_ess replay_share replay_generations".split()
)
"""Settings that a search may choose: none that changes the target or the budget."""


class SearchConfig(StageConfig):
    """How every method gets its settings: from equally many candidates, on the validation split."""

    points: tuple[Point, ...] = Field(
        ({"learning_rate": 1e-4}, {"learning_rate": 3e-4}, {"learning_rate": 1e-3}), min_length=1
    )
    """Candidates of every method; a single one is taken without a search."""
    points_of: dict[MethodName, tuple[Point, ...]] = {}
    """Candidates of single methods, as many as points."""
    steps: int | None = Field(None, ge=1)
    """Optimiser steps of a candidate; null for training.steps."""
    seed: Seed = 1000
    """Training seed of the candidates; none of the seeds compared, so that its luck does not come back in them."""
    criterion: Literal["mean", "pass", "kl_to_target"] = "mean"
    """What chooses, for all methods alike: highest Mean@k or pass@k at the largest k, or lowest KL to the target."""


class ComparisonConfig(StageConfig):
    """Which methods are compared, with which seeds and budget."""

    methods: tuple[MethodName, ...] = (
        "lora_sft",
        "sft",
        "grpo",
        "gspo",
        "flowrl",
        "flowrl_published",
        "gflowrl_published",
        "vargrad",
        "a2po",
        "disa",
        "disa_forward",
        "disa_both",
    )
    """Methods, in the order of the table. Left out by default are two that give the same policy as another:
    ``gflowrl`` as ``vargrad``, and, with rewards of 0 and 1, ``sft_reward`` as ``sft``."""
    seeds: tuple[int, ...] = Field((0, 1, 2, 3, 4), min_length=1)
    """Training seeds; everything left of training is shared."""
    budget: Literal["completions", "steps"] = "completions"
    """What is equal beside the optimiser steps. ``completions``: those drawn in training plus the offline
    trajectories a method reads; methods that read fewer draw more in every step. ``steps``: those of a step, whatever
    was drawn before. Methods that draw none in training read the trajectories only."""
    search: SearchConfig = SearchConfig()
    """How each method's settings are chosen."""

    @model_validator(mode="after")
    def _consistent(self) -> ComparisonConfig:
        for name in ("methods", "seeds"):
            if len(set(getattr(self, name))) < len(getattr(self, name)):
                raise ValueError(f"{name} names one twice: {getattr(self, name)}")
        if self.search.seed in self.seeds:
            raise ValueError(f"search.seed {self.search.seed} is one of the seeds compared; choose another")
        for method, points in self.search.points_of.items():
            if len(points) != len(self.search.points):
                raise ValueError(
                    f"search.points_of.{method} has {len(points)} candidates, the other methods have "
                    f"{len(self.search.points)}: give all equally many"
                )
        return self

    def points(self, method: str) -> tuple[Point, ...]:
        """Candidates of one method."""
        return self.search.points_of.get(method, self.search.points)


def point_training(training: TrainingConfig, method: str, point: Point) -> TrainingConfig:
    """Training settings of one method at one point.

    ``training.steps``, the batches of completions, holds for every method: ``steps_of`` is not read. Raises ValueError
    where the point sets something that may not differ or that the method does not read, or a value is not allowed.
    """
    if unknown := set(point) - SEARCHED:
        raise ValueError(f"a search point of {method} sets {sorted(unknown)}; it may set {sorted(SEARCHED)}")
    if idle := set(point) & METHOD_SPECIFIC_FIELDS - set(METHODS[method].settings):
        raise ValueError(f"a search point of {method} sets {sorted(idle)}, which the method does not read")
    # What was left to its default stays so: a default warm-up is cut to fewer steps, a given one is meant.
    values = training.model_dump(exclude_unset=True) | {"methods": (method,)}
    values |= {"steps_of": {}, "steps_per_completion_of": {}, "learning_rates": {}}
    values["learning_rate"] = training.method_learning_rate(method)
    values["steps_per_completion"] = training.method_uses(method)
    return TrainingConfig.model_validate(values | point)


def check_points(comparison: ComparisonConfig, training: TrainingConfig) -> None:
    """Refuse points that do not fit their method or make it another one; errors as in :func:`point_training`."""
    for method in comparison.methods:
        points = comparison.points(method)
        configs = [point_training(training, method, point) for point in points]
        names = [point_name(config, point) for config, point in zip(configs, points, strict=True)]
        if len(set(names)) < len(names):
            raise ValueError(f"two search points of {method} are the same: {', '.join(names)}")
        for config, point in zip(configs, points, strict=True):
            if method == "disa" and config.offline_share > 0:
                points_field = "points_of.disa" if method in comparison.search.points_of else "points"
                section = f"comparison.search.{points_field}" if "offline_share" in point else "training"
                raise ValueError(
                    f"{section} sets offline_share {config.offline_share:g}, with which disa is disa_both: compare "
                    "disa_both instead, or give disa points with offline_share 0"
                )


def read_comparison(recipe: Recipe, where: str = "recipe") -> ComparisonConfig:
    """The comparison section of a recipe, its points checked.

    Raises DisaError naming the field: where there is no such section, an unknown key, a value out of range, or points
    that do not fit their method.
    """
    if recipe.comparison is None:
        fix = "add one, for example 'comparison: {}'; docs/comparison.md explains it"
        raise DisaError("the recipe has no comparison section", where=where, fix=fix)
    comparison = read_section(ComparisonConfig, recipe.comparison, where, "comparison")
    try:
        check_points(comparison, recipe.training)
    except ValidationError as error:
        raise first_problem(error, where, "comparison") from error
    except ValueError as error:
        raise DisaError(str(error), where=f"{where}, field comparison", fix="correct the value") from error
    return comparison


def point_name(config: TrainingConfig, point: Point) -> str:
    """Folder name of a point: its settings as they were validated, ``learning_rate=0.0003``."""
    return ",".join(f"{name}={getattr(config, name)}" for name in sorted(point)) or "recipe"
