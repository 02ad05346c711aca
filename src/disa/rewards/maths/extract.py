r"""Find the final answer in a completion: the last ``\boxed{...}``, or the last match of a pattern."""

from __future__ import annotations

import functools
import re

from disa.errors import DisaError

HASHES = r"####[ \t]*([^\n]+)"
"""Pattern of GSM8K's own solutions: what follows ``####`` on its line."""

# How far a box may reach, and how much of a completion's end a pattern sees: bounds the work on any completion. The
# longest gold answer of the benchmarks in docs/verifiers-maths.md has 204 characters.
_REACH = 4096
_BRACES = re.compile(r"\\.|[{}]", re.DOTALL)


def extract_answer(text: str, pattern: str | None = None) -> str | None:
    r"""Final answer of a completion, None where there is none.

    The last ``\boxed`` (or ``\fbox``) decides, as in the MATH data set's own grader (Hendrycks et al. 2021,
    arXiv 2103.03874): one that never closes, or is empty, is no answer, and no earlier box stands in for it.

    Parameters
    ----------
    text : str
        The completion.
    pattern : str, optional
        Regular expression with one group, searched in the last 4,096 characters; its last match counts. It runs in
        this process on text a model wrote: use one without nested repetition.

    Raises
    ------
    DisaError
        Where the pattern is no regular expression with exactly one group.
    """
    answer = _last_box(text) if pattern is None else _last_match(text, pattern)
    return answer.strip() or None if answer is not None else None


# What TeX would box without braces, and models write: one word up to a space, a dollar sign or the end of a sentence.
_UNBRACED = re.compile(
    r"(?:\\[a-zA-Z]+\s*(?=[\[{]))?(?:\{[^{}]*\}|\[[^\[\]]*\]|\([^()]*\)|\\[{}]|[^\s$\\{}]|\\[a-zA-Z]+)+"
)


def _last_box(text: str) -> str | None:
    start, command = max((text.rfind(command), command) for command in ("\\boxed", "\\fbox"))
    if start < 0:
        return None
    window = text[start + len(command) : start + _REACH].lstrip()
    if not window.startswith("{"):
        bare = _UNBRACED.match(window)
        return bare[0].rstrip(".,;:!?*)") or None if bare else None
    depth = 0
    # A backslash hides the brace behind it: \{ and \} are set brackets.
    for brace in _BRACES.finditer(window):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if depth == 0 and brace[0] == "}":
            return window[1 : brace.start()]
    return None


def _last_match(text: str, pattern: str) -> str | None:
    found = None
    for match in compiled_pattern(pattern).finditer(text[-_REACH:]):
        found = match[1]
    return found


@functools.lru_cache(maxsize=16)
def compiled_pattern(pattern: str) -> re.Pattern[str]:
    """The pattern, checked.

    Raises DisaError where it is no regular expression with exactly one group.
    """
    where, fix = "maths verifier, pattern", f"give one like {HASHES!r}"
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise DisaError(f"{pattern!r} is no regular expression ({error})", where=where, fix=fix) from error
    if expression.groups != 1:
        raise DisaError(f"{pattern!r} has {expression.groups} groups, one is needed", where=where, fix=fix)
    return expression
