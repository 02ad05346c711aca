r"""What stands around a number: number words, unit, degree sign, currency, percent sign, number base.

A label the other side leaves out is taken as given by the problem (``5`` answers ``5 \text{ cm}``); two labels must
agree in kind, and their sizes count exactly (``100 cm`` is ``1 m``, ``5 m`` is not ``5 cm``). Nouns that are counted
(``9 \text{ values}``) are of one kind, whatever they are; words that are not known here are a kind of their own, which
only the same words have. A percent sign is no label: it divides by 100.
"""

from __future__ import annotations

import functools
import itertools
import re
from dataclasses import dataclass
from fractions import Fraction

from disa.rewards.maths.formula import FUNCTIONS
from disa.rewards.maths.notation import clean_notation

Kind = tuple[tuple[str, int], ...]

_PREFIXES = {
    "f femto": -15, "p pico": -12, "n nano": -9, "u micro": -6, "µ micro": -6, "m milli": -3, "c centi": -2,
    "d deci": -1, "k kilo": 3, "M mega": 6, "G giga": 9, "T tera": 12,
}  # fmt: skip
# Symbols and words that take prefixes, size, and what it is made of; a base unit is made of itself.
_METRIC = """
m : meter metre : 1 : length              |  s : second : 1 : time            |  g : gram gramme : 1/1000 : mass
A : ampere amp : 1 : current              |  K : kelvin : 1 : temperature     |  mol : mole : 1 : amount
L l : liter litre : 1/1000 : length3      |  Hz : hertz : 1 : time-1          |  N : newton : 1 : mass length time-2
J : joule : 1 : mass length2 time-2       |  W : watt : 1 : mass length2 time-3
Pa : pascal : 1 : mass length-1 time-2    |  V : volt : 1 : mass length2 time-3 current-1
C : coulomb : 1 : time current            |  F : farad : 1 : mass-1 length-2 time4 current2
Ω : ohm : 1 : mass length2 time-3 current-2 | T : tesla : 1 : mass time-2 current-1
Wb : weber : 1 : mass length2 time-2 current-1 | H : henry : 1 : mass length2 time-2 current-2
Wh : watthour : 3600 : mass length2 time-2
eV : electronvolt : 1.602176634e-19 : mass length2 time-2 | cal : calorie : 4.184 : mass length2 time-2
bit : bit : 1 : bit | B : byte : 8 : bit
pc : parsec : 30856775814913673 : length
bar : bar : 100000 : mass length-1 time-2
"""
# Names without prefixes, in any case: sizes in the units above, or in a kind of their own.
_OTHERS = """
in inch inches 0.0254 length | ft foot feet 0.3048 length | yd yard 0.9144 length | mi mile 1609.344 length
min minute 60 time | h hr hour 3600 time | sec 1 time | day 86400 time | week 604800 time
month 1 month | yr year 12 month | decade 120 month | century centuries 1200 month
lb pound 0.45359237 mass | oz ounce 0.028349523125 mass | tonne 1000 mass | ton 907.18474 mass
dollar usd buck 1 dollar | cent ¢ 1/100 dollar | euro eur € 1 euro | £ gbp 1 sterling | yen jpy ¥ 1 yen | rupee 1 rupee
gal gallon 0.003785411784 length3 | acre 4046.8564224 length2 | hectare ha 10000 length2
degree deg 1 angle | radian rad 1 radian
arcmin arcminute 1/60 angle | arcsec arcsecond 1/3600 angle | revolution rev 1 turn
celsius 1 celsius
fahrenheit 1 fahrenheit | am 1 morning | pm 1 afternoon
atm atmosphere 101325 mass length-1 time-2
angstrom å 1/10000000000 length | au 149597870700 length
knot 0.514444444444444444 length time-1 | rpm 1/60 turn time-1
mph 0.44704 length time-1 | kph kmh 5/18 length time-1 | m.p.h 0.44704 length time-1 | p.m 1 afternoon | a.m 1 morning
quart 0.000946352946 length3 | pint 0.000473176473 length3
"""
_SCALES = {"dozen": Fraction(12)} | {
    word: Fraction(10) ** power
    for word, power in {
        "hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12, "lakh": 5, "crore": 7,
        "tenth": -1, "hundredth": -2, "thousandth": -3, "millionth": -6, "billionth": -9,
    }.items()
}  # fmt: skip
# What is counted says nothing of size, and the problem has said what it is.
_COUNTED = frozenset(
    "value way number people person student child children boy girl man men woman women integer solution points "
    "time piece coin apple orange book ball card marble game problem question answer result roots term element "
    "member set subset triangle square rectangle circle line segment edge vertex vertices face side digit factor "
    "divisor multiple primes pair page word letter step move turn seat table chair ticket car bus box boxes bag "
    "bottle cup glass glasses cookie egg dog cat fish bird flower tree animal cow horse sheep chicken toy pencil "
    "pen stamp sticker block tile cube path route permutation combination arrangement possibility possibilities "
    "outcome choice team player match hand handshake intersection region diagonal ordered value function polynomial "
    "sequence matrix item object house room window door shirt pack packet slice candy candies bead flavor color "
    "colour employee worker teacher passenger guest friend".split()
)
_FILLERS = frozenset(
    "unit distinct different possible more total real positive integer right of a in ordered whole the".split()
)
_COUNT: Kind = (("#", 1),)
"""Of nouns that are counted, where nothing else says a kind."""
_POWERS = {"square": 2, "sq": 2, "cubic": 3, "cu": 3, "squared": 2, "cubed": 3}

_PERCENT = re.compile(r"\s*%$")
_DEGREES = re.compile(r"\s*\^\\circ\s*(?:\\text\{\s*)?([CFK]?)(?:\s*\})?$")
_BASE = re.compile(r"(?<=[0-9])\s*_\s*(?:\{\s*([0-9]{1,2})\s*\}|([0-9]{1,2}))$")
_WORDS = r"[^{}0-9,;=<>]*(?:\^?[-0-9]+[^{}0-9,;=<>]*)?"
_TEXT = re.compile(rf"\s*((?:\\text\{{{_WORDS}\}}(?:\s*\^\s*(?:\{{\s*-?[1-4]\s*\}}|[1-4]))?\s*(?:/|\\cdot)?\s*)+)$")
# The m of 6m is a variable: a unit of one letter counts in \text{} or behind a slash only.
_PLAIN = re.compile(r"(?<=[0-9])\s*([a-zA-ZµμΩ€¢]{2}[a-zA-Z./ ]*|[mg]/s)(\^\s*\{?\s*[23]\s*\}?)?$")
_CURRENCY = {"\\dollar": "dollar", "€": "euro", "£": "£", "¥": "yen"}


@dataclass(frozen=True, slots=True)
class Labelled:
    """An answer taken apart: what is left to value, its unit's kind and size, and whether it was a percentage."""

    body: str
    kind: Kind | None = None
    """Powers of kinds, such as length squared; None without a unit."""
    size: Fraction = Fraction(1)
    times: Fraction = Fraction(1)
    """What number words multiply by."""
    percent: bool = False
    base: int | None = None

    @property
    def unknown(self) -> str | None:
        """Words that are no known unit."""
        return self.kind[0][0] if self.kind and self.kind[0][0].startswith("?") else None


@functools.cache
def _units() -> dict[str, tuple[dict[str, int], Fraction]]:
    """Kinds and size of every name: symbols in their own case, words in lower case."""
    found: dict[str, tuple[dict[str, int], Fraction]] = {}
    for entry in _METRIC.replace("\n", "|").split("|"):
        if not entry.strip():
            continue
        symbols, words, size, made_of = (part.strip() for part in entry.split(" : ")) if " : " in entry else ("",) * 4
        kinds = _kinds(made_of)
        for which, names in enumerate((symbols, words)):
            for name, (prefixes, power) in itertools.product(names.split(), ((" ", 0), *_PREFIXES.items())):
                found.setdefault(prefixes.split(" ")[which] + name, (kinds, Fraction(size) * Fraction(10) ** power))
    for entry in _OTHERS.replace("\n", "|").split("|"):
        parts = entry.split()
        at = next((i for i, part in enumerate(parts) if part[0].isdecimal()), 0)
        for name in parts[:at]:
            found[name] = (_kinds(" ".join(parts[at + 1 :])), Fraction(parts[at]))
    return found


def _kinds(text: str) -> dict[str, int]:
    return {m[1]: int(m[2] or 1) for word in text.split() if (m := re.fullmatch(r"([a-z]+)(-?[0-9]*)", word))}


def _lookup(name: str) -> tuple[dict[str, int], Fraction] | None:
    units = _units()
    for spelling in (name, name.lower(), name.lower().removesuffix("s"), name.lower().removesuffix("es")):
        # Symbols keep their case: Mm is no mm.
        if spelling in units and (
            spelling == name or len(spelling) > (1 if units[spelling][0].keys() & _ANY_CASE else 3)
        ):
            return units[spelling]
    return None


_ANY_CASE = {"morning", "afternoon", "month", "dollar", "euro", "angle", "length", "mass", "time"}


@functools.lru_cache(maxsize=8192)
def take_apart(text: str) -> Labelled:
    """Split a cleaned answer into its body and its labels."""
    if match := _PERCENT.search(text):
        return Labelled(text[: match.start()], percent=True)
    for sign, name in _CURRENCY.items():
        if re.match(rf"-?\s*{re.escape(sign)}", text):
            rest = take_apart(text.replace(sign, "", 1).strip())
            kind, size, _ = _unit(name)
            return Labelled(rest.body, kind, size, rest.times) if rest.kind in (None, kind, _COUNT) else rest
    # The degree sign of \sin 10^\circ belongs to the 10.
    if (match := _DEGREES.search(text)) and (match[1] or not any(name in text for name in FUNCTIONS)):
        name = {"C": "celsius", "F": "fahrenheit", "K": "kelvin"}.get(match[1], "degree")
        return Labelled(text[: match.start()].replace("^\\circ", ""), *_unit(name))
    if match := _BASE.search(text):
        return Labelled(text[: match.start()], base=int(match[1] or match[2]))
    if (match := _TEXT.search(text)) and match.start():
        words = re.sub(r"\\text\{([^{}]*)\}", r"\1 ", match[1]).replace("\\cdot", " ")
        return Labelled(text[: match.start()].strip(), *_unit(re.sub(r"\s*\^\s*", "^", words)))
    if match := _PLAIN.search(text):
        label = Labelled(text[: match.start()].strip(), *_unit(match[1] + re.sub(r"\s", "", match[2] or "")))
        if not label.unknown:
            return label
    return Labelled(text)


@functools.lru_cache(maxsize=4096)
def _unit(text: str) -> tuple[Kind | None, Fraction, Fraction]:
    """Kind and size of a unit, and its number words; a kind of their own for unknown words, None for a noun."""
    words = re.sub(r"\b(?:mile|kilometer|kilometre)s?\s+an\s+hour", lambda m: m[0].replace(" an ", " per "), text)
    above, *below = re.split(r"\s*/\s*|\s+per\s+", words.strip(" .~"))
    unknown = (("?" + " ".join(words.lower().split()), 1),), Fraction(1), Fraction(1)
    kinds: dict[str, int] = {}
    counted = False
    size, times, power = Fraction(1), Fraction(1), 1
    for sign, part in ((1, above), *((-1, part) for part in below)):
        names = re.sub(r"[{}]", "", part).replace("-", " " if "^" not in part else "-").split()
        for index, name in enumerate(names):
            name = name.strip(".")
            bare, _, exponent = name.partition("^")
            lower = bare.lower()
            if lower in _POWERS:
                power = _POWERS[lower]
                if index and lower.endswith("ed"):
                    kinds, size = {kind: p * power for kind, p in kinds.items()}, size**power
                    power = 1
                continue
            scale = _SCALES.get(lower, _SCALES.get(lower.removesuffix("s")))
            if scale is not None:
                times *= scale**sign
            elif (known := _lookup(bare)) is not None:
                whole = sign * power * int(exponent or 1)
                for kind, count in known[0].items():
                    kinds[kind] = kinds.get(kind, 0) + count * whole
                size, power = size * known[1] ** whole, 1
            elif (spellings := {lower, lower.removesuffix("s"), lower.removesuffix("es")}) & (_COUNTED | _FILLERS):
                counted, power = counted or bool(spellings & _COUNTED), 1
            else:
                return unknown
        if power != 1:  # of the number itself: 5 squared is no 5
            return unknown
    made_of = tuple(sorted((kind, count) for kind, count in kinds.items() if count))
    return made_of or (_COUNT if counted else None), size, times


def unit_of(words: str) -> tuple[Kind | None, Fraction]:
    r"""Kind and size of a unit by itself, as a data set's ``unit`` field has it: ``km/h``, ``$cm^2$``, ``^{\circ}``."""
    text = clean_notation(words)
    label = take_apart("1 " + text)
    return (label.kind, label.size) if label.body == "1" or label.percent else _unit(text)[:2]
