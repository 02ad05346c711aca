"""``disa verl``: policy learning by verl, on a Ray cluster."""

from __future__ import annotations

import argparse

from rich.console import Console

from disa.recipe import load_recipe


def train(options: argparse.Namespace) -> int:
    """Check, then train unless only the check was asked for."""
    recipe = load_recipe(options.recipe, options.overrides)
    from disa.verl.launch import launch

    console = Console(highlight=False, soft_wrap=True)
    launch(
        recipe,
        anchor=options.anchor,
        check_only=options.check,
        export=options.export,
        say=lambda line: console.print(line, markup=False),
    )
    return 0
