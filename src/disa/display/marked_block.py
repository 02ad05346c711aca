"""Marked blocks of a Markdown page, each written by a command."""

from __future__ import annotations

from pathlib import Path

from disa.errors import DisaError


def fill_block(page: Path, name: str, text: str) -> None:
    """Replace what stands between ``<!-- NAME: start -->`` and ``<!-- NAME: end -->``.

    Raises DisaError where the page lacks the markers.
    """
    start, end = f"<!-- {name}: start -->", f"<!-- {name}: end -->"
    if not page.is_file():
        raise DisaError("page not found", where=str(page), fix="give a Markdown file")
    before, found, rest = page.read_text(encoding="utf-8").partition(start)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise DisaError("the page lacks the block's markers", where=str(page), fix=f"add the lines {start} and {end}")
    page.write_text(f"{before}{start}\n{text.strip()}\n{end}{after}", encoding="utf-8")
