r"""One spelling for the many ways LaTeX and plain text write the same answer, without changing what it says."""

from __future__ import annotations

import functools
import re

_GREEK = dict(zip("αβγδεζηθκλμνξρστφχψωΓΔΘΛΞΠΣΦΨΩ", (
    "alpha beta gamma delta epsilon zeta eta theta kappa lambda mu nu xi rho sigma tau phi chi psi omega "
    "Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega").split(), strict=True))  # fmt: skip
_CHARACTERS = str.maketrans(
    {chr(full): chr(full - 0xFEE0) for full in range(0xFF01, 0xFF5F)}  # full-width forms of ASCII
    | dict.fromkeys("−–—‐‑‒―﹣－", "-")
    | dict.fromkeys("\u00a0\u202f\u3000\t\n\r", " ") | dict.fromkeys(range(0x2000, 0x200B), " ")
    | dict.fromkeys("·⋅∙•", r"\cdot ") | dict.fromkeys("’′ʹ", "'") | dict.fromkeys("⁄∕÷", "/")
    | {letter: f"\\{name} " for letter, name in _GREEK.items()}
    | {
        "×": r"\times ", "✕": r"\times ", "∗": "*", "π": r"\pi ", "∞": r"\infty ", "°": r"^\circ ",
        "˚": r"^\circ ", "″": "''",
        "≤": r"\le ", "⩽": r"\le ", "≥": r"\ge ", "⩾": r"\ge ", "≠": r"\ne ", "≈": r"\approx ",
        "∪": r"\cup ", "∩": r"\cap ",
        "∈": r"\in ", "∅": r"\emptyset ", "±": r"\pm ", "∓": r"\mp ", "√": r"\sqrt ", "∛": r"\sqrt[3]",
        "∜": r"\sqrt[4]",
        "⟨": r"\langle ", "⟩": r"\rangle ", "⌊": r"\lfloor ", "⌋": r"\rfloor ", "⌈": r"\lceil ", "⌉": r"\rceil ",
        "ℝ": r"\mathbb{R}", "ℤ": r"\mathbb{Z}", "½": r"\frac{1}{2}", "⅓": r"\frac{1}{3}", "⅔": r"\frac{2}{3}",
        "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}", "⅕": r"\frac{1}{5}", "⅙": r"\frac{1}{6}", "⅛": r"\frac{1}{8}",
        "ℏ": r"\hbar ", "∖": r"\setminus ", "％": "%", "“": "", "”": "", "…": r"\ldots ", "∶": ":", "´": "'",
    }
)  # fmt: skip
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻ⁿ", "0123456789-n")
_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")
_END = r"(?![a-zA-Z])"
_FONTS = r"text(?:bf|it|rm|normal|up|sf|tt|sc|sl|md)?|math(?:rm|bf|it|sf|tt|normal|up)|mbox|hbox|operatorname\*?|emph"
_FUNCTIONS = "arcsin|arccos|arctan|sinh|cosh|tanh|sin|cos|tan|cot|sqrt|ln|log|exp|pi|theta|alpha|beta|infty"
# In order. A row's end (two backslashes) becomes a line break, so that no later pattern takes it for the start of a
# command. Sizes, spaces, fonts and colours go; thousands separators become plain commas before spaces are touched.
_REWRITES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\\\(?:\[[^\]]*\])?", "\n"),
        (r"\\\$", r"\\dollar "),
        (r"\$|\\[\[\]()]", ""),
        (r"^\s*(\*\*|__|`)(.*)\1\s*$", r"\2"),
        (r",\s*\\!\s*|\{,\}", ","),
        (r"\\!", ""),
        (r"(?<=[0-9])(?:\\,|\\ |\\;|\\:|~)(?=[0-9]{3}(?![0-9]))", ","),
        (r"\\(?:left|right)\s*\.", ""),
        (rf"\\(?:left|right|middle|[bB]igg?[lrm]?|displaystyle|textstyle|scriptstyle|limits|nolimits){_END}", ""),
        (r"\{\s*\\(?:rm|bf|it|sf)\s+([a-zA-Z]{2}[^{}]*)\}", r"\\text{\1}"),
        (
            rf"\\(?:tiny|small|normalsize|large|Large|LARGE|huge|Huge|bf|rm|it|sf|tt|bfseries|boldmath|itshape|cal){_END}",
            "",
        ),
        (r"\\(?:textcolor|colorbox)\s*(?:\[[^\]]*\])?\s*\{[^{}]*\}|\\color\s*(?:\[[^\]]*\])?\s*(?:\{[^{}]*\})?", ""),
        (rf"\\(?:boldsymbol|bm|pmb|underline|uline|ensuremath|boxed|fbox|smash|qed|mathstrut){_END}", ""),
        (
            r"\\(?:[,;:!> ]|quad(?![a-zA-Z])|qquad(?![a-zA-Z])|hspace\*?\s*\{[^{}]*\}|thinspace(?![a-zA-Z]))|~|\\\s*$",
            " ",
        ),
        (r"\\[hv]?phantom\s*(?:\{[^{}]*\}|[^{}])|\\label\s*\{[^{}]*\}|\\tag\s*\{[^{}]*\}", ""),
        (rf"\\[dtc]frac{_END}", r"\\frac"),
        (rf"\\[dt]binom{_END}", r"\\binom"),
        (r"\\upp?i(?![a-zA-Z])|\\mathrm\{pi\}", r"\\pi "),
        (
            r"\\math(?:it|bf|sf|normal|tt)(?![a-zA-Z])|\\math(?:bb|cal|scr|frak)\s*(?=\{?\s*[0-9])|\\mathrm\s*(?=\{\s*[^\sa-zA-Zµ~{}])",
            "",
        ),
        (r"(?<=[0-9])\s*x\s*(?=10\s*\^)", r"\\times "),
        (rf"\\(?:{_FONTS})\s*(?=\{{)", r"\\text"),
        (rf"\\(?:{_FONTS})\s+([a-zA-Z])", r"\\text{\1}"),
        (r"\\text\{\s*([ei]|-?[0-9]+(?:\.[0-9]+)?[ei]?)\s*\}", r"\1"),
        (r"\\text\{\s*\\mu\s*|\\mu\s*\\text\{\s*(?=[a-zA-Z])", r"\\text{µ"),
        (r"\\[ij]math(?![a-zA-Z])", "i"),
        (rf"\\text\{{\s*({_FUNCTIONS})\s*\}}", r"\\\1 "),
        (r"(?<=[0-9])\\text\{E\}\s*(?:\{\s*([-+]?[0-9]+)\s*\}|(?=[-+0-9]))", lambda m: f"e{m[1] or ''}"),
        (r"\\ast(?![a-zA-Z])", "*"),
        (r"\\colon(?![a-zA-Z])", ":"),
        (r"\^\s*\{?\s*((?:\\prime\s*|'\s*)+)\}?", lambda m: "'" * (m[1].count("prime") + m[1].count("'"))),
        (rf"\\prime{_END}", "'"),
        (r"(?:np|numpy|math)\.(?=[a-z])", ""),
        (r"\*\*", "^"),
        (rf"(?<![a-zA-Z\\])(?:{_FUNCTIONS}){_END}", lambda m: f"\\{m[0]} "),
        (r"\\text\{\s*(?:\\?%|percent)\s*\}|\\?%|\bpercent\b", "%"),
        (r"\^\s*\{\s*\\circ\s*\}|\^\s*\\circ(?![a-zA-Z])|\\degree(?![a-zA-Z])|\\textdegree(?![a-zA-Z])", r"^\\circ "),
        (r"\\(?:leq|leqslant|leqq)(?![a-zA-Z])", r"\\le "),
        (r"\\(?:geq|geqslant|geqq)(?![a-zA-Z])", r"\\ge "),
        (r"\\lt(?![a-zA-Z])", "<"),
        (r"\\gt(?![a-zA-Z])", ">"),
        (r"<=", r"\\le "),
        (r">=", r"\\ge "),
        (r"!=|=/=|\\neq(?![a-zA-Z])|\\not\s*(?:=|\\[a-zA-Z]+)", r"\\ne "),
        (r"\\varnothing(?![a-zA-Z])", r"\\emptyset "),
        (r"\\(?:[lr]vert|vert|mid)(?![a-zA-Z])", "|"),
        (r"\\(?:lbrace)(?![a-zA-Z])", r"\\{"),
        (r"\\(?:rbrace)(?![a-zA-Z])", r"\\}"),
        (r"\\langle(?![a-zA-Z])", "⟨"),
        (r"\\rangle(?![a-zA-Z])", "⟩"),
        (r"\\(?:lbrack)(?![a-zA-Z])", "["),
        (r"\\(?:rbrack)(?![a-zA-Z])", "]"),
        (r"(?=.*(?:[<>]|\\[lg]e(?![a-zA-Z])))(?:\\text\{\s*,?\s*and\s*\}|\band\b|\\land(?![a-zA-Z]))", r"\\wedge "),
        (
            r"\\text\{\s*,?\s*(?:and|or)\s*\}|(?<![a-zA-Z\\]),?\s*\b(?:and|or)\b(?![a-zA-Z])|\\(?:lor|vee)(?![a-zA-Z])",
            ",",
        ),
        (r"(?<![0-9])\.(?=[0-9])", "0."),
    )
]
_LEAD = re.compile(
    r"^(\\text\{)?\s*(?:(?:so|thus|hence|therefore|the|final|correct|answers?|result|is|equals|are)\b\s*)+[:=]?\s*"
    r"(?(1)(?:\}\s*[:=]?)?)(?=[^\s}])|\\text\{\s*is the (?:final |correct )?answer\s*\}$",
    re.IGNORECASE,
)
_NUMBERS = {
    word: str(value)
    for value, word in enumerate(
        "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
        "seventeen eighteen nineteen twenty".split()
    )
}
_ARGUMENTS = {"frac": 2, "binom": 2, "sqrt": 1}
_COMMANDS = re.compile(r"\\(frac|binom|sqrt)(?![a-zA-Z])")
_SPACE_TO_DROP = re.compile(r"(?<![0-9]) +| +(?![0-9])")
_STOP = re.compile(r"[ ,;]*(?<!\.)\.?[ ,;]*$")
_SUB_AFTER_POWER = re.compile(r"(?<=[a-zA-Z])(\^(?:\{[^{}]*\}|[0-9a-zA-Z]))(_(?:\{[^{}]*\}|[0-9a-zA-Z]))")


@functools.lru_cache(maxsize=8192)
def clean_notation(text: str) -> str:
    """The answer in one spelling: fonts, colours, sizes, spacing, dollar signs and synonyms removed, fractions braced.

    Unknown characters stay: what cannot be read must not become something that can.
    """
    text = re.sub(r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁻ⁿ]+", lambda m: "^{" + m[0].translate(_SUPERSCRIPTS) + "}", text)
    text = re.sub(r"[₀₁₂₃₄₅₆₇₈₉]+", lambda m: "_{" + m[0].translate(_SUBSCRIPTS) + "}", text).translate(_CHARACTERS)
    if "\\begin" not in text:
        text = re.sub(r"\\\\(?=[a-zA-Z])", r"\\", text)  # commands whose backslash was escaped twice
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    text = re.sub(r" +", " ", _brace_arguments(_SUB_AFTER_POWER.sub(r"\2\1", text))).strip()
    text = _LEAD.sub(lambda m: m[1] if m[1] and "}" not in m[0] else "", _unbraced(text)).strip()
    return _NUMBERS.get(re.sub(r"^\\text\{(.*)\}$", r"\1", text).strip().lower(), text)


def _unbraced(text: str) -> str:
    """Without a full stop, and without the braces around all of it that a font or colour was for."""
    while True:
        text = _STOP.sub("", text)
        if not text.startswith("{") or closing_bracket(text, 0) != len(text) - 1:
            return text
        text = text[1:-1].strip()


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
        end = closing_bracket(text, start)
        return (text[start + 1 : end].strip(), end + 1) if end is not None else ("", start)
    command = re.match(r"\\[a-zA-Z]+|[^\\{}()\[]", text[start : start + 20])
    return (command[0], start + command.end()) if command else ("", start)


_OPENING = ("(", "[", "{", "\\{")
_CLOSING = (")", "]", "}", "\\}")
_BRACKETS = re.compile(r"\\[{}]|\\[a-zA-Z]+|\\.|[()\[\]{},;=]")


def bracket_tokens(text: str, start: int = 0) -> list[tuple[int, str, int]]:
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


def bracket_depth(text: str) -> int:
    """How many brackets stand within each other at most."""
    return max((depth + 1 for _, token, depth in bracket_tokens(text) if token in _OPENING), default=0)


def closing_bracket(text: str, start: int) -> int | None:
    """Position of the bracket that closes the one at ``start``, None where none does."""
    for position, token, depth in bracket_tokens(text, start)[1:]:
        if depth == 0 and token in _CLOSING:
            return position
        if depth < 0:
            return None
    return None


def split_top(text: str, separators: str) -> list[str]:
    """Parts of a text between separators outside all brackets."""
    parts, start = [], 0
    for position, token, depth in bracket_tokens(text):
        if depth == 0 and token in separators:
            parts.append(text[start:position].strip())
            start = position + 1
    return [*parts, text[start:].strip()]


def spacing_free(text: str) -> str:
    """A cleaned answer without the space that means nothing: between two digits it stays, ``2 3`` is not ``23``."""
    return re.sub(r"([\^_])\{(.)\}", r"\1\2", _SPACE_TO_DROP.sub("", text))
