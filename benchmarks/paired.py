"""Two or more ways to do the same work, timed in turns, compared by ratios."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np


class Seconds(NamedTuple):
    """Of one run."""

    wall: float
    cpu: float


def timed(work: Callable[[], object]) -> Seconds:
    """Seconds of one call, by the clock and by the processor."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return Seconds(time.perf_counter() - wall, time.process_time() - cpu)


def in_turns(works: Mapping[str, Callable[[], Seconds]], repeats: int) -> dict[str, list[Seconds]]:
    """Every way once unmeasured, then ``repeats`` times in turns, so that what slows the machine slows all of them."""
    for work in works.values():
        work()
    found: dict[str, list[Seconds]] = {name: [] for name in works}
    for _ in range(repeats):
        for name, work in works.items():
            found[name].append(work())
    return found


def ratio(slower: list[Seconds], faster: list[Seconds]) -> tuple[str, str]:
    """Median over turns of one way's seconds over the other's: by the clock with its range, and by the processor."""
    wall = [a.wall / b.wall for a, b in zip(slower, faster, strict=True)]
    cpu = [a.cpu / b.cpu for a, b in zip(slower, faster, strict=True)]
    return f"{np.median(wall):.2f} ({min(wall):.2f} to {max(wall):.2f})", f"{np.median(cpu):.2f}"
