"""Figures as inline SVG that follow the page's colours.

matplotlib draws with placeholder colours; they are then replaced by the variables of
``style.css``, so that one figure serves the light page, the dark page and the printer. Its text
stays text, in the page's own typeface.

Sizes are CSS pixels: a figure of width 480 is meant to be shown about that wide.
"""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from difftilt.errors import require
from difftilt.report.markup import Html, raw

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PIXELS_PER_INCH = 72  # of an SVG by matplotlib: one point is one unit
RASTER_SCALE = 2.5  # of the parts that are pixels, for dense screens

# Placeholder colour -> variable of style.css. No figure uses these near-blacks otherwise.
INK, MUTED, RULE, SHADE = "#010002", "#010003", "#010004", "#010005"
SERIES = {"prior": "#010006", "posterior": "#010007", "corrected": "#010008", "truth": "#010009"}
VARIABLES = {INK: "ink", MUTED: "muted", RULE: "rule", SHADE: "shade"} | {
    colour: name for name, colour in SERIES.items()
}
# Where pixels are drawn no variable reaches: these read well on light and on dark.
FIXED = {"prior": "#3f8fd0", "posterior": "#dd6b20", "corrected": "#179e76"}

STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "difftilt",
    "font.family": "DejaVu Sans",
    "font.size": 12,
    "text.color": INK,
    "axes.edgecolor": RULE,
    "axes.labelcolor": MUTED,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.labelsize": 12,
    "axes.titlesize": 13,
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.unicode_minus": True,
    "axes.formatter.useoffset": False,
    "axes.formatter.limits": (-4, 6),
    "figure.facecolor": "none",
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.labelsize": 11,
    "ytick.labelsize": 11,
    "path.simplify": True,
}


class Canvas:
    """A figure with one pair of axes, and the SVG made of it when its block ends."""

    def __init__(self, figure: "Figure", axes: "Axes") -> None:
        self.figure = figure
        self.axes = axes
        self.svg = Html("")


@contextmanager
def canvas(name: str, description: str, width: int = 480, height: int = 260) -> Iterator[Canvas]:
    """Draw inside the block, read ``svg`` after it.

    Arguments:
        name: unique on the page; it leads every id of the SVG.
        description: what a reader who cannot see the figure should know.
        width: CSS pixels.
        height: CSS pixels.

    Raises:
        MissingPackage: matplotlib is not installed.
    """
    matplotlib = require("matplotlib", "report")
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        inches = (width / PIXELS_PER_INCH, height / PIXELS_PER_INCH)
        figure = Figure(figsize=inches, layout="constrained")
        drawing = Canvas(figure, figure.add_subplot())
        yield drawing
        drawing.svg = _finish(_save(figure), name, description)


def _save(figure: "Figure") -> str:
    buffer = io.StringIO()
    resolution = PIXELS_PER_INCH * RASTER_SCALE
    figure.savefig(buffer, format="svg", dpi=resolution, metadata={"Date": None}, transparent=True)
    return buffer.getvalue()


def _finish(svg: str, name: str, description: str) -> Html:
    """Without prologue, metadata and page-wide style; ids made unique; colours made variables."""
    from html import escape

    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, f"var(--{variable})")
    box = re.search(r'viewBox="[^"]*"', svg)
    assert box is not None, "matplotlib writes a viewBox"
    inner = svg[svg.index(">") + 1 :]
    head = f'<svg class="plot" role="img" aria-label="{escape(description)}" {box.group()}>'
    return raw(head + re.sub(r"\s*\n\s*", "\n", inner))
