"""The marked blocks of the pages, each written by its benchmark; docs/estimators.md is the one most write to."""

from __future__ import annotations

import functools
import os
import platform
import subprocess
from collections.abc import Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from disa.display.marked_block import fill_block
from disa.display.table import Table

PAGE = Path("docs/estimators.md")
FIGURES = Path("docs/figures")


def fill(name: str, text: str, page: Path = PAGE) -> None:
    """Replace what stands between the markers of a benchmark by its text and where that comes from, and say so."""
    fill_block(page, name, f"{text.strip()}\n\n{origin()}")
    print(f"page: {page}, block {name}")


def origin() -> str:
    """When, by which code and on what a block was measured, as one line."""
    git = functools.partial(subprocess.run, capture_output=True, text=True, check=False)
    # The pages that benchmarks write are no part of what is measured.
    changed = git(["git", "status", "--porcelain", "--untracked-files=no", "--", ".", ":!docs"]).stdout.strip()
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "trl"))
    commit = (git(["git", "describe", "--always"]).stdout.strip() or "unknown") + ("-dirty" if changed else "")
    cores = len(os.sched_getaffinity(0))
    return f"*{date.today()}, commit {commit}, {cores} cores of {platform.machine()}, {packages}.*"


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """Lines of a Markdown table."""
    return Table([header, *([str(value) for value in row] for row in rows)]).markdown().splitlines()


def spread(values: NDArray[np.float64], digits: int = 3) -> str:
    """Mean over replicates with its standard error."""
    error = np.std(values, ddof=1) / np.sqrt(len(values))
    return f"{np.mean(values):.{digits}f} ± {error:.{digits}f}"
