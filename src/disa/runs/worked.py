"""How long a stage was worked on and what it held.

Each process notes when it begins and when something of its work is kept.

Time between sessions does not count, nor the last moments of one that was killed, whose work is lost. Where several
processes work at once, the time counts once.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from disa.runs.peaks import KINDS, forget_peaks, peaks

FILE = ".worked"


def note_work(folder: Path, *, begins: bool = False) -> None:
    """Note that this process begins to work in a folder, or that what it has done so far is kept."""
    if begins:
        forget_peaks()
    line = peaks() | {"by": f"{socket.gethostname()}:{os.getpid()}", "at": time.time(), "begins": begins}
    with (folder / FILE).open("a", encoding="utf-8") as file:
        file.write("\n" + json.dumps(line))  # in front, so that a line cut by a kill spoils no other


def seconds_worked(folder: Path) -> float:
    """Seconds in which at least one process worked in a folder."""
    spans: list[list[float]] = []
    under_way: dict[str, list[float]] = {}
    for line in _notes(folder):
        if line["begins"] or line["by"] not in under_way:
            under_way[line["by"]] = [line["at"], line["at"]]
            spans.append(under_way[line["by"]])
        under_way[line["by"]][1] = line["at"]
    total, until = 0.0, 0.0
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total


def most_held(folder: Path) -> dict[str, int]:
    """Bytes that the process of most memory held at its peak while it worked in a folder, by kind."""
    lines = list(_notes(folder))
    return {kind: max(found) for kind in KINDS if (found := [line[kind] for line in lines if kind in line])}


def _notes(folder: Path) -> Iterator[dict[str, Any]]:
    for text in (folder / FILE).read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            yield json.loads(text)
