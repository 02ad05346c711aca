"""``disa compare``: methods x seeds from one recipe, side by side."""

from __future__ import annotations

import argparse
import functools

from rich.console import Console

from disa.cli.quiet import quiet_libraries
from disa.comparison.config import read_comparison
from disa.errors import DisaError
from disa.recipe import load_recipe
from disa.runs.processes import refuse_launch


def compare(options: argparse.Namespace) -> int:
    """Work on the cells asked for, then print the table of all that is finished and write it."""
    recipe = load_recipe(options.recipe, options.overrides)
    comparison = read_comparison(recipe, options.recipe)
    refuse_launch("disa compare")
    methods = _selected(options.methods, comparison.methods, "methods")
    seeds = _selected(options.seeds, comparison.seeds, "seeds")
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"[bold]{options.recipe}[/bold] in {recipe.run_dir}")

    # Seconds of imports, after everything that can fail fast has been checked.
    from disa.comparison.run import run_comparison

    quiet_libraries()
    say = functools.partial(console.print, markup=False)
    text, folder, failed = run_comparison(recipe, methods=methods, seeds=seeds, work=not options.table, say=say)
    say(text)
    say(f"report: {folder / 'report.html'}")
    if failed:
        raise failed
    return 0


def _selected(text: str | None, known: tuple, name: str) -> list:
    """The values asked for, in the recipe's order; all without a request."""
    if text is None:
        return list(known)
    asked = [part.strip() for part in text.split(",")]
    by_text = {str(value): value for value in known}
    for value in asked:
        if value not in by_text:
            fix = f"the recipe has {', '.join(by_text)}; or --set comparison.{name}=[...]"
            raise DisaError(f"found '{value}'", where=f"--{name}", fix=fix)
    return [value for value in known if str(value) in asked]
