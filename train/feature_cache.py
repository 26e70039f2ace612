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

import h5py
import numpy as np
import numpy.typing as npt
import xxhash

from vidcache.cache.builds import SparseImage
from vidcache.cache.format import (
    HASH_HEX,
    PAGE_BYTES,
    USER_BLOCK_BYTES,
    create_dataset,
    metadata_hash_of,
    seal,
)
from vidcache.cache.lock import build_folder, check_build_folder, check_space, lock_output, remove_build
from vidcache.errors import CacheError
from vidcache.files import open_regular, pread_all, pwrite_all, sync_file, sync_folder
from vidcache.outputs import name_of
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


def _unseal(block: bytes, where: str) -> np.void:
    if block[: len(MAGIC)] != MAGIC:
        known = name_of(block)
        what = f"is {known}, not a file of features" if known else f"no vidfeats file (it begins with {block[:8]!r})"
        raise CacheError(f"{where}: {what}. Name a file of features")
    if len(block) < USER_BLOCK_BYTES:
        raise CacheError(f"{where}: {len(block)} bytes, expected {USER_BLOCK_BYTES} or more. {_REMEDY}")
    if block != seal(np.frombuffer(block, np.uint8, USER_BLOCK_BYTES - 8)):
        raise CacheError(f"{where}: the header is damaged. {_REMEDY}")
    fields: np.void = np.frombuffer(block, HEADER, count=1)[0]
    return fields


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
            header = _unseal(block, where)
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


_HASH_BYTES = 16


class FeatureWriter:
    """The one writer of one file of features; goes on after an interrupted one of the same plan.

    Entries are written in order. Those that were said to be safe are compared with their hashes before they count.

    Args:
        path: The file; what was there stays until `finish`.
        plan: What it is to hold.

    Attributes:
        num_done: Entries that are written; the next one is this one.

    Raises:
        LockedError: Another process writes the same file.
        InputError: Something that is not ours is where it is written.
        VidcacheError: The disk has no room for it.
    """

    def __init__(self, path: Path, plan: FeaturePlan) -> None:
        self.path, self.plan, self.num_done = path, plan, 0
        self._folder = build_folder(path)
        self._data = self._journal = -1
        self._hashes = b""
        self._lock = lock_output(path)
        try:
            self._begin()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give lock and descriptors back."""
        for descriptor in (self._data, self._journal, self._lock):
            if descriptor >= 0:
                os.close(descriptor)
        self._data = self._journal = self._lock = -1

    def write(self, features: npt.NDArray[np.uint8]) -> None:
        """Append entries; they survive a power cut when this returns.

        Args:
            features: (B, T', H', W', 2 C) uint8, C-contiguous: the bytes of bfloat16 numbers.

        Raises:
            ValueError: Another shape, or more entries than are planned.
            OSError: The disk is full or broken.
        """
        *rest, channels = self.plan.shape
        expected = (len(features), *rest, 2 * channels)
        if features.shape != expected or features.dtype != np.uint8:
            raise ValueError(f"features are {features.dtype} {features.shape}, expected uint8 {expected}")
        if self.num_done + len(features) > len(self.plan.rows):
            raise ValueError(f"entry {self.num_done + len(features) - 1}, expected 0 to {len(self.plan.rows) - 1}")
        hashes = []
        for offset, entry in enumerate(features, self.num_done):
            pwrite_all(self._data, entry.data.cast("B"), self._slot(offset))
            hashes.append(xxhash.xxh3_128_digest(entry.data))
        sync_file(self._data)
        pwrite_all(self._journal, memoryview(b"".join(hashes)), self.num_done * _HASH_BYTES)
        sync_file(self._journal)
        self._hashes += b"".join(hashes)
        self.num_done += len(features)

    def finish(self) -> None:
        """Write columns and header, and publish the file under its name.

        Raises:
            ValueError: An entry is missing.
            OSError: The disk is full or broken.
        """
        plan = self.plan
        if self.num_done != len(plan.rows):
            raise ValueError(f"{self.num_done} of {len(plan.rows)} entries are written, expected all")
        hexadecimal = np.array(
            [self._hashes[i : i + _HASH_BYTES].hex() for i in range(0, len(self._hashes), _HASH_BYTES)], f"S{HASH_HEX}"
        )
        columns = {"rows": plan.rows.astype("<i8"), "views": plan.views.astype("<i4"), "hashes": hexadecimal}
        for name, values in columns.items():
            pwrite_all(self._data, memoryview(values.tobytes()), self._offsets[name])
        header = np.zeros((), HEADER)
        features_bytes = len(plan.rows) * plan.entry_bytes
        for name, value in {
            "format": MAGIC,
            "format_version": FORMAT_VERSION,
            "complete": 1,
            "num_entries": len(plan.rows),
            "shape": plan.shape,
            "hashes_offset": self._offsets["hashes"],
            "features_offset": self._offsets["features"],
            "file_bytes": self._file_bytes,
            "metadata_hash": metadata_hash_of(self._data, self._offsets["features"], features_bytes, self._file_bytes),
            "key": plan.key,
        }.items():
            header[name] = value
        sync_file(self._data)
        pwrite_all(self._data, memoryview(seal(header)), 0)
        sync_file(self._data)
        (self._folder / "data.h5").rename(self.path)
        sync_folder(self.path.parent)
        remove_build(self._folder)

    def _begin(self) -> None:
        check_build_folder(self._folder)
        name, data = self._folder / "key", self._folder / "data.h5"
        # Without data, another process was killed after it had published them; a second name may be the published file.
        is_same = data.exists() and name.exists() and name.read_bytes() == self.plan.key.encode()
        is_same = is_same and all(file.stat().st_nlink == 1 for file in self._folder.iterdir())
        present = data.stat().st_blocks * 512 if is_same else 0
        if not is_same:
            remove_build(self._folder)
        check_space(self.path, len(self.plan.rows) * (self.plan.entry_bytes + _HASH_BYTES), present)
        image, self._offsets, self._file_bytes = _skeleton(self.plan)
        if not is_same:
            self._folder.mkdir()
            with data.open("xb") as file:
                image.save(file.fileno())
                os.fsync(file.fileno())
            name.write_bytes(self.plan.key.encode())  # the last one: without it, all of this is made again
            sync_folder(self._folder)
            sync_folder(self._folder.parent)
        flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
        self._data = os.open(data, flags)
        self._journal = os.open(self._folder / "journal", flags | os.O_CREAT, 0o666)
        self._count_done((self._folder / "journal").read_bytes())

    def _count_done(self, journal: bytes) -> None:
        """Take in entries as long as they are what the journal says."""
        entry = np.empty(self.plan.entry_bytes, np.uint8)
        for number in range(min(len(journal) // _HASH_BYTES, len(self.plan.rows))):
            pread_all(self._data, entry.data, self._slot(number))
            said = journal[number * _HASH_BYTES : (number + 1) * _HASH_BYTES]
            if xxhash.xxh3_128_digest(entry.data) != said:
                return
            self._hashes += said
            self.num_done += 1

    def _slot(self, entry: int) -> int:
        return self._offsets["features"] + entry * self.plan.entry_bytes


def _skeleton(plan: FeaturePlan) -> tuple[SparseImage, dict[str, int], int]:
    """Make an HDF5 file in which all has its place: the file, where everything lies, its length."""
    image, count = SparseImage(), len(plan.rows)
    with h5py.File(
        image,
        "w",
        libver="earliest",
        userblock_size=USER_BLOCK_BYTES,
        alignment_threshold=min(1 << 20, count * plan.entry_bytes),
        alignment_interval=PAGE_BYTES,
    ) as file:
        for name, value in {**plan.facts, "number_format": "bfloat16, as its two bytes"}.items():
            file.attrs[name] = np.bytes_(os.fsencode(value)) if isinstance(value, str) else value
        made = {
            "rows": create_dataset(file, "rows", np.dtype("<i8"), (count,)),
            "views": create_dataset(file, "views", np.dtype("<i4"), (count,)),
            "hashes": create_dataset(file, "hashes", np.dtype(f"S{HASH_HEX}"), (count,)),
            "features": create_dataset(file, "features", np.dtype("<u2"), (count, *plan.shape)),
        }
        offsets = {name: dataset.get_offset() for name, dataset in made.items()}
    return image, offsets, image.num_bytes
