r"""What an answer is made of: lists, sets, tuples, intervals and their unions, matrices, and single expressions.

One solution set has one structure, however it is written: ``x<2``, ``(-\infty,2)`` and ``]-\infty;2[`` are one
interval, ``x \ne 2`` is a union of two.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass

from disa.rewards.maths.notation import closing_bracket, spacing_free, split_top

_MATRIX = re.compile(r"\\begin\{([pbvB]?(?:small)?matrix|array)\}(?:\{[clr|]*\})?(.*)\\end\{\1\}", re.DOTALL)
_THOUSANDS = re.compile(r"[-+]?(?:\\dollar ?)?[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?(?![0-9,])[^,;]*")
NAME = re.compile(
    r"(?:[A-Z]{2,4}|(?:\\(?:angle|triangle|overline|vec|hat|bar|max|min|det|deg)\s*)?(?:\{\s*)?"
    r"(?:\\?[a-zA-Z]|\\(?!frac|sqrt|text|sin|cos|tan|ln|log|pi(?![a-zA-Z]))[a-zA-Z]+|[A-Z]{2,4}|\\text\{[^{}]*\}[^=+*/^<>]*|[a-z]{3,})(?:\s*\})?)"
    r"(?:_\{?[^{}=]*\}?)?'*(?:\s*\([-+*/a-zA-Z0-9, ]+\))?'*|\|[A-Z]{2,3}\||\([a-zA-Z, _0-9{}]+\)"
)
_FLIPPED = {"<": ">", ">": "<", "\\le": "\\ge", "\\ge": "\\le"}
_RELATION = re.compile(r"\s*(<|>|\\le(?![a-zA-Z])|\\ge(?![a-zA-Z]))\s*")
_VARIABLE = re.compile(r"\\?[a-zA-Z]+(?:_\{?[^{}]\}?)?")


@dataclass(frozen=True, slots=True)
class Elements:
    """Several elements and what holds them together: ``,`` for a bare list, brackets, ``cup``, or a matrix's shape."""

    kind: str
    items: tuple[Elements | str, ...]
    text: str


@functools.lru_cache(maxsize=8192)
def parse_structure(text: str, commas_separate: bool = False) -> Elements | str:
    """A cleaned answer as nested sequences of single expressions.

    With ``commas_separate`` ``2,500`` is two numbers; otherwise commas before three digits group thousands.
    """
    if (outward := _outward(text)) is not None:
        return outward
    if text.startswith("⟨") and text.endswith("⟩"):
        return Elements("<>", tuple(parse_structure(part) for part in split_top(text[1:-1], ",;")), text)
    grouped = not commas_separate and _THOUSANDS.fullmatch(text)
    parts = [part for part in split_top(text, ",;") if part]
    if len(parts) > 1 and not grouped:
        items = _flat(parts)
        if all(isinstance(item, Elements) and item.kind[:1] in "([" and _RELATION.search(item.text) for item in items):
            return Elements("cup", items, text)
        return Elements(",", items, text)
    text = _exact_side(parts[0] if len(parts) == 1 else text)
    return _union(text) or _interval(text) or _bracketed(text) or _matrix(text) or _plus_minus(text) or _unwrapped(text)


def is_infinite(text: str) -> int:
    """1 or -1 for an infinity, else 0."""
    return {"\\infty": 1, "+\\infty": 1, "-\\infty": -1}.get(spacing_free(text), 0)


def _exact_side(text: str) -> str:
    r"""``2/3`` of ``2/3 \approx 0.67``; what follows where nothing, or only a name, comes before."""
    before, sign, after = (part.strip() for part in text.partition("\\approx"))
    return after if sign and (not before or NAME.fullmatch(before)) else before


def _flat(parts: list[str]) -> tuple[Elements | str, ...]:
    r"""Elements of a list or set; one with ``\pm`` counts as its two, ``x = 1`` of ``x = 1, 2`` as its value."""
    items: list[Elements | str] = []
    for part in parts:
        item = parse_structure(part)
        items.extend(item.items if isinstance(item, Elements) and item.kind == "," else [item])
    sides = split_top(parts[0], "=") if parts else []
    if len(sides) == 2 and NAME.fullmatch(sides[0]) and not any("=" in part for part in parts[1:]):
        items[0] = parse_structure(sides[1])
    return tuple(items)


def _outward(text: str) -> Elements | None:
    """``]0,1[``: brackets that turn outward leave the end out."""
    match = re.fullmatch(r"([\](\[])([^\[\]()]*)[,;]([^\[\]()]*)([\])\[])", text)
    if match is None or (match[1] != "]" and match[4] != "["):
        return None
    kind = ("[" if match[1] == "[" else "(") + ("]" if match[4] == "]" else ")")
    return Elements(kind, (parse_structure(match[2].strip()), parse_structure(match[3].strip())), text)


def _union(text: str) -> Elements | None:
    r"""``A \cup B``, where all parts are taken apart."""
    parts = [
        part.strip() for part in re.split(r"\\cup(?![a-zA-Z])", re.sub(r"^[a-zA-Z]\s*\\in(?![a-zA-Z])\s*", "", text))
    ]
    if len(parts) < 2 or any(not part for part in parts):
        return None
    items = [item for part in parts if isinstance(item := parse_structure(part), Elements)]
    if len(items) < len(parts):
        return None
    return Elements(
        "cup", tuple(i for item in items for i in (item.items if item.kind in ("cup", "{}") else [item])), text
    )


def _interval(text: str) -> Elements | None:
    r"""An inequality in one variable, or a set of numbers that satisfy one, as an interval."""
    builder = re.fullmatch(r"\\\{\s*([a-zA-Z])(?:\s*\\in\s*\\mathbb\{?R\}?)?\s*[:|]\s*(.*)\\\}", text)
    if builder:
        found = parse_structure(builder[2].strip())
        return found if isinstance(found, Elements) and (found.kind == "cup" or _RELATION.search(found.text)) else None
    if "\\ne" in text and (match := re.fullmatch(r"(\\?[a-zA-Z]+)\s*\\ne(?![a-zA-Z])\s*(.+)", text)):
        point = parse_structure(match[2])
        halves = (Elements("()", ("-\\infty", point), text), Elements("()", (point, "\\infty"), text))
        return Elements("cup", halves, text)
    sides = _RELATION.split(text)
    if len(sides) == 3:
        left, sign, right = sides
        if _VARIABLE.fullmatch(right) and not _VARIABLE.fullmatch(left):
            left, sign, right = right, _FLIPPED[sign], left
        if not _VARIABLE.fullmatch(left) or _has_variable(right):
            return None
        value = parse_structure(right)
        if sign in ("<", "\\le"):
            return Elements("(" + (")" if sign == "<" else "]"), ("-\\infty", value), text)
        return Elements(("(" if sign == ">" else "[") + ")", (value, "\\infty"), text)
    if len(sides) == 5:
        low, one, middle, other, high = sides
        if one != other and {one, other} not in ({"<", "\\le"}, {">", "\\ge"}):
            return None
        if one in (">", "\\ge"):
            low, one, other, high = high, _FLIPPED[other], _FLIPPED[one], low
        if not _VARIABLE.fullmatch(middle) or _has_variable(low) or _has_variable(high):
            return None
        kind = ("(" if one == "<" else "[") + (")" if other == "<" else "]")
        return Elements(kind, (parse_structure(low), parse_structure(high)), text)
    return None


def _has_variable(text: str) -> bool:
    return not text or bool(re.search(r"[a-zA-Z]", re.sub(r"\\[a-zA-Z]+|(?<![a-zA-Z])e(?![a-zA-Z])", "", text)))


def _bracketed(text: str) -> Elements | str | None:
    opening = "\\{" if text.startswith("\\{") else text[:1]
    end = closing_bracket(text, 0) if opening in ("(", "[", "\\{") else None
    if end is None or text[end:] not in (")", "]", "\\}"):
        return None
    inner = text[len(opening) : end].strip()
    parts = split_top(inner, ",;")
    if opening == "\\{":
        return Elements("{}", _flat([part for part in parts if part]), text)
    if len(parts) > 1:
        return Elements(opening + text[end:], tuple(parse_structure(part) for part in parts), text)
    return parse_structure(inner) if inner and text[end:] == (")" if opening == "(" else "]") else None


def _matrix(text: str) -> Elements | None:
    match = _MATRIX.fullmatch(text)
    if match is None or "\\begin" in match[2] or match[1].startswith("v"):
        return None
    rows = [row.split("&") for row in match[2].strip().strip("\n").split("\n")]
    cells = tuple(parse_structure(cell.strip()) for row in rows for cell in row)
    return Elements(f"matrix {[len(row) for row in rows]}", cells, text)


def _plus_minus(text: str) -> Elements | None:
    if not re.search(r"\\(?:pm|mp)(?![a-zA-Z])", text):
        return None
    both = []
    for upper, lower in (("+", "-"), ("-", "+")):
        one = re.sub(r"\\pm(?![a-zA-Z])", upper, text)
        both.append(parse_structure(re.sub(r"\\mp(?![a-zA-Z])", lower, one).strip().removeprefix("+").strip()))
    return Elements(",", tuple(both), text)


def _unwrapped(text: str) -> Elements | str:
    r"""An answer that is all ``\text{...}``: read as it stands where it has digits or commas, else kept as words."""
    match = re.fullmatch(r"\\text\{([^{}]*)\}", text)
    if match is None:
        return text
    inner = match[1].strip(" .")
    if "," in inner:
        return Elements(",", tuple(f"\\text{{{part.strip()}}}" for part in inner.split(",") if part.strip()), text)
    words = re.fullmatch(r"([-+]?[0-9][0-9.]*)\s*([a-zA-Z][a-zA-Z. ]*)?", inner)
    if words and words[2]:
        return rf"{words[1]} \text{{{words[2]}}}"
    return parse_structure(inner) if re.fullmatch(r"[-+]?[0-9].*", inner) else text
