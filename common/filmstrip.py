"""Clips as pictures: rows of frames under each other, in one PNG."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from vidcache.figures import name_style, write_png

Pictures = npt.NDArray[np.uint8]

_FRAME_INCHES = 1.1


@dataclasses.dataclass(frozen=True)
class Filmstrip:
    """Some rows of frames that belong together.

    Attributes:
        title: Above them; printable.
        lines: (name, frames) of each row; frames are (F, H, W, 3) uint8 RGB, of one shape everywhere.
    """

    title: str
    lines: tuple[tuple[str, Pictures], ...]


def draw_filmstrips(strips: Sequence[Filmstrip], path: Path) -> None:
    """Write filmstrips as one PNG.

    Raises:
        OSError: The disk is full or not writable; an older file is untouched.
    """
    num_frames, height, width = strips[0].lines[0][1].shape[:3]
    line_inches = _FRAME_INCHES * height / width
    heights = [len(strip.lines) * line_inches + 0.35 for strip in strips]
    figure = Figure(figsize=(num_frames * _FRAME_INCHES, sum(heights)), layout="constrained")
    parts = np.atleast_1d(np.array(figure.subfigures(len(strips), 1, height_ratios=heights)))
    for part, strip in zip(parts, strips, strict=True):
        part.suptitle(strip.title, fontsize=7, x=0.01, ha="left", **name_style())
        axes = part.subplots(len(strip.lines), num_frames, squeeze=False)
        for (name, pictures), line in zip(strip.lines, axes, strict=True):
            for picture, axis in zip(pictures, line, strict=True):
                axis.imshow(picture, interpolation="nearest")
                axis.set(xticks=[], yticks=[])
            line[0].set_ylabel(name, fontsize=7, **name_style())
    write_png(figure, path, 130)
