"""The arithmetic of a solution in words, step by step: the kind of a solution of GSM8K."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from decimal import Decimal
from fractions import Fraction

from disa.rewards.expression import apply_operator

_MOST_CHARACTERS = 20_000
_MOST_TOKENS = 64
"""Of one side of an equation: bounds the parser's depth, whatever a model writes."""
_OPERATORS = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/"}
_SPELLINGS = (
    (r"<<[^<>]*>>", " "),
    (r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}", r"((\1)/(\2))"),
    (r"\\times\b|\\cdot\b|×|·|(?<=[\d)])\s*x\s*(?=[$(\d])", "*"),
    (r"\\div\b|÷", "/"),
    (r"[−–]", "-"),
    (r"\\?%\s*of\b", "%*"),
    (r"\\%", "%"),
    (r"(?<=\d),(?=\d{3}(?!\d))", ""),
)
_TOKEN = re.compile(r"\d+(?:\.\d+)?%?|\.\d+|[-+*/()=]")


def arithmetic_steps(text: str) -> str:
    r"""Binary operations of a solution's equations, in order, each once.

    Words, units and currency signs within an equation are left out. ``16 - 3 - 4 = 9`` is the two steps ``16-3 13-4``,
    as ``16 - 3 = 13`` with ``13 - 4 = 9`` is; the operands of sums and products are sorted. Values are exact, whatever
    the text says they are.

    Returns
    -------
    str
        Steps with spaces between them; ``none`` where no equation has any.
    """
    text = text[:_MOST_CHARACTERS]
    for pattern, spelling in _SPELLINGS:
        text = re.sub(pattern, spelling, text)
    steps: dict[str, None] = {}
    for line in text.split("\n"):
        sides = " ".join(_TOKEN.findall(line)).split("=")
        if len(sides) > 1:
            steps.update(dict.fromkeys(step for side in sides for step in _steps_of(side.split()[-_MOST_TOKENS:])))
    return " ".join(steps) or "none"


def _steps_of(tokens: list[str]) -> list[str]:
    """Steps of the longest expression that a side of an equation ends with."""
    numbers = [format(Decimal(token[:-1]) / 100, "f") if token.endswith("%") else token for token in tokens]
    for start, token in enumerate(numbers):
        if token in "+-*/)":
            continue
        try:
            return list(_operations(ast.parse(" ".join(numbers[start:]), mode="eval").body))[:-1]
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            continue
    return []


def _operations(node: ast.expr) -> Iterator[str]:
    """Steps below a node, and last its value."""
    if isinstance(node, ast.Constant) and isinstance(node.value, (int, float)):
        yield str(Fraction(str(node.value)))
        return
    if not isinstance(node, ast.BinOp) or type(node.op) not in _OPERATORS:
        raise ValueError("not arithmetic")
    *earlier, left = _operations(node.left)
    *later, right = _operations(node.right)
    operator = _OPERATORS[type(node.op)]
    value = apply_operator(operator, Fraction(left), Fraction(right))
    if value is None:
        raise ValueError("divides by zero")
    operands = sorted((left, right), key=Fraction) if operator in "+*" else [left, right]
    yield from (*earlier, *later, operator.join(f"({x})" if "/" in x else x for x in operands), str(value))
