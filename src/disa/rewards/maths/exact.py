r"""Rational numbers as LaTeX or plain text writes them, valued exactly with ``Fraction``.

A small recursive parser of sums, products, quotients, fractions, mixed numbers, whole powers, factorials, binomials and
repeating decimals. Nothing is evaluated by Python, and no value outgrows ``MAX_BITS`` whatever a model writes.
"""

from __future__ import annotations

import functools
import math
import re
from fractions import Fraction

# Room for 1000! and 2^4950 (a gold answer of MATH); an operation past it is left to the deadline of a worker process.
MAX_BITS = 16384
_MAX_DEPTH = 20
_TOKEN = re.compile(
    r"\s*(?:(?P<repeating>[0-9]+\.[0-9]*\\overline\{[0-9]+\})"
    r"|(?P<number>[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])(?:\.[0-9]+)?|[0-9]+(?:\.[0-9]+)?)"
    r"|(?P<command>\\(?:frac|binom|times|cdot|div)(?![a-zA-Z]))"
    r"|(?P<sign>[-+*/^!(){}]))"
)
_TIMES, _OVER = ("\\times", "\\cdot", "*", "("), ("/", "\\div")


class _Unreadable(ValueError):
    """Not a rational number in this notation, or too large a one."""


@functools.lru_cache(maxsize=8192)
def parse_exact(text: str) -> Fraction | None:
    r"""Exact value of a cleaned text, None where it is not a plainly written rational number.

    Commas group thousands. ``2\frac{1}{4}`` is a mixed number; other products without a sign need parentheses.
    """
    try:
        parser = _Parser(_tokenise(text))
        value = parser.sum(0)
        return value if parser.next is None else None
    except (_Unreadable, ZeroDivisionError):
        return None


def _tokenise(text: str) -> list[str]:
    tokens, position = [], 0
    text = text.strip()
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise _Unreadable
        tokens.append(match[match.lastgroup or 0])
        position = match.end()
    return tokens


def _bounded(value: Fraction) -> Fraction:
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > MAX_BITS:
        raise _Unreadable
    return value


def _whole(value: Fraction, low: int = -MAX_BITS, high: int = MAX_BITS) -> int:
    if value.denominator != 1 or not low <= value <= high:
        raise _Unreadable
    return int(value)


class _Parser:
    """Recursive descent; ``depth`` counts brackets, so that nesting cannot exhaust the stack."""

    def __init__(self, tokens: list[str]) -> None:
        self.tokens, self.position = tokens, 0

    @property
    def next(self) -> str | None:
        return self.tokens[self.position] if self.position < len(self.tokens) else None

    def take(self, expected: str | None = None) -> str:
        token = self.next
        if token is None or (expected is not None and token != expected):
            raise _Unreadable
        self.position += 1
        return token

    def sign(self) -> int:
        return -1 if self.next in ("+", "-") and self.take() == "-" else 1

    def sum(self, depth: int) -> Fraction:
        if depth > _MAX_DEPTH:
            raise _Unreadable
        value = self.sign() * self.product(depth)
        while self.next in ("+", "-"):
            value = _bounded(value + self.sign() * self.product(depth))
        return value

    def product(self, depth: int) -> Fraction:
        value, divided = self.mixed(depth), False
        while self.next in _TIMES + _OVER:
            operator = self.next if self.next == "(" else self.take()
            if operator == "(" and divided:  # 1/2(3) is read both ways
                raise _Unreadable
            divided = operator in _OVER
            sign = 1 if operator == "(" else self.sign()
            factor = sign * self.power(depth)
            value = _bounded(value / factor if divided else value * factor)
        return value

    def mixed(self, depth: int) -> Fraction:
        start = self.position
        value = self.power(depth)
        if self.next == "\\frac":
            part = self.tokens[self.position : self.position + 7]
            literals = [*self.tokens[start : self.position], *part[2::3]]
            if len(literals) != 3 or not all(literal.isdecimal() for literal in literals):
                raise _Unreadable
            fraction = self.fraction(depth)
            if not 0 < fraction < 1:
                raise _Unreadable
            value += fraction
        return value

    def power(self, depth: int) -> Fraction:
        if depth > _MAX_DEPTH:
            raise _Unreadable
        value = self.atom(depth)
        while self.next in ("!", "^"):
            if self.take() == "!":
                value = Fraction(math.factorial(_whole(value, 0, 1000)))
            else:
                value = self.raised(value, depth + 1)
        return value

    def raised(self, base: Fraction, depth: int) -> Fraction:
        exponent = _whole(self.group(depth) if self.next == "{" else self.sign() * self.power(depth))
        if abs(exponent) * max(base.numerator.bit_length(), base.denominator.bit_length()) > MAX_BITS:
            raise _Unreadable
        return base**exponent

    def atom(self, depth: int) -> Fraction:
        if self.next == "\\frac":
            return self.fraction(depth)
        if self.next == "{":
            return self.group(depth)
        token = self.take()
        if token == "\\binom":
            n, k = self.group(depth), self.group(depth)
            return Fraction(math.comb(_whole(n, 0, 1000), _whole(k, 0, 1000)))
        if token == "(":
            value = self.sum(depth + 1)
            self.take(")")
            return value
        if not token[0].isdecimal():
            raise _Unreadable
        head, _, period = token.replace(",", "").partition("\\overline")
        value = Fraction(head.rstrip("."))
        if period:
            digits = period.strip("{}")
            value += Fraction(int(digits), (10 ** len(digits) - 1) * 10 ** len(head.partition(".")[2]))
        return value

    def fraction(self, depth: int) -> Fraction:
        self.take("\\frac")
        numerator = self.group(depth)
        return _bounded(numerator / self.group(depth))

    def group(self, depth: int) -> Fraction:
        self.take("{")
        value = self.sum(depth + 1)
        self.take("}")
        return value
