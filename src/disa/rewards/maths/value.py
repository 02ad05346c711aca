"""Values of formulas: exact where they are rational, else to 60 and to 200 digits, with names at chosen points.

Two formulas are equal where their values are: a difference that stays as precision grows from 60 to 200 digits is one,
a difference that vanishes with it is none. Exponents have no bounds, so nothing underflows. Every operation is bounded
in cost, so that nothing a model writes takes long; past a bound there is no verdict. No clock and no chance takes part:
a verdict is a function of the two texts.
"""

from __future__ import annotations

import functools
import itertools
import math
import random
import threading
from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import Any

from disa.rewards.maths.formula import Tree, formula_trees, has_imaginary_unit

# Room for 1000! and 2^4950 (a gold answer of MATH) as exact numbers; beyond, 200 digits are kept.
MAX_BITS = 16384
# Bounds of inexact numbers: binary exponent, exponent of a power, argument of a factorial, of a sine (binary exponent).
_MAX_MAGNITUDE, _MAX_EXPONENT, _MAX_FACTORIAL, _MAX_ANGLE = 10**8, 2**31, 20_000, 512
# In a sum and in a function's argument, what is smaller than this (bits) might not show in 200 digits.
_VISIBLE = 600
# Beyond it, e^-x does not show beside e^x.
_MAX_HYPERBOLIC = 200
# Digits that may be lost to cancellation before a difference says nothing, in bits.
_MAX_CANCELLED = 400
_LOCK = threading.RLock()


class LimitError(ArithmeticError):
    """A value too large, or an operation too long, to be looked at."""


class UndefinedError(ArithmeticError):
    """No value here: a division by zero, a logarithm of zero."""


def parse_exact(text: str) -> Fraction | None:
    r"""Exact value of a cleaned text, None where it is not a plainly written rational number of one meaning.

    Commas group thousands. ``2\frac{1}{4}`` is a mixed number.
    """
    found = formula_trees(text)
    return exact_value(found[0]) if len(found) == 1 else None


@functools.lru_cache(maxsize=8192)
def exact_value(tree: Tree) -> Fraction | None:
    """Rational value of a tree; None where it has none, or too large a one."""
    try:
        return _exact(tree)
    except (LimitError, UndefinedError, ZeroDivisionError):
        return None


def _exact(tree: Tree) -> Fraction:
    kind, *parts = tree
    if kind == "num":
        return _bounded(parts[0])
    if kind not in ("+", "-", "*", "/", "^", "neg", "abs", "fact", "binom", "floor", "ceil"):
        raise UndefinedError(kind)
    first, second = (*map(_exact, parts), Fraction(0))[:2]
    if kind in "+-*/":
        return _bounded(_ARITHMETIC[kind](first, second))
    if kind == "^":
        power = _whole(second, -MAX_BITS)
        if abs(power) * max(first.numerator.bit_length(), first.denominator.bit_length()) > MAX_BITS:
            raise LimitError
        return first**power
    if kind == "fact":
        return Fraction(math.factorial(_whole(first)))
    if kind == "binom":
        return Fraction(math.comb(_whole(first), _whole(second)))
    return Fraction({"neg": lambda x: -x, "abs": abs, "floor": math.floor, "ceil": math.ceil}[kind](first))


_ARITHMETIC = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a / b,
}


def _bounded(value: Fraction) -> Fraction:
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > MAX_BITS:
        raise LimitError
    return value


def _whole(value: Fraction, low: int = 0) -> int:
    if value.denominator != 1 or not low <= value <= (1000 if low == 0 else MAX_BITS):
        raise LimitError
    return int(value)


@functools.cache
def _contexts() -> list[Any]:
    """Arithmetic of 60 and of 200 digits; mpmath's own context belongs to the caller."""
    import mpmath

    found = [mpmath.MPContext(), mpmath.MPContext()]
    for context, digits in zip(found, (60, 200), strict=True):
        context.dps = digits
    return found


class _Evaluator:
    """Value of trees at one point in one arithmetic; ``peak`` is the largest binary exponent that was summed."""

    def __init__(self, context: Any, point: dict[str, Fraction], ten: bool) -> None:
        self.context, self.point, self.ten, self.peak = context, point, ten, -(10**9)

    def value(self, tree: Tree) -> Any:
        try:
            return self.checked(self.compute(tree))
        except (ZeroDivisionError, ValueError) as error:
            raise UndefinedError from error
        except (OverflowError, NotImplementedError, MemoryError) as error:
            raise LimitError from error

    def checked(self, value: Any) -> Any:
        if not self.context.isfinite(value):
            raise UndefinedError
        if value and abs(self.context.mag(value)) > _MAX_MAGNITUDE:
            raise LimitError
        return value

    def compute(self, tree: Tree) -> Any:
        kind, *parts = tree
        c = self.context
        if kind == "num":
            if max(parts[0].numerator.bit_length(), parts[0].denominator.bit_length()) > _VISIBLE:
                raise LimitError
            return c.mpf(parts[0].numerator) / parts[0].denominator
        if kind == "const":
            return {"\\pi": +c.pi, "e": +c.e, "i": c.j}[parts[0]]
        if kind == "name":
            value = self.point[parts[0]]
            return c.mpf(value.numerator) / value.denominator
        if kind == "apply":
            return self.unknown(parts[0], [self.value(part) for part in parts[1:]])
        if kind == "^":
            return self.power(*parts)
        if kind == "root" and (degree := exact_value(parts[0])) is not None and degree:
            return self.power(parts[1], ("num", 1 / degree))
        values = [self.value(part) for part in parts]
        if kind in ("+", "-"):
            sizes = [int(c.mag(v)) for v in values if v]
            self.peak = max([self.peak, *sizes])
            if sizes and max(sizes) - min(sizes) > _VISIBLE and c.dps > 100:
                raise LimitError
        if kind in _ARITHMETIC:
            return _ARITHMETIC[kind](*values)
        return self.function(kind, *values)

    def power(self, base: Tree, exponent: Tree) -> Any:
        c, x, y = self.context, self.value(base), self.value(exponent)
        if x and y and (c.mag(y) > 31 or abs(int(c.mag(x))) * abs(complex(y)) > 2 * _MAX_MAGNITUDE):
            raise LimitError
        if y and x and x != 1 and int(c.mag(y)) < -_VISIBLE:
            raise LimitError
        rational = exact_value(exponent)
        if rational is not None and rational.denominator % 2 and rational.denominator > 1 and not c.im(x) and x < 0:
            # School's convention: the odd root of a negative number is negative.
            return (-1) ** (rational.numerator % 2) * c.power(-x, y)
        if not x and c.re(y) <= 0:
            raise UndefinedError
        return c.power(x, int(c.re(y)) if c.isint(y) else y)

    def unknown(self, name: str, values: list[Any]) -> Any:
        """A function of which nothing is known: a number that depends on its name and its arguments."""
        texts = [self.context.nstr(value, 30) for value in values]
        return self.context.mpf(random.Random(f"{name} {texts}").randrange(10**9, 10**10)) / 10**9

    def function(self, kind: str, x: Any, y: Any = None) -> Any:
        c = self.context
        if kind in ("fact", "binom") and any(v is not None and abs(v) > _MAX_FACTORIAL for v in (x, y)):
            raise LimitError
        if kind in _OF_ANGLES and x and c.mag(x) > _MAX_ANGLE:
            raise LimitError
        if kind == "\\exp" and x and c.mag(x) > 26:
            raise LimitError
        if kind in ("\\sinh", "\\cosh", "\\tanh") and abs(x) > _MAX_HYPERBOLIC:
            raise LimitError
        if (kind in ("\\arctan", "\\arccot") or kind == "root") and x and c.mag(x) > _VISIBLE:
            raise LimitError
        if kind[0] == "\\" and x and c.mag(x) < -_VISIBLE and c.dps > 100:
            raise LimitError
        if kind in ("\\cos", "\\sec", "\\cosh") and x and 2 * c.mag(x) < -_VISIBLE and c.dps > 100:
            raise LimitError
        if kind in ("floor", "ceil") and c.im(x):
            raise UndefinedError
        if kind in ("floor", "ceil") and x and c.mag(x) > c.prec - 20:
            raise LimitError
        if kind == "prime":
            return self.unknown("'", [x])
        if kind == "log":
            return c.log(y) / c.log(x)
        return {
            "neg": lambda: -x, "conj": lambda: c.conj(x), "abs": lambda: abs(x),
            "deg": lambda: x * c.pi / 180, "fact": lambda: c.gamma(x + 1),
            "binom": lambda: c.binomial(x, y), "floor": lambda: c.floor(x), "ceil": lambda: c.ceil(x),
            "root": lambda: c.power(y, 1 / x), "\\sin": lambda: c.sin(x), "\\cos": lambda: c.cos(x),
            "\\tan": lambda: c.tan(x), "\\cot": lambda: c.cot(x), "\\sec": lambda: c.sec(x), "\\csc": lambda: c.csc(x),
            "\\arcsin": lambda: c.asin(x), "\\arccos": lambda: c.acos(x), "\\arctan": lambda: c.atan(x),
            "\\arccot": lambda: c.pi / 2 - c.atan(x) if c.im(x) or x <= 0 else c.atan(1 / x),
            "\\sinh": lambda: c.sinh(x), "\\cosh": lambda: c.cosh(x),
            "\\tanh": lambda: c.tanh(x), "\\ln": lambda: c.log(x),
            "\\log": lambda: c.log(x) / (c.ln10 if self.ten else 1),
            "\\lg": lambda: c.log10(x), "\\exp": lambda: c.exp(x),
        }[kind]()  # fmt: skip


_OF_ANGLES = frozenset(r"\sin \cos \tan \cot \sec \csc".split())


def variable_names(tree: Tree) -> frozenset[str]:
    """Variables of a tree."""
    if tree[0] == "name":
        return frozenset({tree[1]})
    return frozenset().union(*(variable_names(part) for part in tree[1:] if isinstance(part, tuple)))


def comparison_points(variables: frozenset[str]) -> Iterator[dict[str, Fraction]]:
    """Where two formulas are compared: positive numbers, numbers of any sign, then whole ones."""
    for low, high, count in ((3, 30, 2), (1, 10, 1), (-30, 30, 3)):
        for number in range(count if variables else 1):
            rng = random.Random(f"{low} {number}")
            yield {name: Fraction(rng.randrange(low * 10**9, high * 10**9) | 1, 10**10) for name in sorted(variables)}
        if not variables:
            return


def same_value(gold: str, answer: str) -> bool | None:
    r"""Whether two cleaned expressions are equal wherever the gold one has a value; None where that stays open.

    Where a text can be read in two ways, all readings have to say the same, ``\log`` with base e and 10 among them. An
    answer that cannot be read is not equal.
    """
    golds, answers = formula_trees(gold), formula_trees(answer)
    if not golds:
        return None
    with _LOCK:
        bases = (False, True) if "\\log" in gold + answer else (False,)
        pairs = itertools.product(golds, answers, bases)
        return unanimous_verdict(same_tree(*pair) for pair in pairs) if answers else False


def unanimous_verdict(verdicts: Iterable[bool | None]) -> bool | None:
    """The verdict that all give, None where they differ."""
    found = set(verdicts)
    return found.pop() if len(found) == 1 else None


@functools.lru_cache(maxsize=8192)
def same_tree(gold: Tree, answer: Tree, ten: bool = False) -> bool | None:
    """Whether two trees have the same values, with logarithms of base ten or natural ones."""
    left, right = exact_value(gold), exact_value(answer)
    if left is not None and right is not None:
        return left == right
    variables = variable_names(gold) | variable_names(answer)
    complex_allowed = not variables or has_imaginary_unit(gold) or has_imaginary_unit(answer)
    found = []
    try:
        for point in comparison_points(variables):
            found.append(_at(gold, answer, point, complex_allowed, ten))
            if found[-1] is False:
                return None if _other_derivatives(gold, answer) else False
        if not {True, "domain"} & set(found):
            # Defined at whole numbers only, as (-1)^n is.
            whole = [{name: Fraction(k + i) for i, name in enumerate(sorted(variables))} for k in (1, 2, 4, 7)]
            found = [_at(gold, answer, point, complex_allowed, ten) for point in whole]
    except (LimitError, RecursionError):
        return None
    if False in found or ("domain" in found and True not in found):
        return False
    return None if "domain" in found or True not in found else True


def within_error(gold: Fraction, answer: str, error: Fraction) -> bool | None:
    """Whether a number differs from the gold one by at most an error; None where it cannot be valued."""
    verdicts = []
    for tree in formula_trees(answer):
        if (value := exact_value(tree)) is not None:
            verdicts.append(abs(value - gold) <= error)
            continue
        try:
            value = None if variable_names(tree) else value_at(tree, {}) - value_at(("num", gold), {})
        except UndefinedError:
            value = None
        except LimitError:
            return None
        verdicts.append(value is not None and not value.imag and abs(value) <= value_at(("num", error), {}))
    return unanimous_verdict(verdicts) if verdicts else False


def _other_derivatives(gold: Tree, answer: Tree) -> bool:
    """Whether both have derivatives, in notations of which one may stand for the other."""
    marks = ("\\frac", "\\dot", "\\ddot")
    sides = [{name for name in variable_names(tree) if name.startswith(marks)} for tree in (gold, answer)]
    primes = [any("'" in name for name in variable_names(tree)) for tree in (gold, answer)]
    return sides[0] != sides[1] and all(side or prime for side, prime in zip(sides, primes, strict=True))


def _at(gold: Tree, answer: Tree, point: dict[str, Fraction], complex_allowed: bool, ten: bool) -> bool | str | None:
    """Whether two trees agree at a point; None where the gold has no value, ``domain`` where the answer has none."""
    gaps, sizes, peak = [], [], -(10**9)
    for context in _contexts():
        evaluators = [_Evaluator(context, point, ten) for _ in range(2)]
        try:
            left = evaluators[0].value(gold)
            if not complex_allowed and not _real(context, left):
                return None
        except UndefinedError:
            return None
        try:
            right = evaluators[1].value(answer)
            if not complex_allowed and not _real(context, right):
                return "domain"
        except UndefinedError:
            return "domain" if point else False
        gaps.append(abs(left - right))
        sizes.append(max(abs(left), abs(right)))
        peak = max(peak, *(evaluator.peak for evaluator in evaluators))
    c = _contexts()[1]
    if gaps[1] <= c.mpf(10) ** -182 * sizes[1] or gaps[1] <= c.mpf(10) ** -130 * gaps[0]:
        return True
    if peak - int(c.mag(gaps[1])) > _MAX_CANCELLED:
        raise LimitError
    return False


def value_at(tree: Tree, point: dict[str, Fraction]) -> Any:
    """Value of a tree at a point, to 200 digits.

    Raises UndefinedError, LimitError where it has none, or none that can be found in a bounded time.
    """
    with _LOCK:
        return _Evaluator(_contexts()[1], point, False).value(tree)


def close_values(left: Any, right: Any) -> bool:
    """Whether two values of 200 digits are equal but for rounding."""
    return abs(left - right) <= _contexts()[1].mpf(10) ** -120 * max(abs(left), abs(right), 10**-60)


def _real(context: Any, value: Any) -> bool:
    return abs(context.im(value)) <= context.mpf(10) ** (10 - context.dps) * abs(value)
