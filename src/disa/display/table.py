"""A table, once for the terminal, for Markdown and for the page."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import ClassVar


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of text under a header, with what is to be known of them."""

    kind: ClassVar[str] = "table"

    rows: Sequence[Sequence[str]]
    """Header first, all of the same length; the first cell of a row is its name."""
    title: str = ""
    caption: str = ""
    """What the numbers are, above them."""
    notes: Sequence[str] = ()
    """Sentences beneath."""
    searchable: bool = False
    """Whether the page offers to search the rows."""

    def text(self) -> str:
        """Caption, aligned columns and notes as plain text."""
        return "\n".join([*filter(None, [self.caption]), aligned_columns(self.rows), *self.notes])

    def markdown(self) -> str:
        """Caption, table and notes as Markdown."""
        escaped = [[cell.replace("|", "\\|").replace("\n", "<br>") for cell in row] for row in self.rows]
        lines = [escaped[0], ["---"] * len(self.rows[0]), *escaped[1:]]
        table = "\n".join("| " + " | ".join(row) + " |" for row in lines)
        return "\n\n".join(filter(None, [self.caption, table, " ".join(self.notes)]))


def aligned_columns(rows: Sequence[Sequence[str]], *, numbers: bool = False) -> str:
    """Columns side by side, each as wide as its widest cell.

    With ``numbers`` all columns but the first are written to the right.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = enumerate(zip(row, widths, strict=True))
        lines.append("  ".join(c.rjust(w) if numbers and i else c.ljust(w) for i, (c, w) in cells).rstrip())
    return "\n".join(lines)


def with_error(value: float | None, se: float | None, digits: int = 3, sign: str = "") -> str:
    """``0.312 ± 0.011``: no error where it is undefined, nothing where there is no value."""
    if value is None:
        return ""
    error = "" if se is None or math.isnan(se) else f" ± {se:.{digits}f}"
    return f"{value:{sign}.{digits}f}{error}"
