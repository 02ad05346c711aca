"""Units of work that several processes share: each takes any that is not done and that no other process holds.

A unit whose process was killed is free again and continues where it stopped.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from disa.errors import DisaError
from disa.runs.locks import RunDirectoryBusy

PATIENCE_SECONDS = 2.0
"""Between looks at units that other processes hold; each takes from seconds to minutes."""


def share_cells(
    units: Callable[[], Mapping[str, Callable[[], None]]], say: Callable[[str], None]
) -> dict[str, DisaError]:
    """Finish all units, together with whoever else works on them.

    A unit that fails for a reason its user can mend is tried once and left, and the others are finished. ``units``
    gives the units by name, in the order of work, and is asked again after each, for one may add others. A unit raises
    :class:`RunDirectoryBusy` where another process holds it, and does nothing where it is finished. Returns by name
    what failed in this process.
    """
    done: set[str] = set()
    failed: dict[str, DisaError] = {}
    announced = False
    while todo := {name: unit for name, unit in units().items() if name not in done and name not in failed}:
        for name, unit in todo.items():
            try:
                unit()
            except RunDirectoryBusy:
                continue
            except DisaError as error:
                failed[name] = error
                say(f"{name}: failed, {one_line(error)}")
            else:
                done.add(name)
            break
        else:
            if not announced:
                say("waiting for remaining cells that another process works on")
                announced = True
            time.sleep(PATIENCE_SECONDS)
    return failed


def failed_cells_error(failed: Mapping[str, DisaError], where: str) -> DisaError:
    """Return the error of work that is finished but for these units."""
    names, first = ", ".join(failed), next(iter(failed.values()))
    return DisaError(f"{len(failed)} failed ({names}), the first with: {one_line(first)}", where=where)


def one_line(error: DisaError) -> str:
    """An error as one line of a log."""
    return " ".join(str(error).split())
