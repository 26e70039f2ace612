"""Clips as pictures: rows of frames under each other, in one PNG."""

import functools
import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
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
    """Draw a figure into a file; raises OSError."""
    drawn = to_png(figure, dpi)
    write_atomically(path, lambda file: file.write(drawn))


Pictures = npt.NDArray[np.uint8]

_FRAME_INCHES = 1.1


class Filmstrip(NamedTuple):
    """Rows of frames that belong together: a printable title, and the name and frames, (F, H, W, 3), of each row."""

    title: str
    lines: tuple[tuple[str, Pictures], ...]


def draw_filmstrips(strips: Sequence[Filmstrip], path: Path) -> None:
    """Write filmstrips as one PNG; raises OSError."""
    num_frames, height, width = strips[0].lines[0][1].shape[:3]
    gap = max(1, width // 20)
    line_inches = _FRAME_INCHES * height / width
    heights = [len(strip.lines) * line_inches + 0.25 for strip in strips]
    figure = Figure(figsize=(num_frames * _FRAME_INCHES + 0.25, sum(heights)), layout="constrained")
    axes = figure.subplots(len(strips), squeeze=False, height_ratios=heights)[:, 0]
    for axis, strip in zip(axes, strips, strict=True):
        axis.imshow(_join([pictures for _, pictures in strip.lines], gap), interpolation="nearest")
        axis.set_title(strip.title, loc="left", fontsize=7, **name_style())
        middles = [(height - 1) / 2 + index * (height + gap) for index in range(len(strip.lines))]
        names = [name for name, _ in strip.lines]
        axis.set_yticks(middles, names, rotation=90, va="center", fontsize=7, **name_style())
        axis.tick_params(length=0)
        axis.set_xticks([])
        axis.spines[:].set_visible(False)
    write_png(figure, path, 130)


def _join(lines: Sequence[Pictures], gap: int) -> Pictures:
    """Return the frames of all lines in one picture, white between them: an Axes for each frame takes 20 ms."""
    frames_LFHWC = np.pad(np.stack(lines), ((0, 0), (0, 0), (0, gap), (0, gap), (0, 0)), constant_values=255)
    num_lines, num_frames, height, width, _ = frames_LFHWC.shape
    joined = frames_LFHWC.transpose(0, 2, 1, 3, 4).reshape(num_lines * height, num_frames * width, 3)
    return joined[:-gap, :-gap]
