"""A file in memory of which only the written parts exist: libhdf5 writes here, we write to the disk."""

import io
import os
from typing import Any

from vidcache.files import pwrite_all

NEAR_BYTES = 1 << 16  # zeros that are cheaper to write than a call


class SparseImage(io.RawIOBase):
    """Keeps each write; everything between is zero. For few and small writes at any distance."""

    def __init__(self) -> None:
        super().__init__()
        self.num_bytes = 0
        self._writes: list[tuple[int, bytes]] = []
        self._position = 0

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move as any file does."""
        self._position = offset + (0, self._position, self.num_bytes)[whence]
        return self._position

    def tell(self) -> int:
        """Return the position."""
        return self._position

    def write(self, data: Any) -> int:
        """Keep the data; the file grows if need be."""
        kept = bytes(data)
        self._writes.append((self._position, kept))
        self._position += len(kept)
        self.num_bytes = max(self.num_bytes, self._position)
        return len(kept)

    def readinto(self, out: Any) -> int:
        """Fill `out` as far as the file goes."""
        view = memoryview(out).cast("B")
        start, end = self._position, min(self._position + len(view), self.num_bytes)
        view[: max(end - start, 0)] = bytes(max(end - start, 0))
        for offset, data in self._writes:
            low, high = max(offset, start), min(offset + len(data), end)
            if low < high:
                view[low - start : high - start] = data[low - offset : high - offset]
        self._position = max(start, end)
        return max(end - start, 0)

    def truncate(self, size: int | None = None) -> int:
        """Set the length."""
        self.num_bytes = self._position if size is None else size
        return self.num_bytes

    def flush(self) -> None:
        """Do nothing: there is nothing below."""

    def save(self, descriptor: int) -> None:
        """Write to an empty file.

        Raises:
            OSError: The disk is full or broken.
        """
        os.ftruncate(descriptor, self.num_bytes)
        for start, end in self._extents():
            self.seek(start)
            pwrite_all(descriptor, memoryview(self.read(end - start)), start)

    def _extents(self) -> list[tuple[int, int]]:
        """Merge what was written into pieces that are far apart."""
        merged: list[tuple[int, int]] = []
        for offset, data in sorted(self._writes):
            end = min(offset + len(data), self.num_bytes)
            if merged and offset <= merged[-1][1] + NEAR_BYTES:
                merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
            elif offset < end:
                merged.append((offset, end))
        return merged
