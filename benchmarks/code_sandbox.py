"""The code verifier against hostile programs, reference solutions and the clock.

Writes its block into docs/verifiers-code.md; three minutes on a quiet machine with two cores::

    OMP_NUM_THREADS=1 python benchmarks/code_sandbox.py --data data/code
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import platform
import resource
import secrets
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from disa.rewards.code import (
    CodeVerdict,
    CodeVerifier,
    Limits,
    Program,
    StdioTests,
    count_verdicts,
    from_humaneval,
    from_humaneval_plus,
    from_mbpp,
)
from page import fill, table

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "rewards"))
from hostile_programs import (  # noqa: E402
    CASES,
    FORGES_IN_PROCESS,
    SAME_PROCESS_JUDGE,
    TESTS,
    Hostile,
    hostile_programs,
)

PAGE = Path("docs/verifiers-code.md")
# Hostile programs use all the time they get: less than the default.
HOSTILE_LIMITS = Limits(cpu_seconds=2, seconds_per_test=10, seconds_total=30, memory_mb=256)
STATUSES = ("passed", "failed", "timed_out", "crashed", "undecided")
BENCHMARKS: dict[str, tuple[str, Callable[..., Program]]] = {
    "HumanEval": ("humaneval.jsonl", from_humaneval),
    "HumanEval+ mini": ("humanevalplus_mini.jsonl", from_humaneval_plus),
    "MBPP sanitized": ("mbpp_sanitized.jsonl", from_mbpp),
}
_PR_SET_CHILD_SUBREAPER = 36


def hostile(workers: int) -> list[str]:
    """Every hostile program, with a secret in reach of whoever escapes and a server that notes connections."""
    secret = secrets.token_hex(16)
    os.environ["DISA_TEST_SECRET"] = secret
    with tempfile.TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0)) as server:
        Path(folder, "secret").write_text(secret)
        Path(folder).chmod(0o755)
        server.setblocking(False)
        programs = hostile_programs(secret, server.getsockname()[1], folder)
        verdicts = CodeVerifier(workers, HOSTILE_LIMITS).check(
            [Program(program.source, CASES if program.script else TESTS) for program in programs]
        )
        try:
            server.accept()
            connections = "at least one"
        except BlockingIOError:
            connections = "none"
        untouched = sorted(os.listdir(folder)) == ["secret"]
    forgeries = [program for program in programs if program.name in FORGES_IN_PROCESS and not program.script]
    fooled = CodeVerifier(workers, HOSTILE_LIMITS).check(
        [Program(program.source + SAME_PROCESS_JUDGE, StdioTests((("", ""),))) for program in forgeries]
    )
    names = {program.name for program in programs}
    return [
        f"{len(names)} hostile programs in {len(programs)} runs (most both as a function and as a script):",
        "",
        *table(("group", "programs", "runs", *STATUSES), [_row(g, programs, verdicts) for g in _groups(programs)]),
        "",
        f"Connections to the local server: {connections}. Caller's folder unchanged: {'yes' if untouched else 'NO'}. "
        f"A judge that runs the tests in the program's own process and looks at the exit code takes "
        f"{count_verdicts(fooled)['passed']} of the forgeries for solutions.",
        "",
        *[f"- **{group}**: {'; '.join(_names(group, programs))}." for group in _groups(programs)],
    ]


def _groups(programs: list[Hostile]) -> list[str]:
    return list(dict.fromkeys(program.group for program in programs))


def _names(group: str, programs: list[Hostile]) -> list[str]:
    return list(dict.fromkeys(program.name for program in programs if program.group == group))


def _row(group: str, programs: list[Hostile], verdicts: list[CodeVerdict]) -> list[object]:
    counts = count_verdicts(v for program, v in zip(programs, verdicts, strict=True) if program.group == group)
    return [group, len(_names(group, programs)), sum(counts.values()), *counts.values()]


def references(workers: int, data: Path) -> list[str]:
    """Reference solutions, which must pass; a function that returns None, which must not; and what it costs."""
    rows, exceptions = [], []
    for name, (file, build) in BENCHMARKS.items():
        problems = [json.loads(line) for line in (data / file).read_text(encoding="utf-8").splitlines()]
        verifier = CodeVerifier(workers)
        start, before = time.monotonic(), processor_seconds()
        verdicts = verifier.check([build(row) for row in problems])
        seconds, used = time.monotonic() - start, processor_seconds() - before
        wrong = verifier.check([build(row, returns_none(build(row))) for row in problems])
        rows.append(
            [
                name,
                f"{count_verdicts(verdicts)['passed']} / {len(problems)}",
                f"{count_verdicts(wrong)['passed']} / {len(problems)}",
                f"{len(problems) / seconds:.1f}",
                f"{1000 * used / len(problems):.0f} ms",
            ]
        )
        exceptions += [
            exception(name, row, v, "reference") for row, v in zip(problems, verdicts, strict=True) if not v.passed
        ]
        exceptions += [exception(name, row, v, "None") for row, v in zip(problems, wrong, strict=True) if v.passed]
    return [
        *table(
            ("benchmark", "references pass", "`return None` passes", "programs/s", "processor time a program"), rows
        ),
        "",
        f"{workers} workers on {os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f} at the end, Python "
        f"{platform.python_version()}. A program is two sandboxes; processor time is that of all processes.",
        "",
        *(exceptions or ["No exceptions."]),
    ]


def returns_none(program: Program) -> str:
    """A wrong solution: the right names, the wrong answers."""
    return "".join(f"def {name}(*arguments, **named):\n    return None\n" for name in program.tests.names)


def exception(benchmark: str, row: Mapping[str, Any], verdict: CodeVerdict, solution: str) -> str:
    """A line about a verdict that was not expected."""
    return f"- {benchmark} {row['id']}, {solution}: {verdict.status} {verdict.reason}"


def processor_seconds() -> float:
    """Of this process and all it has started and reaped.

    The first process inside a sandbox outlives the bwrap outside by a moment and is nobody's child then: as a
    "subreaper" this process inherits it, and its processor time.
    """
    time.sleep(0.5)
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def main() -> None:
    """Run everything and write the block."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(os.environ.get("DISA_DATA", "data")) / "code"
    parser.add_argument("--data", type=Path, default=default, help="folder with the three .jsonl files")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--page", type=Path, default=PAGE)
    options = parser.parse_args()
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    user = "root" if os.geteuid() == 0 else "an ordinary user"
    lines = [f"Written by `python benchmarks/code_sandbox.py --workers {options.workers}`, run by {user}.", ""]
    lines += ["### Reference solutions and throughput", "", *references(options.workers, options.data), ""]
    lines += ["### Hostile programs", "", *hostile(options.workers)]
    print("\n".join(lines))
    fill("code_sandbox", "\n".join(lines), options.page)


if __name__ == "__main__":
    main()
