"""The one page: a file that asks nothing of anyone, made of tables, figures, samples and links.

Everything that is shown passes the template's autoescape, and before it :func:`visible`: what models write is hostile.
"""

from __future__ import annotations

import base64
import dataclasses
import functools
import hashlib
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from disa.display.table import Table

LIMIT = 4000
"""Characters of one text that are shown; a run-away completion must not make the page unreadable."""


class Illustration(NamedTuple):
    """A figure as a page takes it."""

    name: str
    svg: str
    """An SVG element, taken as it is: its texts are escaped by who drew it."""
    caption: str


@dataclasses.dataclass(frozen=True)
class PageText:
    """A paragraph, or several points."""

    kind: ClassVar[str] = "text"
    lines: Sequence[str]


@dataclasses.dataclass(frozen=True)
class PageFigures:
    """Figures side by side, each with its caption."""

    kind: ClassVar[str] = "figures"
    figures: Sequence[Illustration]


@dataclasses.dataclass(frozen=True)
class PageSample:
    """One completion."""

    text: str
    verdict: str
    """``right``, ``wrong`` or ``undecided``."""
    note: str


@dataclasses.dataclass(frozen=True)
class PageSamples:
    """Completions of one prompt, a column per model."""

    kind: ClassVar[str] = "samples"
    title: str
    prompt: str
    columns: dict[str, list[PageSample]]


@dataclasses.dataclass(frozen=True)
class PageLinks:
    """Files beside the page, by what they are."""

    kind: ClassVar[str] = "links"
    files: dict[str, str]


@dataclasses.dataclass(frozen=True)
class FoldedText:
    """A long text behind a click, whole."""

    kind: ClassVar[str] = "folded"
    title: str
    text: str


Part = PageText | Table | PageFigures | PageSamples | PageLinks | FoldedText


@dataclasses.dataclass(frozen=True)
class PageSection:
    """A heading with what stands below it; without parts it is left out."""

    title: str
    parts: Sequence[Part]

    @property
    def anchor(self) -> str:
        """What the contents link to."""
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")


def page(title: str, lead: str, sections: Sequence[PageSection]) -> str:
    """The whole page, its contents made of the sections that have parts."""
    template, script = _template()
    kept = [s for s in sections if any(getattr(p, "figures", True) for p in s.parts)]
    # What the browser compares the inline script with: whatever else got through the escaping would not run.
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return template.render(title=title, lead=lead, sections=kept, script=script, hash=allowed)


def visible(value: Any) -> Any:
    """Make the control and direction-changing characters of a text visible.

    Characters of Unicode's category C (other than newline and tab) could reorder or hide what follows them, and lone
    surrogates cannot be written as UTF-8: they appear as code points.
    """
    if not isinstance(value, str) or hasattr(value, "__html__"):
        return value
    return "".join(
        c if c in "\n\t" or not unicodedata.category(c).startswith("C") else f"<U+{ord(c):04X}>" for c in value
    )


def cut_text(text: str, limit: int = LIMIT) -> str:
    """The first ``limit`` characters, with a word on how many are missing."""
    return text if len(text) <= limit else f"{text[:limit]} … ({len(text) - limit} more characters)"


@functools.cache
def _template() -> tuple[Any, str]:
    import jinja2
    from markupsafe import Markup

    here = Path(__file__).parent
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(here), autoescape=True, finalize=visible, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["cut"] = cut_text
    return environment.get_template("page.html.j2"), Markup((here / "page.js").read_text(encoding="utf-8"))
