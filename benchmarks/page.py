"""The marked blocks of docs/estimators.md, each written by its benchmark."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

PAGE = Path("docs/estimators.md")
FIGURES = Path("docs/figures")


def fill(name: str, text: str, page: Path = PAGE) -> None:
    """Replace what stands between the markers of a benchmark.

    Raises
    ------
    SystemExit
        Where the page lacks the markers.
    """
    start, end = f"<!-- {name}: start -->", f"<!-- {name}: end -->"
    before, found, rest = page.read_text(encoding="utf-8").partition(start)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise SystemExit(f"{page} has no lines {start} and {end}")
    page.write_text(f"{before}{start}\n{text.strip()}\n{end}{after}", encoding="utf-8")
    print(f"page: {page}, block {name}")


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """Lines of a Markdown table."""
    return ["| " + " | ".join(str(v) for v in row) + " |" for row in (header, ["---"] * len(header), *rows)]


def spread(values: NDArray[np.float64], digits: int = 3) -> str:
    """Mean over replicates with its standard error."""
    error = np.std(values, ddof=1) / np.sqrt(len(values))
    return f"{np.mean(values):.{digits}f} ± {error:.{digits}f}"
