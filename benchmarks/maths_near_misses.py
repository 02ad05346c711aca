r"""Answers that are the gold answer in other words, and answers that are wrong by construction.

Each maker takes a gold answer and a random generator and gives an answer of its kind, None where the gold answer has
nothing to go wrong in that way. They work on cleaned answers and their structure, on values where an answer has one.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction

from disa.rewards.maths.answers import Gold
from disa.rewards.maths.formula import formula_trees
from disa.rewards.maths.notation import clean_notation, spacing_free
from disa.rewards.maths.structure import Elements, parse_structure
from disa.rewards.maths.units import take_apart
from disa.rewards.maths.value import parse_exact, value_at, variable_names

Element = Elements | str
ORDERED = ("()", "[]", "[)", "(]")


def structure(gold: Gold) -> Element:
    """The gold answer taken apart."""
    return parse_structure(clean_notation(gold.answer), gold.multiple)


def write(element: Element, change: Callable[[str], str] = lambda text: text) -> str:
    """A structure as LaTeX, its elements changed."""
    if isinstance(element, str):
        return change(element)
    items = [write(item, change) for item in element.items]
    if element.kind == ",":
        return ", ".join(items)
    if element.kind == "{}":
        return r"\{" + ", ".join(items) + r"\}"
    if element.kind == "cup":
        return r" \cup ".join(items)
    if element.kind.startswith("matrix"):
        rows = [int(cells) for cells in re.findall(r"[0-9]+", element.kind)]
        cells = iter(items)
        body = r" \\ ".join(" & ".join(next(cells) for _ in range(row)) for row in rows)
        return rf"\begin{{pmatrix}} {body} \end{{pmatrix}}"
    return element.kind[0] + ", ".join(items) + element.kind[1]


def is_expression(text: str) -> bool:
    """Whether arithmetic may be added to an element: no words, labels, relations, infinities, sets."""
    bare = take_apart(text).body == text
    return (
        bare and bool(text) and not re.search(r"\\(?:text|infty|le|ge|in|cup|approx|emptyset)(?![a-zA-Z])|[=<>:]", text)
    )


def respell(gold: Gold) -> str:
    """The gold answer written otherwise: numbers as unreduced fractions, expressions plus zero, lists backwards."""

    def change(text: str) -> str:
        label = take_apart(text)
        value = parse_exact(label.body)
        if value is not None and label.base is None and max(abs(value.numerator), value.denominator) < 10**40:
            sign = "-" if value < 0 else ""
            return rf"{sign}\frac{{{2 * abs(value.numerator)}}}{{{2 * value.denominator}}}" + text[len(label.body) :]
        return f"0+({text})" if is_expression(text) and re.search(r"[0-9\\]", text) else text

    parsed = structure(gold)
    if isinstance(parsed, Elements) and parsed.kind in (",", "{}", "cup"):
        parsed = Elements(parsed.kind, parsed.items[::-1], parsed.text)
    text = clean_notation(gold.answer)
    return text if text.startswith("\\dollar") else write(parsed, change)


def number(gold: Gold) -> Fraction | None:
    """Value of a gold answer that is one plain number."""
    parsed = structure(gold)
    return parse_exact(parsed) if isinstance(parsed, str) else None


def off_by_one(gold: Gold, rng: random.Random) -> str | None:
    """One whole number of the answer is one too large or too small."""
    text = clean_notation(gold.answer)
    # A number that multiplies or raises could be changed without effect next to a 0 or 1.
    if re.search(r"(?<![0-9.])[01](?![0-9.])", text) or "\\text" in text:
        return None
    places = list(re.finditer(r"(?<![0-9.,_])[0-9]+(?![0-9.,]|\s*\})|(?<=\{)[0-9]+(?=\})", text))
    if not places:
        return None
    place = rng.choice(places)
    return text[: place.start()] + str(int(place[0]) + rng.choice((-1, 1))) + text[place.end() :]


def sign(gold: Gold, rng: random.Random) -> str | None:
    """The negative of a number or a product."""
    text = clean_notation(gold.answer)
    if (
        not isinstance(structure(gold), str)
        or not is_expression(text)
        or re.search(r"[-+]", text[1:])
        or spacing_free(text) == "0"
    ):
        return None
    return text[1:] if text.startswith("-") else "-" + text


def swapped(gold: Gold, rng: random.Random) -> str | None:
    """Two different elements of a tuple or matrix in each other's place."""
    parsed = structure(gold)
    if not isinstance(parsed, Elements) or parsed.kind in (",", "{}", "cup"):
        return None
    items = list(parsed.items)
    pairs = [(i, j) for i in range(len(items)) for j in range(i) if write(items[i]) != write(items[j])]
    if not pairs:
        return None
    i, j = rng.choice(pairs)
    items[i], items[j] = items[j], items[i]
    return write(Elements(parsed.kind, tuple(items), ""))


def missing(gold: Gold, rng: random.Random) -> str | None:
    """One element of several left out."""
    parsed = structure(gold)
    if not isinstance(parsed, Elements) or len(parsed.items) < 2 or parsed.kind.startswith("matrix"):
        return None
    if len(parsed.items) == 2 and parsed.kind in ORDERED:
        return None
    items = list(parsed.items)
    del items[rng.randrange(len(items))]
    return write(Elements(parsed.kind, tuple(items), ""))


def extra(gold: Gold, rng: random.Random) -> str | None:
    """One element too many."""
    parsed = structure(gold)
    if not isinstance(parsed, Elements) or parsed.kind.startswith("matrix"):
        return None
    return write(Elements(parsed.kind, (*parsed.items, str(rng.randrange(1000, 2000))), ""))


def replaced(gold: Gold, rng: random.Random) -> str | None:
    """One element of several replaced by another number."""
    parsed = structure(gold)
    if not isinstance(parsed, Elements):
        return None
    items = list(parsed.items)
    items[rng.randrange(len(items))] = str(rng.randrange(1000, 2000))
    return write(Elements(parsed.kind, tuple(items), ""))


def percent(gold: Gold, rng: random.Random) -> str | None:
    """A percent sign too many or too few."""
    text = clean_notation(gold.answer)
    if gold.unit in ("%", "\\%") or number(Gold(text.removesuffix("%") or "x")) in (None, 0):
        return None
    return text.removesuffix("%").strip() if text.endswith("%") else text + r"\%"


def truncation(gold: Gold, rng: random.Random) -> str | None:
    """A number that has no end, or more than six decimals, cut to six; an irrational one rounded to nine."""
    parsed = structure(gold)
    if not isinstance(parsed, str) or gold.error:
        return None
    value = parse_exact(parsed)
    if value is not None:
        cut = Fraction(int(value * 10**6), 10**6)
        return None if cut == value else f"{Decimal(cut.numerator) / Decimal(cut.denominator):f}"
    return _irrational(parsed)


def _irrational(text: str) -> str | None:
    found = formula_trees(text)
    if len(found) != 1 or variable_names(found[0]) or not is_expression(text):
        return None
    try:
        value = value_at(found[0], {})
    except ArithmeticError:
        return None
    rounded = None if value.imag or abs(value) > 10**9 else Decimal(str(value)).quantize(Decimal("1e-9"))
    return None if rounded is None or Fraction(rounded) == parse_exact(text) else f"{rounded:f}"


OTHER_UNITS = {
    "length": ("m", "cm", "km", "inches", "feet"), "time": ("seconds", "minutes", "hours", "days"),
    "dollar": ("cents", "euros"), "angle": ("radians", "cm", "hours"), "mass": ("g", "kg", "pounds"),
}  # fmt: skip


def unit(gold: Gold, rng: random.Random) -> str | None:
    """The right number with another unit."""
    parsed = structure(gold)
    if not isinstance(parsed, str):
        return None
    label = take_apart(parsed)
    if label.kind is None and gold.unit:
        asked = take_apart("1 " + clean_notation(gold.unit))
        label_kind, size = asked.kind, asked.size
    else:
        label_kind, size = label.kind, label.size
    if label_kind is None or label_kind[0][0] not in OTHER_UNITS or parse_exact(label.body) in (None, 0):
        return None
    power = f"^{label_kind[0][1]}" if label_kind[0][1] > 1 else ""
    others = [rf"\text{{ {name}}}{power}" for name in OTHER_UNITS[label_kind[0][0]]]
    others = [other for other in others if take_apart("1 " + other).size != size or label_kind[0][0] == "angle"]
    return f"{label.body} {rng.choice(others)}" if others else None


def base(gold: Gold, rng: random.Random) -> str | None:
    """The right digits in another base."""
    label = take_apart(clean_notation(gold.answer))
    return None if label.base is None else f"{label.body}_{{{label.base + 1}}}"


def container(gold: Gold, rng: random.Random) -> str | None:
    """A list or set as a tuple, a tuple as a list or set."""
    parsed = structure(gold)
    if not isinstance(parsed, Elements) or len(parsed.items) < 2 or parsed.kind[:3] in ("mat", "cup"):
        return None
    kind = "()" if parsed.kind in (",", "{}") else rng.choice((",", "{}"))
    return write(Elements(kind, parsed.items, ""))


def bracket(gold: Gold, rng: random.Random) -> str | None:
    """An end of an interval open instead of closed, or the other way round."""
    parsed = structure(gold)
    if not isinstance(parsed, Elements) or parsed.kind not in ORDERED or len(parsed.items) != 2:
        return None
    return write(Elements(rng.choice([kind for kind in ORDERED if kind != parsed.kind]), parsed.items, ""))


def letter(gold: Gold, rng: random.Random) -> str | None:
    """Another choice of a multiple choice, or another letter for a variable."""
    text = clean_notation(gold.answer)
    match = re.fullmatch(r"\\text\{\(?([A-E])\)?\}|([A-E])", text)
    if match:
        return rf"\text{{({rng.choice(sorted(set('ABCDE') - {match[1] or match[2]}))})}}"
    found = re.search(r"(?<![a-zA-Z\\{])([a-pr-z])(?![a-zA-Z])", text)
    if found is None or "=" in text or "\\in " in text or "\\text" in text or "\\begin" in text:
        return None
    return re.sub(rf"(?<![a-zA-Z\\]){found[1]}(?![a-zA-Z])", "q", text)


NEAR_MISSES: dict[str, Callable[[Gold, random.Random], str | None]] = {
    "off by one": off_by_one, "sign": sign, "swapped tuple": swapped, "missing element": missing,
    "extra element": extra, "replaced element": replaced, "percent": percent, "truncation": truncation, "unit": unit,
    "base": base, "tuple, list, set": container, "interval bracket": bracket, "letter": letter,
}  # fmt: skip
