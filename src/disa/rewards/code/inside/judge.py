"""Runs the tests of a program that lives in another sandbox, and gives the verdict.

The tests see the program's functions as :class:`Remote` objects. A call sends the arguments as plain data and returns
the answer as plain data, so every comparison is between objects of Python's own types made in this process.
"""

import builtins
import os
import select
import sys
import time

import confine
import plain_data

# What a program may raise in its tests; others arrive as RuntimeError. Never StopIteration, which would end a loop
# over calls early and so skip tests, and never AssertionError or SystemExit.
_RAISABLE = {
    name: getattr(builtins, name)
    for name in (
        "ArithmeticError AttributeError EOFError FloatingPointError ImportError IndexError KeyError LookupError "
        "MemoryError NameError NotImplementedError OSError OverflowError RecursionError RuntimeError SyntaxError "
        "TypeError UnicodeError ValueError ZeroDivisionError"
    ).split()
}


class Fault(BaseException):
    """The program gave no proper answer: decides the verdict whatever the tests make of it."""

    def __init__(self, status, reason):
        super().__init__(reason)
        self.status, self.reason = status, reason


class Channel:
    """Calls to the program, each within a deadline."""

    def __init__(self, call_fd, answer_fd, seconds, max_bytes):
        self._call_fd, self._answer_fd, self._seconds, self._max_bytes = call_fd, answer_fd, seconds, max_bytes
        self.calls = 0
        self.fault = None
        os.set_blocking(call_fd, False)
        os.set_blocking(answer_fd, False)

    def call(self, name, positional, named):
        """Result of one call; raises what the call raised."""
        if self.fault is None:
            self.calls += 1
            self._send(plain_data.frame(plain_data.write_value((name, positional, named))))
        return self.receive()

    def receive(self):
        """The next answer."""
        if self.fault is not None:
            raise self.fault
        try:
            answer = plain_data.read_frame(self._reader())
            if type(answer) is not tuple or not answer or answer[0] not in ("returned", "raised"):
                raise plain_data.NotPlainData("no answer")
        except plain_data.NotPlainData as error:
            self._fail("failed", f"the answer was {error}")
        if answer[0] == "returned" and len(answer) == 2:
            return answer[1]
        name, text = (str(part)[:200] for part in (*answer, "", "")[1:3])
        raise _RAISABLE.get(name, RuntimeError)(text if name in _RAISABLE else f"{name}: {text}")

    def _send(self, data):
        end, view = time.monotonic() + self._seconds, memoryview(data)
        while view:
            self._wait([], [self._call_fd], end)
            try:
                view = view[os.write(self._call_fd, view) :]
            except BrokenPipeError:
                self._fail("crashed", "")

    def _reader(self):
        """A function that reads exactly n bytes of the next answer, until the deadline."""
        end = time.monotonic() + self._seconds

        def read(size):
            if size > self._max_bytes:
                self._fail("failed", f"an answer was longer than {self._max_bytes} bytes")
            data = bytearray()
            while len(data) < size:
                self._wait([self._answer_fd], [], end)
                chunk = os.read(self._answer_fd, min(size - len(data), 65536))
                if not chunk:
                    self._fail("crashed", "")
                data += chunk
            return bytes(data)

        return read

    def _wait(self, reading, writing, end):
        """Until a pipe is ready. The clock decides, not the pipe: a program may trickle bytes for ever."""
        left = end - time.monotonic()
        if left <= 0 or not any(select.select(reading, writing, [], left)):
            # Says as much of the machine as of the program, whose processor time has a limit of its own.
            self._fail("undecided", f"a call took longer than {self._seconds:g} s of wall-clock time")

    def _fail(self, status, reason):
        self.fault = Fault(status, reason)
        raise self.fault


class Remote:
    """A function of the program; ``Solution()`` has the methods that its class has there."""

    def __init__(self, channel, name):
        self._channel, self.__name__ = channel, name

    def __call__(self, *positional, **named):
        """Call it in its sandbox."""
        if self.__name__ == "Solution":
            return self
        return self._channel.call(self.__name__, positional, named)

    def __getattr__(self, method):
        """A method of ``Solution``."""
        if self.__name__ != "Solution" or method.startswith("_"):
            raise AttributeError(method)
        return Remote(self._channel, method)


def judge(setup, channel):
    """Status, reason, and how many tests held."""
    namespace = {"__name__": "tests"}
    sources = {"<setup>": setup["setup"]} | {f"<test {i}>": text for i, text in enumerate(setup["statements"])}
    try:
        code = {name: compile(text, name, "exec") for name, text in sources.items()}
        exec(code.pop("<setup>"), namespace)
    except BaseException as error:
        return "undecided", f"the tests do not run: {_describe(error, sources)}", 0
    named = {*setup["names"], *(["Solution"] if "Solution()" in "".join(setup["statements"]) else [])}
    namespace |= {name: Remote(channel, name) for name in named}
    held = 0
    try:
        channel.receive()
        for statement in code.values():
            exec(statement, namespace)
            if channel.fault is not None:  # a test that catches everything caught it
                raise channel.fault
            held += 1
    except Fault as fault:
        return fault.status, fault.reason, held
    except plain_data.NotPlainData as error:  # of an argument: answers become faults
        return "undecided", f"the tests pass {error}", held
    except BaseException as error:
        return "failed", _describe(error, sources), held
    if not channel.calls:
        return "undecided", "the tests never call the program", held
    return "passed", "", held


def _describe(error, sources):
    """The exception and the line of the tests it came from."""
    line, frame = "", error.__traceback__
    while frame is not None:
        name = frame.tb_frame.f_code.co_filename
        if name in sources:
            line = sources[name].splitlines()[frame.tb_lineno - 1].strip()
        frame = frame.tb_next
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return f"{text[:200]} in {line[:200]}" if line else text[:200]


def main():
    """Script entry: the one argument is the file descriptor of the setup."""
    setup = confine.enter(int(sys.argv[1]))
    confine.silence()
    sys.set_int_max_str_digits(0)
    seconds, max_bytes = setup["limits"]["seconds_per_test"], setup["limits"]["output_kb"] * 1024
    channel = Channel(setup["call_fd"], setup["answer_fd"], seconds, max_bytes)
    status, reason, held = judge(setup, channel)
    verdict = {"nonce": setup["nonce"], "status": status, "reason": reason, "tests_passed": held}
    os.write(setup["verdict_fd"], plain_data.write_value(verdict))
    os._exit(0)  # tidying up takes as long as the tests do


if __name__ == "__main__":
    main()
