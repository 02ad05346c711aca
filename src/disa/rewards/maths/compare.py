r"""Compare an answer with the gold answer: structure first, then every element by exact arithmetic where it decides.

``(1,2)``, ``1,2``, ``\{1,2\}`` and ``[1,2]`` are different things: a tuple (or open interval) has an order, a list
and a set have none, and the brackets of an interval count. Elements are split off here, so that the symbolic comparison
only ever sees single expressions.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

from disa.rewards.maths.answers import Gold, Verdict, as_gold
from disa.rewards.maths.exact import parse_exact
from disa.rewards.maths.notation import clean, closing, key, nesting, split_top
from disa.rewards.maths.units import take_apart, unit_of

Leaf = Callable[[str, str], bool | None]
"""Symbolic comparison of a gold and an answer's expression; None where it cannot say."""

# Brackets within brackets that are taken apart by recursion; gold answers of the measured benchmarks have at most 3.
_MAX_NESTING = 30
_UNORDERED = (",", "{}")
_MATRIX = re.compile(r"\\begin\{[pb]?(?:small)?matrix\}(.*)\\end\{[pb]?(?:small)?matrix\}", re.DOTALL)
_THOUSANDS = re.compile(r"[-+]?(?:\\dollar ?)?[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?(?![0-9,])[^,;]*")
_NAME = re.compile(
    r"(?:\\?[a-zA-Z]+|\\text\{[^{}]*\})(?:_\{?[^{}=]*\}?)?(?:\s*\([a-zA-Z, ]+\))?'*|\([a-zA-Z, _0-9{}]+\)"
)


@dataclass(frozen=True, slots=True)
class Sequence:
    """Several elements and what holds them together: ``,`` for a bare list, brackets, or a matrix's shape."""

    kind: str
    items: tuple[Sequence | str, ...]
    text: str


def exact_verdict(gold: str | Gold, answer: str, *, percent_optional: bool = False) -> Verdict | None:
    r"""Verdict where structure and exact arithmetic decide, None where symbolic comparison is needed.

    Parameters
    ----------
    gold : str or Gold
    answer : str
        As :func:`disa.rewards.maths.extract_answer` returns it.
    percent_optional : bool
        Whether a percent sign may be left out or added (``10`` for ``10\%``), as some graders have it.
    """
    same = decide(as_gold(gold), answer, lambda left, right: None, percent_optional=percent_optional)
    return None if same is None else Verdict.CORRECT if same else Verdict.WRONG


def decide(gold: Gold, answer: str, leaf: Leaf, *, percent_optional: bool = False) -> bool | None:
    """Whether an answer is the gold answer, with a symbolic comparison for what exact arithmetic leaves open."""
    gold_text, answer_text = clean(gold.answer), clean(answer)
    if not answer_text:
        return False
    if key(gold_text) == key(answer_text):
        return True
    if max(map(nesting, (gold_text, answer_text))) > _MAX_NESTING:
        return leaf(gold_text, answer_text)
    comparison = _Comparison(gold, leaf, percent_optional or gold.unit in ("%", "\\%"))
    structure = parse_structure(gold_text, gold.multiple)
    as_list = isinstance(structure, Sequence) and structure.kind == ","
    return comparison.same(structure, parse_structure(answer_text, as_list))


@functools.lru_cache(maxsize=8192)
def parse_structure(text: str, commas_separate: bool = False) -> Sequence | str:
    """A cleaned answer as nested sequences of single expressions.

    Parameters
    ----------
    text : str
    commas_separate : bool
        Read ``2,500`` as two numbers; otherwise commas before three digits group thousands.
    """
    grouped = not commas_separate and _THOUSANDS.fullmatch(text)
    parts = [part for part in split_top(text, ",;") if part]
    if len(parts) > 1 and not grouped:
        return Sequence(",", _flat(parts), text)
    text = _exact_side(parts[0] if len(parts) == 1 else text)
    return _bracketed(text) or _matrix(text) or _plus_minus(text) or _unwrapped(text)


def _exact_side(text: str) -> str:
    r"""``2/3`` of ``2/3 \approx 0.67``; what follows where nothing, or only a name, comes before."""
    before, sign, after = (part.strip() for part in text.partition("\\approx"))
    return after if sign and (not before or _NAME.fullmatch(before)) else before


def _flat(parts: list[str]) -> tuple[Sequence | str, ...]:
    r"""Elements of a list or set; one with ``\pm`` counts as its two."""
    items: list[Sequence | str] = []
    for part in parts:
        item = parse_structure(part)
        items.extend(item.items if isinstance(item, Sequence) and item.kind == "," else [item])
    return tuple(items)


def _bracketed(text: str) -> Sequence | str | None:
    opening = "\\{" if text.startswith("\\{") else text[:1]
    end = closing(text, 0) if opening in ("(", "[", "\\{") else None
    if end is None or text[end:] not in (")", "]", "\\}"):
        return None
    inner = text[len(opening) : end].strip()
    parts = split_top(inner, ",;")
    if opening == "\\{":
        return Sequence("{}", _flat(parts), text)
    if len(parts) > 1:
        return Sequence(opening + text[end:], tuple(parse_structure(part) for part in parts), text)
    return parse_structure(inner) if opening == "(" and inner and text[end:] == ")" else None


def _matrix(text: str) -> Sequence | None:
    match = _MATRIX.fullmatch(text)
    if match is None or "\\begin" in match[1]:
        return None
    rows = [row.split("&") for row in match[1].strip().split("\n")]
    cells = tuple(parse_structure(cell.strip()) for row in rows for cell in row)
    return Sequence(f"matrix {[len(row) for row in rows]}", cells, text)


def _plus_minus(text: str) -> Sequence | None:
    if not re.search(r"\\(?:pm|mp)(?![a-zA-Z])", text):
        return None
    both = []
    for upper, lower in (("+", "-"), ("-", "+")):
        one = re.sub(r"\\pm(?![a-zA-Z])", upper, text)
        both.append(parse_structure(re.sub(r"\\mp(?![a-zA-Z])", lower, one).strip().removeprefix("+").strip()))
    return Sequence(",", tuple(both), text)


def _unwrapped(text: str) -> Sequence | str:
    r"""An answer that is all ``\text{...}``: read as it stands where it has digits or commas, else kept as words."""
    match = re.fullmatch(r"\\text\{([^{}]*)\}", text)
    if match is None:
        return text
    inner = match[1].strip(" .")
    if "," in inner:
        return Sequence(",", tuple(f"\\text{{{part.strip()}}}" for part in inner.split(",") if part.strip()), text)
    return parse_structure(inner) if re.fullmatch(r"[-+]?[0-9].*", inner) else text


class _Comparison:
    """One gold answer's units, tolerance and symbolic comparison, applied to structures and elements.

    Every method says True, False, or None where exact arithmetic does not decide and ``leaf`` cannot say.
    """

    def __init__(self, gold: Gold, leaf: Leaf, percent_optional: bool) -> None:
        self.leaf, self.percent_optional = leaf, percent_optional
        self.error = gold.tolerance
        self.kind, self.size = unit_of(gold.unit) if gold.unit else (None, Fraction(1))

    def same(self, gold: Sequence | str, answer: Sequence | str) -> bool | None:
        """Structures or elements."""
        if isinstance(gold, str) and isinstance(answer, str):
            return self.same_element(gold, answer)
        if isinstance(answer, str) and (right := _right_side(answer)) != answer:
            return self.same(gold, parse_structure(right))
        if isinstance(gold, str) and (right := _right_side(gold, of_a_name=True)) != gold:
            return self.same(parse_structure(right), answer)
        if isinstance(gold, Sequence) and isinstance(answer, Sequence):
            return self.same_sequence(gold, answer)
        if isinstance(gold, Sequence) and gold.kind in _UNORDERED and len(gold.items) == 1:
            return self.same(gold.items[0], answer)
        if isinstance(answer, Sequence) and answer.kind in _UNORDERED and len(answer.items) == 1:
            return self.same(gold, answer.items[0])
        one, other = (gold, answer) if isinstance(gold, str) else (answer, gold)
        assert isinstance(one, str) and isinstance(other, Sequence)
        if parse_exact(take_apart(one).body) is not None or _words(one) is not None:
            return False
        # An interval and an inequality, say: two notations of one thing.
        return self.leaf(*(side if isinstance(side, str) else side.text for side in (gold, answer)))

    def same_sequence(self, gold: Sequence, answer: Sequence) -> bool | None:
        """The same number of elements, in the same order where the kind has one."""
        if len(gold.items) != len(answer.items):
            return False
        if gold.kind in _UNORDERED and answer.kind in _UNORDERED:
            return self.same_unordered(gold, answer)
        if gold.kind != answer.kind:
            return False
        verdicts = []
        for left, right in zip(gold.items, answer.items, strict=True):
            verdicts.append(self.same(left, right))
            if verdicts[-1] is False:
                return False
        return None if None in verdicts else True

    def same_unordered(self, gold: Sequence, answer: Sequence) -> bool | None:
        """Each element of the gold answer finds one of its own; equality is transitive, so the first will do."""
        left_over, unknown = list(answer.items), False
        for item in gold.items:
            verdicts: list[bool | None] = []
            for candidate in left_over:
                verdicts.append(self.same(item, candidate))
                if verdicts[-1]:
                    left_over.remove(candidate)
                    break
            if not any(verdicts):
                if None not in verdicts:
                    return False
                unknown = True
        return None if unknown else True

    def same_element(self, gold: str, answer: str) -> bool | None:
        """Single expressions, equations included."""
        if key(gold) == key(answer):
            return True
        gold_sides, answer_sides = split_top(gold, "="), split_top(answer, "=")
        if len(gold_sides) > 1 and len(answer_sides) > 1:
            if key(gold_sides[0]) != key(answer_sides[0]):
                return self.leaf(gold, answer)
            return self.same(parse_structure(gold_sides[-1]), parse_structure(answer_sides[-1]))
        if (right := _right_side(gold, of_a_name=True)) != gold:
            return self.same(parse_structure(right), answer)
        if len(gold_sides) > 1:
            return self.leaf(gold, answer)
        if (right := _right_side(answer)) != answer:
            values = {value for side in answer_sides if (value := _number(side)) is not None}
            return False if len(values) > 1 else self.same(gold, parse_structure(right))
        return self.same_value(gold, answer)

    def same_value(self, gold: str, answer: str) -> bool | None:
        """Numbers with their labels, words, and expressions."""
        words, in_text = _words(gold), gold.startswith("\\text{")
        # Bare letters may be variables, whose case counts.
        readable = in_text or answer.startswith("\\text{") or (words is not None and len(words) > 2)
        if words is not None and readable and words == _words(answer):
            return True
        if in_text and words is not None:
            return False
        left, right = take_apart(gold), take_apart(answer)
        kind, size = (left.kind, left.size) if left.kind is not None else (self.kind, self.size)
        if kind is not None and right.kind is not None and kind != right.kind:
            return False
        if left.base is not None and right.base is not None and left.base != right.base:
            return False
        scale = right.size / size if kind is not None and right.kind is not None else Fraction(1)
        if not self.percent_optional:
            scale *= Fraction(1, 100 if right.percent else 1) / Fraction(1, 100 if left.percent else 1)
        if not left.body or not right.body:
            return False
        gold_value, answer_value = _number(left.body), _number(right.body)
        if gold_value is not None and answer_value is not None:
            if self.error is not None and not math.isinf(gold_value) and not math.isinf(answer_value):
                return abs(answer_value * scale - gold_value) <= self.error
            return answer_value * scale == gold_value
        if ":" in left.body and ":" in right.body:
            return _same_ratio(left.body, right.body)
        if scale == 1:
            return True if key(left.body) == key(right.body) else self.leaf(left.body, right.body)
        return self.leaf(left.body, rf"\frac{{{scale.numerator}}}{{{scale.denominator}}} \cdot ({right.body})")


def _right_side(text: str, *, of_a_name: bool = False) -> str:
    r"""What an equation or ``x \in`` says its left side is; the text itself where it says nothing of the kind.

    ``of_a_name``: only where the left side is a variable, a function or a tuple of them, or all sides are numbers.
    """
    sides = split_top(text, "=")
    if len(sides) > 1:
        named = _NAME.fullmatch(sides[0]) or all(_number(side) is not None for side in sides)
        return sides[-1] if named or not of_a_name else text
    before, *after = re.split(r"\\in(?![a-zA-Z])", text)
    return after[0].strip() if len(after) == 1 and _NAME.fullmatch(before.strip()) else text


def _number(text: str) -> Fraction | float | None:
    """Exact value; an infinity is a float, which compares with any Fraction."""
    infinite = {"\\infty": math.inf, "+\\infty": math.inf, "-\\infty": -math.inf}.get(key(text))
    if infinite is not None:
        return infinite
    label = take_apart(text)
    value = parse_exact(label.body)
    return value / 100 if value is not None and label.percent else value


def _words(text: str) -> str | None:
    r"""Words in one spelling: ``\text{(C)}`` and ``C`` are ``c``; None for anything else."""
    match = re.fullmatch(r"(?:\\text\{([^{}]*)\}|([a-zA-Z][a-zA-Z' -]*))", text)
    return " ".join(re.sub(r"[^\w:/-]+", " ", match[1] or match[2] or "").casefold().split()) if match else None


def _same_ratio(gold: str, answer: str) -> bool | None:
    """``3:1`` and ``6:2``."""
    sides = [[parse_exact(part.strip()) for part in text.split(":")] for text in (gold, answer)]
    if any(part is None for side in sides for part in side):
        return None
    left, right = sides
    return len(left) == len(right) and all(a * right[0] == b * left[0] for a, b in zip(left, right, strict=True))
