"""The project's progress bar."""

from __future__ import annotations

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from disa.runs.processes import rank


def progress_bar() -> Progress:
    """The project's progress bar; on a log file instead of a terminal it prints its last state only.

    Of the processes of one launch, one shows it.
    """
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    return Progress(TextColumn("{task.description}"), *columns, disable=rank() > 0)
