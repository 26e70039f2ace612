"""Figures as PNG, with the names of strangers in them."""

import functools
import io
import warnings
from pathlib import Path
from typing import Any

from matplotlib import font_manager
from matplotlib.figure import Figure

from vidcache.files import write_atomically

FALLBACK_FONTS = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Noto Sans Devanagari",
    "Noto Sans Thai",
    "WenQuanYi Zen Hei",
    "Arial Unicode MS",
    "PingFang HK",
)


@functools.cache
def _fonts() -> tuple[str, ...]:
    known = set(font_manager.get_font_names())
    return "DejaVu Sans", *(name for name in FALLBACK_FONTS if name in known)


def name_style() -> dict[str, Any]:
    """Return how a name is written: in matplotlib's font or what this machine has for other scripts; $x^2$ as it is."""
    return {"fontfamily": list(_fonts()), "parse_math": False}


def to_png(figure: Figure, dpi: int) -> bytes:
    """Draw a figure; that a character has no font, or a name no room, is no news."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from|constrained_layout not applied", UserWarning)
        figure.savefig(file, dpi=dpi, format="png", metadata={"Software": "vidcache"})  # `outputs.PICTURE`
    return file.getvalue()


def write_png(figure: Figure, path: Path, dpi: int) -> None:
    """Draw a figure into a file.

    Raises:
        OSError: The disk is full or not writable; an older file is untouched.
    """
    drawn = to_png(figure, dpi)
    write_atomically(path, lambda file: file.write(drawn))
