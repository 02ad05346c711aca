"""A few worker processes under a deadline that is kept from outside.

A worker that has not replied in time is killed and replaced, and so is one that dies: its question alone is lost.
Workers are programs of their own (``subprocess``, no fork of this process): they start the same way whatever threads,
devices or start method the caller has, and see neither its memory nor its environment.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import subprocess
import sys
import time
import weakref
from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from disa.errors import DisaError

# Loading sympy takes about a second of processor time; a busy machine may need many times that.
_START_S = 300.0
# The grammar's prediction cache grows with every new kind of formula: a worker is replaced before that matters.
_QUESTIONS_PER_WORKER = 20_000
_PASSED_ON = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "SYSTEMROOT", "VIRTUAL_ENV")


def _python_path() -> str:
    """Where a worker finds this package, whichever way the caller did; not the folder of the caller's script."""
    entries = [str(Path(__file__).parents[3]), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    return os.pathsep.join(entry for entry in entries if entry)


class _Worker:
    """One process, what it is working on, and until when."""

    def __init__(self, memory_mb: int) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "disa.rewards.maths.worker", str(memory_mb)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            # A fixed hash seed: sympy orders some terms by hash, and a verdict should not depend on the run.
            env={name: os.environ[name] for name in _PASSED_ON if name in os.environ}
            | {"PYTHONPATH": _python_path(), "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"},
            # Control-C in a terminal is for the caller, who then ends the workers.
            start_new_session=True,
        )
        self.ready, self.asked = False, 0
        self.job: int | None = None
        self.until = time.monotonic() + _START_S
        self.received = b""

    def ask(self, job: int, question: dict[str, Any], deadline_s: float) -> None:
        """Send one question; a worker that just died shows at the next read."""
        self.job, self.asked = job, self.asked + 1
        self.until = time.monotonic() + deadline_s
        with contextlib.suppress(BrokenPipeError):
            # Far smaller than a pipe's buffer, and the worker waits for it: this does not block.
            os.write(self.process.stdin.fileno(), (json.dumps(question | {"deadline_s": deadline_s}) + "\n").encode())

    def reply(self) -> dict[str, Any] | None:
        """What arrived, where it is a whole line.

        Raises
        ------
        EOFError
            Where the process has ended.
        """
        chunk = os.read(self.process.stdout.fileno(), 65536)
        if not chunk:
            raise EOFError
        self.received += chunk
        if not self.received.endswith(b"\n"):
            return None
        line, self.received = self.received, b""
        return json.loads(line)

    def end(self) -> None:
        """Kill the process and free what it held."""
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


def _end_all(workers: list[_Worker], owner: int) -> None:
    # A fork of the owner has copies of the pipes, but the processes are not its own.
    if os.getpid() == owner:
        for worker in workers:
            worker.end()
    workers.clear()


class WorkerPool:
    """Ask many questions, get one reply each, in order.

    Parameters
    ----------
    workers : int
    deadline_s : float
        Seconds a question may take.
    memory_mb : int
        Address space of one worker.
    """

    def __init__(self, workers: int, deadline_s: float, memory_mb: int) -> None:
        self._size, self._deadline_s, self._memory_mb = workers, deadline_s, memory_mb
        self._workers: list[_Worker] = []
        self._owner = os.getpid()
        self._finalizer = weakref.finalize(self, _end_all, self._workers, self._owner)

    def ask(self, questions: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Replies in order; ``{"same": None, "reason": "deadline"}`` (or ``"crash"``) where a worker gave none.

        Raises
        ------
        DisaError
            Where a worker cannot start.
        """
        if os.getpid() != self._owner:
            self._workers, self._owner = [], os.getpid()
            self._finalizer = weakref.finalize(self, _end_all, self._workers, self._owner)
        waiting = deque(range(len(questions)))
        replies: list[dict[str, Any]] = [{}] * len(questions)
        try:
            while waiting or any(worker.job is not None for worker in self._workers):
                self._hand_out(questions, waiting)
                for job, reply in self._collect():
                    replies[job] = reply
        except BaseException:
            # A reply still to come would be taken for the next question's.
            self.close()
            raise
        return replies

    def close(self) -> None:
        """End all workers; the next question starts new ones."""
        _end_all(self._workers, self._owner)

    def processes(self) -> list[int]:
        """Process ids of the workers."""
        return [worker.process.pid for worker in self._workers]

    def _hand_out(self, questions: Sequence[dict[str, Any]], waiting: deque[int]) -> None:
        for worker in [w for w in self._workers if w.job is None and w.asked >= _QUESTIONS_PER_WORKER]:
            self._discard(worker)
        idle = [worker for worker in self._workers if worker.job is None]
        for _ in range(min(self._size - len(self._workers), len(waiting) - len(idle))):
            self._workers.append(_Worker(self._memory_mb))
        for worker in idle:
            if worker.ready and waiting:
                job = waiting.popleft()
                worker.ask(job, questions[job], self._deadline_s)

    def _collect(self) -> Iterable[tuple[int, dict[str, Any]]]:
        """Wait until something happens; yield what was answered or lost."""
        busy = [worker for worker in self._workers if worker.job is not None or not worker.ready]
        if not busy:
            return
        with selectors.DefaultSelector() as selector:
            for worker in busy:
                selector.register(worker.process.stdout, selectors.EVENT_READ, worker)
            first = min(worker.until for worker in busy)
            arrived = [key.data for key, _ in selector.select(max(0.0, first - time.monotonic()))]
        for worker in busy:
            try:
                reply = worker.reply() if worker in arrived else None
            except EOFError:
                yield from self._lost(worker, "crash")
                continue
            if reply is not None and not worker.ready:
                self._started(worker, reply)
            elif reply is not None:
                job, worker.job = worker.job, None
                yield job, reply
            elif time.monotonic() >= worker.until:
                yield from self._lost(worker, "deadline")

    def _started(self, worker: _Worker, reply: dict[str, Any]) -> None:
        if "failed" in reply:
            raise DisaError(
                f"the worker of the maths verifier cannot start ({reply['failed']})",
                where="maths verifier",
                fix="pip install 'math-verify>=0.9'",
            )
        worker.ready = True

    def _lost(self, worker: _Worker, reason: str) -> Iterable[tuple[int, dict[str, Any]]]:
        self._discard(worker)
        if not worker.ready:
            raise DisaError(
                f"a worker of the maths verifier did not start ({reason}, exit code {worker.process.returncode})",
                where="maths verifier",
                fix="run python -m disa.rewards.maths.worker 1024 to see why; raise memory_mb where it lacks memory",
            )
        if worker.job is not None:
            yield worker.job, {"same": None, "reason": reason}

    def _discard(self, worker: _Worker) -> None:
        self._workers.remove(worker)
        worker.end()
