"""Arithmetic expressions written by a model: parsed with ``ast``, valued with ``Fraction``, never evaluated.

An expression is an ``int`` or a tuple ``(operator, left, right)`` with one of ``+ - * /``.
"""

from __future__ import annotations

import ast
import re
from fractions import Fraction

Expression = int | tuple[str, "Expression", "Expression"]

# Longest text that is looked at: bounds the parser's work and depth whatever a model writes.
MAX_CHARACTERS = 200
_ALLOWED = re.compile(r"[0-9+\-*/() ]+")
_OPERATORS = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/"}
_INVERSE = {"+": "-", "*": "/"}


def parse_expression(text: str, operators: str = "+-*/") -> Expression | None:
    """Parse non-negative integers, parentheses and the given operators; anything else gives None.

    Signs, powers, floor division and implied multiplication are not part of the language.
    """
    text = text.strip()
    if len(text) > MAX_CHARACTERS or not _ALLOWED.fullmatch(text):
        return None
    try:
        return _convert(ast.parse(text, mode="eval").body, operators)
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return None


def _convert(node: ast.expr, operators: str) -> Expression:
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return node.value
    if isinstance(node, ast.BinOp) and (operator := _OPERATORS.get(type(node.op), "?")) in operators:
        return (operator, _convert(node.left, operators), _convert(node.right, operators))
    raise ValueError("not part of the language")


def expression_numbers(expression: Expression) -> list[int]:
    """The numbers an expression uses, from left to right."""
    if isinstance(expression, int):
        return [expression]
    return expression_numbers(expression[1]) + expression_numbers(expression[2])


def expression_value(expression: Expression) -> Fraction | None:
    """Exact value; None where it divides by zero."""
    if isinstance(expression, int):
        return Fraction(expression)
    operator, left, right = expression[0], expression_value(expression[1]), expression_value(expression[2])
    if left is None or right is None:
        return None
    return apply_operator(operator, left, right)


def apply_operator(operator: str, left: Fraction, right: Fraction) -> Fraction | None:
    """One exact operation; None for a division by zero."""
    if operator == "+":
        return left + right
    if operator == "-":
        return left - right
    if operator == "*":
        return left * right
    return left / right if right else None


def canonical_form(expression: Expression) -> str:
    """One text for all expressions equal by commutativity and associativity.

    Subtraction and division count as adding and multiplying inverses, so ``a-(b-c)`` and ``c+a-b``
    are one form; ``a*(b+c)`` and ``a*b+a*c`` are two, and so are ``(a-b)*(c-d)`` and ``(b-a)*(d-c)``.
    """
    if isinstance(expression, int):
        return str(expression)
    operator = "+" if expression[0] in "+-" else "*"
    plain, inverted = chain_operands(expression, operator)
    first, *rest = sorted(_operand(part, operator) for part in plain)
    signed = [operator + text for text in rest]
    return first + "".join(signed + sorted(_INVERSE[operator] + _operand(part, operator) for part in inverted))


def chain_operands(expression: Expression, operator: str) -> tuple[list[Expression], list[Expression]]:
    """Operands of a chain of ``+ -`` or of ``* /``: those that count plainly, and those inverted."""
    if isinstance(expression, int) or expression[0] not in (operator, _INVERSE[operator]):
        return [expression], []
    plain, inverted = chain_operands(expression[1], operator)
    right_plain, right_inverted = chain_operands(expression[2], operator)
    if expression[0] == _INVERSE[operator]:
        right_plain, right_inverted = right_inverted, right_plain
    return plain + right_plain, inverted + right_inverted


def _operand(expression: Expression, operator: str) -> str:
    text = canonical_form(expression)
    is_sum = not isinstance(expression, int) and expression[0] in "+-"
    return f"({text})" if operator == "*" and is_sum else text
