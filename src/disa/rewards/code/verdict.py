"""What became of a program, and how many of each kind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

Status = Literal["passed", "failed", "timed_out", "crashed", "undecided"]


@dataclass(frozen=True)
class CodeVerdict:
    """What became of one program, why in a few words (empty where passed), and how many tests held before one did not.

    ``status`` is ``passed``, ``failed`` (a test does not hold, the program raised or is no Python), ``timed_out`` (its
    processor time was used up), ``crashed`` (its process ended early), or ``undecided`` (the sandbox or the tests
    themselves failed, or wall-clock time was up: no statement about the program).
    """

    status: Status
    reason: str = ""
    tests_passed: int = 0

    @property
    def passed(self) -> bool:
        """Whether every test held."""
        return self.status == "passed"


def readable_line(text: str) -> str:
    """Text of a program or its tests as one line of at most 300 printable characters, to be shown to a user."""
    return "".join(character if character.isprintable() else " " for character in text[:300]).strip()


def count_verdicts(verdicts: Iterable[CodeVerdict]) -> dict[str, int]:
    """How many verdicts of each status, zeros included."""
    counts = Counter(verdict.status for verdict in verdicts)
    return {status: counts[status] for status in get_args(Status)}
