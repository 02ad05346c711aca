"""Mutation check: change one operator, comparison, constant or condition at a time, and see whether a test notices.

    pip install coverage
    python benchmarks/mutants.py --count 200 --log mutants.jsonl

Mutants are drawn with a seed, in equal numbers per package. A first run of the packages' tests, which must pass, notes
which tests execute which lines and how long each takes. A mutant then runs the tests that execute its line (of a line
that runs on import: those that execute any line of its file), quickest first, then the others of the same test files,
until one fails. The log keeps every verdict: a second call goes on where the first one stopped.
"""

import argparse
import ast
import copy
import importlib
import json
import os
import random
import shutil
import sys
import tempfile
import time
import traceback
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TESTS = {
    "partition": ("tests/partition", "tests/theory", "tests/anchor"),
    "objectives": ("tests/objectives", "tests/theory"),
    "anchor": ("tests/anchor", "tests/foundation", "tests/calibration"),
    "training": ("tests/training", "tests/training_methods"),
}
SECONDS = 900
PYTEST = ["-x", "-q", "-n", "0", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning"]

SWAPS = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.And: ast.Or,
    ast.Or: ast.And,
}


def mutations(tree: ast.Module) -> list[tuple[int, str]]:
    """Places that can be changed: number of the node in walking order, and what is done to it."""
    found = []
    messages = {id(n) for r in ast.walk(tree) if isinstance(r, ast.Raise | ast.Assert) for n in ast.walk(r)}
    for number, node in enumerate(ast.walk(tree)):
        if id(node) in messages:
            continue
        if isinstance(node, ast.BinOp | ast.BoolOp) and type(node.op) in SWAPS:
            found.append((number, "operator"))
        elif isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in SWAPS:
            found.append((number, "comparison"))
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub):
            found.append((number, "sign"))
        elif isinstance(node, ast.Constant) and type(node.value) in (int, float):
            found.append((number, "constant"))
        elif isinstance(node, ast.If) and ast.unparse(node.test) != "TYPE_CHECKING":
            found.append((number, "condition"))
    return found


def mutated(tree: ast.Module, number: int, kind: str) -> tuple[str, int]:
    """Source of the changed module, and the line of the change."""
    tree = copy.deepcopy(tree)
    node = next(n for i, n in enumerate(ast.walk(tree)) if i == number)
    if kind == "operator":
        node.op = SWAPS[type(node.op)]()
    elif kind == "comparison":
        node.ops = [SWAPS[type(node.ops[0])]()]
    elif kind == "sign":
        node.op = ast.UAdd() if isinstance(node.op, ast.USub) else ast.Not()
        if isinstance(node.op, ast.Not):
            node.operand = ast.UnaryOp(ast.Not(), node.operand)
    elif kind == "constant":
        node.value = node.value + 1
    else:
        node.test = ast.UnaryOp(ast.Not(), node.test)
    return ast.unparse(ast.fix_missing_locations(tree)), node.lineno


def plan(count: int, seed: int, packages: list[str]) -> list[tuple[Path, int, str]]:
    """Mutants in an order that takes the packages in turn."""
    rng, queues = random.Random(seed), []
    for package in packages:
        files = sorted((ROOT / "src/disa" / package).glob("*.py"))
        places = [(f, *m) for f in files for m in mutations(ast.parse(f.read_text(encoding="utf-8")))]
        queues.append(rng.sample(places, min(len(places), -(-count // len(packages)))))
    return [queue[i] for i in range(max(map(len, queues))) for queue in queues if i < len(queue)][:count]


class Coverage:
    """Pytest plugin: which tests execute which lines of the package in ``source``, and the seconds of each test."""

    def __init__(self, source: Path) -> None:
        import coverage

        self.source, self.seconds = source, {}
        self.measured = coverage.Coverage(data_file=None, source=[str(source)])
        self.measured.start()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item):
        """Run one test under its own name."""
        self.measured.switch_context(item.nodeid)
        start = time.perf_counter()
        result = yield
        self.seconds[item.nodeid] = time.perf_counter() - start
        self.measured.switch_context("")
        return result

    def lines(self) -> dict[str, dict[int, list[str]]]:
        """Tests by file of the package and line."""
        self.measured.stop()
        data = self.measured.get_data()
        return {
            str(Path(file).relative_to(self.source / "disa")): {
                line: [test for test in tests if test] for line, tests in data.contexts_by_lineno(file).items()
            }
            for file in data.measured_files()
        }


def in_child(work, source: Path) -> int | None:
    """Exit status of ``work()`` in a forked process that imports the package from ``source``; None beyond the limit."""
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        sink = os.open(source.parent / "tests.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(sink, 1)
        os.dup2(sink, 2)
        # Bytecode is kept by the second and the size of its source: a mutant may have both of the file it replaces.
        sys.dont_write_bytecode = True
        os.environ |= {"PYTHONPATH": str(source), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        sys.path.insert(0, str(source))
        try:
            status = int(work())
        except BaseException:
            traceback.print_exc()
            status = 3
        sys.stdout.flush()
        os._exit(status)
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.05)
    os.killpg(child, 9)
    os.waitpid(child, 0)
    return None


def covered(source: Path, package: str) -> tuple[dict[str, dict[str, list[str]]], dict[str, float]]:
    """Tests by file and line, and seconds by test, of the package's test folders, all of which must pass."""
    path = source.parent / f"{package}.json"

    def work() -> int:
        plugin = Coverage(source)
        status = pytest.main([*PYTEST, *TESTS[package]], plugins=[plugin])
        path.write_text(json.dumps([plugin.lines(), plugin.seconds]), encoding="utf-8")
        return status

    if in_child(work, source) != 0:
        log = (source.parent / "tests.log").read_text(encoding="utf-8")
        raise SystemExit(f"{log}\nthe tests of {package} fail without a mutant")
    return json.loads(path.read_text(encoding="utf-8"))


def tests_of(name: str, line: int, lines: dict[str, dict[str, list[str]]], seconds: dict[str, float]) -> list[str]:
    """Tests that execute the line, or any line of a file whose line runs on import, quickest first.

    Then the other tests of the same test files: a fixture that they share runs within the first test that asks for it.
    """
    by_line = lines.get(name, {})
    own = set(by_line.get(str(line)) or (test for named in by_line.values() for test in named))
    files = {test.split("::")[0] for test in own}
    near = [test for test in seconds if test.split("::")[0] in files]
    return sorted(near, key=lambda test: (test not in own, seconds[test]))


def main() -> None:
    """Try the mutants that the log does not hold yet; print how many survive, and which."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--packages", nargs="+", default=list(TESTS), choices=list(TESTS))
    parser.add_argument("--log", type=Path, default=Path("mutants.jsonl"))
    arguments = parser.parse_args()
    known = {}
    if arguments.log.is_file():
        rows = [json.loads(line) for line in arguments.log.read_text(encoding="utf-8").splitlines()]
        known = {(row["file"], row["line"], row["kind"], row["number"]): row for row in rows}
    # Loaded once: every mutant's process starts with them.
    for module in ("datasets", "peft", "scipy.stats", "torch", "transformers", "trl"):
        importlib.import_module(module)

    os.chdir(ROOT)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "src"
        shutil.copytree(ROOT / "src", source, ignore=shutil.ignore_patterns("__pycache__"))
        measured: dict[str, tuple] = {}
        for file, number, kind in plan(arguments.count, arguments.seed, arguments.packages):
            text = file.read_text(encoding="utf-8")
            changed, line = mutated(ast.parse(text), number, kind)
            name = str(file.relative_to(ROOT / "src/disa"))
            key = (name, line, kind, number)
            if key in known:
                continue
            package = file.parent.name
            if package not in measured:
                measured[package] = covered(source, package)
            tests = tests_of(name, line, *measured[package])
            target = source / "disa" / name
            target.write_text(changed, encoding="utf-8")
            dead = bool(tests) and in_child(lambda tests=tests: pytest.main([*PYTEST, *tests]), source) != 0
            target.write_text(text, encoding="utf-8")
            known[key] = {
                "file": name,
                "line": line,
                "kind": kind,
                "number": number,
                "tests": len(tests),
                "killed": dead,
            }
            with arguments.log.open("a", encoding="utf-8") as log:
                log.write(json.dumps(known[key]) + "\n")
            print(f"{'killed  ' if dead else 'SURVIVED'} {name}:{line} {kind} ({len(tests)} tests)", flush=True)
    survivors = [row for row in known.values() if not row["killed"]]
    print(f"{len(known)} mutants, {len(survivors)} survive")
    for row in survivors:
        print(f"  {row['file']}:{row['line']} {row['kind']}")


if __name__ == "__main__":
    main()
