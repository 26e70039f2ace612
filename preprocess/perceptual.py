"""A hash of what a clip looks like: close for re-encoded, scaled, brighter or darker copies.

Signs of the lowest DCT coefficients of the grey picture (Zauner, "Implementation and Benchmarking
of Perceptual Image Hash Functions", 2010), of 8 evenly spaced frames. The threshold is zero, not
the median: mirroring a picture then just flips the bits of the odd horizontal frequencies.
"""

import functools

import numpy as np
import numpy.typing as npt

from vidcache.sampling import sample_indices

NUM_HASHED_FRAMES = 8
SIDE = 8
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def perceptual_hash(clip: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint64]:
    """Hash a clip.

    Args:
        clip: (T, H, W, 3) uint8, RGB.

    Returns:
        (8,) one hash per hashed frame. Bit `8 * u + v` is the sign of the coefficient of vertical
        frequency u and horizontal frequency v; bit 0, the brightness, is always 0.
    """
    frames = clip[sample_indices(len(clip), NUM_HASHED_FRAMES)]
    grey = frames.astype(np.float32) @ _LUMA
    coefficients = _low_frequencies(clip.shape[1]) @ grey @ _low_frequencies(clip.shape[2]).T
    bits = (coefficients > 1e-3).reshape(NUM_HASHED_FRAMES, SIDE * SIDE)
    bits[:, 0] = False
    hashes: npt.NDArray[np.uint64] = np.packbits(bits, axis=1, bitorder="little").view("<u8")[:, 0]
    return hashes


@functools.cache
def _low_frequencies(size: int) -> npt.NDArray[np.float32]:
    """(8, size) the first rows of the DCT-II."""
    position = (np.arange(size) + 0.5) * np.pi / size
    basis: npt.NDArray[np.float32] = np.cos(np.outer(np.arange(SIDE), position)).astype(np.float32)
    return basis / np.float32(size)
