"""Runs a program: as a script, or as a module whose functions the tests call.

Nothing in this process is trusted once the program has started, and nothing in it is worth stealing: no expected value,
no nonce, no verdict. All it can do is answer a call with plain data, rightly or wrongly.
"""

import builtins
import sys
import types

import confine
import plain_data


def load(setup, name):
    """Run the program as a module of that name; its prelude is compiled apart: ``__future__`` has to stay in front."""
    module, source = types.ModuleType(name), setup["source"].removeprefix("\ufeff")
    sys.modules[name] = module
    if "\nclass Solution" in f"\n{source}":  # starter code, which says List and imports nothing
        exec("from typing import *", module.__dict__)
    for part in (setup["prelude"], source):
        exec(compile(part, "program.py", "exec"), module.__dict__)
    return module


def serve(setup, call_fd, answer_fd):
    """Load the program, then answer calls until the tests are through and this process is ended from outside."""
    calls, answers = open(call_fd, "rb"), open(answer_fd, "wb")
    _answer(answers, lambda: _load_functions(setup))
    while True:
        name, positional, named = plain_data.read_frame(calls.read)
        call = lambda: _find(sys.modules["program"], name)(*positional, **named)  # noqa: B023, E731 (called at once)
        _answer(answers, call)


def _load_functions(setup):
    """Load the program; one that also reads its input as a script finds none, and has its functions by then."""
    try:
        load(setup, "program")
    except EOFError:
        pass


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
    vars(builtins).update(exit=sys.exit, quit=sys.exit)
    # Processor time limits the work; Python's own limit would refuse a right answer of 5,000 digits.
    sys.set_int_max_str_digits(0)
    if setup["script"]:
        load(setup, "__main__")
    else:
        # Output of a function is not judged: it may print as much as its time allows.
        confine.silence()
        serve(setup, setup["call_fd"], setup["answer_fd"])


if __name__ == "__main__":
    main()
