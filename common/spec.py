"""What a clip is: its shape, and how it was cut out of a video.

A cache and a checkpoint each carry a spec; they belong together only when the specs are equal.
"""

import dataclasses
from typing import Any, Self

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
        sampling: Name of the rule in `vidcache.sampling`.
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
