"""One comparison from shared stages to table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from disa.comparison.grid import FOLDER, Grid
from disa.comparison.results import gather
from disa.comparison.work import failure, make_shared_stages, shared_run, work_through
from disa.comparison.write import write_results
from disa.errors import DisaError
from disa.pipeline import NotFinished
from disa.recipe import Recipe


def run_comparison(
    recipe: Recipe,
    *,
    methods: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    work: bool = True,
    say: Callable[[str], None],
) -> tuple[str, Path, DisaError | None]:
    """Finish the policies asked for, then write what all finished ones of the recipe add up to.

    Parameters
    ----------
    methods, seeds : sequence, optional
        Those of the recipe to work on; all by default.
    work : bool
        Whether to train and evaluate, or only to write what is there.
    say : callable
        Receives one line per shared stage and policy.

    Returns
    -------
    str
        The tables as text.
    Path
        Folder with everything written.
    DisaError or None
        What to end with where policies failed; all others are finished, and in the tables.

    Raises
    ------
    RunDirectoryBusy
        Where another process works in the run directory on something else.
    DisaError
        Where nothing is finished that a table could be made of.
    """
    with shared_run(recipe):
        if work:
            make_shared_stages(recipe, say)
            grid = Grid(recipe)
            failed = work_through(grid, methods or recipe.comparison.methods, seeds or recipe.comparison.seeds, say)
        else:
            grid, failed = _finished_grid(recipe), {}
        results, error = gather(grid), failure(grid, failed) if failed else None
        if results is None:
            raise error or _nothing_yet(recipe)
        folder = Path(recipe.run_dir) / FOLDER
        return write_results(folder, results, recipe), folder, error


def _finished_grid(recipe: Recipe) -> Grid:
    try:
        return Grid(recipe)
    except NotFinished as error:
        raise _nothing_yet(recipe) from error


def _nothing_yet(recipe: Recipe) -> DisaError:
    return DisaError("no policy is finished yet", where=recipe.run_dir, fix="run the command without --table")
