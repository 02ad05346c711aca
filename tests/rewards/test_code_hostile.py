"""No hostile program gets out of the sandbox, is taken for a solution, or leaves anything behind."""

import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hostile_programs import (
    ATTEMPTS,
    CASES,
    FORGES_IN_PROCESS,
    SAME_PROCESS_JUDGE,
    TESTS,
    WAITING,
    WORK_OUTSIDE,
    hostile_programs,
)

from disa.rewards.code import Limits, Program, StdioTests, count_verdicts

# A second of processor time decides within the wall-clock time also where six programs share a busy machine.
LIMITS = Limits(cpu_seconds=1, seconds_per_test=12, seconds_total=30, memory_mb=256)


@pytest.fixture(scope="module")
def verifier(open_verifier):
    # More workers than cores: most of the time goes into waiting for time-outs.
    return open_verifier(6, LIMITS)


@pytest.fixture
def hostile(tmp_path, monkeypatch):
    """The programs, with a secret in the environment and in a file, and a server that notes every connection."""
    secret = secrets.token_hex(16)
    monkeypatch.setenv("DISA_TEST_SECRET", secret)
    (tmp_path / "secret").write_text(secret)
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        yield hostile_programs(secret, server.getsockname()[1], str(tmp_path)), server
    assert [path.name for path in tmp_path.iterdir()] == ["secret"]


def descendants(pid):
    """Every process below one, from the parents that /proc names."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:  # ended meanwhile
                continue
    found, frontier = set(), {pid}
    while frontier:
        frontier = {child for child, parent in parents.items() if parent in frontier} - found
        found |= frontier
    return found


def collect_descendants(seen, over):
    """Note every process this one has had, orphans included, which later have another parent."""
    while not over.wait(0.05):
        seen |= descendants(os.getpid())


def alive(pids):
    """Those of some processes that still run, with their command lines; a zombie does not run."""
    running = {}
    for pid in pids:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
            if state not in "ZX":
                running[pid] = Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
        except OSError:  # ended meanwhile
            continue
    return running


def survivors_after(seconds, pids):
    """Those that do not end within some seconds."""
    end = time.monotonic() + seconds
    while alive(pids) and time.monotonic() < end:
        time.sleep(0.05)
    return alive(pids)


def test_no_hostile_program_passes_and_every_one_gets_a_verdict(verifier, hostile):
    programs, server = hostile
    # Bombs as scripts say little that the same bombs as functions do not: left to benchmarks/code_sandbox.py.
    programs = [program for program in programs if not program.script or program.name in ATTEMPTS]
    assert len({program.name for program in programs}) >= 90
    bystander = subprocess.Popen(["sleep", "600"])
    # Tests that ran before in this process may have left helpers of their own, such as multiprocessing's tracker.
    before, seen, over = descendants(os.getpid()), set(), threading.Event()
    watch = threading.Thread(target=collect_descendants, args=(seen, over))
    watch.start()
    try:
        verdicts = verifier.check([Program(p.source, CASES if p.script else TESTS) for p in programs])
        assert bystander.poll() is None
    finally:
        over.set()
        watch.join()
        bystander.kill()
        bystander.wait()
    named = [(program.name, verdict) for program, verdict in zip(programs, verdicts, strict=True)]
    # Who only waits uses no processor time: the wall clock ends it, which says nothing about a program.
    assert [pair for pair in named if pair[1].status == "passed"] == []
    assert {name for name, verdict in named if verdict.status == "undecided"} <= WAITING
    assert all(
        "wall-clock time" in verdict.reason or "did not end" in verdict.reason
        for _, verdict in named
        if verdict.status == "undecided"
    )
    counts = count_verdicts(verdicts)
    assert counts["timed_out"] > 5 and counts["crashed"] > 5 and counts["failed"] > 50
    with pytest.raises(BlockingIOError):
        server.accept()
    started = seen - before
    # Three processes a sandbox: bwrap outside, the first process inside, Python. Most were seen alive.
    assert len(started) > len(programs)
    assert survivors_after(5.0, started) == {}


@pytest.mark.skipif(sys.platform != "linux", reason="attempts are made of Linux calls")
def test_the_attempts_work_where_there_is_no_sandbox(hostile):
    # As the same user, in a plain process: those that cannot harm it.
    programs, server = hostile
    threading.Thread(target=serve_a_little, args=(server,), daemon=True).start()
    chosen = [program for program in programs if program.name in WORK_OUTSIDE and program.script]
    assert len(chosen) == len(WORK_OUTSIDE)
    failed = []
    for program in chosen:
        run = subprocess.run(
            [sys.executable, "-c", program.source], input="12\n", capture_output=True, text=True, timeout=60
        )
        if run.stdout.strip().splitlines()[-1:] != ["144"]:
            failed.append((program.name, run.stdout, run.stderr[-500:]))
    assert failed == []


def serve_a_little(server):
    """Answer every connection with an empty page."""
    server.setblocking(True)
    while True:
        try:
            connection = server.accept()[0]
        except OSError:
            return
        with connection:
            connection.settimeout(1)
            try:
                connection.recv(1000)
                connection.sendall(b"HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\nx")
            except OSError:
                pass


def test_a_judge_in_the_programs_own_process_is_fooled_by_the_forgeries(verifier, hostile):
    # What the second sandbox is for.
    programs = [program for program in hostile[0] if program.name in FORGES_IN_PROCESS and not program.script]
    no_output = StdioTests((("", ""),))
    verdicts = verifier.check([Program(program.source + SAME_PROCESS_JUDGE, no_output) for program in programs])
    assert [p.name for p, verdict in zip(programs, verdicts, strict=True) if not verdict.passed] == []


def test_no_run_changes_what_another_run_or_the_host_can_see(verifier, hostile):
    # Each prints the first answer, leaves its mark, and prints the second answer where it finds one.
    programs = [program for program in hostile[0] if program.group == "marks"]
    seen = ["/dev/null", "/dev/urandom", "/dev", sys.executable, os.__file__, "/usr/lib", "/tmp"]
    before = [[getattr(os.stat(path), f"st_{kind}time_ns") for kind in "amc"] for path in seen[:2]]
    before += [os.stat(path).st_mtime_ns for path in seen[2:6]]
    verdicts = verifier.check([Program(program.source, CASES) for program in programs])
    assert [(p.name, v.status, v.tests_passed) for p, v in zip(programs, verdicts, strict=True)] == [
        (p.name, "failed", 1) for p in programs
    ]
    after = [[getattr(os.stat(path), f"st_{kind}time_ns") for kind in "amc"] for path in seen[:2]]
    assert before == after + [os.stat(path).st_mtime_ns for path in seen[2:6]]


def test_killing_the_verifier_leaves_no_process_behind(verifier):
    code = (
        "from disa.rewards.code import *\n"
        "sleeps = Program('import time\\ntime.sleep(600)', FunctionTests(('f',), ('f()',)))\n"
        "CodeVerifier(2, Limits(seconds_per_test=300, seconds_total=300)).check([sleeps, sleeps])"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    # Two programs of two sandboxes; a sandbox is a bwrap, its first process inside, and Python.
    end = time.monotonic() + 60
    while len(family := descendants(process.pid)) < 12 and time.monotonic() < end:
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(family) >= 12
    assert survivors_after(10.0, family) == {}
