"""Tables as plain text, for the terminal and for files."""

from __future__ import annotations

from collections.abc import Sequence


def aligned(rows: Sequence[Sequence[str]], *, numbers: bool = False) -> str:
    """Columns side by side, each as wide as its widest cell.

    Parameters
    ----------
    rows : sequence of sequence of str
        All of the same length.
    numbers : bool
        Whether all columns but the first are written to the right.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = enumerate(zip(row, widths, strict=True))
        lines.append("  ".join(c.rjust(w) if numbers and i else c.ljust(w) for i, (c, w) in cells).rstrip())
    return "\n".join(lines)
