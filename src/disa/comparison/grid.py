"""The cells of a comparison: every one a policy, trained and evaluated in a folder of its own.

A method's candidates are trained first, with the search's seed, and see the validation split only. The one chosen is
trained with every seed, and only these policies are evaluated on held-out prompts.
"""

from __future__ import annotations

import dataclasses
import math
import shutil
from collections.abc import Mapping, Sequence
from typing import TypeVar

from disa.anchor import Anchor
from disa.comparison.budget import Budget, equal_budgets, trajectories_read
from disa.comparison.config import Point, point_name, point_training, read_comparison
from disa.errors import DisaError
from disa.evaluation.metrics import clustered_mean, per_prompt
from disa.pipeline import NotFinished, Pipeline
from disa.recipe import Recipe
from disa.runs.folders import StageFolder
from disa.runs.records import EvaluationRecord, Prompt, ScoredTrajectory
from disa.scoring.run import decided_rows
from disa.training.config import TrainingConfig

FOLDER = "comparison"
Name = TypeVar("Name")
SEARCH_SPLITS = ("validation",)
FINAL_SPLITS = ("heldout", "validation", "train")


@dataclasses.dataclass(frozen=True)
class ComparisonCell:
    """One policy, or the reference."""

    method: str
    point: tuple[tuple[str, object], ...] = ()
    """Settings that the search chose or tries."""
    seed: int | None = None
    """None for a candidate of the search, and for the reference."""


REFERENCE = ComparisonCell("reference")


class Grid:
    """A recipe's cells, and what is known of them so far.

    Raises DisaError where there are no validation prompts, or a budget needs more prompts per step than there are. The
    recipe's shared stages must be finished.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe, self.comparison = recipe, read_comparison(recipe)
        self._reader = Pipeline(recipe, may_work=(), say=lambda line: None)
        self._worker = Pipeline(recipe, may_work=("training", "evaluation"), say=lambda line: None)
        prompts = self._reader.tasks().rows(Prompt)
        self.prompts = [p for p in prompts if p.split in FINAL_SPLITS]
        self.anchor = Anchor.load(self._reader.anchor().path)
        self.budgets = self._budgets()
        self._scores: dict[str, float] = {}
        self._check()

    def _check(self) -> None:
        check_choice(self.recipe, self.prompts)
        n_train = sum(p.split == "train" for p in self.prompts)
        for method in self.budgets:
            try:
                self._with_budget(method, self.recipe.training).check_prompts([method], n_train)
            except ValueError as error:
                raise DisaError(
                    str(error),
                    where="comparison.budget, which sets the prompts of a step",
                    fix="or raise training.steps, lower proposals.per_prompt, or set comparison.budget: steps",
                ) from error

    def _with_budget(self, method: str, config: TrainingConfig) -> TrainingConfig:
        return config.model_copy(update={"prompts_per_step": self.budgets[method].prompts_per_step})

    def _budgets(self) -> dict[str, Budget]:
        wanted = {p.prompt_id for p in self.prompts if p.split == "train"}
        folders = self._reader.scores().values()
        rows = [r for f in folders for r in decided_rows(f.thin_rows(ScoredTrajectory)) if r.prompt_id in wanted]
        configs: dict[str, TrainingConfig] = {
            m: point_training(self.recipe.training, m, {}) for m in self.comparison.methods
        }
        read = {method: trajectories_read(method, config, rows) for method, config in configs.items()}
        return equal_budgets(configs, read, equal=self.comparison.budget)

    @property
    def log_z(self) -> dict[str, float]:
        """The anchor's log Z by prompt, nats."""
        return {prompt_id: row.log_z for prompt_id, row in self.anchor.estimates.items()}

    def candidates(self, method: str) -> list[ComparisonCell]:
        """Cells of a method's search; none where there is nothing to choose."""
        points = self.comparison.points(method)
        return [ComparisonCell(method, tuple(point.items())) for point in points] if len(points) > 1 else []

    def finals(self, method: str, seeds: Sequence[int]) -> list[ComparisonCell]:
        """Cells of a method's chosen point; none while its search is not finished."""
        point = self.chosen(method)
        return [] if point is None else [ComparisonCell(method, tuple(point.items()), seed) for seed in seeds]

    def training_config(self, cell: ComparisonCell) -> TrainingConfig:
        """Everything a policy is trained with."""
        search = self.comparison.search
        config = point_training(self.recipe.training, cell.method, dict(cell.point))
        config = self._with_budget(cell.method, config)
        if cell.seed is None:
            return config.model_copy(update={"steps": search.steps or config.steps, "seed": search.seed})
        return config.model_copy(update={"seed": cell.seed})

    def folder(self, cell: ComparisonCell) -> str:
        """Where a cell's training and evaluation go, relative to the run directory."""
        if cell == REFERENCE:
            return f"{FOLDER}/reference"
        point = point_name(self.training_config(cell), dict(cell.point))
        return f"{FOLDER}/{cell.method}/{point}/" + ("search" if cell.seed is None else f"seed-{cell.seed}")

    def work(self, cell: ComparisonCell) -> None:
        """Train and evaluate a cell, as far as that is not done."""
        trained = self._train(self._worker, cell)
        if trained is not None:
            # What only a kill would have needed; with every cell's, a large model's checkpoints fill a disk.
            shutil.rmtree(trained.path / "checkpoints", ignore_errors=True)
        self._evaluate(self._worker, cell, trained)

    def trained(self, cell: ComparisonCell) -> StageFolder | None:
        """Folder of a finished cell's training; the reference has none."""
        return self._train(self._reader, cell)

    def evaluated(self, cell: ComparisonCell) -> StageFolder | None:
        """Folder of a cell's evaluation, None where it is not finished."""
        try:
            return self._evaluate(self._reader, cell, self.trained(cell))
        except NotFinished:
            return None

    def _train(self, pipeline: Pipeline, cell: ComparisonCell) -> StageFolder | None:
        if cell == REFERENCE:
            return None
        return pipeline.train(cell.method, self.training_config(cell), f"{self.folder(cell)}/training")

    def _evaluate(self, pipeline: Pipeline, cell: ComparisonCell, trained: StageFolder | None) -> StageFolder:
        splits = SEARCH_SPLITS if cell.seed is None and cell != REFERENCE else FINAL_SPLITS
        return pipeline.evaluate(cell.method, trained, f"{self.folder(cell)}/evaluation", splits)

    def chosen(self, method: str) -> Point | None:
        """The point a method's seeds are trained at: the best of its search, None while that is not finished."""
        candidates = self.candidates(method)
        if not candidates:
            return self.comparison.points(method)[0]
        scores = {cell: score for cell in candidates if (score := self.score(cell)) is not None}
        if len(scores) < len(candidates):
            return None
        return dict(best_point(scores, self.criterion).point)

    @property
    def criterion(self) -> str:
        """The metric that chooses."""
        name = self.comparison.search.criterion
        return name if name == "kl_to_target" else f"{name}@{max(self.recipe.evaluation.ks)}"

    def score(self, cell: ComparisonCell) -> float | None:
        """The criterion on the validation prompts, None where the cell is not finished."""
        folder = self.evaluated(cell)
        if folder is None:
            return None
        if folder.content not in self._scores:
            values = self.values(folder.rows(EvaluationRecord))["validation"]
            if self.criterion not in values:
                raise undefined_criterion(self.criterion, self.folder(cell))
            self._scores[folder.content] = clustered_mean(values[self.criterion].values()).value
        return self._scores[folder.content]

    def values(self, records: Sequence[EvaluationRecord]) -> dict[str, dict[str, dict[str, float]]]:
        """One model's metrics by prompt: split -> metric -> prompt_id -> value."""
        (values,) = per_prompt(
            records,
            {p.prompt_id: p.n_solutions for p in self.prompts},
            self.recipe.evaluation.ks,
            log_z=self.log_z,
            beta=self.recipe.training.inverse_temperature,
            has_modes=self._reader.task.has_modes,
        ).values()
        return values


def check_choice(recipe: Recipe, prompts: Sequence[Prompt]) -> None:
    """Refuse what leaves a comparison nothing to choose by, which is known before anything is drawn."""
    if all(prompt.split != "validation" for prompt in prompts):
        raise DisaError(
            "a comparison chooses on validation prompts, found none",
            where="tasks.validation_prompts",
            fix="set it, for example to 64",
        )
    if read_comparison(recipe).search.criterion == "kl_to_target" and not recipe.proposals.per_heldout_prompt:
        raise DisaError(
            "comparison.search.criterion is kl_to_target, and validation prompts have no log Z",
            where="proposals.per_heldout_prompt",
            fix="set it, for example to 32",
        )


def best_point(scores: Mapping[Name, float], criterion: str) -> Name:
    """Name of the best score, the first of equal ones; NaN, which a policy that diverged gives, is the worst."""
    sign = 1 if criterion == "kl_to_target" else -1
    return min(scores, key=lambda name: (math.isnan(scores[name]), sign * scores[name]))


def undefined_criterion(criterion: str, where: str) -> DisaError:
    """Return the error of a search that has nothing to choose by."""
    return DisaError(
        f"no validation prompt of {where} has enough samples with a verdict for {criterion}",
        where="comparison.search.criterion",
        fix="choose mean, raise evaluation.samples_per_prompt, lower evaluation.ks, or correct the verifier",
    )
