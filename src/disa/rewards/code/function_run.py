"""A program in one sandbox, its tests in another, two pipes between them, and a third on which the verdict comes."""

from __future__ import annotations

import os
import secrets
import select
import signal
import time
from contextlib import ExitStack
from typing import Any

from disa.rewards.code.inside.plain_data import read_value
from disa.rewards.code.program import FunctionTests, Limits
from disa.rewards.code.sandbox import Sandbox, SandboxRun
from disa.rewards.code.verdict import CodeVerdict, readable_line

# A verdict is a few hundred bytes.
_MAX_VERDICT = 65536
# A process that has closed its pipe is about to end; how long to wait for the exit code that says why.
_LAST_SECONDS = 2.0


def judge_calls(sandbox: Sandbox, limits: Limits, source: dict[str, str], tests: FunctionTests) -> CodeVerdict:
    """Run the tests against the program's functions."""
    deadline = time.monotonic() + limits.seconds_total
    nonce = secrets.token_hex(16)
    with ExitStack() as stack:
        call_read, call_write = os.pipe()
        answer_read, answer_write = os.pipe()
        verdict_read, verdict_write = os.pipe()
        stack.callback(os.close, verdict_read)
        try:
            setup: dict[str, Any] = {"script": False, **source, "call_fd": call_read, "answer_fd": answer_write}
            candidate = stack.enter_context(sandbox.start("candidate", setup, fds=(call_read, answer_write)))
            setup = {"call_fd": call_write, "answer_fd": answer_read, "verdict_fd": verdict_write, "nonce": nonce}
            setup |= {"setup": tests.setup, "names": tests.names, "statements": tests.statements}
            judge = stack.enter_context(sandbox.start("judge", setup, fds=(call_write, answer_read, verdict_write)))
        finally:
            # Only the two sandboxes hold the ends now, so that each sees when the other is gone.
            for fd in (call_read, call_write, answer_read, answer_write, verdict_write):
                os.close(fd)
        message = _read(verdict_read, deadline)
        return _verdict(message, nonce, candidate, judge, limits)


def _verdict(
    message: bytes | None, nonce: str, candidate: SandboxRun, judge: SandboxRun, limits: Limits
) -> CodeVerdict:
    """What the judge says, or, where one of the two processes ended early, what its end says."""
    judge_code = judge.stop(_LAST_SECONDS if message is not None else 0.0)
    said = _checked(message, nonce)
    candidate_code = candidate.stop(_LAST_SECONDS if said and said["status"] == "crashed" else 0.0)
    for run in (judge, candidate):
        if not run.started:
            return CodeVerdict("undecided", readable_line(f"the sandbox did not start: {run.complaint()}"))
    if message is None:
        return CodeVerdict("undecided", f"the tests took longer than {limits.seconds_total:g} s of wall-clock time")
    if said is None and judge_code == 128 + signal.SIGXCPU:
        return CodeVerdict("timed_out", f"the tests used more than {limits.cpu_seconds} s of processor time")
    if said is None:
        return CodeVerdict("undecided", f"the tests ended without a verdict, with exit code {judge_code}")
    if said["status"] == "crashed":
        return early_end(candidate_code, limits, said["tests_passed"])
    return CodeVerdict(said["status"], readable_line(said["reason"]), said["tests_passed"])


def _checked(message: bytes | None, nonce: str) -> dict[str, Any] | None:
    """A message that carries the nonce."""
    try:
        said = read_value(message or b"")
        return said if said["nonce"] == nonce else None
    except (ValueError, LookupError, TypeError):
        return None


def early_end(code: int | None, limits: Limits, tests_passed: int) -> CodeVerdict:
    """Verdict on a program whose process ended before its tests did."""
    if code is None:
        return CodeVerdict("crashed", "the program stopped answering", tests_passed)
    if code == 128 + signal.SIGXCPU:
        reason = f"the program used more than {limits.cpu_seconds} s of processor time"
        return CodeVerdict("timed_out", reason, tests_passed)
    if code > 128:
        return CodeVerdict("crashed", f"the program was ended by {_signal_name(code - 128)}", tests_passed)
    return CodeVerdict("crashed", f"the program exited with code {code} during its tests", tests_passed)


def _signal_name(number: int) -> str:
    return signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"


def _read(fd: int, deadline: float) -> bytes | None:
    """All of a pipe up to its end; None after the deadline."""
    data = b""
    while len(data) <= _MAX_VERDICT:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([fd], [], [], left)[0]:
            return None
        chunk = os.read(fd, 65536)
        if not chunk:
            break
        data += chunk
    return data
