r"""Rows that state the same problem twice: within a split, or in training and in what is reported.

Two problems are the same exactly, or after :func:`normalised_problem`: Unicode NFKC and case unified, LaTeX spacing,
delimiters and size commands removed, punctuation read as white space, and white space kept only between words.
Operators, brackets and braces stay: ``x+1`` and ``x-1``, ``\frac{1}{23}`` and ``\frac{12}{3}`` are two problems.
A paraphrase is not recognised.
"""

from __future__ import annotations

import dataclasses
import re
import unicodedata
from collections import Counter
from typing import Any

from disa.tasks.rows import RowProblem

# What is evaluated stays; what is trained on gives way.
PRECEDENCE = ("heldout", "validation", "train", "warmup")

_SPACING = re.compile(r"\\[,;:!> ]|\\(?:quad|qquad|thinspace|medspace|thickspace)(?![a-z])|~")
_SIZES = re.compile(r"\\(?:left|right|displaystyle|textstyle|limits)(?![a-z])")
_DELIMITERS = re.compile(r"\\[()\[\]]|\$")
_FRACTIONS = re.compile(r"\\[dt]frac(?![a-z])")
# Not the exclamation mark, which is a factorial, nor a point inside a number.
_PUNCTUATION = re.compile(r"""[,;:?"'`]|\.(?!\d)""")
_LOOSE_SPACE = re.compile(r"\s+(?=\W)|(?<=\W)\s+")


def normalised_problem(text: str) -> str:
    """A problem without the differences of writing that copies of a data set have."""
    text = unicodedata.normalize("NFKC", text).casefold()
    text = text.replace("\u2019", "'").replace("\u2018", "'").replace("\u2212", "-")
    text = _FRACTIONS.sub(r"\\frac", _SIZES.sub("", _SPACING.sub(" ", text)))
    text = _PUNCTUATION.sub(" ", _DELIMITERS.sub(" ", text))
    return _LOOSE_SPACE.sub("", " ".join(text.split())).strip()


@dataclasses.dataclass(frozen=True)
class Overlap:
    """A row that repeats another one."""

    kind: str
    """``duplicate`` within a split, ``contamination`` of a split by one of higher precedence."""
    match: str
    """``exact`` or ``normalised``."""
    split: str
    source: str
    row: str
    kept_split: str
    kept_source: str
    kept_row: str
    """The row that stayed."""
    same_gold: bool
    """Whether both have the same gold answer."""
    dropped: bool


def remove_overlaps(
    splits: dict[str, list[RowProblem]], match: str = "normalised"
) -> tuple[dict[str, list[RowProblem]], list[Overlap]]:
    """Drop repeated problems, the first of the highest split staying.

    Held-out problems define what is reported: one is dropped only where prompt and gold come twice, and a repetition
    with another gold or in other words is reported and kept. ``match`` is ``normalised``, or ``exact`` to compare
    letter by letter. Returns what is left, in its order, and every repetition found.
    """
    seen: dict[str, tuple[str, RowProblem]] = {}
    ids: set[str] = set()
    left: dict[str, list[RowProblem]] = {split: [] for split in splits}
    found = []
    for split in sorted(splits, key=PRECEDENCE.index):
        for problem in splits[split]:
            key = problem.text if match == "exact" else normalised_problem(problem.text)
            if key in seen:
                dropped = split != "heldout" or problem.prompt_id in ids
                found.append(_overlap(split, problem, *seen[key], dropped=dropped))
                if dropped:
                    continue
            left[split].append(problem)
            seen.setdefault(key, (split, problem))
            ids.add(problem.prompt_id)
    return left, found


def _overlap(split: str, problem: RowProblem, kept_split: str, kept: RowProblem, *, dropped: bool) -> Overlap:
    return Overlap(
        kind="duplicate" if split == kept_split else "contamination",
        match="exact" if problem.text == kept.text else "normalised",
        split=split,
        source=problem.source,
        row=problem.row_id,
        kept_split=kept_split,
        kept_source=kept.source,
        kept_row=kept.row_id,
        same_gold=problem.canonical[1:] == kept.canonical[1:],
        dropped=dropped,
    )


def overlap_counts(found: list[Overlap]) -> dict[str, Any]:
    """How many there are, by split, kind and match."""
    counts = Counter((o.split, f"{o.kind}_{o.match}" + ("" if o.dropped else "_kept")) for o in found)
    return {
        "counts": {
            split: {what: n for (s, what), n in sorted(counts.items()) if s == split}
            for split in PRECEDENCE
            if any(s == split for s, _ in counts)
        },
        "dropped": sum(o.dropped for o in found),
        "conflicting_gold": sum(not o.same_gold for o in found),
    }
