"""How a picture is to be shown, and what ffmpeg must be told where it would not do that right by itself."""

import dataclasses
import math
from collections.abc import Sequence

Filters = tuple[tuple[str, dict[str, str | int]], ...]  # of ffmpeg: name, options

HDR_TRANSFERS = ("smpte2084", "arib-std-b67")  # PQ and HLG, of which 8 bits as they are look washed out

# What ffmpeg's scaler converts; it refuses a video with another matrix as a whole.
_CONVERTIBLE = {"unknown", "gbr", "bt709", "fcc", "bt470bg", "smpte170m", "smpte240m", "bt2020nc"}


@dataclasses.dataclass(frozen=True)
class Turn:
    """How a picture is turned and mirrored to be shown.

    Attributes:
        degrees: Clockwise: 0, 90, 180 or 270; 0 where it is only mirrored, or turned by another angle.
        filters: What turns it.
    """

    degrees: int = 0
    filters: Filters = ()

    @property
    def swaps_sides(self) -> bool:
        """Whether width becomes height."""
        return self.degrees % 180 == 90


def turn_of(matrix: Sequence[int]) -> Turn:
    """Return what ffmpeg's autorotation does for a display matrix.

    Args:
        matrix: Its first two rows or more, row by row, in the fixed-point numbers of the container.
    """
    a, b, _, c, d = matrix[:5]
    if not (math.hypot(a, c) and math.hypot(b, d)):
        return Turn()  # broken: it has no angle
    degrees = round(math.degrees(math.atan2(b / math.hypot(b, d), a / math.hypot(a, c)))) % 360
    if degrees == 90:
        return Turn(90, (("transpose", {"dir": "cclock_flip" if c > 0 else "clock"}),))
    if degrees == 270:
        return Turn(270, (("transpose", {"dir": "clock_flip" if c < 0 else "cclock"}),))
    if degrees % 180 == 0:
        flips: Filters = (*((("hflip", {}),) if degrees and a < 0 else ()), *((("vflip", {}),) if d < 0 else ()))
        return Turn(180 if len(flips) == 2 else 0, flips)
    return Turn(0, (("rotate", {"angle": f"{degrees}*PI/180"}),))


@dataclasses.dataclass(frozen=True)
class Remedy:
    """What ffmpeg must be told of one video; nothing, of nearly all.

    Attributes:
        turn: How to turn its pictures once they are scaled; None where ffmpeg does it by itself, before.
        matrix: Colour matrix to use instead of what the video names; empty for that.
        tonemap: Map its tones and colours to those of SDR.
    """

    turn: Turn | None = None
    matrix: str = ""
    tonemap: bool = False


def convertible_matrix(matrix: str, primaries: str) -> str:
    """Return the colour matrix that is nearest to one of a video, and that ffmpeg can convert.

    Args:
        matrix: Name of it; empty unknown.
        primaries: Name of the colour primaries; empty unknown.
    """
    if (matrix or "unknown") in _CONVERTIBLE:
        return matrix or "unknown"
    return "bt2020nc" if "bt2020" in matrix + primaries else "bt709"


def scaling_filters(width: int, height: int, flags: str, remedy: Remedy, size: tuple[int, int]) -> Filters:
    """Return the filters that make pictures of the wanted size, shown as they are to be.

    Args:
        width: Wanted.
        height: Wanted.
        flags: Of the scaler.
        remedy: What ffmpeg must be told.
        size: Width and height of the pictures, as far as is known.
    """
    sdr = {"out_transfer": "bt709", "out_primaries": "bt709"} if remedy.tonemap else {}

    def scale(to_width: int, to_height: int) -> Filters:
        return (("scale", {"w": to_width, "h": to_height, "flags": flags, **sdr}),)

    filters: Filters = ()
    if remedy.matrix:  # some transfer functions are refused too, and they change no pixel unless tones are mapped
        transfer = {} if remedy.tonemap else {"color_trc": "bt709"}
        filters = (("setparams", {"colorspace": remedy.matrix, **transfer}),)
    turn = remedy.turn or Turn()
    if turn.filters and turn.filters[0][0] == "rotate":  # a squeezed picture turns by another angle
        return (*filters, *scale(*size), *turn.filters, *scale(width, height))
    if turn.swaps_sides:
        width, height = height, width
    return (*filters, *scale(width, height), *turn.filters)
