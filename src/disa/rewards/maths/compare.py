r"""Compare an answer with the gold answer: structure first, then the value of every element.

``(1,2)``, ``1,2``, ``\{1,2\}`` and ``[1,2]`` are different things: a tuple (or open interval) has an order, a list and
a set have none, and the brackets of an interval count. Values are only ever compared of single expressions.
"""

from __future__ import annotations

import re
from collections import Counter
from fractions import Fraction

from disa.rewards.maths.answers import Gold, Verdict, as_gold
from disa.rewards.maths.formula import formula_trees
from disa.rewards.maths.notation import bracket_depth, clean_notation, spacing_free, split_top
from disa.rewards.maths.relation import same_relation
from disa.rewards.maths.structure import NAME, Elements, is_infinite, parse_structure
from disa.rewards.maths.units import Kind, Labelled, take_apart, unit_of
from disa.rewards.maths.value import parse_exact, same_value, variable_names, within_error

# Brackets within brackets that are taken apart by recursion; gold answers of the measured benchmarks have at most 3.
_MAX_NESTING = 30
_UNORDERED = (",", "{}", "cup")
_NOT_EQUATION = re.compile(r"<|>|\\(?:le|ge|ne|approx|equiv|sim|cong|wedge|to|Rightarrow|implies)(?![a-zA-Z])")


def verdict_on(gold: str | Gold, answer: str, *, percent_optional: bool = False) -> Verdict:
    """Whether an answer is the gold answer.

    With ``percent_optional`` a percent sign may be left out or added, as some graders have it.
    """
    try:
        same = _decide(as_gold(gold), answer, percent_optional)
    except RecursionError:  # the caller's own stack may leave less room than nesting is allowed to take
        same = None
    return Verdict.UNDECIDED if same is None else Verdict.CORRECT if same else Verdict.WRONG


def _decide(gold: Gold, answer: str, percent_optional: bool) -> bool | None:
    gold_text, answer_text = clean_notation(gold.answer), clean_notation(answer)
    if not answer_text:
        return False
    if spacing_free(gold_text) == spacing_free(answer_text):
        return True
    if max(map(bracket_depth, (gold_text, answer_text))) > _MAX_NESTING:
        return None if bracket_depth(gold_text) > _MAX_NESTING else False
    comparison = _Comparison(gold, percent_optional or gold.unit in ("%", "\\%"))
    structure = parse_structure(gold_text, gold.multiple)
    as_list = isinstance(structure, Elements) and structure.kind == ","
    return comparison.same(structure, parse_structure(answer_text, as_list))


class _Comparison:
    """One gold answer's units and tolerance, applied to structures and elements.

    Every method says True, False, or None where that cannot be decided.
    """

    def __init__(self, gold: Gold, percent_optional: bool) -> None:
        self.percent_optional = percent_optional
        self.error = gold.tolerance
        self.kind, self.size = unit_of(gold.unit) if gold.unit else (None, Fraction(1))

    def same(self, gold: Elements | str, answer: Elements | str) -> bool | None:
        """Structures or elements."""
        if isinstance(gold, str) and isinstance(answer, str):
            return self.same_element(gold, answer)
        if isinstance(gold, str) and isinstance(answer, Elements) and (named := _by_names(gold, answer)) is not None:
            return self.same(*named)
        if isinstance(answer, str) and (right := _right_side(answer)) != answer:
            return self.same(gold, parse_structure(right))
        if isinstance(gold, str) and (right := _right_side(gold)) != gold:
            return self.same(parse_structure(right), answer)
        if isinstance(gold, Elements) and isinstance(answer, Elements):
            return self.same_sequence(gold, answer)
        if isinstance(gold, Elements) and gold.kind in _UNORDERED and len(gold.items) == 1:
            return self.same(gold.items[0], answer)
        if isinstance(answer, Elements) and answer.kind in _UNORDERED and len(answer.items) == 1:
            return self.same(gold, answer.items[0])
        one, other = (gold, answer) if isinstance(gold, str) else (answer, gold)
        assert isinstance(one, str) and isinstance(other, Elements)
        if parse_exact(take_apart(one).body) is not None or _words(one) is not None:
            return False
        # A set in words, or in a notation that is not taken apart, such as \mathbb{R} \setminus S.
        if _NOT_EQUATION.search(one):
            return None
        readable = formula_trees(take_apart(one).body) and not re.search(r"\\(?:mathbb|text|emptyset)", one)
        return False if readable or (one is answer and other.kind != "cup" and "\\mathbb" not in one) else None

    def same_sequence(self, gold: Elements, answer: Elements) -> bool | None:
        """The same elements, in the same order where the kind has one."""
        if gold.kind == "()" and answer.kind == "," and (values := _named_values(answer)) is not None:
            names = sorted(values)
            return self.same_sequence(gold, Elements("()", tuple(values[name] for name in names), answer.text))
        if gold.kind in _UNORDERED and answer.kind in _UNORDERED:
            if (gold.kind == "cup") != (answer.kind == "cup"):
                return None if any(isinstance(i, Elements) for i in (*gold.items, *answer.items)) else False
            return self.same_unordered(gold, answer)
        if len(gold.items) != len(answer.items):
            return None if "cup" in (gold.kind, answer.kind) else False
        if gold.kind != answer.kind:
            vectors = ("<>", "matrix " + str([1] * len(gold.items)), f"matrix [{len(gold.items)}]")
            if not (
                gold.kind in vectors + ("()",) and answer.kind in vectors + ("()",) and "<>" in (gold.kind, answer.kind)
            ):
                return None if _touch(gold) or _touch(answer) else False
        verdicts = []
        for left, right in zip(gold.items, answer.items, strict=True):
            verdicts.append(self.same(left, right))
            if verdicts[-1] is False:
                return False
        return None if None in verdicts else True

    def same_unordered(self, gold: Elements, answer: Elements) -> bool | None:
        """Each element of the gold answer finds one of its own; equality is transitive, so the first will do."""
        mine, left_over = self.distinct(gold), self.distinct(answer)
        if len(mine) != len(left_over):
            return None if "cup" in (gold.kind, answer.kind) else False
        unknown = False
        for item in mine:
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

    def distinct(self, sequence: Elements) -> list[Elements | str]:
        """Elements; those of a set once each."""
        found: list[Elements | str] = []
        for item in sequence.items:
            # The size of a set is small where it is an answer; a long one keeps what it repeats.
            if sequence.kind != "{}" or len(found) > 20 or not any(self.same(other, item) for other in found):
                found.append(item)
        return found

    def same_element(self, gold: str, answer: str) -> bool | None:
        """Single expressions, equations and other relations included."""
        if spacing_free(gold) == spacing_free(answer):
            return True
        relations = [bool(_NOT_EQUATION.search(text)) for text in (gold, answer)]
        gold_sides, answer_sides = split_top(gold, "="), split_top(answer, "=")
        if any(relations):
            return (
                same_relation(gold, answer)
                if all(relations)
                else False
                if relations[1] and len(gold_sides) == 1
                else None
            )
        gold_right = _right_side(gold)
        if len(gold_sides) > 1 and len(answer_sides) > 1:
            left, right = (
                sides[-1] if NAME.fullmatch(sides[0]) is None and NAME.fullmatch(sides[-1]) else sides[0]
                for sides in (gold_sides, answer_sides)
            )
            if spacing_free(left) == spacing_free(right) and _right_side(answer) != answer and gold_right != gold:
                return self.same(parse_structure(gold_right), parse_structure(_right_side(answer)))
            return same_relation(gold, answer)
        if len(answer_sides) > 1:
            right = _right_side(answer)
            return False if right == answer else self.same(gold, parse_structure(right))
        if len(gold_sides) > 1:
            return self.same(parse_structure(gold_right), answer) if gold_right != gold else None
        if (right := _right_side(answer)) != answer:
            return self.same(gold, parse_structure(right))
        return self.same_labelled(gold, answer)

    def same_labelled(self, gold: str, answer: str) -> bool | None:
        """Numbers with their labels, words, and expressions."""
        words, in_text = _words(gold), gold.startswith("\\text{")
        # Bare letters may be variables, whose case counts.
        readable = in_text or answer.startswith("\\text{") or (words is not None and len(words) > 2)
        if words is not None and readable and words == _words(answer):
            return True
        if in_text and words is not None:
            return False
        if words is not None and len(words) > 3 and _words(answer) is not None:
            return None if sorted(words) == sorted(_words(answer) or "") else False
        if re.fullmatch("[A-Z]{3,}", gold) and sorted(gold) == sorted(answer):
            return None  # a product, or the name of a figure
        if ":" in gold and ":" in answer:
            return self.same_ratio(gold, answer)
        left, right = take_apart(gold), take_apart(answer)
        if not left.body or not right.body or ":" in left.body or ":" in right.body:
            return False
        if left.base is not None and right.base is not None and left.base != right.base:
            return False
        scale = self.scale(left, right)
        if scale is None:
            return False
        equal = self.same_number(left.body, right.body, scale)
        if equal is False and "\\pi" in left.body + right.body and (degrees := _bare_angle(self.kind, left, right)):
            equal = self.same_number(left.body, right.body, degrees)
        if right.unknown and right.unknown != left.unknown:
            # A word that is not understood is never right; several are no unit.
            return False if equal is False or " " in right.unknown.strip("? ") or left.kind is not None else None
        return equal

    def scale(self, left: Labelled, right: Labelled) -> str | None:
        """By what the answer is to be multiplied, None where kinds differ; a unit that is left out is the other's."""
        kind, size = (left.kind, left.size) if left.kind is not None else (self.kind, self.size)
        ratio, angle = right.times / left.times, ""
        if kind is not None and right.kind is not None and not right.unknown:
            if kind != right.kind and {kind, right.kind} != {(("angle", 1),), (("radian", 1),)}:
                return None
            if kind != right.kind:
                angle = r" \cdot \frac{180}{\pi}" if kind[0][0] == "angle" else r" \cdot \frac{\pi}{180}"
            ratio *= right.size / size
        if not self.percent_optional:
            ratio *= Fraction(1, 100 if right.percent else 1) / Fraction(1, 100 if left.percent else 1)
        return "" if ratio == 1 and not angle else rf"\frac{{{ratio.numerator}}}{{{ratio.denominator}}}{angle}"

    def same_number(self, gold: str, answer: str, scale: str) -> bool | None:
        """Values, the answer's scaled."""
        infinite = [is_infinite(text) for text in (gold, answer)]
        if any(infinite):
            return infinite[0] == infinite[1] if all(infinite) else False
        if spacing_free(gold) == spacing_free(answer) and not scale:
            return True
        scaled = rf"{scale} \cdot ({answer})" if scale else answer
        if self.error is not None and (left := parse_exact(gold)) is not None:
            return within_error(left, scaled, self.error)
        return same_value(gold, scaled)

    def same_ratio(self, gold: str, answer: str) -> bool | None:
        """``3:1`` and ``6:2``; clock times, whose minutes have two digits, are no ratios."""
        one, two = _clock(gold), _clock(answer)
        if one and two:
            (time, half), (other, other_half) = one, two
            return time == other and (half is None or other_half is None or half == other_half)
        sides = [[part.strip() for part in text.split(":")] for text in (gold, answer)]
        zeros = [[same_value("0", part) for part in side] for side in sides]
        if zeros[0] != zeros[1] or len(sides[0]) != len(sides[1]) or all(zeros[0]):
            return None if None in zeros[0] else False
        first = zeros[0].index(False) if False in zeros[0] else 0
        left, right = ([rf"\frac{{{part}}}{{{side[first]}}}" for part in side] for side in sides)
        verdicts = [same_value(*pair) for pair in zip(left, right, strict=True)]
        same = False if False in verdicts else None if None in verdicts else True
        # 12:15 may be a time, which 4:5 is not.
        return None if same and (one is None) != (two is None) else same


def _touch(union: Elements) -> bool:
    """Whether two intervals of a union have an end in common that is one of theirs: they may be one interval."""
    intervals = [item for item in union.items if isinstance(item, Elements) and len(item.items) == 2]
    ends = [
        (spacing_free(end), bracket in "[]")
        for interval in intervals
        for end, bracket in zip(interval.items, interval.kind, strict=False)
        if isinstance(end, str)
    ]
    shared = Counter(end for end, _ in ends)
    return union.kind == "cup" and any(closed and shared[end] > 1 for end, closed in ends)


def _clock(text: str) -> tuple[str, str | None] | None:
    """Hours and minutes, and which half of the day, of a clock time."""
    match = re.fullmatch(r"([01]?[0-9]|2[0-4]) ?: ?([0-5][0-9](?: ?: ?[0-5][0-9])?)(.*)", text)
    half = {"am": "am", "pm": "pm", "": None}.get(re.sub(r"\\text|[^a-z]", "", match[3].lower()), "?") if match else "?"
    return None if match is None or half == "?" else (re.sub(" ", "", f"{int(match[1])}:{match[2]}"), half)


def _right_side(text: str) -> str:
    r"""What an equation or ``x \in`` says its left side is; the text itself where it says nothing of the kind.

    The left side is a variable, a function, or a tuple of them, or all sides are numbers, which have to be equal.
    """
    sides = split_top(text, "=")
    if len(sides) > 1:
        if _NOT_EQUATION.search(text) or not all(sides):
            return text
        if not NAME.fullmatch(sides[0]) and NAME.fullmatch(sides[-1]):
            sides.reverse()
        numbers = [side for side in sides if not NAME.fullmatch(side)]
        constants = [value for side in numbers[:8] if (value := _constant(side)) is not None]
        agree = all(same_value(value, constants[-1]) for value in constants[:-1])
        agree = agree and (not numbers or sides[-1] == numbers[-1])
        return sides[-1] if agree and (NAME.fullmatch(sides[0]) or len(constants) == len(sides)) else text
    before, *after = re.split(r"\\in(?![a-zA-Z])", text)
    return after[0].strip() if len(after) == 1 and NAME.fullmatch(before.strip()) else text


def _bare_angle(kind: Kind | None, left: Labelled, right: Labelled) -> str:
    """What makes a multiple of pi without a unit, which is in radians, an angle in the other's degrees, or back."""
    kinds = [left.kind or kind, right.kind]
    factors: dict[tuple[Kind | None, Kind | None], str] = {
        ((("angle", 1),), None): r"\frac{180}{\pi}",
        (None, (("angle", 1),)): r"\frac{\pi}{180}",
    }
    return factors.get((kinds[0], kinds[1]), "")


def _constant(text: str) -> str | None:
    """An expression without variables, and without its label; None for any other."""
    label = take_apart(text)
    found = formula_trees(label.body)
    if not found or any(variable_names(tree) for tree in found):
        return None
    return rf"\frac{{{label.body}}}{{100}}" if label.percent else label.body


def _named_values(answer: Elements) -> dict[str, Elements | str] | None:
    """Value by name of a list of equations, None for any other list."""
    values: dict[str, Elements | str] = {}
    for item in answer.items:
        sides = split_top(item, "=") if isinstance(item, str) else []
        if len(sides) != 2 or not NAME.fullmatch(sides[0]):
            return None
        values[spacing_free(sides[0])] = parse_structure(sides[1])
    return values if len(values) == len(answer.items) > 1 else None


def _by_names(gold: str, answer: Elements) -> tuple[Elements | str, Elements] | None:
    """``(x,y)=(1,2)`` against ``x=1, y=2``: both as tuples in the gold answer's order."""
    sides = split_top(gold, "=")
    values = _named_values(answer) if answer.kind == "," and len(sides) == 2 else None
    if values is None or not sides[0].startswith("("):
        return None
    order = [spacing_free(name) for name in split_top(sides[0][1:-1], ",")]
    if sorted(order) != sorted(values):
        return None
    return parse_structure(sides[1]), Elements("()", tuple(values[name] for name in order), answer.text)


def _words(text: str) -> str | None:
    r"""Words in one spelling: ``\text{(C)}`` and ``C`` are ``c``; None for anything else."""
    match = re.fullmatch(r"(?:\\text\{([^{}]*)\}|([a-zA-Z][a-zA-Z' -]*))", text)
    return " ".join(re.sub(r"[^\w:/-]+", " ", match[1] or match[2] or "").casefold().split()) if match else None
