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


def perceptual_hash(clip: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Shrink evenly spaced frames of a clip to grey thumbnails.

    Args:
        clip: (T, H, W, 3) uint8, RGB, without padding: repeated frames would outvote the others.

    Returns:
        (16, 12, 12) uint8, the mean brightness of each cell, rounded; the same on every machine.
    """
    count = len(clip)
    spread = np.arange(NUM_HASHED_FRAMES) * count // NUM_HASHED_FRAMES
    frames = clip[sample_indices(count, NUM_HASHED_FRAMES) if count >= NUM_HASHED_FRAMES else spread]
    # All numbers are integers below 2**53: sums in float64 are exact in any order.
    grey = frames.astype(np.float64) @ _LUMA
    height, width = clip.shape[1:3]
    sums = _cells(height) @ grey @ _cells(width).T
    scale = 256 * height * width
    return np.asarray((sums.astype(np.int64) + scale // 2) // scale, np.uint8)


@functools.cache
def _cells(size: int) -> npt.NDArray[np.float64]:
    """(12, size) how much of each pixel lies in each cell, in twelfths of a pixel: rows sum to `size`."""
    edges = np.arange(size + 1) * SIDE
    starts = np.arange(SIDE)[:, None] * size
    overlap = np.minimum(edges[1:], starts + size) - np.maximum(edges[:-1], starts)
    cells: npt.NDArray[np.float64] = np.maximum(overlap, 0).astype(np.float64)
    return cells
