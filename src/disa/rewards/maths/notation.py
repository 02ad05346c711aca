r"""One spelling for the many ways LaTeX and plain text write the same answer, without changing what it says."""

from __future__ import annotations

import functools
import re

_CHARACTERS = str.maketrans(
    {
        "−": "-", "–": "-", "×": r"\times ", "·": r"\cdot ", "÷": "/", "π": r"\pi ", "∞": r"\infty ", "°": r"^\circ ",
        "≤": r"\le ", "≥": r"\ge ", "∪": r"\cup ", "±": r"\pm ", "∓": r"\mp ", "\u00a0": " ", "\u2009": " ",
        "\u202f": " ", "\t": " ", "\n": " ", "\r": " ",
    }
)  # fmt: skip
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
# In order. A row's end (two backslashes) becomes a line break, so that no later pattern takes it for the start of a
# command. Sizes, spaces and fonts go; thousands separators become plain commas before spaces are touched.
_REWRITES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\\\", "\n"),
        (r"\\\$", r"\\dollar "),
        (r"\$", ""),
        (r",\s*\\!\s*|\{,\}", ","),
        (r"(?<=[0-9])(?:\\,|\\ )(?=[0-9]{3}(?![0-9]))", ","),
        (r"\\(?:left|right)\s*\.", ""),
        (r"\\(?:left|right|[bB]igg?[lrm]?|displaystyle|textstyle|limits)(?![a-zA-Z])", ""),
        (r"\\(?:[,;:!> ]|quad(?![a-zA-Z])|qquad(?![a-zA-Z]))|~", " "),
        (r"\\[hv]?phantom\s*(?:\{[^{}]*\}|[^{}])", ""),
        (r"\\[dtc]frac(?![a-zA-Z])", r"\\frac"),
        (r"\\(?:text(?:bf|it|rm|normal|up)|math(?:rm|bf|it)|mbox|operatorname)\s*(?=\{)", r"\\text"),
        (r"\\text\{\s*(?:\\?%|percent)\s*\}|\\?%|\bpercent\b", "%"),
        (r"\^\s*\{\s*\\circ\s*\}|\^\s*\\circ(?![a-zA-Z])|\\degree(?![a-zA-Z])", r"^\\circ "),
        (r"\\(?:leq|leqslant)(?![a-zA-Z])", r"\\le "),
        (r"\\(?:geq|geqslant)(?![a-zA-Z])", r"\\ge "),
        (r"<=", r"\\le "),
        (r">=", r"\\ge "),
        (r"!=|=/=|\\neq(?![a-zA-Z])|\\not\s*(?:=|\\[a-zA-Z]+)", r"\\ne "),
        (r"\\varnothing(?![a-zA-Z])", r"\\emptyset "),
        (r"\\lbrace(?![a-zA-Z])", r"\\{"),
        (r"\\rbrace(?![a-zA-Z])", r"\\}"),
        (r"\\text\{\s*,?\s*(?:and|or)\s*\}|(?<![a-zA-Z\\]),?\s*\b(?:and|or)\b(?![a-zA-Z])", ","),
        (r"(?<![0-9])\.(?=[0-9])", "0."),
    )
]
_ARGUMENTS = {"frac": 2, "binom": 2, "sqrt": 1}
_COMMANDS = re.compile(r"\\(frac|binom|sqrt)(?![a-zA-Z])")
_SPACE_TO_DROP = re.compile(r"(?<![0-9]) +| +(?![0-9])")


@functools.lru_cache(maxsize=8192)
def clean(text: str) -> str:
    """The answer in one spelling: fonts, sizes, spacing, dollar signs and synonyms removed, fractions braced.

    Unknown characters stay: what cannot be read must not become something that can.
    """
    text = re.sub(r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+", lambda m: "^{" + m[0].translate(_SUPERSCRIPTS) + "}", text.translate(_CHARACTERS))
    if "\\begin" not in text:
        text = re.sub(r"\\\\(?=[a-zA-Z])", r"\\", text)  # commands whose backslash was escaped twice
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    return re.sub(r" +", " ", _brace_arguments(text)).strip().rstrip(" .,;")


def _brace_arguments(text: str) -> str:
    r"""Write ``\frac12``, ``\frac{1}2`` and ``\sqrt3`` with all their braces, innermost first."""
    commands = list(_COMMANDS.finditer(text))
    # Each rewrites the text behind it; an answer with so many of them is left to the grammar as it stands.
    for match in reversed(commands if len(commands) <= 100 else []):
        position, arguments = match.end(), []
        if match[1] == "sqrt" and text[position:].lstrip().startswith("["):
            continue
        for _ in range(_ARGUMENTS[match[1]]):
            argument, position = _argument(text, position)
            arguments.append("{" + argument + "}")
        if all(argument != "{}" for argument in arguments):
            text = text[: match.end()] + "".join(arguments) + text[position:]
    return text


def _argument(text: str, start: int) -> tuple[str, int]:
    """One LaTeX argument from ``start`` on, without braces, and where it ends: a group, a command or a character."""
    while start < len(text) and text[start] == " ":
        start += 1
    if text.startswith("{", start):
        end = closing(text, start)
        return (text[start + 1 : end].strip(), end + 1) if end is not None else ("", start)
    command = re.match(r"\\[a-zA-Z]+|[^\\{}]", text[start : start + 20])
    return (command[0], start + command.end()) if command else ("", start)


_OPENING = ("(", "[", "{", "\\{")
_CLOSING = (")", "]", "}", "\\}")
_BRACKETS = re.compile(r"\\[{}]|\\[a-zA-Z]+|\\.|[()\[\]{},;=]")


def tokens(text: str, start: int = 0) -> list[tuple[int, str, int]]:
    """Position, text and depth of every bracket, comma, semicolon and equals sign, LaTeX escapes taken into account.

    A bracket has the depth of what surrounds it. Round and square brackets may close each other: ``[0,1)``.
    """
    depth, found = 0, []
    for match in _BRACKETS.finditer(text, start):
        token = match[0]
        depth -= token in _CLOSING
        if token in _OPENING + _CLOSING or token in ",;=":
            found.append((match.start(), token, depth))
        depth += token in _OPENING
    return found


def nesting(text: str) -> int:
    """How many brackets stand within each other at most."""
    return max((depth + 1 for _, token, depth in tokens(text) if token in _OPENING), default=0)


def closing(text: str, start: int) -> int | None:
    """Position of the bracket that closes the one at ``start``, None where none does."""
    for position, token, depth in tokens(text, start)[1:]:
        if depth == 0 and token in _CLOSING:
            return position
        if depth < 0:
            return None
    return None


def split_top(text: str, separators: str) -> list[str]:
    """Parts of a text between separators outside all brackets."""
    parts, start = [], 0
    for position, token, depth in tokens(text):
        if depth == 0 and token in separators:
            parts.append(text[start:position].strip())
            start = position + 1
    return [*parts, text[start:].strip()]


def key(text: str) -> str:
    """A cleaned answer without the space that means nothing: between two digits it stays, ``2 3`` is not ``23``."""
    return re.sub(r"([\^_])\{(.)\}", r"\1\2", _SPACE_TO_DROP.sub("", text))
