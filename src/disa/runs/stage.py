"""What a stage is: where its rows go, what they depend on, and the work that makes them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

from disa.runs.folders import StageFolder


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage of a run, described and not yet done."""

    name: str
    """Of its command: ``disa proposals``."""
    folder: str
    """Within the run directory."""
    version: int
    """Raised when the same configuration gives other rows."""
    identity: dict[str, Any]
    """The settings that determine its result."""
    inputs: dict[str, StageFolder]
    """Finished stages that it reads."""
    work: Callable[[StageFolder], None]
    """Fills the folder and ends with :meth:`StageFolder.finish`."""
    by: Literal["one", "parts", "launch"] = "one"
    """How processes share the work: one does it while others wait, all make parts, or one launch trains together."""
    says: Callable[[StageFolder], list[str]] = lambda folder: []
    """What a person must know of the result: a line of figures, and warnings where they are beyond their bounds."""


def share_text(part: int, whole: int) -> str:
    """A share in per cent, as such lines show it."""
    return f"{100 * part / max(1, whole):.1f}%"
