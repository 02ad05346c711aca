"""One comparison from shared stages to table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from disa.comparison.grid import FOLDER, Grid
from disa.comparison.results import gather
from disa.comparison.work import make_shared_stages, shared_run, work_through
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
) -> tuple[str, Path]:
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
        try:
            grid = Grid(recipe)
            if work:
                work_through(grid, methods or recipe.comparison.methods, seeds or recipe.comparison.seeds, say)
            results = gather(grid)
        except NotFinished:  # without work, where not even the shared stages are there
            results = None
        if results is None:
            raise DisaError("no policy is finished yet", where=recipe.run_dir, fix="run the command without --table")
        folder = Path(recipe.run_dir) / FOLDER
        return write_results(folder, results, recipe), folder
