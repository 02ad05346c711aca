"""One worker process: reads a question a line, answers a line; whoever started it kills it at the deadline.

Run as ``python -m disa.rewards.maths.worker MEMORY_MB``. Model text reaches it as JSON strings and is only ever parsed.
As a second fence the process limits its memory and processor time, may write no file, and refuses to open sockets,
start programs or let sympy evaluate text (which is what its ``sympify`` does with a string).
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import sys
from typing import Any, NoReturn

# What Python tells an audit hook about (docs.python.org, "Audit events table"). Imports and compiled files pass.
_FORBIDDEN = (
    "socket.",
    "subprocess.",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "os.system",
    "os.spawn",
    "ctypes.",
)
# What was refused while the present question was worked on: where the exception is swallowed, the verdict is worthless.
_refused: list[str] = []


# Fills the grammar's prediction cache, outside any deadline: the first formula of a kind takes tenths of a second.
_WARM_UP = (
    (r"\frac{\sqrt{3}}{2}+2x^2", r"x^2(1+1)+\frac{1}{2}\sqrt[2]{3}"),
    (r"y = 2x+\log_{2} n", r"2x-y+\log_2(n)=0"),
    (r"(-\infty,2)\cup(3,\pi]", r"-\infty < x < 2"),
    (r"3 \pm 2\sqrt{2}i", r"3+2 \cdot i\sqrt2, 3-\sqrt{8} \times i"),
)


class ForbiddenError(Exception):
    """Something a comparison of formulas has no business with."""


def _refuse(what: str) -> NoReturn:
    _refused.append(what)
    raise ForbiddenError(what)


def _guard(event: str, arguments: tuple[Any, ...]) -> None:
    if event.startswith(_FORBIDDEN):
        _refuse(event)
    if event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        _refuse(f"opening {arguments[0]!r} for writing")


def lock_down() -> None:
    """Forbid sockets, programs, written files and sympy's evaluation of text from here on; there is no way back."""
    from sympy.parsing import sympy_parser

    # The one call of eval behind parse_expr, and so behind sympify of a string. Code that sympy generates from its own
    # templates, for polynomials, is not affected.
    sympy_parser.eval_expr = lambda *_: _refuse("evaluating text")
    sys.addaudithook(_guard)


def limit(memory_mb: int) -> None:
    """Limit address space; no files, no core dumps."""
    size = memory_mb * 2**20
    for what, value in ((resource.RLIMIT_AS, size), (resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_CORE, 0)):
        _, hard = resource.getrlimit(what)
        resource.setrlimit(what, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


def limit_processor_time(seconds: float) -> None:
    """End this process (SIGXCPU) once it has used some seconds more: it ends also where nobody is left to kill it."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    soft = int(usage.ru_utime + usage.ru_stime + seconds) + 2
    resource.setrlimit(resource.RLIMIT_CPU, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))


def answer(question: dict[str, Any]) -> dict[str, Any]:
    """Reply to one question: ``same`` is true, false or null, and then ``reason`` says why."""
    from disa.rewards.maths.answers import Gold
    from disa.rewards.maths.compare import decide
    from disa.rewards.maths.symbolic import UnreadableGoldError, same_expression

    _refused.clear()
    try:
        gold = Gold(**question["gold"])
        same = decide(gold, question["answer"], same_expression, percent_optional=question["percent_optional"])
        return {"same": None, "reason": "error"} if _refused else {"same": same, "reason": ""}
    except UnreadableGoldError:
        return {"same": None, "reason": "gold"}
    # Whatever sympy raises costs this one verdict.
    except Exception:
        return {"same": None, "reason": "error"}


def main() -> None:
    """Answer until the input ends."""
    # Replies have a channel of their own: what a library prints cannot be taken for one.
    replies = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)
    try:
        # What sympy loads on first use only, and evaluates its own texts in doing so.
        importlib.import_module("sympy.physics.units")
        for gold, given in _WARM_UP:
            answer({"gold": {"answer": gold}, "answer": given, "percent_optional": False})
    except ImportError as error:
        print(json.dumps({"failed": str(error)}), file=replies, flush=True)
        return
    limit(int(sys.argv[1]))
    lock_down()
    print(json.dumps({"ready": True}), file=replies, flush=True)
    for line in sys.stdin:
        question = json.loads(line)
        limit_processor_time(question["deadline_s"])
        print(json.dumps(answer(question)), file=replies, flush=True)


if __name__ == "__main__":
    main()
