"""How figures look, and how they become files: one palette, one size, no global state.

Whoever draws imports this module: it loads matplotlib, which takes a second.
"""

from __future__ import annotations

import dataclasses
import html
import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure as Drawing
from matplotlib.ticker import LogLocator, NullLocator
from numpy.typing import ArrayLike, NDArray

from disa.display.page import Illustration, visible

FLAGGED, UNFLAGGED, GUIDE, TEXT, PAPER = "#D55E00", "#0072B2", "#555555", "#1C1C1E", "#FFFFFF"
# Okabe and Ito's palette (2008), told apart under every common colour blindness; grey for the start.
_FIXED = {"reference": "#6E6E6E", "disa": "#0072B2", "grpo": "#D55E00"}
# Where those run out, the darker of Tol's muted colours.
_FREE = ("#009E73", "#CC79A7", "#E69F00", "#56B4E9", TEXT, "#882255", "#999933", "#332288", "#AA4499")
# What a page paints in other colours at night, by the name of its variable; the rest is legible on both.
_THEMED = {
    TEXT: "text", PAPER: "page", GUIDE: "soft", "#888888": "soft", "#E4E4E4": "line", "#6E6E6E": "grey",
    "#0072B2": "blue", "#882255": "wine", "#332288": "indigo", "#AA4499": "purple",
}  # fmt: skip
# What fits beside and below each other at the legend's font size: 80 characters a line, a handle as wide as 8.
_LEGEND_CHARACTERS, _HANDLE_CHARACTERS, _ROW_INCHES = 80, 8, 0.2
_MARKERS = "osD^vPX*"
# Where curves lie on each other, a dashed one lets the one below show.
_LINES = ("-", "-", (0, (4, 1.5)), (0, (1, 1)), (0, (4, 1, 1, 1)))
_STYLE: dict[Any, Any] = {
    "font.size": 10,
    "font.family": ["DejaVu Sans"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888888",
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "svg.fonttype": "none",  # text stays text: it can be read aloud, searched and restyled
    "svg.hashsalt": "disa",  # the same figure gives the same bytes
    "text.parse_math": False,  # names come from recipes: a dollar sign is a dollar sign
} | dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), TEXT)
MANY = 2000
"""Marks from which on they become pixels within the page's vector figure, which would otherwise grow to megabytes."""


@dataclasses.dataclass(frozen=True)
class Figure:
    """A drawing with the sentences that say what it shows."""

    name: str
    """File stem of the PNG."""
    drawing: Drawing
    caption: str
    """Plain language, computed from the plotted numbers; also the description that a screen reader reads."""


def figure_style() -> AbstractContextManager[None]:
    """Context in which figures are drawn and saved."""
    return matplotlib.rc_context(_STYLE)


def new_axes(title: str, x_label: str, y_label: str) -> tuple[Drawing, Axes]:
    """One drawing of the one size (5.4 by 3.7 inches) that stays readable at a phone's width."""
    drawing = Drawing(figsize=(5.4, 3.7), layout="constrained")
    axes = drawing.add_subplot()
    axes.set(title=title, xlabel=x_label, ylabel=y_label)
    return drawing, axes


def name_curves(axes: Axes) -> None:
    """Legend below the axes, where it covers nothing; the drawing grows by its rows."""
    drawing = axes.figure
    assert isinstance(drawing, Drawing)  # not a part of one
    handles, names = axes.get_legend_handles_labels()
    columns = max(1, min(len(names), _LEGEND_CHARACTERS // (max(map(len, names)) + _HANDLE_CHARACTERS)))
    width, height = drawing.get_size_inches()
    drawing.set_size_inches(width, height + _ROW_INCHES * math.ceil(len(names) / columns))
    drawing.legend(handles, names, loc="outside lower center", ncols=columns)


def plain_log(axis: Any) -> None:
    """A few labelled ticks of a logarithmic axis, as plain numbers."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_minor_locator(NullLocator())


def as_png(drawing: Drawing) -> bytes:
    """Return the drawing as a PNG, byte for byte the same for the same drawing."""
    FigureCanvasAgg(drawing)
    buffer = io.BytesIO()
    drawing.savefig(buffer, format="png", dpi=170, metadata={"Software": None})
    return buffer.getvalue()


def as_svg(figure: Figure) -> str:
    """Return the drawing as an SVG element for a page: its colours follow the page's theme, its ids are its own."""
    FigureCanvasSVG(figure.drawing)
    buffer = io.StringIO()
    figure.drawing.savefig(buffer, format="svg", dpi=170, transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = re.sub(r"<(metadata|defs)>\s*(<style.*?</style>|<rdf:RDF.*?</rdf:RDF>)\s*</\1>", "", text, flags=re.DOTALL)
    for colour, variable in _THEMED.items():
        text = re.sub(f"{colour}(?=[;\"'])", f"var(--{variable})", text, flags=re.IGNORECASE)
    name = re.sub(r"[^A-Za-z0-9]", "-", figure.name)
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", text)
    body = visible(text[text.index("<svg") :])
    title = html.escape(figure.drawing.axes[0].get_title(loc="left"))
    return body.replace("<svg ", f'<svg role="img" aria-label="{title}" aria-describedby="caption-{figure.name}" ', 1)


def write_figures(folder: Path, figures: Iterable[Figure]) -> list[Illustration]:
    """Write one PNG per figure, remove those of an earlier report, and return the figures as a page takes them."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.png"):
        old.unlink()
    drawn = []
    for figure in figures:
        (folder / f"{figure.name}.png").write_bytes(as_png(figure.drawing))
        drawn.append(Illustration(figure.name, as_svg(figure), figure.caption))
    return drawn


def model_styles(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Colour, marker and line of every model, the same in every figure of a report."""
    names = list(names)
    free = [name for name in names if name not in _FIXED]
    colours = _FIXED | {name: _FREE[i % len(_FREE)] for i, name in enumerate(free)}
    return {
        name: {
            "color": colours[name],
            "marker": _MARKERS[i % len(_MARKERS)],
            "linestyle": _LINES[i % len(_LINES)],
        }
        for i, name in enumerate(names)
    }


class ScatterPoint(NamedTuple):
    """One model in the scatter: (value, standard error) of both metrics."""

    model: str
    quality: tuple[float, float]
    diversity: tuple[float, float]
    group: str = ""
    """Set of prompts, where there are several."""


def quality_against_diversity(points: Sequence[ScatterPoint], quality: str, lead: str) -> list[Figure]:
    """Quality (``Mean@8``) against effective modes with standard errors; nothing without points."""
    if not points:
        return []
    drawing, axes = new_axes("Quality against diversity", quality, "effective modes per prompt")
    styles = model_styles(dict.fromkeys(p.model for p in points))
    for p in points:
        look = styles[p.model]
        axes.errorbar(
            p.quality[0],
            p.diversity[0],
            xerr=np.nan_to_num(p.quality[1]),
            yerr=np.nan_to_num(p.diversity[1]),
            fmt=look["marker"],
            color=look["color"],
            markerfacecolor=PAPER if p.group == "train" else look["color"],
            markersize=8,
            capsize=3,
            label=_named(p, ", "),
        )
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.margins(0.1)
    name_curves(axes)
    said = "; ".join(f"{_named(p, ' on ')} {p.quality[0]:.3f} and {p.diversity[0]:.2f}" for p in points)
    caption = f"Up and to the right is better. {lead} {quality} and effective modes: {said}."
    return [Figure("quality_diversity", drawing, caption)]


def running_mean(values: ArrayLike, window: int) -> NDArray[np.float64]:
    """Mean of the last ``window`` values, of fewer at the start: no point of a curve knows what comes after it."""
    sums = np.cumsum(np.asarray(values, dtype=np.float64))
    earlier = np.concatenate([np.zeros(window), sums])[: len(sums)]
    return (sums - earlier) / np.minimum(np.arange(1, len(sums) + 1), window)


def point_look(look: Mapping[str, Any]) -> dict[str, Any]:
    """A model's style for a single point."""
    return {"color": look["color"], "marker": look["marker"], "linestyle": "none", "markersize": 7}


def _named(point: ScatterPoint, separator: str) -> str:
    return f"{point.model}{separator}{point.group}" if point.group else point.model
