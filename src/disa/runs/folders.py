"""Stage folders on disk: finished work is skipped, half-done work continues, nothing is lost.

A stage writes its rows in parts whose names follow from their content (never from when they were
written), each file appearing whole by rename. ``started.json`` holds the fingerprint of the work
under way and ``manifest.json``, written last, that of the finished work::

    fingerprint = H(stage, version, configuration, inputs' contents)

A folder whose fingerprint no longer matches is moved aside to ``superseded/``, not deleted.

Several processes may do the same work together (:func:`disa.runs.locks.shared`): each claims the parts it makes, and
the claim goes with the process, so that the parts of one that was killed are made by the others.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq

from disa.errors import DisaError
from disa.runs import worked
from disa.runs.files import file_digest, whole_file
from disa.runs.locks import WAIT, awaited, offered, try_lock
from disa.runs.parquet_rows import StoredRows, read_rows, write_rows
from disa.runs.provenance import digest
from disa.runs.records import Row

if TYPE_CHECKING:
    from disa.runs.parts import Backend

MANIFEST_VERSION = 1
_RECORDED_PACKAGES = ("disa", "torch", "transformers", "trl", "numpy")


class StageFolder:
    """One stage's folder in a run directory, such as ``2_proposals``.

    ``version`` is that of the stage's code: raise it when the same configuration gives other rows. ``identity`` holds
    the configuration values that determine the result; the content of the finished ``inputs`` enters the fingerprint.
    """

    def __init__(
        self, run_dir: Path, name: str, *, version: int, identity: dict[str, Any], inputs: dict[str, StageFolder]
    ) -> None:
        self._run_dir = Path(run_dir)
        self.path = self._worked = self._run_dir / name
        self.backend: Backend | None = None
        """What makes its parts in this process's place."""
        # Beside the folder: it must outlive the folder's being moved aside.
        self._lock = self._run_dir / f".lock-{name.replace('/', '-')}"
        self.name = name
        self._contract = {
            "stage": name,
            "version": version,
            "configuration": identity,
            "inputs": {label: stage.content for label, stage in inputs.items()},
        }
        self.fingerprint = digest(self._contract)

    @property
    def manifest(self) -> dict[str, Any]:
        """The finished stage's manifest.

        Raises DisaError where the stage has not finished, or its manifest is not readable.
        """
        return read_json(self.path / "manifest.json", missing=f"stage {self.name} has not finished")

    @property
    def content(self) -> str:
        """Digest of the finished stage's fingerprint and files: what downstream stages depend on."""
        try:
            return self.manifest["content"]
        except KeyError as error:
            problem = "a finished stage's manifest has a field content, this one has not"
            raise DisaError(
                problem, where=str(self.path / "manifest.json"), fix="delete its folder and rerun"
            ) from error

    @property
    def finished(self) -> bool:
        """Whether finished output of exactly this work is on disk."""
        path = self.path / "manifest.json"
        return path.is_file() and read_json(path).get("fingerprint") == self.fingerprint

    def begin(self) -> None:
        """Continue matching half-done work, or move anything else aside and start afresh."""
        marker = self.path / "started.json"
        if not (marker.is_file() and read_json(marker).get("fingerprint") == self.fingerprint):
            if self.path.exists() and any(self.path.iterdir()):
                self._supersede()
            self.path.mkdir(parents=True, exist_ok=True)
            write_json(marker, self._contract | {"fingerprint": self.fingerprint, "started_at": time.time()})
        worked.note_work(self.path, begins=True)

    def _supersede(self) -> None:
        attic = self._run_dir / "superseded"
        attic.mkdir(exist_ok=True)
        number = 0
        while (target := attic / f"{self.name.replace('/', '-')}.{number}").exists():
            number += 1
        self.path.rename(target)

    def part(self, key: str) -> Path:
        """Path of the part with this key; it exists exactly when the part is complete."""
        return self.path / f"{key}.parquet"

    def inner(self, name: str) -> StageFolder:
        """A folder within, for parts of which the stage makes its own."""
        within = StageFolder(
            self._run_dir, f"{self.name}/{name}", version=0, identity={"of": self.fingerprint}, inputs={}
        )
        within.path.mkdir(exist_ok=True)
        within.backend, within._worked = self.backend, self._worked
        return within

    def write_part(self, key: str, rows: list[Row], row_type: type[Row]) -> None:
        """Write one part whole."""
        write_rows(self.part(key), rows, row_type)
        worked.note_work(self._worked)

    def alone(self, waiting: Callable[[], None] = lambda: None) -> contextlib.AbstractContextManager[None]:
        """Hold this stage among all processes that work in the run directory.

        ``waiting`` is called once where another process holds it and this one has to wait.
        """
        return awaited(self._lock, waiting)

    def offered(self) -> contextlib.AbstractContextManager[Callable[[], bool]]:
        """Give a function that takes this stage, as :meth:`alone` does, or says that another process holds it."""
        return offered(self._lock)

    def parts_to_make(self, rows: dict[str, int]) -> Iterator[str]:
        """Keys of the parts that this process is to make, until all are there.

        A part belongs to the process that claimed it for as long as that process lives; other processes take the other
        parts, then wait, and take over the part of one that died. Parts that another part size left, with another key
        or another number of rows, go: a stage under way may be continued with another part size, which only moves the
        borders of its parts. ``rows`` is the number of rows of every part, in the order in which parts are made.
        """
        for path in self.path.glob("*.parquet"):
            if path.stem not in rows:
                path.unlink(missing_ok=True)
        while missing := self.missing(rows):
            claimed = False
            for key in missing:
                with self._claim(key, rows[key]) as mine:
                    claimed |= mine
                    if mine:
                        yield key
            if not claimed:
                time.sleep(WAIT)

    @contextlib.contextmanager
    def _claim(self, key: str, count: int) -> Iterator[bool]:
        """Whether a part that was missing a while ago is this process's to make."""
        path = self.path / f".{key}.claim.tmp"
        with path.open("w") as file:
            try:
                yield try_lock(file) and not self._is_made(key, count)
            finally:
                if self._is_made(key, count):
                    path.unlink(missing_ok=True)

    def missing(self, rows: dict[str, int]) -> list[str]:
        """Keys of the parts that are not there."""
        return [key for key, count in rows.items() if not self._is_made(key, count)]

    def _is_made(self, key: str, count: int) -> bool:
        path = self.part(key)
        return path.is_file() and pq.read_metadata(path).num_rows == count

    def made(self, rows: dict[str, int]) -> int:
        """Number of rows in the parts that are there, whoever made them."""
        return sum(rows.get(path.stem, 0) for path in self.path.glob("*.parquet"))

    def kept(self) -> str:
        """What an interrupted stage goes on from: its newest checkpoint, or its finished parts."""
        # The trainer's state is the last file of a checkpoint.
        saved = [path.parent.name for path in self.path.rglob("checkpoint-[0-9]*/trainer_state.json")]
        steps = [int(name.removeprefix("checkpoint-")) for name in saved]
        if steps:
            return f"it goes on from the checkpoint of step {max(steps)}"
        parts = len(list(self.path.glob("*.parquet")))
        return f"finished parts are kept: {parts}" if parts else "nothing was finished yet, it begins again"

    def rows(self, row_type: type[Row]) -> list[Row]:
        """All rows of the finished stage, in the order of their parts' keys."""
        return read_rows(self.path, row_type)

    def thin_rows(self, row_type: type[Row]) -> list[Row]:
        """The same without texts and token ids, as :func:`disa.runs.parquet_rows.read_rows` makes them thin."""
        return read_rows(self.path, row_type, thin=True)

    def stored_rows(self, row_type: type[Row]) -> StoredRows[Row]:
        """The same, left on disk until they are looked at."""
        return StoredRows(self.path, row_type)

    def finish(self, **facts: Any) -> None:
        """Write the manifest: from here on the stage is skipped until something it depends on changes."""
        worked.note_work(self.path)
        for left in self.path.rglob(".*.tmp"):
            if left.is_dir():  # a model whose saving was killed
                shutil.rmtree(left)
        manifest = self._contract | {
            "manifest_version": MANIFEST_VERSION,
            "fingerprint": self.fingerprint,
            "content": digest([self.fingerprint, _hash_files(self.path)]),
            "seconds": round(worked.seconds_worked(self.path), 3),
            **worked.most_held(self.path),
            "packages": {name: _installed_version(name) for name in _RECORDED_PACKAGES},
        }
        # Of processes that made the parts together, the first one finishes.
        if not self.finished:
            write_json(self.path / "manifest.json", manifest | facts)


def _hash_files(folder: Path) -> dict[str, str]:
    """Digests of the stage's result files; checkpoints, logs and markers are not results."""
    skip = {"started.json", "manifest.json", worked.FILE}
    # Step logs hold wall times: as content they would make the same training give another run downstream.
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.suffix not in (".tmp", ".jsonl"))
    files = [p for p in files if p.name not in skip]
    kept = [p for p in files if not any(part.startswith("checkpoint") for part in p.relative_to(folder).parts)]
    return {str(p.relative_to(folder)): file_digest(p) for p in kept}


def _installed_version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that the file appears whole or not at all."""
    with whole_file(path, "w") as file:
        json.dump(value, file, indent=1, sort_keys=True)


def read_json(path: Path, *, missing: str = "file not found") -> dict[str, Any]:
    """Read a JSON object.

    Raises DisaError where the file is missing or is not a JSON object.
    """
    if not path.is_file():
        raise DisaError(missing, where=str(path), fix="run the stage that writes it, or check the path")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DisaError(f"not valid JSON ({error})", where=str(path), fix="delete its folder and rerun") from error
    if not isinstance(value, dict):
        problem = f"holds a {type(value).__name__}, expected an object"
        raise DisaError(problem, where=str(path), fix="delete its folder and rerun")
    return value
