r"""Formulas as LaTeX or plain text writes them, parsed into trees; nothing is evaluated and nothing is guessed.

A recursive parser of one expression: sums, products with and without sign, quotients, powers, roots, functions, mixed
numbers, factorials, binomials. Whatever it does not know makes the whole text unreadable: no token is dropped. A tree
is a tuple of a kind and its parts, with ``Fraction`` and names as leaves.
"""

from __future__ import annotations

import functools
import re
from fractions import Fraction

Tree = tuple

# Brackets within brackets: nesting cannot exhaust the stack.
_MAX_DEPTH = 40
# Digits of an exponent in E-notation.
_NUMBER = (
    r"[0-9]+\.[0-9]*\\overline\{[0-9]+\}|[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])(?:\.[0-9]+)?"
    r"|[0-9]+(?:\.[0-9]*)?(?:[eE][-+]?[0-9]{1,4}(?![0-9.]))?"
)
_TOKEN = re.compile(rf"\s*({_NUMBER}|\\(?:[a-zA-Z]+|[{{}}|])|[a-zA-Z]|[-+*/^_!(){{}}\[\],|'])")
FUNCTIONS = frozenset(
    r"\sin \cos \tan \cot \sec \csc \arcsin \arccos \arctan \arccot \sinh \cosh \tanh \ln \log \lg \exp".split()
)
INVERSE = {r"\sin": r"\arcsin", r"\cos": r"\arccos", r"\tan": r"\arctan", r"\cot": r"\arccot"}
_GREEK = frozenset(
    "\\" + name
    for name in (
        "alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi rho varrho sigma "
        "tau upsilon phi varphi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Upsilon Phi Psi Omega "
        "hbar ell mho triangle angle"
    ).split()
)
_ACCENTS = frozenset(
    r"\vec \hat \bar \dot \ddot \tilde \overline \overrightarrow \widehat \text \mathbb \mathcal".split()
)
_DERIVATIVE = re.compile(r"\{(d|\\partial)(?:[^{}]|\{[^{}]*\})*\}\{\1(?:[^{}]|\{[^{}]*\})+\}")
_TIMES, _OVER = ("*", r"\times", r"\cdot"), ("/", r"\div")
_BETWEEN = {"\\over": "/", "\\choose": "binom"}
_PAIRS = {"(": ")", "[": "]", "{": "}", r"\lfloor": r"\rfloor", r"\lceil": r"\rceil"}
_APPLIED = frozenset("fgh")


class UnreadableError(ValueError):
    """No expression in this notation."""


def has_imaginary_unit(tree: Tree) -> bool:
    """Whether the imaginary unit stands in a tree."""
    return tree == ("const", "i") or any(has_imaginary_unit(part) for part in tree[1:] if isinstance(part, tuple))


@functools.lru_cache(maxsize=8192)
def formula_trees(text: str) -> tuple[Tree, ...]:
    r"""Every tree that a cleaned text may mean: one, two where it is ambiguous, none where it cannot be read.

    ``1/2x`` is half of x or one over 2x, ``\sin x/2`` half of a sine or the sine of a half.
    """
    found = []
    for tight in (False, True):
        try:
            parser = _Parser(tokenise(text), tight)
            tree = parser.expression(0)
            if parser.next is not None:
                return ()
        except UnreadableError:
            return ()
        found.append(tree)
        if not parser.ambiguous:
            break
    return tuple(dict.fromkeys(found))


def tokenise(text: str) -> list[str]:
    """Numbers, commands, letters and signs.

    Raises UnreadableError at any other character.
    """
    tokens, position, text = [], 0, text.rstrip()
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise UnreadableError(text)
        tokens.append(match[1])
        position = match.end()
    return tokens


def token_value(token: str) -> Fraction:
    """Value of a number's token, of at most as many digits as an answer has."""
    head, _, period = token.replace(",", "").partition("\\overline")
    value = Fraction(head.replace(".e", "e").replace(".E", "e").rstrip("."))
    if period:
        digits = period.strip("{}")
        value += Fraction(int(digits), (10 ** len(digits) - 1) * 10 ** len(head.partition(".")[2]))
    return value


class _Parser:
    """Recursive descent. ``tight``: a product without sign binds tighter than a slash, where one has to choose."""

    def __init__(self, tokens: list[str], tight: bool) -> None:
        self.tokens, self.position, self.tight = tokens, 0, tight
        self.ambiguous, self.bars = False, 0

    @property
    def next(self) -> str | None:
        return self.tokens[self.position] if self.position < len(self.tokens) else None

    def take(self, *expected: str) -> str:
        token = self.next
        if token is None or (expected and token not in expected):
            raise UnreadableError(token)
        self.position += 1
        return token

    def negative(self) -> bool:
        return self.next in ("+", "-") and self.take() == "-"

    def expression(self, depth: int) -> Tree:
        r"""A sum; two of them with ``\over`` or ``\choose`` between are a quotient or a binomial."""
        value = self.sum(depth)
        if self.next in _BETWEEN:
            value = (_BETWEEN[self.take()], value, self.sum(depth))
        return value

    def sum(self, depth: int) -> Tree:
        if depth > _MAX_DEPTH:
            raise UnreadableError("nesting")
        value = self.signed_product(depth)
        while self.next in ("+", "-"):
            kind = self.take()
            value = (kind, value, self.signed_product(depth))
        return value

    def signed_product(self, depth: int) -> Tree:
        negative = self.negative()
        value = self.product(depth)
        return ("neg", value) if negative else value

    def product(self, depth: int) -> Tree:
        value = self.power(depth)
        while True:
            if self.next in _TIMES:
                self.take()
                value = ("*", value, self.signed_power(depth))
            elif self.next in _OVER:
                sign = self.take()
                below = self.signed_power(depth)
                if sign == "/" and self.starts_factor() and self.next != "i":
                    self.ambiguous = True
                    while self.tight and self.starts_factor():
                        below = ("*", below, self.power(depth))
                value = ("/", value, below)
            elif self.starts_factor():
                if self.tokens[self.position][0].isdecimal() and value[0] == "num":
                    raise UnreadableError("two numbers side by side")
                value = self.mixed(value, depth) or ("*", value, self.power(depth))
            else:
                return value

    def mixed(self, whole: Tree, depth: int) -> Tree | None:
        """A whole number with a proper fraction behind it."""
        part = self.tokens[self.position : self.position + 7]
        if whole[0] != "num" or whole[1].denominator != 1 or len(part) < 7 or part[0] != "\\frac":
            return None
        if "".join(part[1::3]) != "{{" or not (part[2].isdecimal() and part[5].isdecimal() and part[6] == "}"):
            return None
        if not 0 < Fraction(part[2]) < Fraction(part[5]):
            self.ambiguous = True
            if not self.tight:
                return None
        return ("+", whole, self.power(depth))

    def starts_factor(self) -> bool:
        token = self.next
        if token is None or (token == "|" and self.bars):
            return False
        known = token in FUNCTIONS or token in _GREEK or token in _ACCENTS or token in _PAIRS
        return known or token[0].isalnum() or token in ("|", r"\frac", r"\sqrt", r"\binom", r"\pi", r"\partial")

    def signed_power(self, depth: int) -> Tree:
        negative = self.negative()
        value = self.power(depth)
        return ("neg", value) if negative else value

    def power(self, depth: int) -> Tree:
        if depth > _MAX_DEPTH:
            raise UnreadableError("nesting")
        value = self.atom(depth)
        while self.next in ("!", "^", "'"):
            token = self.take()
            if token == "!":
                value = ("fact", value)
            elif token == "'":
                value = ("prime", value)
            elif self.next == "\\circ":
                self.take()
                value = ("deg", value)
            else:
                value = ("^", value, self.exponent(depth + 1))
        return value

    def exponent(self, depth: int) -> Tree:
        if self.next == "{":
            return self.group(depth)
        return self.signed_power(depth)

    def group(self, depth: int) -> Tree:
        closing = _PAIRS[self.take(*_PAIRS)]
        bars, self.bars = self.bars, 0
        value = self.expression(depth + 1)
        self.take(closing)
        self.bars = bars
        return value

    def atom(self, depth: int) -> Tree:
        token = self.next
        if token in ("\\lfloor", "\\lceil"):
            return ({"\\lfloor": "floor", "\\lceil": "ceil"}[token], self.group(depth))
        if token in _PAIRS:
            return self.group(depth)
        token = self.take()
        if token[0].isdecimal():
            return ("num", token_value(token))
        if token == "|":
            self.bars += 1
            value = self.expression(depth + 1)
            self.take("|")
            self.bars -= 1
            return ("abs", value)
        if token == "\\frac":
            return self.derivative() or ("/", self.group(depth), self.group(depth))
        if token == "\\binom":
            return ("binom", self.group(depth), self.group(depth))
        if token == "\\sqrt":
            degree = self.group(depth) if self.next == "[" else ("num", Fraction(2))
            return ("root", degree, self.group(depth) if self.next in _PAIRS else self.power(depth + 1))
        if token in FUNCTIONS:
            return self.function(token, depth)
        return self.conjugate(token, depth) or self.name(token, depth)

    def conjugate(self, token: str, depth: int) -> Tree | None:
        """What a line over a complex number says; over anything else it belongs to a name."""
        start = self.position
        if token == "\\overline" and self.next == "{":
            try:
                value = self.group(depth)
            except UnreadableError:
                value = ()
            if has_imaginary_unit(value):
                return ("conj", value)
        self.position = start
        return None

    def function(self, name: str, depth: int) -> Tree:
        base = power = None
        while self.next in ("_", "^"):
            if self.take() == "_":
                base = self.group(depth) if self.next == "{" else self.atom(depth)
            else:
                power = self.exponent(depth + 1)
        if power == ("neg", ("num", Fraction(1))) and name in INVERSE:
            name, power = INVERSE[name], None
        argument = self.group(depth) if self.next in _PAIRS else self.bare_argument(depth)
        if base is not None and name != "\\log":
            raise UnreadableError("a base")
        value = ("log", base, argument) if base is not None else (name, argument)
        return ("^", value, power) if power is not None else value

    def bare_argument(self, depth: int) -> Tree:
        """What a function without brackets is applied to: factors up to a sign, a bracket or another function."""
        value = self.signed_power(depth + 1)
        while self.starts_factor() and self.next not in FUNCTIONS and (self.next not in _PAIRS or value[0] == "num"):
            value = ("*", value, self.power(depth + 1))
        if self.next == "/":
            self.ambiguous = True
            if self.tight:
                self.take()
                value = ("/", value, self.signed_power(depth + 1))
        return value

    def derivative(self) -> Tree | None:
        r"""``\frac{dx}{dt}`` as one name: its d are no factors."""
        match = _DERIVATIVE.match("".join(self.tokens[self.position : self.position + 40]))
        if match is None:
            return None
        length = 0
        while length < match.end():
            length += len(self.take())
        return ("name", "\\frac" + re.sub(r"\{(.)\}(?!\{)", r"\1", match[0]))

    def name(self, token: str, depth: int) -> Tree:
        if token in _ACCENTS:
            token += "{" + self.raw() + "}"
        elif token == "\\pi" or token in _GREEK or token == "\\partial" or token.isalpha():
            pass
        else:
            raise UnreadableError(token)
        marks = ""
        while self.next in ("_", "'") or (
            self.next == "^" and self.tokens[self.position + 1 : self.position + 2] == ["'"]
        ):
            mark = self.take()
            marks += "'" if mark == "^" and self.take() else mark if mark == "'" else "_" + self.raw()
        if not marks and token in ("\\pi", "e", "i"):
            return ("const", token)
        # Primes in front: x_0' and x'_0 are one name.
        name = token + "'" * marks.count("'") + marks.replace("'", "")
        if self.next == "(" and (token in _APPLIED or "'" in marks):
            self.take()
            arguments = [self.expression(depth + 1)]
            while self.next == ",":
                self.take()
                arguments.append(self.expression(depth + 1))
            self.take(")")
            return ("apply", name, *arguments)
        return ("name", name)

    def raw(self) -> str:
        """A group's tokens, or one token, as text."""
        if self.next != "{":
            return self.take() + (f"{{{self.raw()}}}" if self.tokens[self.position - 1] in _ACCENTS else "")
        self.take()
        parts: list[str] = []
        level = 1
        while True:
            token = self.take()
            level += {"{": 1, "}": -1}.get(token, 0)
            if not level:
                return "".join(part for part in parts if part not in ("\\text", "{", "}"))
            parts.append(token)
