"""``disa check``: what a run would refuse, found in seconds."""

from __future__ import annotations

import argparse

from disa.recipe import load_recipe


def check(options: argparse.Namespace) -> int:
    """Check a recipe without doing any of its work, and say what was found."""
    recipe = load_recipe(options.recipe, options.overrides)
    from disa.cli.quiet import quiet_libraries
    from disa.preflight import preflight
    from disa.tasks import make_task

    quiet_libraries()
    task = make_task(recipe.tasks)
    splits = ("train", "validation", "heldout")
    found = preflight(recipe, task, lambda: [prompt for split in splits for prompt in task.prompts(split)])
    print("\n".join([*found.facts, *found.warnings, f"{options.recipe}: nothing to refuse"]))
    return 0
