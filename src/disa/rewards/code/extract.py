"""Which part of a completion is its program."""

from __future__ import annotations

import ast
import builtins
import re
import warnings
from collections.abc import Iterator

_PYTHON = ("python", "python2", "python3", "py", "py3")
# A block that reads the input, or runs only as a script, is a program too; other statements show how one is used.
_RUNS_IT = re.compile(r"\binput\s*\(|\bstdin\b|\bopen\(0|__name__")
# So many blocks are looked at, from the end: what a completion costs does not grow with how it is cut up.
_MOST_BLOCKS = 50
_BUILTINS = {"", *dir(builtins)}


def extract_code(completion: str) -> str:
    """The last fenced block of Python that defines something, with the blocks it builds on.

    Where blocks are marked as Python, others do not count. Of those that can be parsed, the last that defines a
    function or a class, or reads the input, is the program, else the last one. Earlier blocks that define names which
    it uses and does not define go in front of it. A completion without a fence is the program as a whole; an unclosed
    fence reaches to the end.
    """
    blocks = list(_blocks(completion))
    if not blocks:
        return completion.removeprefix("\ufeff")
    marked = [text for language, text in blocks if language in _PYTHON]
    plain = [text for language, text in blocks if not language]
    texts = (marked or plain or [text for _, text in blocks])[-_MOST_BLOCKS:]
    parsed = [(text, tree) for text in texts if (tree := _parse(text)) is not None and tree.body]
    if not parsed:
        return texts[-1]
    programs = [i for i, (text, tree) in enumerate(parsed) if _defines_code(tree) or _RUNS_IT.search(text)]
    last = programs[-1] if programs else len(parsed) - 1
    chosen: list[str] = []
    missing = {""}
    for text, tree in reversed(parsed[: last + 1]):
        defined = _defined(tree)
        if not chosen or missing & (missing if "*" in defined else defined):
            chosen.insert(0, text)
            missing = (missing | _names(tree, ast.Load)) - defined - _BUILTINS
    return "".join(chosen)


def _blocks(completion: str) -> Iterator[tuple[str, str]]:
    """Language, in lower case, and text of every fenced block; the indentation of a fence is taken off its lines."""
    lines: list[str] = []
    fence, language, indent = "", "", 0
    for line in completion.split("\n"):
        line = line.removesuffix("\r")
        stripped = line.strip(" \t\ufeff>")
        mark = stripped[: len(stripped) - len(stripped.lstrip("`~"))]
        if fence and stripped == mark and mark.startswith(fence):
            yield language, "\n".join(lines) + "\n"
            fence = ""
        elif fence:
            margin = len(line) - len(line.lstrip(" \t>"))
            lines.append(line[min(indent, margin) :])
        elif len(mark) >= 3 and len(set(mark)) == 1:
            words = re.split(r"[\s{},:]+", stripped[len(mark) :].strip(" {.").lower())
            fence, language, indent, lines = mark, words[0], len(line) - len(line.lstrip(" \t>\ufeff")), []
    if fence:
        yield language, "\n".join(lines) + "\n" * (lines[-1:] != [""])


def _parse(text: str) -> ast.Module | None:
    """Syntax tree; None where it is no Python, or too deep for the parser."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(text.removeprefix("\ufeff"))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _defines_code(tree: ast.Module) -> bool:
    return any(isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) for node in tree.body)


def _names(tree: ast.Module, context: type[ast.expr_context]) -> set[str]:
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, context)}


def _defined(tree: ast.Module) -> set[str]:
    """Names that a block gives a value at its top level; ``*`` where an import may bring any."""
    found = set()
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            found |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
        else:
            found |= _names(ast.Module([node], []), ast.Store)
    return found
