"""How processes that run the same pipeline share a stage: one does it, all make parts, or one launch does it."""

from __future__ import annotations

import time
from collections.abc import Callable

from disa.runs import processes
from disa.runs.folders import StageFolder
from disa.runs.locks import WAIT

Work = Callable[[StageFolder], None]


def by_one(stage: StageFolder, work: Work, waiting: Callable[[], None]) -> None:
    """One process does the work while the others wait."""
    with stage.alone(waiting):
        if not stage.finished:
            stage.begin()
            work(stage)


def by_parts(stage: StageFolder, work: Work, waiting: Callable[[], None]) -> None:
    """All make parts, once one has begun."""
    with stage.alone(waiting):
        if stage.finished:
            return
        stage.begin()
    work(stage)


def by_launch(stage: StageFolder, work: Work, waiting: Callable[[], None]) -> None:
    """The processes of one launch work together; a worker outside it may come first."""
    first = processes.rank() == 0
    with stage.offered() as take:
        said = False
        # A worker outside the launch may hold the stage for hours, longer than any meeting may take.
        while not processes.first_says(first and take()):
            if not said:
                waiting()
            said = True
            time.sleep(WAIT)
        # From here on nobody outside this launch changes whether the stage is finished.
        if not stage.finished:
            if first:
                stage.begin()
            processes.wait_for_all()
            work(stage)
            processes.wait_for_all()


SHARING = {"one": by_one, "parts": by_parts, "launch": by_launch}
