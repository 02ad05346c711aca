"""Runs a program: as a script, or as a module whose functions the tests call.

Nothing in this process is trusted once the program has started, and nothing in it is worth stealing: no expected value,
no nonce, no verdict. All it can do is answer a call with plain data, rightly or wrongly.
"""

import builtins
import sys
import types

import confine
import plain_data


def run_script(source):
    """Run the program as ``__main__``; its exit status and output are judged outside."""
    module = sys.modules["__main__"] = types.ModuleType("__main__")
    exec(compile(source, "program.py", "exec"), module.__dict__)


def serve(source, call_fd, answer_fd):
    """Load the program, then answer calls until the tests are through and this process is ended from outside."""
    calls, answers = open(call_fd, "rb"), open(answer_fd, "wb")
    module = sys.modules["program"] = types.ModuleType("program")

    def load():
        exec(compile(source, "program.py", "exec"), module.__dict__)

    _answer(answers, load)
    while True:
        name, positional, named = plain_data.read_frame(calls.read)
        _answer(answers, lambda: _find(module, name)(*positional, **named))  # noqa: B023 (called at once)


def _answer(answers, call):
    """Send what a call returns, or what it raises."""
    try:
        answer = plain_data.write_value(("returned", call()), opaque=True)
    except BaseException as error:  # SystemExit too is an answer
        answer = plain_data.write_value(("raised", type(error).__name__, str(error)[:200]))
    answers.write(plain_data.frame(answer))
    answers.flush()


def _find(module, name):
    if not hasattr(module, name) and hasattr(module, "Solution"):
        return getattr(module.Solution(), name)
    if not hasattr(module, name):
        raise NameError(f"the program defines no {name}")
    return getattr(module, name)


def main():
    """Script entry: the one argument is the file descriptor of the setup."""
    setup = confine.enter(int(sys.argv[1]))
    sys.argv[:] = ["program.py"]
    sys.path.remove("/inside")
    # Python defines these two in site.py, which is not loaded here.
    builtins.exit = builtins.quit = sys.exit
    if setup["script"]:
        run_script(setup["source"])
    else:
        # Output of a function is not judged: it may print as much as its time allows.
        confine.silence(0, 1, 2)
        serve(setup["source"], setup["call_fd"], setup["answer_fd"])


if __name__ == "__main__":
    main()
