"""Tasks: prompts with a verifiable reward and, where countable, their exact set of solutions.

Writes ``1_tasks``. A reward is a fixed function ``r(x, y)`` of prompt and completion with a declared
range, None where it stays undecided; a task's splits share no problem, because a generated instance's
split follows from its identity alone, and repeated rows of a data set are dropped.
"""

from __future__ import annotations

import importlib
from typing import Annotated

from pydantic import Field

from disa.tasks.config import (
    CountdownConfig,
    GraphColoringConfig,
    NQueensConfig,
    Puzzle24Config,
    ShortestPathConfig,
)
from disa.tasks.dataset_config import DatasetConfig
from disa.tasks.task import SPLITS, Task

__all__ = ["SPLITS", "TASKS", "Task", "TaskSection", "make_task"]

TaskSection = Annotated[
    CountdownConfig | Puzzle24Config | GraphColoringConfig | NQueensConfig | ShortestPathConfig | DatasetConfig,
    Field(discriminator="name"),
]
"""A recipe's ``tasks`` section: the one whose ``name`` it gives."""

TASKS = {
    "countdown": "disa.tasks.countdown.Countdown",
    "puzzle24": "disa.tasks.puzzle24.Puzzle24",
    "graph_coloring": "disa.tasks.graph_coloring.GraphColoring",
    "n_queens": "disa.tasks.n_queens.NQueens",
    "shortest_path": "disa.tasks.shortest_path.ShortestPath",
    "dataset": "disa.tasks.dataset.DatasetTask",
}
"""Class of each task, imported only when it is asked for."""


def make_task(config: TaskSection) -> Task:
    """The task a recipe's ``tasks`` section describes."""
    module, _, name = TASKS[config.name].rpartition(".")
    return getattr(importlib.import_module(module), name)(config)
