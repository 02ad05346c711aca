"""The project's progress bar."""

from __future__ import annotations

import time
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from disa.runs.processes import rank

SECONDS_BETWEEN_LINES = 60.0
"""Where output goes to a file: a reader of a log wants to see that work goes on, and not much more."""


def progress_bar() -> Progress:
    """The project's progress bar; in a file instead of a terminal it prints a line per minute, and its last state.

    Of the processes of one launch, one shows it.
    """
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    return _Bar(TextColumn("{task.description}"), *columns, disable=rank() > 0)


class _Bar(Progress):
    _said = float("inf")

    def start(self) -> None:
        super().start()
        self._said = time.monotonic()

    def update(self, *args: Any, **kwargs: Any) -> None:
        super().update(*args, **kwargs)
        self._line()

    def advance(self, *args: Any, **kwargs: Any) -> None:
        super().advance(*args, **kwargs)
        self._line()

    def _line(self) -> None:
        if self.disable or self.console.is_terminal or time.monotonic() - self._said < SECONDS_BETWEEN_LINES:
            return
        self._said = time.monotonic()
        for task in self.tasks:
            self.console.print(
                f"{task.description}: {task.completed:g} of {task.total:g} after {task.elapsed or 0:.0f} s",
                markup=False,
            )
