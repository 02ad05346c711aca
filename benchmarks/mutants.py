"""Mutation check: change one operator, comparison, constant or condition at a time, and see whether a test notices.

    python benchmarks/mutants.py --count 200 --log mutants.jsonl

Mutants are drawn with a seed, in equal numbers per package. Each runs the test files that name its module, then the
package's test folders, until one fails. The log keeps every verdict: a second call goes on where the first one stopped.
"""

import argparse
import ast
import copy
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
TESTS = {
    "partition": ("tests/partition", "tests/theory", "tests/anchor"),
    "objectives": ("tests/objectives", "tests/theory"),
    "anchor": ("tests/anchor", "tests/foundation"),
    "training": ("tests/training", "tests/training_methods"),
}
SECONDS = 400

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
        elif isinstance(node, ast.If):
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


def tests_of(file: Path) -> list[list[str]]:
    """Test files that name the module, then the package's folders."""
    package = file.parent.name
    module = f"disa.{package}.{file.stem}"
    naming = [
        str(path.relative_to(ROOT))
        for folder in TESTS[package]
        for path in sorted((ROOT / folder).glob("test_*.py"))
        if module in path.read_text(encoding="utf-8")
    ]
    return [naming, list(TESTS[package])] if naming else [list(TESTS[package])]


def killed(source: Path, tests: list[str]) -> bool:
    """Whether a test fails, or does not end, on the package in ``source``."""
    environment = os.environ | {"PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-n", "0", "-p", "no:cacheprovider", *tests]
    try:
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return True
    return done.returncode != 0


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
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "src"
        shutil.copytree(ROOT / "src", source)
        for file, number, kind in plan(arguments.count, arguments.seed, arguments.packages):
            text = file.read_text(encoding="utf-8")
            changed, line = mutated(ast.parse(text), number, kind)
            name = str(file.relative_to(ROOT / "src/disa"))
            key = (name, line, kind, number)
            if key in known:
                continue
            target = source / "disa" / name
            target.write_text(changed, encoding="utf-8")
            dead = any(killed(source, tests) for tests in tests_of(file))
            target.write_text(text, encoding="utf-8")
            known[key] = {"file": name, "line": line, "kind": kind, "number": number, "killed": dead}
            with arguments.log.open("a", encoding="utf-8") as log:
                log.write(json.dumps(known[key]) + "\n")
            print(f"{'killed  ' if dead else 'SURVIVED'} {name}:{line} {kind}", flush=True)
    survivors = [row for row in known.values() if not row["killed"]]
    print(f"{len(known)} mutants, {len(survivors)} survive")
    for row in survivors:
        print(f"  {row['file']}:{row['line']} {row['kind']}")


if __name__ == "__main__":
    main()
