"""One comparison from shared stages to table, its policies trained and evaluated by any number of processes at once."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from disa.comparison.grid import FOLDER, REFERENCE, ComparisonCell, Grid, check_choice
from disa.comparison.results import gather_results
from disa.comparison.write import write_results
from disa.errors import DisaError
from disa.pipeline import NotFinished, Pipeline
from disa.recipe import Recipe
from disa.runs.cells import failed_cells_error, share_cells
from disa.runs.folders import StageFolder
from disa.runs.locks import exclusive, shared
from disa.runs.provenance import digest
from disa.runs.records import Prompt


def run_comparison(
    recipe: Recipe,
    *,
    methods: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    work: bool = True,
    say: Callable[[str], None],
) -> tuple[str, Path, DisaError | None]:
    """Finish the policies asked for, then write what all finished ones of the recipe add up to.

    Raises RunDirectoryBusy where another process works in the run directory on something else. Raises DisaError where
    nothing is finished that a table could be made of. Returns the tables as text, the folder with everything written,
    and what to end with where policies failed: all others are finished, and in the tables. Without ``work`` it only
    writes what is there.
    """
    nothing_yet = DisaError("no policy is finished yet", where=recipe.run_dir, fix="run the command without --table")
    with shared_run(recipe):
        if work:
            _make_shared_stages(recipe, say)
            grid = Grid(recipe)
            failed = run_cells(grid, methods or grid.comparison.methods, seeds or grid.comparison.seeds, say)
        else:
            try:
                grid, failed = Grid(recipe), {}
            except NotFinished as unfinished:
                raise nothing_yet from unfinished
        results, error = gather_results(grid), failed_cells_error(failed, FOLDER) if failed else None
        if results is None:
            raise error or nothing_yet
        folder = Path(recipe.run_dir) / FOLDER
        return write_results(folder, results, recipe), folder, error


def shared_run(recipe: Recipe) -> AbstractContextManager[None]:
    """Hold the run directory together with other processes of this very comparison.

    Other commands are kept out, and so are comparisons with other settings: cells have the same folders whatever the
    settings are, and each comparison would move the other's aside. Raises RunDirectoryBusy where another process works
    in the run directory on something else.
    """
    work = digest(["comparison", recipe.model_dump(mode="json", exclude={"run_dir"})])
    return shared(Path(recipe.run_dir), work)


def run_cells(
    grid: Grid, methods: Sequence[str], seeds: Sequence[int], say: Callable[[str], None]
) -> dict[str, DisaError]:
    """Finish every cell of these methods and seeds, together with whoever else works on them.

    Searches come first, then one seed of all methods after the other, so that a table of whole seeds appears early.
    Seeds of a method one of whose candidates failed have no chosen point: they are left out. Returns by folder what
    failed in this process and no other one finished.
    """
    total = 1 + sum(len(grid.candidates(method)) + len(seeds) for method in methods)

    def unfinished() -> dict[str, Callable[[], None]]:
        cells = [cell for cell, folder in _known(grid, methods, seeds).items() if folder is None]
        return {grid.folder(cell): functools.partial(work, cell) for cell in cells}

    def work(cell: ComparisonCell) -> None:
        started, folder = time.monotonic(), grid.folder(cell)
        with exclusive(Path(grid.recipe.run_dir) / folder):
            if grid.evaluated(cell) is None:  # another process may have finished it since the list was made
                grid.work(cell)
                done = sum(found is not None for found in _known(grid, methods, seeds).values())
                say(f"{folder}: done in {time.monotonic() - started:.1f} s, {done} of {total}")

    failed = share_cells(unfinished, say)
    for method in methods:
        if not grid.finals(method, seeds):
            say(f"{FOLDER}/{method}: no seed is trained, for a candidate of its search failed")
    left = {grid.folder(cell) for cell, folder in _known(grid, methods, seeds).items() if folder is None}
    return {name.removeprefix(f"{FOLDER}/"): error for name, error in failed.items() if name in left}


def _known(grid: Grid, methods: Sequence[str], seeds: Sequence[int]) -> dict[ComparisonCell, StageFolder | None]:
    """Evaluations by cell, in the order of work, None where one is not finished.

    Seeds of a method are known once its search is finished.
    """
    searches = [cell for method in methods for cell in grid.candidates(method)]
    finals = [grid.finals(method, seeds) for method in methods]
    by_seed = [cell for cells in zip(*filter(None, finals), strict=True) for cell in cells]
    return {cell: grid.evaluated(cell) for cell in [*searches, REFERENCE, *by_seed]}


def _make_shared_stages(recipe: Recipe, say: Callable[[str], None]) -> None:
    """Bring the stages that all cells read to their finished state; nothing is said where they are there."""
    try:
        Pipeline(recipe, may_work=(), say=lambda line: None).anchor()
    except NotFinished:
        pipeline = Pipeline(recipe, say=say)
        check_choice(recipe, pipeline.tasks().rows(Prompt))
        pipeline.anchor()
