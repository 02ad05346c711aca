"""Symbolic comparison with math-verify: imports sympy, and runs in worker processes only.

math-verify's ``parse`` is not used: it falls back on sympy's ``parse_expr``, which is ``eval``. Its LaTeX grammar
(``latex2sympy2_extended``, which it depends on) and its comparison ``verify`` are. Decimals become fractions, so that
``verify`` has nothing to round to six places (it would take 1/3 and 0.333333 for the same).
"""

from __future__ import annotations

import functools
import logging
import re
from fractions import Fraction
from typing import Any

import sympy
from latex2sympy2_extended.latex2sympy2 import ConversionConfig, NormalizationConfig, _Latex2Sympy, normalize_latex
from math_verify.grader import should_treat_as_complex, verify

from disa.rewards.maths.exact import parse_exact

# Units and boxes are gone by now, and its list of units would take the m of 6m for metres.
_SPELLING = NormalizationConfig(
    basic_latex=True, units=False, malformed_operators=True, nits=False, boxed="none", equations=False
)
# A circumradius R is not an inradius r.
_CONVERSION = ConversionConfig(lowercase_symbols=False)
_THOUSANDS = re.compile(r"(?<=[0-9]),(?=[0-9]{3}(?![0-9]))")
# Two constants further apart than this, relatively, are different; sympy gives 30 correct digits, and verify itself
# takes an absolute difference of 1e-15 for zero, which is too much where both are tiny.
_RELATIVE_DIFFERENCE = 1e-15
_DIGITS = 30

# Its warnings about disabled time limits and its tracebacks: the limit is set from outside.
logging.disable(logging.CRITICAL)


class UnreadableGoldError(Exception):
    """The gold answer is no formula that the grammar can read."""


class _Grammar(_Latex2Sympy):
    def parse_number(self, text: str) -> sympy.Rational:
        """A number of the formula; the method it stands for gives the text to ``eval``."""
        value = Fraction(text.replace(",", ""))
        return sympy.Rational(value.numerator, value.denominator)


@functools.lru_cache(maxsize=4096)
def parse(text: str) -> Any:
    """Sympy object of a cleaned expression; any exception means that it cannot be read."""
    if (value := parse_exact(text)) is not None:
        return sympy.Rational(value.numerator, value.denominator)
    text = normalize_latex(_THOUSANDS.sub("", text).replace("\n", r" \\ "), _SPELLING)
    return _Grammar(is_real=not should_treat_as_complex(text), config=_CONVERSION).parse(text)


def same_expression(gold: str, answer: str) -> bool:
    """Whether two cleaned expressions are equal.

    An answer the grammar cannot read is not equal. Whatever goes wrong in the comparison itself is raised.

    Raises
    ------
    UnreadableGoldError
        Where the gold answer cannot be read.
    """
    try:
        left = parse(gold)
    except Exception as error:
        raise UnreadableGoldError(gold) from error
    try:
        right = parse(answer)
    except (MemoryError, RecursionError):
        raise
    except Exception:
        return False
    if _differ(left, right):
        return False
    if verify(left, right, allow_set_relation_comp=True, timeout_seconds=None, raise_on_error=True):
        return True
    # verify compares a lone symbol as text only: x is 2x - x.
    expressions = isinstance(left, sympy.Expr) and isinstance(right, sympy.Expr)
    lone = isinstance(left, sympy.Symbol) != isinstance(right, sympy.Symbol)
    return expressions and lone and sympy.simplify(left - right) == 0


def _differ(left: Any, right: Any) -> bool:
    """Whether both are constants whose values are clearly apart."""
    if not all(isinstance(side, sympy.Expr) and not side.free_symbols for side in (left, right)):
        return False
    values = [side.evalf(_DIGITS) for side in (left, right)]
    if not all(value.is_number and value.is_finite and not value.atoms(sympy.Function) for value in values):
        return False
    gap, scale = abs(complex(values[0] - values[1])), max(abs(complex(value)) for value in values)
    return gap > _RELATIVE_DIFFERENCE * scale
