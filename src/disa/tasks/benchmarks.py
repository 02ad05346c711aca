"""Ready-made benchmarks, read from ``benchmarks.yaml``, and how their rows are recognised.

Two digests can vouch for rows. ``files`` has the SHA-256 of each published file, where it is known; ``contents``
has row counts and :func:`rows_digest` of known contents, whatever file they are read from. Where a digest is
None nobody here has seen the published rows: loading then says *not verified*, and what it found.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

import yaml

from disa.errors import DisaError

BOXED = "{prompt}\nPlease reason step by step, and put your final answer within \\boxed{}."
_TEMPLATES = {
    "boxed": BOXED,
    "complete": "Complete the following Python function. Answer with the whole function in one Python code block.\n\n"
    "```python\n{prompt}\n```",
    "from_tests": "{prompt}\nYour code should pass these tests:\n\n```python\n{tests}\n```\n\n"
    "Answer with the whole program in one Python code block.",
    "contest": "{prompt}\n\nAnswer with the whole program in one Python code block.",
}


@dataclasses.dataclass(frozen=True)
class BenchmarkContents:
    """Rows that are known to be a benchmark's."""

    rows: int
    digest: str | None = None
    """:func:`rows_digest`; None where the rows could not be seen when this was written."""
    of: str = "the published rows, not seen here"
    """What was digested."""


@dataclasses.dataclass(frozen=True)
class PublishedBenchmark:
    """One entry of the table."""

    hub: str
    """Data set id on the Hugging Face hub."""
    revision: str
    """Commit there; ``main`` where the file's digest alone pins it."""
    files: dict[str, str | None]
    """Files of the data set, with the SHA-256 of each where it is known."""
    licence: str
    contents: tuple[BenchmarkContents, ...]
    """First the published rows, then other known copies of them."""
    verifier: str = "maths"
    columns: dict[str, str] = dataclasses.field(default_factory=dict)
    answer_after: str = ""
    prompt_template: str = BOXED
    arithmetic: bool = False
    """Whether a solution is arithmetic in words, whose steps are its kind."""
    use: str = "heldout"
    """Split of a run that the rows go to."""


def _read_table() -> dict[str, PublishedBenchmark]:
    table = yaml.safe_load(Path(__file__).with_name("benchmarks.yaml").read_text(encoding="utf-8"))
    for entry in table.values():
        entry["contents"] = tuple(BenchmarkContents(**contents) for contents in entry["contents"])
        entry["prompt_template"] = _TEMPLATES[entry.get("prompt_template", "boxed")]
    return {name: PublishedBenchmark(**entry) for name, entry in table.items()}


BENCHMARKS = _read_table()
"""Every ready-made benchmark, by name."""


def rows_digest(rows: Iterable[Sequence[str]]) -> str:
    """Digest of rows, each its problem and then what it is judged by, whatever their order and file format.

    Texts are compared in Unicode's composed form (NFC) with runs of white space as one space: copies of a
    data set differ in these and mean the same.
    """
    canonical = sorted(
        json.dumps([" ".join(unicodedata.normalize("NFC", text).split()) for text in row], ensure_ascii=False)
        for row in rows
    )
    return hashlib.sha256("\n".join(canonical).encode()).hexdigest()


def verify_benchmark(name: str, files: dict[str, str], rows: int, digest: str, *, from_hub: bool, where: str) -> str:
    """What vouches for the rows just loaded.

    Raises DisaError where the number of rows is another, or a digest is known and neither it nor a file's is right.
    ``from_hub`` says whether the files are the hub's own; a local file may hold the same rows in another form.
    """
    entry = BENCHMARKS[name]
    pinned = None not in entry.files.values()
    if pinned and sorted(files.values()) == sorted(str(d) for d in entry.files.values()):
        return "verified: SHA-256 of the published files"
    known = [contents for contents in entry.contents if contents.rows == rows]
    if not known:
        expected = " or ".join(str(contents.rows) for contents in entry.contents)
        raise DisaError(f"{rows} rows found, {name} has {expected}", where=where, fix=_FIX)
    for contents in known:
        if contents.digest == digest:
            return f"verified: digest of {contents.of}"
    if (from_hub and pinned) or all(contents.digest is not None for contents in known):
        raise DisaError(f"the rows are not those of {name} (digest {digest[:16]}...)", where=where, fix=_FIX)
    return f"not verified: {rows} rows as expected, but no digest of the published rows is known; found {digest}"


_FIX = "load the benchmark from its hub id, or, if the rows are meant to differ, name the file without benchmark:"
