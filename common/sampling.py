"""Which frames of a video become the clip.

Pure arithmetic: no files, no ffmpeg, no torch.
"""

import numpy as np
import numpy.typing as npt


def sample_indices(num_available: int, num_wanted: int) -> npt.NDArray[np.int64]:
    """Spread `num_wanted` frames evenly over a video, first and last frame included.

    Frame i is `floor(i * (n - 1) / (T - 1))`, in exact integers. A video with fewer frames than
    wanted gives all of them and then repeats the last one.

    Args:
        num_available: Decodable frames (n), counted, not read from a header. >= 1.
        num_wanted: Frames wanted (T). >= 1; one frame is the first.

    Returns:
        (T,) non-decreasing, each in [0, n); strictly increasing when n >= T.

    Raises:
        ValueError: Either count is below 1.

    >>> sample_indices(10, 4).tolist()
    [0, 3, 6, 9]
    >>> sample_indices(2, 4).tolist()
    [0, 1, 1, 1]
    """
    if num_available < 1 or num_wanted < 1:
        raise ValueError(f"cannot sample {num_wanted} frames from {num_available}: both must be >= 1")
    slot = np.arange(num_wanted, dtype=np.int64)
    if num_available < num_wanted:
        return np.minimum(slot, num_available - 1)
    return slot * (num_available - 1) // max(num_wanted - 1, 1)
