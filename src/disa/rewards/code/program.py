"""What is judged, and within which limits."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import Field

from disa.config import StageConfig


class Limits(StageConfig):
    """What one program may use. Every limit is set from outside the program and none can be raised from inside."""

    cpu_seconds: int = Field(5, ge=1)
    """Processor time of one run (RLIMIT_CPU): a busy machine does not shorten it, so it should bind first."""
    seconds_per_test: float = Field(20.0, gt=0)
    """Wall-clock time of one call or of one run on one input; past it the verdict is undecided."""
    seconds_total: float = Field(120.0, gt=0)
    """Wall-clock time of a program with all its tests, sandbox start included; past it the verdict is undecided."""
    memory_mb: int = Field(512, ge=64)
    """Address space of a run (RLIMIT_AS); it has one process, so this is its total."""
    disk_mb: int = Field(16, ge=1)
    """Size of the temporary folder, and of the folder of /dev/null: all that can be written to."""
    file_mb: int = Field(8, ge=1)
    """Largest file (RLIMIT_FSIZE)."""
    output_kb: int = Field(16384, ge=1)
    """Largest output of a run, and largest answer to one call."""
    threads: int = Field(16, ge=1)
    """Threads of the one process a run has (RLIMIT_NPROC)."""
    open_files: int = Field(32, ge=16)
    """Open file descriptors (RLIMIT_NOFILE)."""
    program_kb: int = Field(256, ge=1)
    """Longest program that is looked at."""


@dataclass(frozen=True)
class FunctionTests:
    """Tests that call the program's functions.

    Parameters
    ----------
    names : tuple of str
        Functions of the program that the tests use. A name the program lacks is looked for as a method of its
        class ``Solution``.
    statements : tuple of str
        The tests: Python statements that raise where a test fails, such as ``assert f(2) == 4``.
    setup : str
        Python run before them: imports, helper functions. It never enters the program's sandbox.
    """

    names: tuple[str, ...]
    statements: tuple[str, ...]
    setup: str = ""


@dataclass(frozen=True)
class StdioTests:
    """Tests that run the program as a script.

    Parameters
    ----------
    cases : tuple of (str, str)
        Input and expected output of each run. Empty lines at the end, blanks at line ends, and how many blanks stand
        between two words do not count.
    tolerance : float, optional
        Where given, numbers that differ by at most this much are equal too; 0 makes 1 and 1.0 equal.
    """

    cases: tuple[tuple[str, str], ...]
    tolerance: float | None = None


@dataclass(frozen=True)
class Program:
    """A program, its tests, and what is run in front of it: imports of a benchmark, a prompt that it builds on."""

    source: str
    tests: FunctionTests | StdioTests
    prelude: str = ""
