"""``disa run`` and the single-stage commands."""

from __future__ import annotations

import warnings
from pathlib import Path

from rich.console import Console

from disa.errors import DisaError
from disa.recipe import load_recipe
from disa.runs.processes import rank
from disa.stages import STAGES


def run_stages(recipe_path: str, overrides: list[str], *, until: str, only: str | None) -> int:
    """Run a recipe up to a stage, or exactly one stage whose inputs are finished."""
    recipe = load_recipe(recipe_path, overrides)
    if until == "warmup" and recipe.warmup is None:
        raise DisaError("the recipe has no warmup section", where=recipe_path, fix="models.reference is used as it is")
    # Of the processes of one launch, one speaks.
    console = Console(highlight=False, quiet=rank() > 0)
    console.print(f"[bold]{recipe_path}[/bold] in {recipe.run_dir}")

    # A second or two of imports, after everything that can fail fast has been checked.
    from transformers.utils import logging

    from disa.pipeline import Pipeline

    # Bars over reading and writing small model files hide the bars that matter, and TRL 1.16 still asks
    # transformers for an attribute by its old name.
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
    may_work = (only,) if only else STAGES
    Pipeline(recipe, may_work=may_work, say=console.print).run(until)
    summary = Path(recipe.run_dir) / "8_report" / "summary.txt"
    if until == "report":
        console.print(summary.read_text(encoding="utf-8"), markup=False)
        console.print(f"report: {Path(recipe.run_dir) / '8_report' / 'report.html'}")
    return 0
