"""Typed rows as Parquet: written whole, read back checked, or left on disk until one is looked at.

The schema follows from a row class's annotations, and the file's metadata names the record and its version, so that a
reader can refuse what it does not understand. Plain Parquet:
``datasets.load_dataset("parquet", data_files="RUN/2_proposals/*.parquet")`` reads it.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import types
import typing
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from disa.errors import DisaError
from disa.runs.files import whole_file
from disa.runs.records import Row

_ARROW_TYPES: dict[Any, pa.DataType] = {
    str: pa.string(),
    int: pa.int64(),
    float: pa.float64(),
    bool: pa.bool_(),
    list[int]: pa.list_(pa.int32()),
    list[str]: pa.list_(pa.string()),
}


@functools.cache
def arrow_schema(row_type: type[Row]) -> pa.Schema:
    """Arrow schema of a row class, with the record's name and version in its metadata."""
    fields = []
    for name, annotation in typing.get_type_hints(row_type).items():
        if typing.get_origin(annotation) is ClassVar:
            continue
        optional = typing.get_origin(annotation) is types.UnionType
        value_type = typing.get_args(annotation)[0] if optional else annotation
        fields.append(pa.field(name, _ARROW_TYPES[value_type], nullable=optional))
    metadata = {"disa.record": row_type.__name__, "disa.version": str(row_type.VERSION)}
    return pa.schema(fields, metadata=metadata)


def write_rows(path: str | Path, rows: Sequence[Row], row_type: type[Row]) -> None:
    """Write rows to one Parquet file that appears whole or not at all."""
    written = arrow_schema(row_type)
    for name in getattr(row_type, "DERIVED", ()):
        written = written.append(pa.field(name, pa.int64(), nullable=False))
    columns = {name: [_plain(getattr(r, name)) for r in rows] for name in written.names}
    table = pa.table(columns, schema=written)
    with whole_file(Path(path)) as file:
        pq.write_table(table, file, row_group_size=_ROW_GROUP)


def read_rows(paths: str | Path | Iterable[Path], row_type: type[Row], *, thin: bool = False) -> list[Row]:
    """Read rows of one type from a file, from a folder's ``*.parquet`` files, or from many files.

    Raises DisaError naming file, row and field: a missing or unreadable file, a missing column, a wrong type, another
    record or version, a null or a NaN where a value is required. With ``thin`` the texts and token ids of completions
    stay where they are: texts are empty, token ids are :class:`StoredIds`. A row then takes some hundred bytes, however
    long its completion.
    """
    return [row for path in _files(paths) for row in _read_file(path, row_type, thin=thin)]


def read_columns(paths: str | Path | Iterable[Path], row_type: type[Row], names: Sequence[str]) -> pa.Table:
    """Some columns of all rows, checked as :func:`read_rows` checks them, without an object per row.

    A column that is derived from others (``DERIVED``) is taken from the rows where a file lacks it.
    """
    expected = arrow_schema(row_type)
    derived = {name: pa.field(name, pa.int64(), nullable=False) for name in getattr(row_type, "DERIVED", ())}
    fields = [derived.get(name) or expected.field(name) for name in names]
    tables = [pa.schema(fields).empty_table()]
    for path in _files(paths):
        file, defaults = _checked_file(path, row_type)
        there = [name for name in names if name in file.schema_arrow.names]
        try:
            found = file.read(columns=there)
        except (pa.ArrowInvalid, OSError) as error:
            raise _unreadable(path, error) from error
        columns: list[Any] = []
        for field in fields:
            if field.name in there:
                columns.append(_column(path, found.column(field.name), field, 0))
            elif field.name in defaults:
                columns.append([defaults[field.name]] * file.metadata.num_rows)
            else:
                columns.append([getattr(row, field.name) for row in _read_file(path, row_type, thin=True)])
        tables.append(pa.table(columns, schema=pa.schema(fields)))
    return pa.concat_tables(tables)


class StoredRows(Sequence[Row]):
    """Rows of Parquet files that stay there; those that are looked at are read and checked."""

    def __init__(self, paths: str | Path | Iterable[Path], row_type: type[Row]) -> None:
        self._paths, self._row_type = _files(paths), row_type
        self._ends = list(itertools.accumulate(_parquet(path).metadata.num_rows for path in self._paths))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: Any) -> Any:
        wanted = range(len(self))[index]
        if isinstance(wanted, int):
            return self[wanted : wanted + 1][0]
        found: list[Row] = []
        for path, start, end in zip(self._paths, [0, *self._ends], self._ends, strict=False):
            first, last = max(wanted.start, start), min(wanted.stop, end)
            if first < last:
                found += _read_file(path, self._row_type, first - start, last - start)
        return found[:: wanted.step]

    def __iter__(self) -> Iterator[Row]:
        for path in self._paths:
            yield from _read_file(path, self._row_type)

    def column(self, name: str) -> Iterator[Any]:
        """Values of one column, unchecked."""
        for path in self._paths:
            for batch in _parquet(path).iter_batches(columns=[name]):
                yield from batch.column(0).to_pylist()


class StoredIds(Sequence[int]):
    """Token ids of one row that stay in their file: how many is known, they are read when they are looked at."""

    __slots__ = ("_length", "_path", "_row")

    def __init__(self, path: Path, row: int, length: int) -> None:
        self._path, self._row, self._length = path, row, length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: Any) -> Any:
        return self._read()[index]

    def __iter__(self) -> Iterator[int]:
        return iter(self._read())

    def _read(self) -> list[int]:
        start = 0
        written = self._path.stat().st_mtime_ns
        for group, count in enumerate(_group_sizes(self._path, written)):
            if self._row < start + count:
                return _group_ids(self._path, written, group)[self._row - start].as_py()
            start += count
        raise IndexError(self._row)


_ROW_GROUP = 256
"""Rows that are read together where one is looked at: a megabyte of token ids at a thousand per row."""


@functools.lru_cache(maxsize=4096)
def _group_sizes(path: Path, written: int) -> list[int]:
    """Of the file as it was written at that time: a stage may be made again in one process."""
    metadata = _parquet(path).metadata
    return [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]


@functools.lru_cache(maxsize=64)
def _group_ids(path: Path, written: int, group: int) -> pa.ChunkedArray:
    return _parquet(path).read_row_group(group, columns=["completion_ids"]).column(0)


def _files(paths: str | Path | Iterable[Path]) -> list[Path]:
    if isinstance(paths, (str, Path)):
        path = Path(paths)
        return sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    return [Path(path) for path in paths]


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, StoredIds) else value


def _checked_file(path: Path, row_type: type[Row]) -> tuple[pq.ParquetFile, dict[str, Any]]:
    """Open a file of rows of this type, and give the values of fields that it may lack."""
    file = _parquet(path)
    expected, names = arrow_schema(row_type), file.schema_arrow.names
    metadata = {k.decode(): v.decode() for k, v in (file.schema_arrow.metadata or {}).items()}
    found = (metadata.get("disa.record"), metadata.get("disa.version"))
    known = [(row_type.__name__, str(version)) for version in (row_type.VERSION, *getattr(row_type, "READS", ()))]
    if found[0] is not None and found not in known:
        raise DisaError(
            f"holds {found[0]} rows of version {found[1]}, expected {row_type.__name__} version {row_type.VERSION}",
            where=str(path),
            fix="rerun the stage that writes this file with this version of disa",
        )
    current = found == known[0]
    defaults = {f.name: f.default for f in dataclasses.fields(row_type) if f.default is not dataclasses.MISSING}
    for name in expected.names:
        if name not in names and (current or name not in defaults):
            raise DisaError(
                f"field '{name}' is missing, found {', '.join(names)}",
                where=str(path),
                fix=f"add the column; {row_type.__name__} rows need {', '.join(expected.names)}",
            )
    return file, defaults


def _read_file(
    path: Path, row_type: type[Row], first: int = 0, last: int | None = None, *, thin: bool = False
) -> Iterator[Row]:
    """Rows from ``first`` to before ``last``, a batch in memory at a time."""
    file, defaults = _checked_file(path, row_type)
    expected, names = arrow_schema(row_type), file.schema_arrow.names
    last = file.metadata.num_rows if last is None else last
    groups, start = [], 0
    for group in range(file.metadata.num_row_groups):
        end = start + file.metadata.row_group(group).num_rows
        if start < last and end > first:
            groups.append((group, start))
        start = end
    at = groups[0][1] if groups else 0
    try:
        batches = file.iter_batches(
            _ROW_GROUP, row_groups=[group for group, _ in groups], columns=[n for n in expected.names if n in names]
        )
        for batch in batches:
            columns = [
                _values(path, batch, field, at, thin) if field.name in names else [defaults[field.name]] * len(batch)
                for field in expected
            ]
            for row, values in enumerate(zip(*columns, strict=True), start=at):
                if first <= row < last:
                    yield row_type(**dict(zip(expected.names, values, strict=True)))
            at += len(batch)
    except (pa.ArrowInvalid, OSError) as error:
        raise _unreadable(path, error) from error


def _values(path: Path, batch: pa.RecordBatch, field: pa.Field, start: int, thin: bool) -> Sequence[Any]:
    """One column of a batch whose first row is ``start``, checked, as plain values."""
    column = _column(path, batch.column(field.name), field, start)
    if thin and field.name == "completion_ids":
        lengths = pc.list_value_length(column).to_pylist()
        return [StoredIds(path, start + row, length) for row, length in enumerate(lengths)]
    return [""] * len(column) if thin and field.name == "completion" else column.to_pylist()


def _column(path: Path, column: Any, field: pa.Field, start: int) -> Any:
    """A column whose first row is ``start`` in its field's type, checked."""
    try:
        found = column.cast(field.type)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise DisaError(
            f"field '{field.name}' has type {column.type}, expected {field.type}",
            where=str(path),
            fix="write the column with the expected type",
        ) from error
    _check_values(path, field, found, start)
    return found


def _parquet(path: Path) -> pq.ParquetFile:
    if not path.is_file():
        raise DisaError("file not found", where=str(path), fix="check the path, or run the stage that writes it")
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> DisaError:
    return DisaError(
        f"not a readable Parquet file ({str(error).splitlines()[0]})",
        where=str(path),
        fix="delete the file and rerun its stage; finished files are never left half-written",
    )


def _check_values(path: Path, field: pa.Field, column: Any, start: int) -> None:
    found: list[tuple[int, str]] = []
    if column.null_count and not field.nullable:
        found.append((pc.index(pc.is_null(column), True).as_py(), "null"))
    if pa.types.is_floating(field.type) and pc.any(pc.is_nan(column)).as_py():
        found.append((pc.index(pc.fill_null(pc.is_nan(column), False), True).as_py(), "NaN"))
    if pa.types.is_list(field.type) and (inner := pc.list_flatten(column)).null_count:
        at = pc.index(pc.is_null(inner), True).as_py()
        found.append((pc.list_parent_indices(column)[at].as_py(), "a list with a null"))
    if found:
        row, shown = min(found)
        raise DisaError(
            f"field '{field.name}' is {shown}, expected a {field.type} value",
            where=f"{path}, row {start + row}",
            fix="correct or remove the row",
        )
