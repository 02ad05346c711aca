"""Who works in a folder: locks on files, which go with their process, also when it is killed.

``flock`` belongs to the open file: a run directory on several nodes must be on a file system whose nodes all honour it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Literal

from disa.errors import DisaError

WAIT = 0.1
"""Seconds between looks at what another process holds: short beside a part, long beside a look."""
_PATIENCE = 2.0
"""Seconds after which a lock is not one that is being changed but one that is held."""


class RunDirectoryBusy(DisaError):
    """Another process works in the run directory."""


@contextlib.contextmanager
def claim(folder: Path) -> Iterator[bool]:
    """Hold a folder for one process and yield True, or yield False where another one holds it.

    Raises DisaError where the folder cannot be made.
    """
    with _lock_file(folder) as file:
        yield try_lock(file)


@contextlib.contextmanager
def exclusive(run_dir: Path) -> Iterator[None]:
    """Hold a run directory for one process.

    Raises RunDirectoryBusy where another process holds it. Raises DisaError where it cannot be made.
    """
    with claim(run_dir) as held:
        if not held:
            raise _busy(run_dir, "working in this run directory")
        yield


@contextlib.contextmanager
def shared(run_dir: Path, work: str) -> Iterator[None]:
    """Hold a run directory together with any number of processes that do the same work.

    Raises RunDirectoryBusy where a process that does other work holds it. Raises DisaError where it cannot be made.
    ``work`` is a digest of what is to be done.
    """
    with _lock_file(run_dir) as file:
        path = run_dir / ".work"

        def said() -> str | None:
            return path.read_text(encoding="utf-8") if path.is_file() else None

        for _ in range(round(_PATIENCE / WAIT)):
            if try_lock(file) and said() != work:  # nobody else is here: say what is done
                path.write_text(work, encoding="utf-8")
            # Changing a lock lets go of it for an instant, so what is said is read under the new one.
            if try_lock(file, "shared"):
                break
            time.sleep(WAIT)
        else:
            raise _busy(run_dir, "working in this run directory")
        if said() != work:
            raise _busy(run_dir, "working in this run directory with other settings")
        yield


def somebody_works(run_dir: Path) -> bool:
    """Whether a process holds the run directory, alone or with others."""
    path = run_dir / ".lock"
    if not path.is_file():
        return False
    with path.open("r+") as file:
        return not try_lock(file)


@contextlib.contextmanager
def awaited(path: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Hold a lock file, waiting for it where another process does.

    ``waiting`` is called once where this process has to wait.
    """
    with path.open("w") as file:
        if not try_lock(file):
            waiting()
            _flock(file, "exclusive", wait=True)
        yield


@contextlib.contextmanager
def offered(path: Path) -> Iterator[Callable[[], bool]]:
    """Yield a function that takes a lock file and says whether it could; what it took is held to the block's end."""
    with path.open("w") as file:
        yield lambda: try_lock(file)


def try_lock(file: IO[str], kind: Literal["shared", "exclusive"] = "exclusive") -> bool:
    """Take or change the lock of an open file without waiting; where that fails, none is held."""
    try:
        _flock(file, kind, wait=False)
    except BlockingIOError:
        return False
    return True


def _flock(file: IO[str], kind: str, *, wait: bool) -> None:
    try:
        import fcntl
    except ImportError as error:
        raise DisaError("files cannot be locked here", where=file.name, fix="use Linux or macOS") from error
    fcntl.flock(file, (fcntl.LOCK_SH if kind == "shared" else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))


@contextlib.contextmanager
def _lock_file(folder: Path) -> Iterator[IO[str]]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DisaError(
            f"cannot make the run directory ({error.strerror})", where=str(folder), fix="choose another run_dir"
        ) from error
    with (folder / ".lock").open("w") as file:
        yield file


def _busy(run_dir: Path, what: str) -> RunDirectoryBusy:
    return RunDirectoryBusy(
        f"another disa process is {what}", where=str(run_dir), fix="wait for it, stop it, or choose another run_dir"
    )
