"""Random answers, outputs and completions: pieces of what models write, in any order, and gold answers spoilt.

``cases(seed)`` yields calls without end; they let every exception through, so that whoever counts sees them.
"""

import functools
import random
from collections.abc import Callable, Iterator

from maths_kinds import KINDS

from disa.rewards.code import extract_code
from disa.rewards.code.inside.plain_data import NotPlainData, read_value
from disa.rewards.code.script_run import same_output
from disa.rewards.maths import Gold, extract_answer, verdict_on

_COMMANDS = (
    r"\frac \sqrt \binom \left \right \text \mathrm \boxed \pi \infty \cdot \times \circ \le \ge \ne \in "
    r"\cup \pm \sin \cos \ln \log \exp \alpha \theta \lfloor \rfloor \begin{pmatrix} \end{pmatrix} "
    r"\over \overline \prime \mid \{ \} \% \$ \, \\ \approx \setminus \mathbb \vec \dot \partial "
    r"\sum \int \lim \not \dfrac \arcsin \color{red} \bf \langle \rangle"
).split()
_PIECES = [
    *_COMMANDS,
    *"0123456789",
    *"+-*/^_!(){}[]|,.:;=<>'\"& \t\n",
    *"abcdefinxyzABCEOPR",
    "10",
    "100",
    "1e5",
    "2.5",
    "0",
    "1/2",
    "9^{9^{9^9}}",
    "1000!",
    "10^{400}",
    "10^{9999}",
    "e^{e^{e^9}}",
    "0^{-1}",
    r"\frac{1}{0}",
    "1e99999",
    "1" * 400,
    r"\ln 0",
    r"\tan 90^\circ",
    "or",
    "and",
    "million",
    "dozen",
    "cm",
    "km/h",
    "p.m.",
    "percent",
    "%",
    "is",
    "not",
    "the answer",
    "True",
    "−",
    "×",
    "½",
    "π",
    "√",
    "°",
    "１",
    "\u200b",
    "\ud800",
    "\x00",
    "\u202e",
    "∞",
    "²",
    "₁",
    "(-1)^n",
    r"\binom{n}{k}",
    "i^i",
]
_GOLDS = [
    *dict.fromkeys(gold for rows in KINDS.values() for gold, _, _ in rows),
    Gold("2.5", error="0.1"),
    Gold("4.2", unit="%", error="1e-1"),
    Gold("166", unit="$cm^2$"),
    Gold("2,500", multiple=True),
    Gold("0", error="0"),
    Gold(r"\pi", error="1e-3"),
    Gold("x", unit="km"),
    Gold("1, 2, 3", multiple=True, error="1e400"),
]
_OUTPUTS = [
    "1",
    "0",
    "-",
    "+",
    ".",
    "e",
    "E",
    "9" * 50,
    "1" * 5000,
    "e9999",
    "nan",
    "inf",
    " ",
    "\t",
    "\n",
    "\r\n",
    "\x0b",
    "\x1c",
    "\u2028",
    "\ud800",
    "x",
    "_",
    "１",
    "0x1f",
    "1/2",
    "1j",
    "True",
]
_TEXTS = [
    "```",
    "~~~",
    "python",
    "\n",
    "    ",
    "def f(x):",
    "return x",
    "class A:",
    "import os",
    "from x import *",
    "print(",
    ")",
    "input()",
    "(" * 200,
    "x = 1",
    "\ufeff",
    "\x00",
    "\ud800",
    ">",
    "lambda: 0",
    "'''",
    "\\",
    "async",
    "match x:",
    "0" * 5000,
]


def cases(seed: int) -> Iterator[tuple[str, Callable[[], object]]]:
    """Kinds, and calls that have to return."""
    rng = random.Random(seed)
    while True:
        gold = rng.choice(_GOLDS)
        draw = rng.random()
        if draw < 0.5:
            yield "maths, pieces", _judge(gold, _joined(rng, _PIECES, 30))
        elif draw < 0.85:
            yield "maths, spoilt gold answers", _judge(gold, _spoilt(rng, _text(rng.choice(_GOLDS))))
        elif draw < 0.95:
            output, expected = _joined(rng, _OUTPUTS, 20), _joined(rng, _OUTPUTS, 20)
            tolerance = rng.choice((None, 0.0, 1e-6, 1e9))
            yield "outputs", functools.partial(same_output, output, expected, tolerance)
        elif draw < 0.98:
            yield "completions", functools.partial(extract_code, _joined(rng, _TEXTS, 40))
        else:
            yield "answers to calls", functools.partial(_read, rng.randbytes(rng.randrange(40)))


def _judge(gold: str | Gold, answer: str) -> Callable[[], object]:
    def call() -> object:
        found = extract_answer(rf"so \boxed{{{answer}}}")
        # As MathsVerifier has it, without its last fence against exceptions.
        return "wrong" if found is None or len(found) > 1000 else verdict_on(gold, found)

    return call


def _read(data: bytes) -> object:
    try:
        return read_value(b"l3;" + data)
    except NotPlainData:
        return None


def _text(gold: str | Gold) -> str:
    return gold.answer if isinstance(gold, Gold) else gold


def _joined(rng: random.Random, pieces: list[str], most: int) -> str:
    return "".join(rng.choices(pieces, k=rng.randrange(most)))


def _spoilt(rng: random.Random, text: str) -> str:
    """A text with pieces put in, taken out, doubled or swapped."""
    for _ in range(rng.randrange(1, 5)):
        start, end = sorted(rng.randrange(len(text) + 1) for _ in range(2))
        text = rng.choice(
            (
                text[:start] + rng.choice(_PIECES) + text[start:],
                text[:start] + text[end:],
                text[:end] + text[start:],
                text[end:] + text[start:end] + text[:start],
            )
        )
    return text
