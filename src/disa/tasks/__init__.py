"""Tasks: prompts with a verifiable reward and, where countable, their exact set of solutions.

Writes ``1_tasks``. A reward is a fixed function ``r(x, y)`` of prompt and completion with a declared
range; a task's splits share no instance, because an instance's split follows from its identity alone.
"""

from __future__ import annotations

from disa.tasks.config import CountdownConfig, GraphColoringConfig
from disa.tasks.task import SPLITS, Task

__all__ = ["SPLITS", "Task", "make_task"]


def make_task(config: CountdownConfig | GraphColoringConfig) -> Task:
    """The task a recipe's ``tasks`` section describes."""
    if isinstance(config, CountdownConfig):
        from disa.tasks.countdown import Countdown

        return Countdown(config)
    from disa.tasks.graph_coloring import GraphColoring

    return GraphColoring(config)
