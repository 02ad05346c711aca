"""Which part of a completion is its program."""

from __future__ import annotations

import ast
import builtins
import re
import warnings
from collections.abc import Collection, Iterator

_PYTHON = ("python", "python2", "python3", "py", "py3")
# A block that reads the input, or runs only as a script, is a program too; other statements show how one is used.
_RUNS_IT = re.compile(r"\binput\s*\(|\bstdin\b|\bopen\(0|__name__")
# So many blocks are looked at, from the end: what a completion costs does not grow with how it is cut up.
_MOST_BLOCKS = 50
_BUILTINS = {"", *dir(builtins)}


def extract_code(completion: str, names: Collection[str] = ()) -> str:
    """The last fenced block of Python that defines what is asked for, with the blocks it builds on.

    Where blocks are marked as Python, others do not count, and of those that can be parsed not those of plain values.
    The last that defines one of ``names`` is the program, where there are none the last that reads the input; without
    such a block the last that defines a function or a class; else the last one. Other blocks that define names which it
    uses and does not define go in front of it, the nearest ones. A completion without a fence is the program as a
    whole; an unclosed fence reaches to the end. ``names`` are what the tests call; none for a script.
    """
    blocks = list(_blocks(completion))
    if not blocks:
        return completion.removeprefix("\ufeff")
    marked = [text for language, text in blocks if language in _PYTHON]
    plain = [text for language, text in blocks if not language]
    texts = (marked or plain or [text for _, text in blocks])[-_MOST_BLOCKS:]
    parsed = [(text, tree) for text in texts if (tree := parse_program(text)) is not None and tree.body]
    if not parsed:
        return texts[-1]
    parsed = [(text, tree) for text, tree in parsed if not _is_output(tree)] or parsed
    asked = [i for i, (_, tree) in enumerate(parsed) if _defines(tree, names)]
    scripts = [i for i, (text, _) in enumerate(parsed) if _RUNS_IT.search(text)]
    defining = [i for i, (_, tree) in enumerate(parsed) if _defines_code(tree)]
    last = (asked or (defining if names else scripts) or defining or scripts or [len(parsed) - 1])[-1]
    chosen: list[str] = []
    missing = {""}
    # Backwards from the program, then forwards from it: what is explained behind it may belong to it.
    for text, tree in [*reversed(parsed[: last + 1]), *parsed[last + 1 :]]:
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
        margin = len(line) - len(line.lstrip(" \t\ufeff>"))
        # A fence that is indented by four is text (CommonMark); one behind code ends it, unless a string may hold it.
        if fence and stripped.endswith(fence) and stripped != mark and not re.search("[\"'#]", line):
            lines.append(line[min(indent, margin) :].rstrip().rstrip(fence[0]))
            stripped = mark = fence
            margin = indent
        if fence and stripped == mark and mark.startswith(fence) and margin - indent < 4:
            yield language, "\n".join(lines) + "\n"
            fence = ""
        elif fence:
            lines.append(line[min(indent, margin) :])
        elif len(mark) >= 3 and len(set(mark)) == 1:
            words = re.split(r"[\s{},:]+", stripped[len(mark) :].strip(" {.").lower())
            fence, language, indent, lines = mark, words[0], margin, []
    if fence:
        yield language, "\n".join(lines) + "\n" * (lines[-1:] != [""])


def parse_program(text: str) -> ast.Module | None:
    """Syntax tree; None where it is no Python, or too deep for the parser."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(text.removeprefix("\ufeff"))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _is_output(tree: ast.Module) -> bool:
    """Whether a block holds values only, as the output of a program does."""
    kinds = (ast.Call, ast.stmt, ast.comprehension, ast.Lambda)
    return all(isinstance(node, ast.Expr) or not isinstance(node, kinds) for node in ast.walk(tree))


def _defines(tree: ast.Module, names: Collection[str]) -> bool:
    """Whether one of the names is given a value, or is a method of a class."""
    methods = {
        node.name
        for parent in tree.body
        if isinstance(parent, ast.ClassDef)
        for node in parent.body
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    }
    return bool((_defined(tree) | methods) & set(names))


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
