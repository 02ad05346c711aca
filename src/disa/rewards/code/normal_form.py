"""Programs that differ only in names, comments, annotations and usage as one text: the kind of a solution."""

from __future__ import annotations

import ast
from collections.abc import Collection

from disa.rewards.code.extract import parse_program


def normal_form(code: str, names: Collection[str] = ()) -> str:
    """The program's normalised syntax tree, written out.

    Comments, docstrings and annotations go; names that the program itself binds become ``v0``, ``v1``, ... in the order
    in which they first occur in the tree. Where tests call functions, only definitions, imports and the assignments
    that these read are kept: the rest shows how the program is used. Nothing is run. Names are renamed program by
    program, not scope by scope, and keyword arguments are left alone: two programs of one kind may get two forms.

    Parameters
    ----------
    code : str
        A program, as :func:`disa.rewards.code.extract_code` takes it out of a completion.
    names : collection of str
        What the tests call; it keeps its name. Empty for a script, all of which counts.

    Returns
    -------
    str
        Python; the code itself, where it cannot be parsed or written out.
    """
    if (tree := parse_program(code)) is None:
        return code
    if names:
        tree.body = _used(tree)
    try:
        return ast.unparse(_Renamed(_bound(tree) - set(names)).visit(tree))
    except (ValueError, RecursionError, MemoryError):  # a tree that can be read may be too deep to be written
        return code


def _used(tree: ast.Module) -> list[ast.stmt]:
    """Definitions, imports, and assignments of names that the definitions read."""
    definitions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    read: set[str] = set()
    for node in tree.body:
        if isinstance(node, definitions):
            read |= {name.id for name in ast.walk(node) if isinstance(name, ast.Name)} - _bound(node)
    return [
        node
        for node in tree.body
        if isinstance(node, (*definitions, ast.Import, ast.ImportFrom))
        or (isinstance(node, (ast.Assign, ast.AnnAssign)) and _bound(node) & read)
    ]


def _bound(tree: ast.AST) -> set[str]:
    """Names that the program gives a value: variables, parameters, functions and classes."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.arg):
            found.add(node.arg)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.ExceptHandler, ast.MatchAs)):
            found.add(node.name or "")
    return found - {""}


class _Renamed(ast.NodeTransformer):
    """Bound names by number; no annotations and docstrings."""

    def __init__(self, bound: set[str]) -> None:
        self._bound = bound
        self._numbers: dict[str, str] = {}

    def _name(self, name: str) -> str:
        return self._numbers.setdefault(name, f"v{len(self._numbers)}") if name in self._bound else name

    def visit(self, node: ast.AST) -> ast.AST:
        for field in ("id", "name") + (("arg",) if isinstance(node, ast.arg) else ()):
            if isinstance(name := getattr(node, field, None), str) and not isinstance(node, ast.alias):
                setattr(node, field, self._name(name))
        for field in ("annotation", "returns", "type_comment"):
            if not isinstance(node, ast.AnnAssign) and getattr(node, field, None) is not None:
                setattr(node, field, None)
        if isinstance(node, (ast.Global, ast.Nonlocal)):
            node.names = [self._name(name) for name in node.names]
        if isinstance(body := getattr(node, "body", None), list):
            # A string by itself is a docstring, wherever it stands.
            kept = [x for x in body if not (isinstance(x, ast.Expr) and isinstance(x.value, ast.Constant))]
            node.body = kept or [ast.Pass()]  # type: ignore[attr-defined]
        node = self.generic_visit(node)
        if isinstance(node, ast.AnnAssign) and node.value is not None:
            return ast.copy_location(ast.Assign([node.target], node.value), node)
        return node
