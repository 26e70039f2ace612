"""Several caches as one: their rows one after the other."""

import bisect
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
import xxhash

from vidcache.cache.layout import COLUMNS
from vidcache.cache.reader import CacheReader, Reader, Rows
from vidcache.errors import CacheError
from vidcache.text import difference


class JoinedReader(Reader):
    """Caches of one spec and one list of classes, used as one.

    Args:
        paths: Of the caches, at least one.

    Attributes:
        readers: Of the caches, in the given order.

    Raises:
        CacheError: One cannot be read, or they do not belong together.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.readers: list[CacheReader] = []
        try:
            for path in paths:
                self.readers.append(CacheReader(path))
            first = self.readers[0]
            for other in self.readers[1:]:
                _check_equal(first, other)
        except BaseException:
            self.close()
            raise
        self.spec, self.classes = first.spec, first.classes
        # Paths of different widths become one as wide as the widest.
        self.columns = {
            column.name: np.concatenate([reader.columns[column.name] for reader in self.readers]) for column in COLUMNS
        }
        self._starts = [0, *itertools.accumulate(len(reader) for reader in self.readers)]

    def __reduce__(self) -> tuple[type[Self], tuple[list[Path]]]:
        return (type(self), ([reader.path for reader in self.readers],))

    def close(self) -> None:
        """Give the descriptors back. Reading afterwards is an error."""
        for reader in self.readers:
            reader.close()

    @property
    def name(self) -> str:
        """The files, for messages."""
        return " + ".join(reader.name for reader in self.readers)

    @property
    def fingerprint(self) -> str:
        """Names the content: a hash of the caches' own, in their order."""
        return _hash_of([reader.fingerprint for reader in self.readers])

    @property
    def split_hash(self) -> str:
        """Names the split: a hash of the caches' own, in their order."""
        return _hash_of([reader.split_hash for reader in self.readers])

    def _read_clip(self, row: int, frames: Rows | None, out: npt.NDArray[np.uint8], verify: bool) -> None:
        place = bisect.bisect_right(self._starts, row) - 1
        self.readers[place].read([row - self._starts[place]], frames, out[None], verify=verify)


def open_caches(paths: Sequence[Path]) -> Reader:
    """Open one cache, or several as one.

    Raises:
        CacheError: One cannot be read, or they do not belong together.
    """
    return CacheReader(paths[0]) if len(paths) == 1 else JoinedReader(paths)


def _check_equal(first: CacheReader, other: CacheReader) -> None:
    advice = "Build both with the same options and class folders, or use them one by one"
    if other.spec != first.spec:
        raise CacheError(f"{other.name}: clips are {other.spec!r}, but {first.spec!r} in {first.name}. {advice}")
    if other.classes != first.classes:
        names = difference(other.classes, first.classes)
        raise CacheError(f"{other.name}: has other classes than {first.name} ({names}). {advice}")


def _hash_of(hashes: list[str]) -> str:
    return xxhash.xxh3_128_hexdigest("\n".join(hashes).encode())
