"""The typed rows that cross stages, in pipeline order, and their Parquet form.

Every stage talks to the next one only through these rows on disk. A row class is a frozen
dataclass; its Parquet schema follows from its annotations, and the file's metadata names the
record and its version, so that a reader can refuse what it does not understand. Earlier versions
that a class still understands are its ``READS``: a column they lack takes the field's default, as it does
in plain Parquet of other origin. Plain Parquet:
``datasets.load_dataset("parquet", data_files="RUN/2_proposals/*.parquet")`` reads it.

Log-probabilities are sums over the completion's tokens, in nats, float64.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from disa.errors import DisaError
from disa.runs.files import whole_file

SOURCES = ("reference", "proposal")
"""The models that trajectories are drawn from."""
CORRECT_REWARD = 1.0
"""A completion is correct when it earns the full reward; partial credit is not a solution."""


@dataclasses.dataclass(frozen=True, slots=True)
class Prompt:
    """One problem. Written by ``tasks``."""

    VERSION: ClassVar[int] = 1

    prompt_id: str
    """Identity of (task, prompt text): equal text gives an equal id in every run."""
    task: str
    split: str
    """``train``, ``validation`` (for choosing settings) or ``heldout`` (for reporting only)."""
    prompt: str
    """The text shown to the model, before any chat template."""
    payload: str
    """JSON object with what the task's reward needs (target, graph, gold answer, tests)."""
    n_solutions: int | None
    """Exact number of distinct valid solutions, null where the task cannot count them."""

    def as_row(self) -> dict[str, Any]:
        """Plain values, as a trainer's data set carries them beside its own columns."""
        return dataclasses.asdict(self)

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Prompt:
        """Inverse of :meth:`as_row`; other keys are left out."""
        return cls(**{field.name: row[field.name] for field in dataclasses.fields(cls)})


@dataclasses.dataclass(frozen=True, slots=True)
class Trajectory:
    """One offline completion. Written by ``proposals``."""

    VERSION: ClassVar[int] = 3
    READS: ClassVar[tuple[int, ...]] = (1, 2)

    prompt_id: str
    draw: int
    """Index of the draw within its prompt; with the seed it determines the random numbers."""
    source: str
    """Model it was drawn from: ``reference`` or ``proposal``."""
    completion: str
    completion_ids: list[int]
    """Token ids, the stop token included unless truncated."""
    truncated: bool
    """Cut at the length limit, without a stop token: an atom of its own in the distribution."""
    log_sampler: float | None
    """Log-probability under the model it was drawn from, as the sampler computed it; null where it did not say."""
    retokenised: bool = dataclasses.field(default=False, kw_only=True)
    """The sampler gave text only, and ``completion_ids`` are what the reference's tokenizer makes of it."""
    tool_mask: list[int] | None = dataclasses.field(default=None, kw_only=True)
    """1 for each of ``completion_ids`` that the model wrote, 0 for those of tools and environments; null where the
    model wrote all. Every log-probability and length is of the model's own."""
    judged: float | None = dataclasses.field(default=None, kw_only=True)
    """Reward given as it was drawn, where tools or environments took part; null where that is left to scoring."""

    @property
    def own_length(self) -> int:
        """Tokens that the model wrote."""
        return len(self.completion_ids) if self.tool_mask is None else sum(self.tool_mask)


@dataclasses.dataclass(frozen=True, slots=True)
class ScoredTrajectory(Trajectory):
    """A trajectory with both models' log-probabilities and its reward. Written by ``scoring``."""

    VERSION: ClassVar[int] = 4
    READS: ClassVar[tuple[int, ...]] = (2, 3)

    log_ref: float
    log_proposal: float | None
    """Null where neither the proposal's weights nor its own word are at hand: no importance weight then."""
    reward: float | None
    """Null where the verifier came to no verdict: such a row takes no part in any estimate or loss."""


@dataclasses.dataclass(frozen=True, slots=True)
class LogProb:
    """Log-probability of one trajectory under one model. Written by ``scoring`` on its way."""

    VERSION: ClassVar[int] = 1

    log_p: float


@dataclasses.dataclass(frozen=True, slots=True)
class PartitionEstimate:
    """The estimate of one prompt's log Z with everything needed to judge it.

    Written by ``partition``; the rows of an anchor are these rows, frozen.
    """

    VERSION: ClassVar[int] = 1

    prompt_id: str
    split: str
    log_z: float
    """Estimate of log E_ref[exp(beta r)], in nats."""
    q: float
    """Soft success probability: Z = exp(beta r_min) (1 + expm1(beta (r_max - r_min)) q)."""
    interval_low: float
    interval_high: float
    """Two-sided interval for log Z at the level that the manifest states."""
    n: int
    n_reference: int
    mean_reward_reference: float
    """Mean reward of the reference-drawn trajectories (the plain pass rate when r is 0 or 1)."""
    ess: float
    hits_ess: float
    mean_weight: float
    pareto_k: float | None
    method: str
    flags: list[str]


@dataclasses.dataclass(frozen=True, slots=True)
class EvaluationRecord:
    """One sampled and judged completion of one model. Written by ``evaluation`` and ``disa evaluate``."""

    VERSION: ClassVar[int] = 3

    model: str
    """``reference`` or the name of a trained policy (``disa``, ``grpo``, ...); of ``disa evaluate`` as it was named."""
    task: str
    prompt_id: str
    split: str
    draw: int
    completion: str
    completion_tokens: int | None
    """Stop token included, null where a server does not say."""
    truncated: bool
    reward: float | None
    """Null where the verifier came to no verdict: neither correct nor wrong."""
    mode: str | None
    """Canonical form of a correct solution where the task has modes, null otherwise."""
    log_pi: float | None = None
    """Log-probability under the evaluated model; like ``log_ref`` null where no reference is at hand."""
    log_ref: float | None = None

    @property
    def correct(self) -> bool:
        """Whether it earned the full reward."""
        return self.reward is not None and self.reward >= CORRECT_REWARD


@dataclasses.dataclass(frozen=True, slots=True)
class PromptValue:
    """One metric of one model on one prompt. Written by ``report`` and ``disa evaluate``."""

    VERSION: ClassVar[int] = 1

    model: str
    group: str
    """Split of a run, task of ``disa evaluate``."""
    prompt_id: str
    metric: str
    value: float


class Record(typing.Protocol):
    """What every row class is: a dataclass with a version."""

    VERSION: ClassVar[int]
    __dataclass_fields__: ClassVar[dict[str, Any]]


Row = TypeVar("Row", bound=Record)

_ARROW_TYPES: dict[Any, pa.DataType] = {
    str: pa.string(),
    int: pa.int64(),
    float: pa.float64(),
    bool: pa.bool_(),
    list[int]: pa.list_(pa.int32()),
    list[str]: pa.list_(pa.string()),
}


def schema(row_type: type[Row]) -> pa.Schema:
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
    columns = {f.name: [_plain(getattr(r, f.name)) for r in rows] for f in dataclasses.fields(row_type)}
    table = pa.table(columns, schema=schema(row_type))
    with whole_file(Path(path)) as file:
        pq.write_table(table, file, row_group_size=_ROW_GROUP)


def read_rows(paths: str | Path | Iterable[Path], row_type: type[Row], *, thin: bool = False) -> list[Row]:
    """Read rows of one type from a file, from a folder's ``*.parquet`` files, or from many files.

    Parameters
    ----------
    thin : bool
        Leave texts and token ids of completions where they are: texts are empty, token ids are :class:`StoredIds`. A
        row then takes some hundred bytes, however long its completion.

    Raises
    ------
    DisaError
        Naming file, row and field: a missing or unreadable file, a missing column, a wrong type,
        another record or version, a null or a NaN where a value is required.
    """
    return [row for path in _files(paths) for row in _read_file(path, row_type, thin=thin)]


class StoredRows(Sequence[Row]):
    """Rows of Parquet files that stay there; those that are looked at are read and checked.

    Parameters
    ----------
    paths, row_type
        As :func:`read_rows` takes them.
    """

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


def _read_file(
    path: Path, row_type: type[Row], first: int = 0, last: int | None = None, *, thin: bool = False
) -> Iterator[Row]:
    """Rows from ``first`` to before ``last``, a batch in memory at a time."""
    file = _parquet(path)
    expected, names = schema(row_type), file.schema_arrow.names
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
    try:
        column = batch.column(field.name).cast(field.type)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise DisaError(
            f"field '{field.name}' has type {batch.schema.field(field.name).type}, expected {field.type}",
            where=str(path),
            fix="write the column with the expected type",
        ) from error
    _check_values(path, field, column, start)
    if thin and field.name == "completion_ids":
        lengths = pc.list_value_length(column).to_pylist()
        return [StoredIds(path, start + row, length) for row, length in enumerate(lengths)]
    return [""] * len(column) if thin and field.name == "completion" else column.to_pylist()


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


def _check_values(path: Path, field: pa.Field, column: pa.Array, start: int) -> None:
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
