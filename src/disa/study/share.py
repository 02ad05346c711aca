"""How processes share the units of a study: each works on what no other holds."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from disa.runs.locks import RunDirectoryBusy

PATIENCE_SECONDS = 2.0
"""Between looks at units that another process works on; each takes from a second to minutes."""


def share(units: Sequence[Callable[[], Any]], say: Callable[[str], None]) -> None:
    """Finish all units, leaving those for later that another process works on.

    A unit raises :class:`RunDirectoryBusy` where it is worked on elsewhere, and returns at once where it is finished.
    """
    announced = False
    while units:
        left = []
        for unit in units:
            try:
                unit()
            except RunDirectoryBusy:
                left.append(unit)
        if len(left) == len(units):
            if not announced:
                say(f"waiting for another process to finish {len(left)} of the study's units")
                announced = True
            time.sleep(PATIENCE_SECONDS)
        units = left
