"""Size and structure of the package: lines, rooms, imports between them, repeated lines.

    python benchmarks/structure.py [FOLDER]
    python benchmarks/structure.py --names 20 --seed 1   # to be looked for by who knows the tree

A room is a folder, or a module at the top. An import counts once per pair of rooms. A repeat is a run of six or more
equal lines, white space and comments aside, that stands in two places; imports and docstrings are left out.
"""

import argparse
import ast
import random
import statistics
from collections import defaultdict
from pathlib import Path

SHORTEST_REPEAT = 6
FACES = {"__init__.py", "__main__.py"}


def room(path: Path) -> str:
    """Name of the room of a file, given relative to the package."""
    return str(path.parent) if path.parent != Path(".") else path.stem


def imports(root: Path) -> set[tuple[str, str]]:
    """Pairs of rooms of which the first imports the second; faces of packages hand names on and are left out."""
    found = set()
    for path in sorted(root.rglob("*.py")):
        if path.name in FACES:
            continue
        own = room(path.relative_to(root))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == root.name:
                for alias in node.names:
                    other = _room_of(root, [*node.module.split(".")[1:], alias.name])
                    found |= {(own, other)} if other not in (None, own) else set()
    return found


def _room_of(root: Path, parts: list[str]) -> str | None:
    for end in range(len(parts), 0, -1):
        path = root.joinpath(*parts[:end])
        if path.with_suffix(".py").is_file():
            return room(path.with_suffix(".py").relative_to(root))
        if path.is_dir():
            return str(path.relative_to(root))
    return None


def code_lines(path: Path) -> list[str]:
    """Lines of a file that count for repeats."""
    text = path.read_text(encoding="utf-8")
    dropped = set()
    for node in ast.walk(ast.parse(text)):
        plain = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if plain or isinstance(node, ast.Import | ast.ImportFrom):
            dropped |= set(range(node.lineno, node.end_lineno + 1))
    lines = [line.split("  #")[0].strip() for i, line in enumerate(text.splitlines(), 1) if i not in dropped]
    return [line for line in lines if len(line) > 1 and not line.startswith("#")]


def repeats(root: Path) -> int:
    """Number of maximal repeated runs."""
    places = defaultdict(list)
    files = {path: code_lines(path) for path in sorted(root.rglob("*.py"))}
    for path, lines in files.items():
        for start in range(len(lines) - SHORTEST_REPEAT + 1):
            places[tuple(lines[start : start + SHORTEST_REPEAT])].append((path, start))
    pairs = {(a, b) for found in places.values() for i, a in enumerate(found) for b in found[i + 1 :]}
    # A run longer than the shortest shows as neighbouring pairs: its first one counts.
    return sum(((p, i - 1), (q, j - 1)) not in pairs for (p, i), (q, j) in pairs)


def public_names(root: Path) -> list[tuple[str, str]]:
    """Public functions and classes at the top of a module, each with its file."""
    return [
        (node.name, str(path.relative_to(root)))
        for path in sorted(root.rglob("*.py"))
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
    ]


def main() -> None:
    """Print one line per figure, or names with their files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", nargs="?", type=Path, default=Path("src/disa"))
    parser.add_argument("--names", type=int, default=0, help="draw so many names instead")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    root = options.root
    if options.names:
        drawn = random.Random(options.seed).sample(public_names(root), options.names)
        print("\n".join(f"{name} {file}" for name, file in drawn))
        return
    files = sorted(root.rglob("*.py"))
    lengths = [len(path.read_text(encoding="utf-8").splitlines()) for path in files]
    rooms = {room(path.relative_to(root)) for path in files if path.name not in FACES or path.parent != root}
    print(f"lines {sum(lengths)}")
    print(f"files {len(files)}")
    print(f"median lines per file {statistics.median(lengths):g}")
    print(f"rooms {len(rooms)}")
    print(f"imports between rooms {len(imports(root))}")
    print(f"repeated runs of {SHORTEST_REPEAT} lines {repeats(root)}")


if __name__ == "__main__":
    main()
