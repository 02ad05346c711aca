"""Programs with tests from rows of HumanEval, HumanEval+, MBPP, LiveCodeBench, and from lists of calls or of outputs.

Field names are those of the published files; ``code=None`` takes the row's own reference solution.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from disa.errors import DisaError
from disa.rewards.code.program import FunctionTests, Program, StdioTests

# evalplus compares floats within this, unless a row asks for another tolerance (evalplus/eval/__init__.py).
_FLOAT_TOLERANCE = 1e-6

# numpy.allclose with rtol 1e-7, without numpy: evalplus's comparison where a tolerance applies.
_HUMANEVAL_PLUS_TESTS = """
import copy

def _close(value, expected, tolerance):
    if isinstance(expected, (list, tuple)):
        same = type(value) is type(expected) and len(value) == len(expected)
        return same and all(_close(a, b, tolerance) for a, b in zip(value, expected))
    if isinstance(value, (int, float)) and isinstance(expected, (int, float)):
        return value == expected or abs(value - expected) <= tolerance + 1e-7 * abs(expected)
    return value == expected

def _all_floats(value):
    return isinstance(value, float) or (
        isinstance(value, (list, tuple)) and bool(value) and all(isinstance(item, float) for item in value)
    )

def check(candidate):
    for arguments in _INPUTS:
        expected = _reference(*copy.deepcopy(arguments))
        value = candidate(*copy.deepcopy(arguments))
        tolerance = _ATOL or (_FLOAT_TOLERANCE if _all_floats(expected) else 0)
        if _IS_ROOT:
            assert abs(poly(arguments[0], value)) <= tolerance, arguments
        else:
            assert value == expected or (tolerance and _close(value, expected, tolerance)), arguments
"""

# LiveCodeBench's grader puts the names of these modules in front of every program, later ones over earlier ones, and
# allows deeper recursion (lcb_runner/evaluation/testing_util.py): starter code says List and imports nothing.
_CONTEST_MODULES = (
    "string re datetime collections heapq bisect copy math random statistics itertools functools operator io sys json"
).split()
_CONTEST_PRELUDE = "".join(
    [
        *(f"from {module} import *\n" for module in (*_CONTEST_MODULES, "builtins", "typing")),
        *(f"import {module}\n" for module in _CONTEST_MODULES),
        "sys.setrecursionlimit(50000)\n",
    ]
)


def from_humaneval(row: Mapping[str, Any], code: str | None = None) -> Program:
    """A HumanEval problem: its ``check`` function, called with the program's function.

    Parameters
    ----------
    row : mapping
        With ``prompt``, ``entry_point`` and ``test``; ``solution`` or ``canonical_solution`` where code is None.
    code : str, optional
        A whole program, or the continuation of the prompt.
    """
    prompt, entry = _field(row, "prompt"), _field(row, "entry_point")
    # The prompt ends in a function of a docstring only, which is complete, and may define helpers that the test uses.
    tests = FunctionTests((entry,), (f"check({entry})",), f"{prompt}\n{_field(row, 'test')}")
    return _continued(prompt, entry, _code(row, code), tests)


def from_humaneval_plus(row: Mapping[str, Any], code: str | None = None) -> Program:
    """A HumanEval+ problem: the results on all inputs are those of its reference solution, which runs beside the tests.

    Parameters
    ----------
    row : mapping
        With ``prompt``, ``entry_point``, ``canonical_solution``, ``base_input``, ``plus_input`` and ``atol``.
    code : str, optional
        A whole program, or the continuation of the prompt.
    """
    prompt, entry = _field(row, "prompt"), _field(row, "entry_point")
    inputs = [*_field(row, "base_input"), *_field(row, "plus_input")]
    constants = {
        "_INPUTS": inputs,
        "_ATOL": _field(row, "atol"),
        "_FLOAT_TOLERANCE": _FLOAT_TOLERANCE,
        # Any root will do: evalplus too puts the answer into the polynomial.
        "_IS_ROOT": entry == "find_zero",
    }
    assigned = "".join(f"{name} = {value!r}\n" for name, value in constants.items())
    reference = f"{prompt}{_field(row, 'canonical_solution')}\n_reference = {entry}\n"
    setup = f"{reference}inf, nan = float('inf'), float('nan')\n{assigned}{_HUMANEVAL_PLUS_TESTS}"
    tests = FunctionTests((entry,), (f"check({entry})",), setup)
    return _continued(prompt, entry, _code(row, code), tests)


def from_mbpp(row: Mapping[str, Any], code: str | None = None) -> Program:
    """An MBPP problem: its assertions, one test each.

    Parameters
    ----------
    row : mapping
        With ``test_imports``; ``test_list`` or ``tests``; ``code`` or ``solution``, whose definitions tell which names
        in the assertions are the program's, and whose imports some assertions rely on.
    code : str, optional
        A whole program.
    """
    statements = _field(row, "test_list", "tests")
    used = {node.id for text in statements for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Name)}
    reference = ast.parse(_field(row, "code", "solution"))
    names = tuple(sorted(used & _definitions(reference)))
    imports = [ast.unparse(node) for node in reference.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    setup = "\n".join([*_field(row, "test_imports"), *imports])
    return Program(_code(row, code), FunctionTests(names, tuple(statements), setup))


def from_calls(code: str, name: str, calls: Sequence[tuple[Sequence[Any], Any]]) -> Program:
    """A function, or method of ``Solution``, with arguments and expected results as plain data: LeetCode's form.

    A list in place of an expected tuple, and the other way round, is accepted: JSON has no tuples.
    """
    setup = (
        "def _lists(value):\n"
        "    return [_lists(item) for item in value] if isinstance(value, (list, tuple)) else value\n"
    )
    statements = (f"assert _lists({name}(*{list(given)!r})) == _lists({expected!r})" for given, expected in calls)
    return Program(code, FunctionTests((name,), tuple(statements), setup))


def from_live_code_bench(code: str, cases: Sequence[Mapping[str, str]], name: str | None) -> Program:
    """A LiveCodeBench problem as its own grader judges it: imports in front, numbers in outputs compared by value.

    Parameters
    ----------
    code : str
        A whole program.
    cases : sequence of mapping
        With ``input`` and ``output``, texts; for a function JSON, one argument a line.
    name : str, optional
        The function or method that is called; None for a program that reads standard input.
    """
    if name is None:
        program = from_stdio(code, [(case["input"], case["output"]) for case in cases], tolerance=0.0)
        return replace(program, prelude=_CONTEST_PRELUDE)
    calls = [([json.loads(line) for line in c["input"].splitlines()], json.loads(c["output"])) for c in cases]
    return replace(from_calls(code, name, calls), prelude=_CONTEST_PRELUDE)


def from_stdio(code: str, cases: Sequence[tuple[str, str]], tolerance: float | None = None) -> Program:
    """A script with inputs and expected outputs."""
    return Program(code, StdioTests(tuple(cases), tolerance))


def _definitions(module: ast.Module) -> set[str]:
    """Names that a program defines at its top level."""
    found: set[str] = set()
    for node in module.body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, ast.Assign):
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return found


def _continued(prompt: str, entry: str, code: str, tests: FunctionTests) -> Program:
    """Prompt and code: the code's own definition replaces the prompt's, a continuation completes it."""
    if re.search(rf"^(async )?def {re.escape(entry)}\b", code, re.MULTILINE):
        return Program(code, tests, prompt)
    return Program(prompt + code, tests)


def _code(row: Mapping[str, Any], code: str | None) -> str:
    return _field(row, "solution", "canonical_solution", "code") if code is None else code


def _field(row: Mapping[str, Any], *names: str) -> Any:
    """The first of the fields that a row has."""
    for name in names:
        if name in row:
            return row[name]
    raise DisaError(
        f"the row has no field {' or '.join(names)}, only {', '.join(sorted(row))}",
        where="code verifier",
        fix="use the published file, or rename its columns",
    )
