"""``disa run`` and the single-stage commands."""

from __future__ import annotations

import argparse
import functools
from pathlib import Path

from rich.console import Console

from disa.cli.quiet import quiet_libraries
from disa.errors import DisaError
from disa.recipe import load_recipe
from disa.runs.processes import rank
from disa.stages import STAGES


def run_stages(options: argparse.Namespace) -> int:
    """Run a recipe up to a stage, or exactly one stage whose inputs are finished."""
    recipe = load_recipe(options.recipe, options.overrides)
    if options.until == "warmup" and recipe.warmup is None:
        problem = "the recipe has no warmup section"
        raise DisaError(problem, where=options.recipe, fix="models.reference is used as it is")
    # Of the processes of one launch, one speaks.
    console = Console(highlight=False, soft_wrap=True, quiet=rank() > 0)
    console.print(f"[bold]{options.recipe}[/bold] in {recipe.run_dir}")

    # A second or two of imports, after everything that can fail fast has been checked.
    from disa.pipeline import Pipeline
    from disa.ray.backend import backend_on

    quiet_libraries()
    may_work = (options.only,) if options.only else STAGES
    backend = backend_on(options.on, recipe)
    say = functools.partial(console.print, markup=False)
    Pipeline(recipe, may_work=may_work, say=say, backend=backend).run(options.until)
    summary = Path(recipe.run_dir) / "8_report" / "summary.txt"
    if options.until == "report":
        console.print(summary.read_text(encoding="utf-8"), markup=False)
        console.print(f"report: {Path(recipe.run_dir) / '8_report' / 'report.html'}")
    return 0
