"""Verdicts of the code verifier on programs that mean no harm."""

import subprocess
import sys
import time

import pytest

from conftest import case_rows
from disa.rewards.code import (
    FunctionTests,
    Limits,
    Program,
    extract_code,
    from_calls,
    from_humaneval,
    from_humaneval_plus,
    from_live_code_bench,
    from_mbpp,
    from_stdio,
)

LIMITS = Limits(cpu_seconds=2, seconds_per_test=30, seconds_total=60)


@pytest.fixture(scope="module")
def verifier(open_verifier):
    return open_verifier(2, LIMITS)


def function_program(source, *statements, names=("f",), setup=""):
    return Program(source, FunctionTests(names, statements, setup))


def test_verdicts_come_in_the_order_of_the_programs(verifier):
    # Every third waits, so that a later one would be through before it.
    sources = [
        f"import time\ndef f(): time.sleep({0.3 if i % 3 == 0 else 0}); return {i if i % 2 else -1}" for i in range(9)
    ]
    programs = [function_program(source, f"assert f() == {i}") for i, source in enumerate(sources)]
    assert [verdict.passed for verdict in verifier.check(programs)] == [i % 2 == 1 for i in range(9)]


def test_two_workers_judge_two_programs_at_the_same_time(verifier):
    sleeps = function_program("import time\ndef f(): time.sleep(3); return 1", "assert f() == 1")
    start = time.monotonic()
    assert all(verdict.passed for verdict in verifier.check([sleeps, sleeps]))
    # One after the other they would sleep for 6 s; at the same time, 3 s are left for starting on a busy machine.
    assert 3.0 <= time.monotonic() - start < 6.0


def test_nothing_to_judge_gives_no_verdicts(verifier):
    assert verifier.check([]) == []


@pytest.mark.parametrize(
    "value",
    [
        "None",
        "True",
        "-(10**5000)",
        "0.1 + 0.2",
        "float('inf')",
        "1 - 2j",
        "'\\ud800 \\n \\x00 ü'",
        "b'\\x00\\xff'",
        "[1, [2.5, ('a', None)], {}]",
        "{(1, 2): {3, 4}, 'k': frozenset({'a'})}",
        "list(range(100000))",
        "((),)",
    ],
)
def test_plain_data_reaches_the_program_and_comes_back_as_it_was(verifier, value):
    test = f"assert f({value}) == {value} and type(f({value})) is type({value})"
    (verdict,) = verifier.check([function_program("def f(x): return x", test)])
    assert verdict.passed, verdict.reason


def test_what_the_tests_see_has_pythons_own_types(verifier):
    source = """
import collections, enum, re
class Colour(enum.IntEnum): RED = 3
Pair = collections.namedtuple("Pair", "a b")
class Own: pass
def f(i):
    plain = [Colour.RED, Pair(1, 2), collections.Counter("aa")]
    return [*plain, (c for c in "ab"), {1: 2}.keys(), re.match("a", "a"), Own()][i]
"""
    statements = (
        "assert f(0) == 3 and type(f(0)) is int",
        "assert f(1) == (1, 2) and type(f(1)) is tuple",
        "assert f(2) == {'a': 2} and type(f(2)) is dict",
        "assert list(f(3)) == ['a', 'b'] and f(3) != ['a', 'b']",
        "assert list(f(4)) == [1]",
        "assert f(5)",
        "assert f(6) and f(6) != f(6) and f(6) is not None",
    )
    (verdict,) = verifier.check([function_program(source, *statements)])
    assert verdict.passed and verdict.tests_passed == 7, verdict.reason


def test_arguments_by_name_and_several_functions_work(verifier):
    source = "def encode(text, *, by=1): return text[by:] + text[:by]\ndef decode(text): return text[-1:] + text[:-1]"
    program = function_program(
        source, "assert decode(encode('abc')) == encode('cab', by=1) == 'abc'", names=("encode", "decode")
    )
    assert verifier.check([program])[0].passed


def test_a_test_may_expect_an_exception(verifier):
    source = "def f(x):\n    if x < 0: raise ValueError('negative')\n    return x"
    expects = """
try:
    f(-1)
    raise SystemError('no exception')
except ValueError as error:
    assert 'negative' in str(error)"""
    good, bad = verifier.check([function_program(source, expects), function_program("def f(x): return x", expects)])
    assert good.passed
    assert (bad.status, bad.reason) == ("failed", "SystemError: no exception in raise SystemError('no exception')")


def test_an_exception_of_the_program_never_ends_a_loop_of_the_tests(verifier):
    # all(map(...)) takes StopIteration for the end of its input, and would be true.
    tests = "assert all(map(f, [1, 2]))"
    (verdict,) = verifier.check([function_program("def f(x): raise StopIteration", tests)])
    assert (verdict.status, verdict.tests_passed) == ("failed", 0)


def test_a_test_that_catches_everything_cannot_hide_that_the_program_is_gone(verifier):
    tests = "try:\n    f(1)\nexcept BaseException:\n    pass"
    (verdict,) = verifier.check([function_program("import os\ndef f(x): os._exit(0)", tests)])
    assert verdict.status == "crashed"


def test_broken_tests_are_undecided_and_a_program_without_the_function_fails(verifier):
    right = "def f(x): return x"
    cases = [
        (function_program(right, "assert f(1) =="), "undecided"),
        (function_program(right, "assert f(1) == 1", setup="import no_such_module"), "undecided"),
        (function_program(right, "assert 1 == 1"), "undecided"),
        (function_program(right, "assert f(lambda: 1)"), "undecided"),
        (from_stdio("print(1)", []), "undecided"),
        (function_program("def g(x): return x", "assert f(1) == 1"), "failed"),
        (function_program("def f(x) return x", "assert f(1) == 1"), "failed"),
        (function_program("f = 3", "assert f(1) == 1"), "failed"),
    ]
    verdicts = verifier.check([program for program, _ in cases])
    assert [verdict.status for verdict in verdicts] == [status for _, status in cases]
    assert "function" in verdicts[3].reason and "NameError" in verdicts[5].reason


def test_reasons_name_the_assertion_that_failed_and_print_on_one_line(verifier):
    source = "def f(x):\n    if x == 2: raise ValueError('line\\n\\x1b[31mbreak' * 100)\n    return x"
    wrong, raised = verifier.check(
        [function_program(source, "assert f(1) == 1", f"assert f({x}) == 7") for x in (1, 2)],
    )
    assert (wrong.reason, wrong.tests_passed) == ("AssertionError in assert f(1) == 7", 1)
    assert raised.reason.startswith("ValueError: line") and raised.reason.isprintable() and len(raised.reason) <= 300


def test_processor_time_limits_a_program_that_computes_for_ever(verifier):
    (verdict,) = verifier.check([function_program("def f():\n    while True: pass", "f()")])
    assert verdict.status == "timed_out" and "2 s of processor time" in verdict.reason


def test_wall_clock_time_is_limited_from_outside_and_says_nothing_of_the_program(open_verifier):
    source = "import time\ndef f(x): time.sleep(x)"
    verifier = open_verifier(2, Limits(seconds_per_test=5, seconds_total=8))
    long_call, many_calls = verifier.check(
        [function_program(source, "f(0)", "f(60)"), function_program(source, "f(0)", *["f(1)"] * 60)]
    )
    assert (long_call.status, long_call.reason) == ("undecided", "a call took longer than 5 s of wall-clock time")
    assert long_call.tests_passed == 1
    assert many_calls.status == "undecided" and many_calls.reason == "the tests took longer than 8 s of wall-clock time"


def test_scripts_are_judged_by_output_and_exit_code(verifier):
    double = "print(2 * int(input()))"
    cases = [("1\n", "2\n"), ("21\n", "42")]
    programs = [
        from_stdio(double, cases),
        from_stdio("import sys\nfor line in sys.stdin: print(2 * int(line), ' ')\nprint()", cases),
        from_stdio("print(2 * int(input()))\nexit()", cases),
        from_stdio("def main():\n    print(2 * int(input()))\nif __name__ == '__main__': main()", cases),
        from_stdio("print(2)", cases),
        from_stdio("print(2 * int(input()))\nexit(3)", cases),
        from_stdio("1 / 0", cases),
        from_stdio("print(sum(map(int, open(0).read().split())))", [(" ".join(["1"] * 300000), "300000")]),
        from_stdio("print('x' * 300000)", [("unread" * 100000, "x" * 300000)]),
        from_stdio("print(1 / 3)", [("", "0.33333")]),
        from_stdio("print(1 / 3)", [("", "0.33333")], tolerance=1e-4),
    ]
    verdicts = verifier.check(programs)
    statuses = [verdict.status for verdict in verdicts]
    assert statuses == ["passed"] * 4 + ["failed"] * 3 + ["passed"] * 2 + ["failed", "passed"]
    assert [verdict.tests_passed for verdict in verdicts[:5]] == [2, 2, 2, 2, 1]
    assert "exited with code 3" in verdicts[5].reason and "ZeroDivisionError" in verdicts[6].reason


def test_ordinary_python_works_inside(verifier):
    source = """
from __future__ import annotations
import bisect, collections, dataclasses, datetime, decimal, fractions, functools, hashlib, heapq, itertools, json
import math, operator, random, re, statistics, string, sys, tempfile, threading, typing
@dataclasses.dataclass
class Point:
    x: int
def f():
    results = []
    threads = [threading.Thread(target=results.append, args=(i,)) for i in range(4)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    with tempfile.TemporaryFile("w+") as file:
        file.write("kept"); file.seek(0); kept = file.read()
    sys.setrecursionlimit(20000)
    deep = lambda n: n and 1 + deep(n - 1)
    return [sorted(results), kept, deep(10000), Point(3).x, str(typing.get_type_hints(Point)["x"])]
"""
    (verdict,) = verifier.check(
        [function_program(source, "assert f() == [[0, 1, 2, 3], 'kept', 10000, 3, \"<class 'int'>\"]")]
    )
    assert verdict.passed, verdict.reason


def test_the_order_of_sets_is_the_same_in_every_run(verifier):
    # A reward is a fixed function of the completion, so all runs have one hash seed; Python's default is a random one.
    source = "print({'a', 'b', 'c', 'd', 'e', 'f', 'g'})"
    here = subprocess.run(
        [sys.executable, "-c", source], env={"PYTHONHASHSEED": "0"}, capture_output=True, text=True, check=True
    )
    verdicts = verifier.check([from_stdio(source, [("", here.stdout)])] * 3)
    assert [verdict.passed for verdict in verdicts] == [True] * 3


def test_a_program_longer_than_allowed_is_not_run(open_verifier):
    verifier = open_verifier(1, Limits(program_kb=1))
    (verdict,) = verifier.check([function_program("def f(): return 1\n" + "#" * 1024, "assert f() == 1")])
    assert (verdict.status, verdict.reason) == ("failed", "the program is 1042 bytes long, 1 KB are allowed")


HUMANEVAL = {
    "prompt": 'OFFSET = 1\n\ndef shift(x):\n    return x + OFFSET\n\ndef f(x):\n    """One more than twice x."""\n',
    "entry_point": "f",
    "test": "def check(candidate):\n    assert candidate(3) == shift(6)\n",
    "canonical_solution": "    return shift(2 * x)\n",
}


def test_humaneval_takes_a_continuation_or_a_whole_program_and_its_own_helpers(verifier):
    programs = [
        from_humaneval(HUMANEVAL),
        from_humaneval(HUMANEVAL, "    return 2 * x + 1"),
        from_humaneval(HUMANEVAL, "def f(x):\n    return shift(x + x)"),
        from_humaneval(HUMANEVAL, "OFFSET = 2\ndef f(x):\n    return shift(2 * x)"),
        # Helpers that the tests use are the prompt's, whatever the program makes of them.
        from_humaneval(HUMANEVAL, "def shift(x): return 0\ndef f(x): return 0"),
        from_humaneval(HUMANEVAL, "    pass"),
    ]
    assert [verdict.passed for verdict in verifier.check(programs)] == [True, True, True, False, False, False]


def test_humaneval_plus_compares_with_the_reference_as_evalplus_does(verifier):
    row = HUMANEVAL | {"base_input": [[1]], "plus_input": [[2], [10**20], [float("inf")]], "atol": 0}
    floats = row | {"canonical_solution": "    return [x / 3]\n", "plus_input": [[2]]}
    programs = [
        from_humaneval_plus(row),
        from_humaneval_plus(row, "    return 2 * x + 1 if x < 5 else 0"),
        from_humaneval_plus(floats),
        from_humaneval_plus(floats, "    return [x / 3 + 1e-7]"),
        from_humaneval_plus(floats, "    return [x / 3 + 1e-5]"),
        from_humaneval_plus(floats, "    return (x / 3 + 1e-7,)"),
        from_humaneval_plus(floats | {"atol": 1e-3}, "    return [x / 3 + 1e-5]"),
    ]
    passed = [verdict.passed for verdict in verifier.check(programs)]
    assert passed == [True, False, True, True, False, False, True]


def test_mbpp_calls_a_function_that_is_named_like_a_builtin(verifier):
    row = {
        "test_imports": ["import math"],
        "test_list": ["assert sum(10, 15) == 6", "assert math.isclose(sum(100, 150), 93)"],
        "code": "def sum(a, b):\n    return __builtins__['sum'](i for i in range(1, min(a, b)) if a % i == b % i == 0)",
    }
    good, bad = verifier.check([from_mbpp(row), from_mbpp(row, "def sum(a, b): return 6")])
    assert good.passed, good.reason
    assert (bad.status, bad.tests_passed) == ("failed", 1)


def test_calls_reach_a_method_of_solution_and_take_lists_for_tuples(verifier):
    source = "class Solution:\n    def pair(self, a, b):\n        return (a, [b])"
    good, bad = verifier.check([from_calls(source, "pair", [((1, 2), [1, [b]])]) for b in (2, 3)])
    assert (good.passed, bad.status) == (True, "failed")


def test_contest_programs_have_the_names_that_the_benchmarks_own_grader_gives_them(verifier):
    # Starter code names List and imports nothing; recursion of 5,000 is beyond Python's own limit of 1,000.
    method = "class Solution:\n    def total(self, xs: List[int], k: int) -> int:\n        return reduce(add, xs, k)"
    calls = [{"input": "[1, 2]\n3", "output": "6"}, {"input": "[]\n-1", "output": "-1"}]
    deep = "def depth(n):\n    return 1 + depth(n - 1) if n else 0\nprint(float(depth(int(input()))))"
    lines = [{"input": "5000\n", "output": "5000\n"}]
    wrong = [{"input": "5000\n", "output": "5001\n"}]
    programs = [
        from_live_code_bench(method, calls, "total"),
        from_live_code_bench(method.replace("add", "sub"), calls, "total"),
        from_live_code_bench(deep, lines, None),
        from_live_code_bench(deep, wrong, None),
    ]
    assert [verdict.status for verdict in verifier.check(programs)] == ["passed", "failed", "passed", "failed"]
    assert not verifier.check([from_calls(method, "total", [([[1], 2], 3)])])[0].passed


def test_programs_as_models_write_them_get_the_verdict_of_what_they_compute(verifier):
    future = "from __future__ import annotations\nprint(42)"
    stdin = {
        "\ufeffprint(42)": "passed",
        "print(4  *10+2, end='\\t\\n\\n')": "passed",
        "print(len(str(10 ** 5000)) - 4959)": "passed",
        "print('4\\x0b2')": "failed",
        "print('1' * 1100000)": "failed",
        "print('1e999999999')": "failed",
        "print('9' * 5000)": "failed",
        "import sys\nsys.stdout.write('42')\nsys.stdout.flush()\nopen('/dev/null', 'w').write('x')": "passed",
    }
    prelude = [
        from_live_code_bench(text, [{"input": "", "output": "42"}], None) for text in (future, "\ufeff" + future)
    ]
    programs = [*(from_stdio(text, [("", "42")], 0.0) for text in stdin), *prelude]
    assert [v.status for v in verifier.check(programs)] == [*stdin.values(), "passed", "passed"]
    row = HUMANEVAL | {"entry_point": "f"}
    assert verifier.check([from_humaneval(row, "from __future__ import annotations\ndef f(x: X): return 2 * x + 1")])[
        0
    ].passed
    big = from_stdio("print(10 ** 5000 + 1)", [("", "1" + "0" * 4999 + "1")])
    assert verifier.check([big, from_stdio("print(10 ** 5000)", big.tests.cases)])[0].passed
    solution = "class Solution:\n    def f(self, x: Optional[List[int]]) -> Dict[int, int]: return {1: x[0]}"
    good, bad = verifier.check([function_program(solution, f"assert Solution().f([2]) == {{1: {i}}}") for i in (2, 3)])
    assert (good.status, bad.status) == ("passed", "failed")


def test_a_function_counts_also_where_the_program_goes_on_to_read_input_that_is_not_there(verifier):
    source = "def f(x): return x * x\nprint(f(int(input())))"
    assert verifier.check([function_program(source, "assert f(3) == 9")])[0].passed


def test_the_listed_programs_get_their_verdicts(verifier):
    rows, programs = case_rows("code.jsonl"), []
    for row in rows:
        if row["form"] == "answer":
            code = extract_code(row["answer"])
            programs.append(from_mbpp({"test_imports": [], "test_list": row["tests"], "code": code}, code))
        else:
            for_contest = "LiveCodeBench" in row.get("note", "") or "decimal" in row.get("note", "")
            cases = [(case["input"], case["output"]) for case in row["tests"]]
            plain = from_stdio(row["program"], cases)
            programs.append(from_live_code_bench(row["program"], row["tests"], None) if for_contest else plain)
    verdicts = verifier.check(programs)
    assert [v.status for v in verdicts] == [row["expected"] for row in rows]
