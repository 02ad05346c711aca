"""The loop over a stage's parts: every stage whose rows are made block by block goes through it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from disa.runs.folders import StageFolder
from disa.runs.progress import progress_bar
from disa.runs.records import Row

Item = TypeVar("Item")
Advance = Callable[[float], None]
"""Called with the number of rows made since the last call, for the progress bar."""


def blocks_of(items: Sequence[Item], size: int, digits: int = 6) -> dict[str, Sequence[Item]]:
    """Items by the key of the part they belong to, ``size`` in each."""
    return {f"part-{start:0{digits}d}": items[start : start + size] for start in range(0, len(items), size)}


def make_parts(
    stage: StageFolder,
    blocks: Mapping[str, Sequence[Item]],
    count: Callable[[Sequence[Item]], int],
    make: Callable[[Sequence[Item], Advance], list[Row]],
    row_type: type[Row],
    title: str,
) -> int:
    """Make the parts that are not there yet, beside any other processes that do the same; returns the number of rows.

    Parameters
    ----------
    blocks : mapping
        What each part is made of, by its key, in the order of work.
    count : callable
        Number of rows that a block gives.
    make : callable
        Rows of one block.
    title : str
        Of the progress bar.
    """
    sizes = {key: count(block) for key, block in blocks.items()}
    total = sum(sizes.values())
    with progress_bar() as bar:
        task = bar.add_task(title, total=total)
        for key in stage.parts_to_make(sizes):
            bar.update(task, completed=stage.made(sizes))
            rows = make(blocks[key], lambda rows: bar.advance(task, rows))
            stage.write_part(key, rows, row_type)
        bar.update(task, completed=total)
    return total
