"""One self-contained HTML page of a comparison."""

from __future__ import annotations

from collections.abc import Sequence

import yaml

from disa.comparison.blocks import Block
from disa.recipe import Recipe
from disa.report.escape import shown
from disa.report.html import Illustration, document, plates, section
from disa.report.tables import rows_html


def page(tables: Sequence[Block], recipe: Recipe, illustrations: Sequence[Illustration]) -> str:
    """Return the whole page: the first table, the figures, the other tables, the recipe."""
    title = f"{recipe.run_dir}: comparison"
    settings = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False)
    first, *others = tables
    body = [
        f"<h1>{shown(title)}</h1>",
        '<p class="soft">All policies start from the same reference and train on the same prompts, with beta = '
        f"{recipe.training.inverse_temperature:g}.</p>",
        section(first.title, _block(first) + plates(illustrations)),
        *(section(block.title, _block(block)) for block in others),
        # The recipe is the user's own and must be complete to be run again: no cut.
        f"<details><summary>Recipe</summary><pre>{shown(settings, limit=len(settings))}</pre></details>",
    ]
    return document(title, body)


def _block(block: Block) -> str:
    notes = "".join(f"<p>{shown(note)}</p>" for note in block.notes)
    return f"<p>{shown(block.reading)}</p>{rows_html(block.rows)}{notes}"
