"""What a clip looks like, in 2,304 bytes: small grey pictures of 16 of its frames.

Kept beside every clip, so that near-duplicates are found without reading clips. More than the usual 64
bits a frame, because a fixed camera shows one room all day: there, hashes of clips that have nothing to
do with each other are as close as those of a cropped copy (measured; see `vidcache.near`).
"""

import functools

import numpy as np
import numpy.typing as npt

from vidcache.sampling import sample_indices

NUM_HASHED_FRAMES = 16
SIDE = 12
_LUMA = np.array([77, 150, 29], np.float64)  # BT.601, in 1/256
_BAR_SPREAD = 12  # of 255, in a bar: what compression leaves of one colour
_BAR_EDGE = 24  # how far the picture beside a bar differs from it, somewhere in time
_BLUR = 28  # within which part of height or width it does, along at least 3/5 of the edge: corners may lie in bars
_LONGEST_BAR = 45  # % of height or width: an upright film in a 16:9 frame has bars of 34 %


def perceptual_hash(clip: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Shrink evenly spaced frames of a clip to grey thumbnails.

    Bars are cut off first: rows and columns at the sides that are one colour all the time, up to 45 % at each. With
    them, films that have nothing else in common would look alike, and a film unlike its copy without them.

    Args:
        clip: (T, H, W, 3) uint8, RGB, without padding: repeated frames would outvote the others.

    Returns:
        (16, 12, 12) uint8, the mean brightness of each cell, rounded; the same on every machine.
    """
    count = len(clip)
    spread = np.arange(NUM_HASHED_FRAMES) * count // NUM_HASHED_FRAMES
    frames = clip[sample_indices(count, NUM_HASHED_FRAMES) if count >= NUM_HASHED_FRAMES else spread]
    frames = frames[:, *_without_bars(frames)]
    # All numbers are integers below 2**53: sums in float64 are exact in any order.
    grey = frames.astype(np.float64) @ _LUMA
    height, width = grey.shape[1:]
    sums = _cells(height) @ grey @ _cells(width).T
    scale = 256 * height * width
    return np.asarray((sums.astype(np.int64) + scale // 2) // scale, np.uint8)


def _without_bars(frames: npt.NDArray[np.uint8]) -> tuple[slice, slice]:
    """Find the rows and columns that are not bars: black ones beside a film, or a border of any colour."""
    # Colours first: along a last axis of 3, numpy is 30 times as slow.
    pixels = np.ascontiguousarray(np.moveaxis(np.stack([frames.min(axis=0), frames.max(axis=0)]), -1, 0), np.int16)
    rows, columns = (slice(0, size) for size in frames.shape[1:3])
    for _ in range(2):  # again, since what lies in a bar at a side tells nothing of those above and below
        columns = _inside(pixels[:, :, rows].swapaxes(2, 3), columns)
        rows = _inside(pixels[..., columns], rows)
    return rows, columns


def _inside(pixels: npt.NDArray[np.int16], kept: slice) -> slice:
    """Leave out the bars at both ends of the third axis, if they are not left out yet."""
    size = pixels.shape[2]
    start = kept.start or _bar(pixels)
    end = size - kept.stop or _bar(pixels[:, :, ::-1])
    return slice(start, size - end)


def _bar(pixels: npt.NDArray[np.int16]) -> int:
    """Count the rows from the first on that are one colour all the time and end in a straight edge; 0: none do.

    A dark corner ends gradually, and an empty background where something comes near: neither is a bar.

    Args:
        pixels: (3, 2, rows, columns) of each colour the least and the greatest value over time.
    """
    lowest, highest = pixels[:, 0].min(axis=2), pixels[:, 1].max(axis=2)
    size = lowest.shape[1]
    spread = np.maximum.accumulate(highest, axis=1) - np.minimum.accumulate(lowest, axis=1)
    length = int((spread <= _BAR_SPREAD).all(axis=0).sum())
    if not 0 < length < size:
        return 0
    low, high = lowest[:, :length].min(axis=1, keepdims=True), highest[:, :length].max(axis=1, keepdims=True)
    beyond = pixels[:, :, length : length + 1 + size // _BLUR]
    differs = (beyond[:, 1] >= low[..., None] + _BAR_EDGE) | (beyond[:, 0] <= high[..., None] - _BAR_EDGE)
    differs = differs.any(axis=0)
    is_picture = differs.sum(axis=1) * 5 >= 3 * differs.shape[1]
    length += int(is_picture.argmax())
    # Below the letters of a subtitle its box goes on.
    goes_on = ((highest - low <= _BAR_SPREAD) & (high - lowest <= _BAR_SPREAD)).all(axis=0)
    is_bar = is_picture.any() and not goes_on[length:][: size // 6].any()
    return length if is_bar and length * 100 <= _LONGEST_BAR * size else 0


@functools.cache
def _cells(size: int) -> npt.NDArray[np.float64]:
    """(12, size) how much of each pixel lies in each cell, in twelfths of a pixel: rows sum to `size`."""
    edges = np.arange(size + 1) * SIDE
    starts = np.arange(SIDE)[:, None] * size
    overlap = np.minimum(edges[1:], starts + size) - np.maximum(edges[:-1], starts)
    cells: npt.NDArray[np.float64] = np.maximum(overlap, 0).astype(np.float64)
    return cells
