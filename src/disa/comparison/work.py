"""Train and evaluate every cell, by any number of processes at once.

Each process walks through the same list and takes any cell that is not done and that no other process holds; a cell
whose process was killed is free again and continues where it stopped. A cell that cannot be worked on for a reason
its user can mend is left, and the others are finished.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from disa.comparison.grid import FOLDER, REFERENCE, Cell, Grid
from disa.errors import DisaError
from disa.pipeline import NotFinished, Pipeline
from disa.recipe import Recipe
from disa.runs.folders import StageFolder
from disa.runs.locks import claim, shared
from disa.runs.provenance import digest

_POLL_SECONDS = 2.0
"""Between looks at what other processes hold: most cells take tens of seconds."""


def shared_run(recipe: Recipe) -> AbstractContextManager[None]:
    """Hold the run directory together with other processes of this very comparison.

    Other commands are kept out, and so are comparisons with other settings: cells have the same folders whatever the
    settings are, and each comparison would move the other's aside.

    Raises
    ------
    RunDirectoryBusy
        Where another process works in the run directory on something else.
    """
    work = digest(["comparison", recipe.model_dump(mode="json", exclude={"run_dir"})])
    return shared(Path(recipe.run_dir), work)


def make_shared_stages(recipe: Recipe, say: Callable[[str], None]) -> None:
    """Bring the stages that all cells read to their finished state; nothing is said where they are there."""
    try:
        Pipeline(recipe, may_work=(), say=lambda line: None).anchor()
    except NotFinished:
        Pipeline(recipe, say=say).anchor()


def work_through(
    grid: Grid, methods: Sequence[str], seeds: Sequence[int], say: Callable[[str], None]
) -> dict[Cell, DisaError]:
    """Finish every cell of these methods and seeds, together with whoever else works on them.

    Searches come first, then one seed of all methods after the other, so that a table of whole seeds appears early.
    Each failing cell is tried once. Seeds of a method one of whose candidates failed have no chosen point: they
    are left out.

    Returns
    -------
    dict of Cell to DisaError
        Cells that failed in this process and that no other one finished.
    """
    total = 1 + sum(len(grid.candidates(method)) + len(seeds) for method in methods)
    wait, failed = _Waiting(say), {}
    while unfinished := [cell for cell in _unfinished(grid, methods, seeds) if cell not in failed]:
        worked = False
        for cell in unfinished:
            with claim(Path(grid.recipe.run_dir) / grid.folder(cell)) as mine:
                # Another process may have finished it since the list was made.
                if mine and grid.evaluated(cell) is None:
                    started = time.monotonic()
                    if error := _error_of(grid, cell):
                        failed[cell] = error
                        say(f"{grid.folder(cell)}: failed, {_one_line(error)}")
                    else:
                        done = sum(found is not None for found in _known(grid, methods, seeds).values())
                        seconds = time.monotonic() - started
                        say(f"{grid.folder(cell)}: done in {seconds:.1f} s, {done} of {total}")
                    worked = True
                    break  # a finished search adds cells, of which some come before the rest of this list
        if not worked:
            wait()
    for method in methods:
        if not grid.finals(method, seeds):
            say(f"{FOLDER}/{method}: no seed is trained, for a candidate of its search failed")
    return {cell: error for cell, error in failed.items() if grid.evaluated(cell) is None}


def failure(grid: Grid, failed: Mapping[Cell, DisaError]) -> DisaError:
    """Return the error of a comparison that is finished but for these cells."""
    names = ", ".join(grid.folder(cell).removeprefix(f"{FOLDER}/") for cell in failed)
    first = next(iter(failed.values()))
    return DisaError(f"{len(failed)} failed ({names}), the first with: {_one_line(first)}", where=FOLDER)


def _error_of(grid: Grid, cell: Cell) -> DisaError | None:
    """Work on a cell; what its user can mend is returned, anything else is raised."""
    try:
        grid.work(cell)
    except DisaError as error:
        return error
    return None


def _one_line(error: DisaError) -> str:
    return " ".join(str(error).split())


def _unfinished(grid: Grid, methods: Sequence[str], seeds: Sequence[int]) -> list[Cell]:
    return [cell for cell, folder in _known(grid, methods, seeds).items() if folder is None]


def _known(grid: Grid, methods: Sequence[str], seeds: Sequence[int]) -> dict[Cell, StageFolder | None]:
    """Evaluations by cell, in the order of work, None where one is not finished.

    Seeds of a method are known once its search is finished.
    """
    searches = [cell for method in methods for cell in grid.candidates(method)]
    finals = [grid.finals(method, seeds) for method in methods]
    by_seed = [cell for cells in zip(*filter(None, finals), strict=True) for cell in cells]
    return {cell: grid.evaluated(cell) for cell in [*searches, REFERENCE, *by_seed]}


class _Waiting:
    """Wait a little for other processes; say so once."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._line: str | None = "waiting for remaining cells that another process works on"
        self._say = say

    def __call__(self) -> None:
        if self._line:
            self._say(self._line)
            self._line = None
        time.sleep(_POLL_SECONDS)
