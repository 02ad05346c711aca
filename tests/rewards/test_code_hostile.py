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
    WORK_OUTSIDE,
    hostile_programs,
)

from disa.errors import DisaError
from disa.rewards.code import CodeVerifier, Limits, Program, StdioTests, count_verdicts

# Short enough for a test, long enough for Python to start on a busy machine.
LIMITS = Limits(cpu_seconds=1, seconds_per_test=3, seconds_total=20, memory_mb=256)


@pytest.fixture(scope="module")
def verifier():
    try:
        # More workers than cores: most of the time goes into waiting for time-outs.
        return CodeVerifier(6, LIMITS)
    except DisaError as error:
        pytest.skip(str(error))


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
    assert [pair for pair in named if pair[1].status in ("passed", "undecided")] == []
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
