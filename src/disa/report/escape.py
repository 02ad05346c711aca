"""Model-written text is hostile: the one way it gets onto the page."""

from __future__ import annotations

import html
import unicodedata

_LIMIT = 4000
"""Characters of one text that are shown; a run-away completion must not make the page unreadable."""


def shown(text: str, limit: int = _LIMIT) -> str:
    """Text as inert HTML: markup escaped, control and direction-changing characters made visible.

    Characters of Unicode's category C (other than newline and tab) could reorder or hide what
    follows them, and lone surrogates cannot be written as UTF-8: they appear as code points.
    """
    kept = text[:limit]
    visible = "".join(
        c if c in "\n\t" or not unicodedata.category(c).startswith("C") else f"<U+{ord(c):04X}>" for c in kept
    )
    cut = f" … ({len(text) - limit} more characters)" if len(text) > limit else ""
    return html.escape(visible + cut)
