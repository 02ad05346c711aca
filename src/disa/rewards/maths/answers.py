"""What a maths verifier is given and what it says: gold answers and verdicts."""

from __future__ import annotations

import enum
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from disa.errors import DisaError


class Verdict(enum.StrEnum):
    """The three things a verifier can say about one completion."""

    CORRECT = "correct"
    WRONG = "wrong"
    UNDECIDED = "undecided"
    """Neither right nor wrong, as the gold answer cannot be read, or nothing decides in bounded time; counted apart."""

    @property
    def reward(self) -> float | None:
        """1 for correct, 0 for wrong, None for undecided."""
        return {Verdict.CORRECT: 1.0, Verdict.WRONG: 0.0}.get(self)


@dataclass(frozen=True, slots=True)
class Gold:
    r"""A gold answer as its data set has it.

    Parameters
    ----------
    answer : str
        LaTeX or plain text, with or without dollar signs, such as ``\frac{1}{2}``, ``(3,4]`` or ``1, -2``.
    multiple : bool
        The answer is a list of several answers (OlympiadBench's ``multiple``), in any order: commas separate, they
        never group thousands.
    unit : str or None
        The unit the problem asks for where the answer leaves it out (OlympiadBench's ``unit``). With ``"%"`` both
        ``4.2`` and ``4.2\%`` are accepted.
    error : str or None
        Largest absolute difference accepted, such as ``"1e-1"`` (OlympiadBench's ``error``); None for exactness.
    """

    answer: str
    multiple: bool = False
    unit: str | None = None
    error: str | None = None

    def __post_init__(self) -> None:
        if not self.answer.strip():
            raise DisaError("empty gold answer", where="maths answers", fix="drop the row or fill in its gold answer")
        _ = self.tolerance

    @property
    def tolerance(self) -> Fraction | None:
        """Exact value of ``error``.

        Raises DisaError where it is no single number.
        """
        try:
            return None if self.error is None else Fraction(self.error)
        except ValueError as error:
            raise DisaError(
                f"expected one number such as '1e-1', found {self.error!r}",
                where="maths answers, field error",
                fix="give one absolute tolerance, or none",
            ) from error

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Gold:
        """Gold answer of a row with ``answers`` (or ``answer``) and, where present, ``multiple``, ``unit``, ``error``.

        Raises DisaError where the row has no answer.
        """
        answers = row.get("answers") or [row.get("answer")]
        if any(not isinstance(answer, str) or not answer.strip() for answer in answers):
            raise DisaError(
                f"expected answers as text, found {answers!r}",
                where=f"row {row.get('id', '?')}, field answer",
                fix="drop the row or fill in its gold answer",
            )
        multiple = bool(row.get("multiple")) or len(answers) > 1
        return cls(", ".join(answers), multiple, row.get("unit") or None, row.get("error") or None)


@functools.lru_cache(maxsize=8192)
def as_gold(gold: str | Gold) -> Gold:
    """A gold answer from its text alone."""
    return gold if isinstance(gold, Gold) else Gold(gold)
