r"""Equations and inequalities that are no definitions: equal where they hold at the same places.

Both are written as ``f = 0``. They are equal where the two f differ by a constant factor. Where they do not and both
are linear or quadratic in a variable, its values are compared; else that stays open.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Any

from disa.rewards.maths.formula import Tree, formula_trees
from disa.rewards.maths.value import (
    LimitError,
    UndefinedError,
    close_values,
    comparison_points,
    value_at,
    variable_names,
)

_SIGN = re.compile(r"\s*(=|<|>|\\le(?![a-zA-Z])|\\ge(?![a-zA-Z]))\s*")


def same_relation(gold: str, answer: str) -> bool | None:
    """Whether two relations hold at the same places; None where that stays open."""
    left, right = _difference(gold), _difference(answer)
    if left is None or right is None:
        return None if left is None else False
    (sign, f), (other, g) = left, right
    if variable_names(f) != variable_names(g):
        return False
    if (sign == "=") != (other == "="):
        return False
    try:
        factor = _factor(f, g)
        if factor is None:
            return _same_roots(f, g) if sign == other == "=" else None
    except (LimitError, UndefinedError):
        return None
    if sign == "=":
        return True
    return other == (sign if factor > 0 else {"<": ">", ">": "<", "\\le": "\\ge", "\\ge": "\\le"}[sign])


def _difference(text: str) -> tuple[str, Tree] | None:
    """Sign, and left side minus right side."""
    parts = _SIGN.split(text)
    if len(parts) != 3:
        return None
    sides = [formula_trees(part) for part in (parts[0], parts[2])]
    return (parts[1], ("-", sides[0][0], sides[1][0])) if all(len(side) == 1 for side in sides) else None


def _factor(f: Tree, g: Tree) -> Any | None:
    """The constant that g is of f, None where it is none."""
    ratios = []
    for point in comparison_points(variable_names(f)):
        try:
            left, right = value_at(f, point), value_at(g, point)
            ratios.append(right / left)
        except (UndefinedError, ZeroDivisionError):
            continue
    same = len(ratios) > 2 and all(close_values(ratio, ratios[0]) for ratio in ratios)
    return ratios[0] if same and ratios[0] and not ratios[0].imag else None


def _same_roots(f: Tree, g: Tree) -> bool | None:
    """Whether both give a variable the same values where both are of one degree in it, 1 or 2; None where none is."""
    for name in sorted(variable_names(f)):
        at = list(comparison_points(variable_names(f)))[:3]
        both = [(_coefficients(f, name, point), _coefficients(g, name, point)) for point in at]
        pairs = [(one, other) for one, other in both if one is not None and other is not None]
        if len(pairs) == len(at) and all(len(one) == len(other) for one, other in pairs):
            return all(
                close_values(a * other[0], b * one[0]) for one, other in pairs for a, b in zip(one, other, strict=True)
            )
    return None


def _coefficients(tree: Tree, name: str, point: dict[str, Fraction]) -> list[Any] | None:
    """Coefficients of a tree that is a polynomial of degree 1 or 2 in a variable, the highest first."""
    try:
        one, two, three, four = (value_at(tree, point | {name: Fraction(at)}) for at in (1, 2, 3, 4))
    except UndefinedError:
        return None
    if not close_values(four + 3 * two, 3 * three + one):
        return None
    if close_values(one + three, 2 * two):
        return None if close_values(one, two) else [two - one, 2 * one - two]
    square = (one - 2 * two + three) / 2
    linear = two - one - 3 * square
    return [square, linear, one - linear - square]
