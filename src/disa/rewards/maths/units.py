r"""What stands around a number: unit, degree sign, currency, percent sign, number base.

A label the other side leaves out is taken as given by the problem (``5`` answers ``5 \text{ cm}``); two labels that
are both known must agree in kind, and their sizes count exactly (``100 cm`` is ``1 m``, ``5 m`` is not ``5 cm``). Words
that are no unit here (``9 \text{ values}``) say nothing. A percent sign is no label: it divides by 100.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from fractions import Fraction

from disa.rewards.maths.notation import clean

# Kind and exact size of each unit in the kind's own unit: metre, second, gram, dollar, litre, degree.
_SIZES: dict[str, tuple[str, Fraction]] = {}
for _kind, _sizes in {
    "length": {
        "m meter metre": "1", "km kilometer kilometre": "1000", "cm centimeter centimetre": "1/100",
        "mm millimeter millimetre": "1/1000", "in inch": "0.0254", "ft foot feet": "0.3048", "yd yard": "0.9144",
        "mi mile": "1609.344",
    },
    "time": {
        "s sec second": "1", "min minute": "60", "h hr hour": "3600", "day": "86400", "week": "604800",
    },
    "months": {"month": "1", "yr year": "12"},
    "mass": {"g gram": "1", "kg kilogram": "1000", "mg milligram": "1/1000"},
    "weight": {"oz ounce": "1", "lb pound": "16"},
    "money": {"dollar usd": "1", "cent": "1/100"},
    "volume": {"l liter litre": "1", "ml milliliter millilitre": "1/1000"},
    "liquid": {"gal gallon": "1"},
    "angle": {"degree deg": "1"},
    "celsius": {"celsius": "1"},
    "fahrenheit": {"fahrenheit": "1"},
    "morning": {"am": "1"},
    "afternoon": {"pm": "1"},
}.items():  # fmt: skip
    for _names, _size in _sizes.items():
        for _name in _names.split():
            _SIZES[_name] = (_kind, Fraction(_size))
_WORDS = {"mph": "mile/hour", "kmh": "km/hour", "kph": "km/hour", "inches": "inch", "p.m": "pm", "a.m": "am"}
_POWERS = {"square": 2, "sq": 2, "cubic": 3, "cu": 3}

_PERCENT = re.compile(r"\s*%$")
_DEGREES = re.compile(r"\s*\^\\circ\s*(?:\\text\{\s*)?([CF]?)(?:\s*\})?$")
_BASE = re.compile(r"(?<=[0-9])\s*_\s*(?:\{\s*([0-9]{1,2})\s*\}|([0-9]{1,2}))$")
# Words with a digit or a comma may hedge, as in 5 \text{ or 6}: they are no label.
_TEXT = re.compile(r"\s*\\text\{([^{}0-9,;]*)\}\s*(?:\^\s*\{?\s*([23])\s*\}?)?$")
# The m of 6m is a variable: a unit of one letter counts in \text{} only.
_PLAIN = re.compile(r"(?<=[0-9])\s*([a-zA-Z]{2}[a-zA-Z./ ]*)(?:\^\s*\{?\s*([23])\s*\}?)?$")


@dataclass(frozen=True, slots=True)
class Labelled:
    """An answer taken apart: what is left to value, its unit's kind and size, and whether it was a percentage."""

    body: str
    kind: tuple[tuple[str, int], ...] | None = None
    """Powers of kinds, such as length squared; None without a known unit."""
    size: Fraction = Fraction(1)
    percent: bool = False
    base: int | None = None


@functools.lru_cache(maxsize=8192)
def take_apart(text: str) -> Labelled:
    """Split a cleaned answer into its body and its labels."""
    if match := _PERCENT.search(text):
        return Labelled(text[: match.start()], percent=True)
    if text.startswith("\\dollar"):
        return Labelled(text.removeprefix("\\dollar").strip(), *_unit("dollar", 1))
    if text.startswith("-") and text[1:].lstrip().startswith("\\dollar"):
        return Labelled("-" + text[1:].lstrip().removeprefix("\\dollar").strip(), *_unit("dollar", 1))
    if match := _DEGREES.search(text):
        name = {"C": "celsius", "F": "fahrenheit"}.get(match[1], "degree")
        return Labelled(text[: match.start()], *_unit(name, 1))
    if match := _BASE.search(text):
        return Labelled(text[: match.start()], base=int(match[1] or match[2]))
    if match := _TEXT.search(text):
        return Labelled(text[: match.start()].strip(), *_unit(match[1], int(match[2] or 1)))
    if (match := _PLAIN.search(text)) and (unit := _unit(match[1], int(match[2] or 1)))[0] is not None:
        return Labelled(text[: match.start()].strip(), *unit)
    return Labelled(text)


@functools.lru_cache(maxsize=4096)
def _unit(words: str, power: int) -> tuple[tuple[tuple[str, int], ...] | None, Fraction]:
    """Kind and size of a unit in words, ``(None, 1)`` where any of them is unknown."""
    words = words.lower().strip(" .")
    words = _WORDS.get(words, words)
    above, *below = re.split(r"\s*/\s*|\s+per\s+", words)
    kinds: dict[str, int] = {}
    size = Fraction(1)
    for sign, part in ((1, above), *((-1, part) for part in below)):
        names = part.split()
        exponent = power if sign == 1 else 1
        if len(names) == 2 and names[0] in _POWERS:
            exponent = _POWERS[names.pop(0)]
        name = names[0].strip(".") if len(names) == 1 else ""
        name = _WORDS.get(name, name)
        known = _SIZES.get(name) or _SIZES.get(name.removesuffix("s"))
        if known is None:
            return None, Fraction(1)
        kinds[known[0]] = kinds.get(known[0], 0) + sign * exponent
        size *= known[1] ** (sign * exponent)
    return tuple(sorted(kinds.items())), size


def unit_of(words: str) -> tuple[tuple[tuple[str, int], ...] | None, Fraction]:
    r"""Kind and size of a unit by itself, as a data set's ``unit`` field has it: ``km/h``, ``$cm^2$``, ``^{\circ}``."""
    label = take_apart("1 " + clean(words))
    return label.kind, label.size
