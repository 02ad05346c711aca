"""Rows of JSONL and Parquet files that others wrote, each with where it stands."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from disa.errors import DisaError


def foreign_rows(path: Path, shown: str | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every row of a file, with its place for messages (``FILE, row 3``; the first is row 0).

    Raises DisaError where the file is missing, of another type, not readable, or a row is no JSON object. ``shown`` is
    what messages call the file.
    """
    shown = shown or str(path)
    if not path.is_file():
        raise DisaError("file not found", where=shown, fix="check the path; it is relative to the working directory")
    if path.suffix not in (".jsonl", ".parquet"):
        problem = f"files of type {path.suffix or 'none'} are not read"
        raise DisaError(problem, where=shown, fix="give a .jsonl or .parquet file")
    for index, row in enumerate((_jsonl if path.suffix == ".jsonl" else _parquet)(path, shown)):
        yield f"{shown}, row {index}", row


def _jsonl(path: Path, shown: str) -> Iterator[dict[str, Any]]:
    with path.open("rb") as file:
        for index, line in enumerate(line for line in file if line.strip()):
            where, fix = f"{shown}, row {index}", "write one JSON object per line"
            try:
                values = json.loads(line)
            except ValueError as error:  # not UTF-8 among them
                raise DisaError(f"not valid JSON ({error})", where=where, fix=fix) from error
            if not isinstance(values, dict):
                raise DisaError(f"holds a {type(values).__name__}, expected an object", where=where, fix=fix)
            yield values


def _parquet(path: Path, shown: str) -> Iterator[dict[str, Any]]:
    try:
        yield from pq.read_table(path).to_pylist()
    except (pa.ArrowException, OSError) as error:
        problem = f"not a readable Parquet file ({str(error).splitlines()[0]})"
        raise DisaError(problem, where=shown, fix="give a complete Parquet file") from error
