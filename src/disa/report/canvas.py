"""How figures look, and how they become files: one palette, one size, no global state.

Only the report stage imports this module and the ``*_figures`` modules: they load matplotlib.
"""

from __future__ import annotations

import dataclasses
import io
import math
from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

FLAGGED, UNFLAGGED, GUIDE = "#D55E00", "#0072B2", "#555555"
# Okabe and Ito's palette (2008), told apart under every common colour blindness; grey for the start.
_FIXED = {"reference": "#6E6E6E", "disa": "#0072B2", "grpo": "#D55E00"}
# Where those run out, the darker of Tol's muted colours.
_FREE = ("#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#882255", "#999933", "#332288", "#AA4499")
# More names would cover the curves, and from a dozen on leave the axes no room at all.
_NAMES_INSIDE = 6
# What fits beside and below each other at the legend's font size: 80 characters a line, a handle as wide as 8.
_LEGEND_CHARACTERS, _HANDLE_CHARACTERS, _ROW_INCHES = 80, 8, 0.2
_MARKERS = "osD^vPX*"
# Where curves lie on each other, a dashed one lets the one below show.
_LINES = ("-", "-", (0, (4, 1.5)), (0, (1, 1)), (0, (4, 1, 1, 1)))
_STYLE = {
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
    "text.parse_math": False,  # names come from recipes: a dollar sign is a dollar sign
}


@dataclasses.dataclass(frozen=True)
class Plate:
    """A figure with the sentences that say what it shows."""

    name: str
    """File stem of the PNG."""
    figure: Figure
    reading: str
    """Plain language, computed from the plotted numbers; also the image's text alternative."""


def style() -> AbstractContextManager[None]:
    """Context in which figures are drawn and saved."""
    return matplotlib.rc_context(_STYLE)


def new_axes(title: str, x_label: str, y_label: str) -> tuple[Figure, Axes]:
    """One figure of the one size (5.4 by 3.7 inches) that stays readable at a phone's width."""
    figure = Figure(figsize=(5.4, 3.7), layout="constrained")
    axes = figure.add_subplot()
    axes.set(title=title, xlabel=x_label, ylabel=y_label)
    return figure, axes


def name_curves(axes: Axes, loc: str) -> None:
    """Legend inside the axes where names are few, else below them, on a figure that grows by its rows."""
    handles, names = axes.get_legend_handles_labels()
    if len(names) <= _NAMES_INSIDE:
        axes.legend(loc=loc)
        return
    columns = _LEGEND_CHARACTERS // (max(map(len, names)) + _HANDLE_CHARACTERS)
    width, height = axes.figure.get_size_inches()
    axes.figure.set_size_inches(width, height + _ROW_INCHES * math.ceil(len(names) / columns))
    axes.figure.legend(handles, names, loc="outside lower center", ncols=columns)


def png(figure: Figure) -> bytes:
    """Return the figure as a PNG, byte for byte the same for the same figure."""
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=170, metadata={"Software": None})
    return buffer.getvalue()


def illustrations(plates: Iterable[Plate]) -> list[tuple[str, bytes, str]]:
    """Name, PNG and reading of every plate, as pages take them."""
    return [(plate.name, png(plate.figure), plate.reading) for plate in plates]


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
