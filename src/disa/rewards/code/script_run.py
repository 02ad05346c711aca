"""A program run as a script on given inputs; its output is compared in this process."""

from __future__ import annotations

import os
import re
import selectors
import time
from fractions import Fraction

from disa.rewards.code.function_run import early_end
from disa.rewards.code.program import Limits, StdioTests
from disa.rewards.code.sandbox import Sandbox, SandboxRun
from disa.rewards.code.verdict import CodeVerdict, readable_line

# Longer ones are compared as text: their exact value would take as long as a model likes.
_NUMBER = re.compile(r"(?=.{1,1000}\Z)[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,4})?", re.ASCII)
_LINE_END, _BLANKS = re.compile(r"\r?\n"), re.compile(r"(?<=\S)[ \t]+")
# Enough of stderr to hold the last line of a traceback.
_KEPT_STDERR = 4096


def judge_outputs(sandbox: Sandbox, limits: Limits, source: dict[str, str], tests: StdioTests) -> CodeVerdict:
    """Run the program on every input, each time in a new sandbox, until an output is wrong."""
    deadline = time.monotonic() + limits.seconds_total
    if not tests.cases:
        return CodeVerdict("undecided", "the program has no tests")
    for held, (given, expected) in enumerate(tests.cases):
        with sandbox.start("candidate", {"script": True, **source}, script_pipes=True) as run:
            problem = _run(run, given, expected, tests.tolerance, limits, held, deadline)
        if problem is not None:
            return problem
    return CodeVerdict("passed", "", len(tests.cases))


def _run(
    run: SandboxRun, given: str, expected: str, tolerance: float | None, limits: Limits, held: int, deadline: float
) -> CodeVerdict | None:
    """One run; None where its output is right."""
    end = min(deadline, time.monotonic() + limits.seconds_per_test)
    output, errors, problem = _exchange(run, given.encode("utf-8", "replace"), end, limits.output_kb * 1024)
    if problem == "time":
        allowed = f"{limits.seconds_per_test:g} s, or all tests than {limits.seconds_total:g} s"
        return CodeVerdict("undecided", f"test {held + 1} took longer than {allowed}, of wall-clock time", held)
    if problem == "length":
        return CodeVerdict("failed", f"test {held + 1} wrote more than {limits.output_kb} KB", held)
    code = run.stop(max(0.0, end - time.monotonic()))
    last_line = readable_line((errors.decode(errors="replace").strip().splitlines() or [""])[-1])
    if not run.started:
        return CodeVerdict("undecided", f"the sandbox did not start: {last_line}", held)
    if code is None:
        return CodeVerdict("undecided", f"test {held + 1} closed its output but did not end", held)
    if code > 128:
        return early_end(code, limits, held)
    if code:
        return CodeVerdict("failed", f"test {held + 1} exited with code {code}: {last_line}", held)
    if not same_output(output.decode(errors="replace"), expected, tolerance):
        return CodeVerdict("failed", f"test {held + 1}: wrong output", held)
    return None


def _exchange(run: SandboxRun, given: bytes, end: float, max_bytes: int) -> tuple[bytes, bytes, str]:
    """Feed the input and collect what is written, until both outputs are closed.

    Returns output, the end of the error output, and what cut it short: ``time``, ``length`` or nothing.
    """
    stdin, stdout, stderr = run.process.stdin, run.process.stdout, run.process.stderr
    assert stdin is not None and stdout is not None and stderr is not None
    output, errors, written, unsent = bytearray(), bytearray(), 0, memoryview(given)
    with selectors.DefaultSelector() as selector:
        selector.register(stdout, selectors.EVENT_READ, output)
        selector.register(stderr, selectors.EVENT_READ, errors)
        os.set_blocking(stdin.fileno(), False)
        selector.register(stdin, selectors.EVENT_WRITE)
        while {stdout, stderr} & {key.fileobj for key in selector.get_map().values()}:
            ready = selector.select(max(0.0, end - time.monotonic()))
            if not ready or time.monotonic() > end:
                return bytes(output), bytes(errors), "time"
            for key, _ in ready:
                if key.fileobj is stdin:
                    try:
                        unsent = unsent[os.write(key.fd, unsent[:65536]) :]
                    except BrokenPipeError:  # a program need not read its input
                        unsent = unsent[:0]
                    if not unsent:
                        selector.unregister(stdin)
                        stdin.close()
                    continue
                chunk = os.read(key.fd, 65536)
                if not chunk:
                    selector.unregister(key.fileobj)
                written += len(chunk)
                key.data.extend(chunk)
            del errors[:-_KEPT_STDERR]
            if written > max_bytes:
                return bytes(output), bytes(errors), "length"
    return bytes(output), bytes(errors), ""


def same_output(output: str, expected: str, tolerance: float | None = None) -> bool:
    """Whether two outputs have the same lines.

    Empty lines at the end, blanks at line ends, and how many blanks stand between two words do not count. With a
    tolerance, words that are decimal numbers are equal where they differ by at most that much, and blanks in
    front of a line do not count.
    """
    lines, wanted = (
        [_BLANKS.sub(" ", line).rstrip(" \t\r") for line in _LINE_END.split(text.rstrip(" \t\r\n"))]
        for text in (output, expected)
    )
    if lines == wanted or tolerance is None or len(lines) != len(wanted):
        return lines == wanted
    pairs = zip(map(str.lstrip, lines), map(str.lstrip, wanted), strict=True)
    return all(_same_words(line.split(" "), want.split(" "), Fraction(tolerance)) for line, want in pairs)


def _same_words(words: list[str], wanted: list[str], tolerance: Fraction) -> bool:
    return len(words) == len(wanted) and all(
        word == want
        or bool(_NUMBER.fullmatch(word) and _NUMBER.fullmatch(want))
        and abs(Fraction(word) - Fraction(want)) <= tolerance
        for word, want in zip(words, wanted, strict=True)
    )
