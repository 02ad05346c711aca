"""Read a source's rows as they are: from a local file, the hub, or a benchmark's published files."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from disa.errors import DisaError
from disa.runs.files import file_digest
from disa.runs.foreign_rows import foreign_rows
from disa.tasks.benchmarks import BENCHMARKS

if TYPE_CHECKING:
    from disa.tasks.dataset_config import SourceConfig


@dataclasses.dataclass(frozen=True)
class RawRow:
    """One row with the place it was read from."""

    values: dict[str, Any]
    index: int
    """Number of the row in its source, from 0."""
    where: str
    """File or data set, and row, for messages."""

    def get(self, column: str) -> Any:
        """Value of a column, or of ``column.field.0`` within it; None where there is none.

        A column whose own name has dots is found first.
        """
        if column in self.values:
            return self.values[column]
        value: Any = self.values
        for part in column.split("."):
            if isinstance(value, dict) and part in value:
                value = value[part]
            elif isinstance(value, list) and part.isdigit() and int(part) < len(value):
                value = value[int(part)]
            else:
                return None
        return value

    def need(self, column: str, field: str) -> Any:
        """The same, for a value that must be there.

        Raises DisaError naming source, row and field.
        """
        value = self.get(column)
        if value is None or (isinstance(value, (str, list)) and not value):
            found = "empty" if value is not None else "missing"
            raise self.error(
                field,
                f"column {column!r} is {found}, the row has {', '.join(map(str, self.values))}",
                fix=f"correct the row, or name the right column in columns: {{{field}: ...}}",
            )
        return value

    def error(self, field: str, problem: str, *, fix: str) -> DisaError:
        """An error about this row."""
        return DisaError(problem, where=f"{self.where}, field {field}", fix=fix)


@dataclasses.dataclass(frozen=True)
class RawSource:
    """All rows of a source."""

    label: str
    """What messages and reports call it."""
    rows: list[RawRow]
    files: dict[str, str]
    """SHA-256 of the files that were read; empty for a data set that the ``datasets`` library loaded."""


def label_of(source: SourceConfig) -> str:
    """A source's name in messages and reports."""
    if source.path is not None or source.benchmark is not None:
        return source.benchmark or source.path or ""
    return "/".join(part for part in (source.hub, source.config, source.split) if part)


def read_source(source: SourceConfig) -> RawSource:
    """Every row of a source.

    Raises DisaError where it cannot be found or reached, or a row is not readable.
    """
    label = label_of(source)
    if source.path is not None:
        paths = [Path(source.path)]
    elif source.benchmark is not None:
        paths = _download(source.benchmark)
    else:
        return RawSource(label, _load(source, label), {})
    rows, files = [], {}
    for path in paths:
        shown = str(path) if source.path is not None else f"{label}, {path.name}"
        rows += [RawRow(values, i, where) for i, (where, values) in enumerate(foreign_rows(path, shown))]
        files[path.name] = file_digest(path)
    return RawSource(label, [dataclasses.replace(row, index=i) for i, row in enumerate(rows)], files)


def _download(name: str) -> list[Path]:
    """A benchmark's published files, from the hub or its cache."""
    from huggingface_hub import hf_hub_download

    entry = BENCHMARKS[name]
    try:
        return [
            Path(hf_hub_download(entry.hub, file, repo_type="dataset", revision=entry.revision)) for file in entry.files
        ]
    except Exception as error:
        raise _unreachable(entry.hub, error) from error


def _load(source: SourceConfig, label: str) -> list[RawRow]:
    from datasets import load_dataset

    assert source.hub is not None, "the configuration gives every source an origin"
    try:
        data = load_dataset(source.hub, source.config, split=source.split, revision=source.revision)
    except Exception as error:
        raise _unreachable(label, error) from error
    return [RawRow(values, i, f"{label}, row {i}") for i, values in enumerate(data)]


def _unreachable(label: str, error: Exception) -> DisaError:
    problem = " ".join(str(error).split())[:300]
    return DisaError(
        f"cannot be loaded ({type(error).__name__}: {problem})",
        where=f"data set {label}",
        fix="check its name, config, split and revision, and the network; offline, give a local file as path",
    )
