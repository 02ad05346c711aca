"""Every refusal says what to do."""

import ast
from collections.abc import Iterator
from pathlib import Path

import disa

ROOT = Path(disa.__file__).parent


def without_fix(source: str) -> Iterator[int]:
    """Lines that build a DisaError without ``fix``, other than one that passes on another error's whole message."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) == "DisaError":
            passed_on = {name.id for name in ast.walk(node) if isinstance(name, ast.Name)} & {
                "error",
                "cause",
                "one_line",
            }
            if not passed_on and "fix" not in {keyword.arg for keyword in node.keywords}:
                yield node.lineno


def test_the_search_finds_a_refusal_without_a_way_out():
    assert list(without_fix('raise DisaError("n is 0", where="row 1")\nraise DisaError("n is 0", fix="give n")')) == [1]


def test_every_refusal_names_a_way_out():
    found = {str(path.relative_to(ROOT)): list(without_fix(path.read_text("utf-8"))) for path in ROOT.rglob("*.py")}
    assert {name: lines for name, lines in found.items() if lines} == {}
