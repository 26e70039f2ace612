"""Features of clips in a file: what the frozen stages of a model make of them, computed once.

The file is laid out as a cache is: `[user block][HDF5 metadata and columns][features]`; `vidcache.cache.feature_writer`
writes it. Numbers are bfloat16, kept as the two bytes of each (HDF5 has no such type). Nothing here
computes anything.
"""

import contextlib
import dataclasses
import math
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt
import xxhash

from vidcache.cache.layout import (
    HASH_HEX,
    USER_BLOCK_BYTES,
    metadata_hash_of,
    unseal,
)
from vidcache.errors import CacheError
from vidcache.files import open_regular, pread_all
from vidcache.text import printable

Rows = npt.NDArray[np.int64]
MAGIC = b"vidfeats"
FORMAT_VERSION = 1
HEADER = np.dtype(
    [
        ("format", "S8"),
        ("format_version", "<u4"),
        ("complete", "<u4"),
        ("num_entries", "<u8"),
        ("shape", "<u8", (4,)),
        ("hashes_offset", "<u8"),
        ("features_offset", "<u8"),
        ("file_bytes", "<u8"),
        ("metadata_hash", f"S{HASH_HEX}"),
        ("key", f"S{HASH_HEX}"),
    ]
)
_REMEDY = "Delete it: it is computed again"


@dataclasses.dataclass(frozen=True)
class FeaturePlan:
    """What is to be in a file of features.

    Attributes:
        facts: Everything that the features depend on: names and JSON-ready values. They are root attributes too.
        rows: (M,) int64, the clip of each entry.
        views: (M,) int32, which augmentation of it, from 0; -1 without.
        shape: (T', H', W', C) of one entry.
    """

    facts: Mapping[str, str | int | float]
    rows: Rows
    views: npt.NDArray[np.int32]
    shape: tuple[int, int, int, int]

    @property
    def entry_bytes(self) -> int:
        """Size of one entry: two bytes a number."""
        return 2 * math.prod(self.shape)

    @property
    def key(self) -> str:
        """Names the content: a hash of facts, rows, views and shape."""
        digest = xxhash.xxh3_128(repr((sorted(self.facts.items()), self.shape, FORMAT_VERSION)).encode())
        digest.update(np.ascontiguousarray(self.rows, "<i8").data)
        digest.update(np.ascontiguousarray(self.views, "<i4").data)
        return digest.hexdigest()


class FeatureReader:
    """A file of features, open for reading; a source for `vidcache.cache.stream`.

    Attributes:
        path: The file.
        key: Of its plan.
        shape: (T', H', W', C) of one entry.

    Raises:
        CacheError: The file is missing, damaged, or something else.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._descriptor = path, -1
        where = printable(path)
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # waits for no pipe
            block = os.pread(self._descriptor, USER_BLOCK_BYTES, 0)
        except OSError as error:
            self.close()
            raise CacheError(f"{where}: {error.strerror}, expected a file of features") from None
        try:
            header = unseal(block, HEADER, where, _REMEDY, MAGIC)
            if header["format_version"] != FORMAT_VERSION:
                raise CacheError(f"{where}: version {header['format_version']}, expected {FORMAT_VERSION}. {_REMEDY}")
            self.shape: tuple[int, ...] = tuple(header["shape"].tolist())
            self.key = header["key"].decode("ascii", "replace")
            self._count, self._offset = int(header["num_entries"]), int(header["features_offset"])
            size, num_bytes = os.fstat(self._descriptor).st_size, self._count * self.entry_bytes
            if size != max(int(header["file_bytes"]), self._offset + num_bytes):
                raise CacheError(f"{where}: {size:,} bytes long, expected {int(header['file_bytes']):,}. {_REMEDY}")
            found = metadata_hash_of(self._descriptor, self._offset, num_bytes, size)
            if found.encode() != header["metadata_hash"]:
                raise CacheError(f"{where}: the columns are damaged (hash {found}, not that of the header). {_REMEDY}")
            hashes_end = int(header["hashes_offset"]) + self._count * HASH_HEX
            if hashes_end > size or not num_bytes or self._count > size:
                raise CacheError(f"{where}: no features that a run writes. {_REMEDY}")
            hashes = os.pread(self._descriptor, self._count * HASH_HEX, int(header["hashes_offset"]))
            self._hashes = np.frombuffer(hashes, f"S{HASH_HEX}")
        except BaseException:
            self.close()
            raise

    def __len__(self) -> int:
        return self._count

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the descriptor back. Reading afterwards is an error."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    @property
    def entry_bytes(self) -> int:
        """Size of one entry: two bytes a number."""
        return 2 * math.prod(self.shape)

    @property
    def labels(self) -> Rows:
        """Features have none of their own: zeros."""
        return np.zeros(self._count, np.int64)

    def shape_of(self, frames: npt.ArrayLike | None = None) -> tuple[int, ...]:  # noqa: ARG002 -- of a `Source`
        """(T', H', W', 2 C): the bytes of one entry."""
        return (*self.shape[:3], 2 * self.shape[3])

    def read(
        self,
        rows: npt.ArrayLike,
        frames: npt.ArrayLike | None = None,  # noqa: ARG002 -- of a `Source`
        out: npt.NDArray[np.uint8] | None = None,
        *,
        verify: bool = False,
    ) -> npt.NDArray[np.uint8]:
        """Read entries.

        Args:
            rows: (B,) entries.
            frames: Of no use here.
            out: (B, T', H', W', 2 C) uint8, C-contiguous, to read into; None makes one.
            verify: Compare each entry with its hash.

        Returns:
            `out`: the bytes of bfloat16 numbers.

        Raises:
            ValueError: There is no such entry.
            CacheError: The file has become shorter, or an entry is not what was written.
        """
        entries = np.asarray(rows, np.int64)
        inside = (entries >= 0) & (entries < self._count)
        if not inside.all():
            raise ValueError(f"entry {entries[~inside][0]}, expected 0 to {self._count - 1}")
        out = np.empty((len(entries), *self.shape_of()), np.uint8) if out is None else out
        for target, entry in zip(out, entries.tolist(), strict=True):
            try:
                pread_all(self._descriptor, target.data.cast("B"), self._offset + entry * self.entry_bytes)
            except EOFError as error:
                raise CacheError(f"{printable(self.path)}: {error}: it was cut while open. {_REMEDY}") from None
            if verify and xxhash.xxh3_128_hexdigest(target.data).encode() != self._hashes[entry]:
                raise CacheError(
                    f"{printable(self.path)}: entry {entry} does not match its hash, expected what was written. "
                    f"{_REMEDY}"
                )
        return out


def is_feature_file(path: Path) -> bool:
    """Whether a file begins as one of features does, whatever else is the matter with it."""
    with contextlib.suppress(OSError), open_regular(path) as file:
        return file.read(len(MAGIC)) == MAGIC
    return False
