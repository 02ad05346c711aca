"""The numbers of many scored trajectories as arrays, read from their files without an object per row."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from disa.runs.parquet_rows import read_columns
from disa.runs.records import ScoredTrajectory

_NUMBERS = ("log_ref", "log_proposal", "reward")
_FIELDS = ("prompt_id", "source", *_NUMBERS, "retokenised", "own_length")


@dataclasses.dataclass(frozen=True)
class ScoredColumns:
    """What estimates of log Z take of scored trajectories, in their order; arrays have shape (rows,)."""

    ids: list[str]
    """Each prompt once, in the order in which they come first."""
    prompt: NDArray[np.intp]
    """Index of each row's prompt among ``ids``."""
    from_reference: NDArray[np.bool_]
    log_ref: NDArray[np.float64]
    log_proposal: NDArray[np.float64]
    """NaN where nobody knows it, as in the record null."""
    reward: NDArray[np.float64]
    """NaN where undecided."""
    retokenised: NDArray[np.bool_]
    own_length: NDArray[np.float64]

    @classmethod
    def read(cls, paths: Iterable[Path]) -> ScoredColumns:
        """Those of Parquet files, in their order; errors as :func:`disa.runs.parquet_rows.read_rows`'s."""
        return cls._of_table(read_columns(paths, ScoredTrajectory, _FIELDS))

    @classmethod
    def of(cls, rows: Scored) -> ScoredColumns:
        """Those of rows; columns stay as they are."""
        if isinstance(rows, ScoredColumns):
            return rows
        return cls._of_table(pa.table({name: [getattr(row, name) for row in rows] for name in _FIELDS}, _SCHEMA))

    @classmethod
    def _of_table(cls, table: pa.Table) -> ScoredColumns:
        prompts = table["prompt_id"].combine_chunks().dictionary_encode()
        numbers = {name: pc.fill_null(table[name], np.nan).to_numpy() for name in _NUMBERS}
        return cls(
            ids=prompts.dictionary.to_pylist(),
            prompt=prompts.indices.to_numpy().astype(np.intp),
            from_reference=pc.equal(table["source"], "reference").to_numpy(),
            retokenised=table["retokenised"].to_numpy(),
            own_length=table["own_length"].to_numpy().astype(np.float64),
            **numbers,
        )

    def __len__(self) -> int:
        return len(self.prompt)

    def where(self, kept: NDArray[np.bool_]) -> ScoredColumns:
        """The marked rows; ``ids`` stay, also of prompts that have none left."""
        arrays = {f.name: getattr(self, f.name)[kept] for f in dataclasses.fields(self) if f.name != "ids"}
        return ScoredColumns(self.ids, **arrays)

    @property
    def decided(self) -> ScoredColumns:
        """The rows with a verdict."""
        return self.where(~np.isnan(self.reward))

    @property
    def drawn(self) -> set[str]:
        """Ids of the prompts that have rows."""
        return self.prompts_where(np.ones(len(self), bool))

    def prompts_where(self, marked: NDArray[np.bool_]) -> set[str]:
        """Ids of the prompts of the marked rows."""
        return {self.ids[i] for i in np.unique(self.prompt[marked])}

    def counts(self) -> Counter[tuple[str, str]]:
        """Rows by prompt id and source."""
        found: Counter[tuple[str, str]] = Counter()
        for source, own in (("reference", self.from_reference), ("proposal", ~self.from_reference)):
            numbers = np.bincount(self.prompt[own], minlength=len(self.ids)).tolist()
            found.update({(i, source): number for i, number in zip(self.ids, numbers, strict=True) if number})
        return found


Scored = ScoredColumns | Sequence[ScoredTrajectory]
"""Scored trajectories, as arrays or row by row."""

_SCHEMA = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("source", pa.string()),
        *((name, pa.float64()) for name in _NUMBERS),
        ("retokenised", pa.bool_()),
        ("own_length", pa.int64()),
    ]
)
