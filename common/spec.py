"""What a clip is: its shape, and how it was cut out of a video.

A cache and a checkpoint each carry a spec; they belong together only when the specs are equal.
"""

import dataclasses
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from vidcache.text import brief
from vidcache.untrusted import build

SAMPLING = "uniform-with-endpoints"
SCALING = "bicubic+accurate_rnd+full_chroma_int+bitexact"
_TONEMAP = "+tonemap"
TONEMAPPED = SCALING + _TONEMAP


@dataclasses.dataclass(frozen=True)
class Spec:
    """The shape of every clip of a cache, and how its frames were chosen and scaled.

    Attributes:
        num_frames: Frames of a clip (T), 2 to 1024.
        height: Pixels, 16 to 1024.
        width: Pixels, 16 to 1024.
        sampling: Name of the rule in `vidcache.spec`.
        scaling: swscale flags; then "+tonemap", where HDR videos are mapped to SDR.

    Raises:
        ValueError: A size is outside its range, or something is of another type.
    """

    num_frames: int = 64
    height: int = 112
    width: int = 112
    sampling: str = SAMPLING
    scaling: str = SCALING

    def __post_init__(self) -> None:
        for name, low in (("num_frames", 2), ("height", 16), ("width", 16)):
            value = getattr(self, name)
            if type(value) is not int or not low <= value <= 1024:
                raise ValueError(f"{name}: {brief(value)}, expected {low} to 1024")
        for name in ("sampling", "scaling"):
            value = getattr(self, name)
            if type(value) is not str or not len(value) <= 200:
                raise ValueError(f"{name}: {brief(value)}, expected a short text")

    @property
    def scaler_flags(self) -> str:
        """What swscale is told: `scaling` without what is no flag of it."""
        return self.scaling.removesuffix(_TONEMAP)

    @property
    def is_tonemapped(self) -> bool:
        """Whether HDR videos are mapped to SDR."""
        return self.scaling.endswith(_TONEMAP)

    @property
    def clip_shape(self) -> tuple[int, int, int, int]:
        """(T, H, W, 3)."""
        return (self.num_frames, self.height, self.width, 3)

    @property
    def clip_bytes(self) -> int:
        """Size of one clip, in bytes: T * H * W * 3."""
        return self.num_frames * self.height * self.width * 3

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-ready values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Self:
        """Build a spec from what `to_dict` gave; raises ValueError."""
        return build(cls, fields)

    def __str__(self) -> str:
        return f"{self.num_frames} frames of {self.height}x{self.width}"


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
