"""Figures as SVG for a page: text stays text, and takes the colour of the page around it, light or dark."""

import io
import re
from collections.abc import Callable
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

_INK = "#0a0b0c"  # stands for the colour of the page's text
_STYLE: dict[Any, Any] = {
    "axes.edgecolor": _INK,
    "axes.facecolor": "none",
    "axes.labelcolor": _INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": _INK,
    "axes.titlesize": 11,
    "figure.facecolor": "none",
    "legend.framealpha": 0,
    "savefig.facecolor": "none",
    "svg.fonttype": "none",
    "svg.hashsalt": "vidcache",  # the same figure, the same bytes
    "text.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
}


def to_svg(draw: Callable[[], Figure]) -> str:
    """Draw a figure in the colours of a page.

    Args:
        draw: Makes the figure; called with the style set.

    Returns:
        An `<svg>` element. Names in it are escaped by matplotlib.
    """
    with mpl.rc_context(_STYLE):
        file = io.StringIO()
        draw().savefig(file, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    text = file.getvalue()
    text = text[text.index("<svg") :].replace(_INK, "currentColor")
    used = set(re.findall(r"#([\w-]+)", text))
    # Several figures share a page: names that nothing refers to would be there twice.
    return re.sub(r' id="([\w-]+)"', lambda found: found[0] if found[1] in used else "", text)
