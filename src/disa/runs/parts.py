"""The loop over a stage's parts: every stage whose rows are made block by block goes through it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from disa.runs.folders import StageFolder
from disa.runs.progress import progress_bar
from disa.runs.records import Row

Item = TypeVar("Item")
Advance = Callable[[float], None]
"""Called with the number of rows made since the last call, for the progress bar."""


class Backend(Protocol):
    """Makes parts elsewhere."""

    def make(
        self, blocks: Mapping[str, Any], first: Callable[[Any], Any] | None, make: Callable[..., list[Any]]
    ) -> Iterator[tuple[str, list[Any]]]:
        """Rows of every block with its key, as they are made."""


def blocks_of(items: Sequence[Item], size: int, digits: int = 6) -> dict[str, Sequence[Item]]:
    """Items by the key of the part they belong to, ``size`` in each."""
    return {f"part-{start:0{digits}d}": items[start : start + size] for start in range(0, len(items), size)}


def make_parts(
    stage: StageFolder,
    blocks: Mapping[str, Sequence[Item]],
    count: Callable[[Sequence[Item]], int],
    make: Callable[[Any, Advance], list[Row]],
    row_type: type[Row],
    title: str,
    *,
    read: Callable[[str, Sequence[Item]], Any] = lambda key, block: block,
    first: Callable[[Any], Any] | None = None,
) -> int:
    """Make the parts that are not there yet, beside any other processes that do the same; returns the number of rows.

    ``blocks`` says by its key, in the order of work, what each part is made of, ``count`` how many rows that gives, and
    ``make`` makes them. ``read`` turns key and block into what is worked on, in the process that has the run directory;
    ``first`` turns that into what ``make`` is given in its place: what needs no model.
    """
    backend = stage.backend
    sizes = {key: count(block) for key, block in blocks.items()}
    total = sum(sizes.values())
    with progress_bar() as bar:
        task = bar.add_task(title, total=total)
        while backend and (missing := {key: read(key, blocks[key]) for key in stage.missing(sizes)}):
            bar.update(task, completed=stage.made(sizes))
            for key, rows in backend.make(missing, first, make):
                stage.write_part(key, rows, row_type)
                bar.advance(task, len(rows))
        for key in stage.parts_to_make(sizes):
            bar.update(task, completed=stage.made(sizes))
            block = read(key, blocks[key])
            rows = make(first(block) if first else block, lambda rows: bar.advance(task, rows))
            stage.write_part(key, rows, row_type)
        bar.update(task, completed=total)
    return total
