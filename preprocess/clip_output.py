"""Where ffmpeg puts the frames of one clip."""

import mmap
import os
import sys
import tempfile
from collections.abc import Sequence
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from vidcache.preprocess.ffmpeg import Children, Exit
from vidcache.preprocess.keyed import CHATTER
from vidcache.spec import Spec

# The same pixels as rgb24, plane by plane: swscale packs pixels without SIMD, 8 to 10 ms of 55 for a short clip.
PIXEL_FORMAT, _PLANES = "gbrp", (2, 0, 1)


class ClipOutput:
    """A file in memory that ffmpeg writes by itself: through a pipe, each frame would wake us."""

    def __init__(self, spec: Spec) -> None:
        self._spec = spec
        if sys.platform == "linux":
            self.descriptor = os.memfd_create("clip", os.MFD_CLOEXEC)
        else:
            with tempfile.TemporaryFile() as file:
                self.descriptor = os.dup(file.fileno())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self.descriptor)

    @property
    def num_frames(self) -> int:
        """Whole frames that are there."""
        return os.fstat(self.descriptor).st_size // (self._spec.clip_bytes // self._spec.num_frames)

    def run(self, children: Children, command: Sequence[str], source: int, deadline: float) -> Exit:
        """Let ffmpeg write here from the start."""
        os.ftruncate(self.descriptor, 0)
        return children.run(
            command,
            pass_fds=(source, self.descriptor),
            deadline=deadline,
            max_file_bytes=self._spec.clip_bytes,
            chatter=CHATTER,
        )

    def padded_clip(self) -> npt.NDArray[np.uint8]:
        """Return (T, H, W, 3) uint8, the last frame repeated as far as need be."""
        num_frames, spec = self.num_frames, self._spec
        with mmap.mmap(self.descriptor, 0, prot=mmap.PROT_READ) as memory:
            planes = np.frombuffer(memory, np.uint8, num_frames * spec.clip_bytes // spec.num_frames)
            planes = planes.reshape(num_frames, 3, spec.height, spec.width)
            clip = np.empty(spec.clip_shape, np.uint8)
            for channel, plane in enumerate(_PLANES):
                clip[:num_frames, ..., channel] = planes[:, plane]
            del planes  # or the memory could not be unmapped
        clip[num_frames:] = clip[num_frames - 1]
        return clip
