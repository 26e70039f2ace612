"""Writing a file of features as a cache is written: fixed slots, a journal, the header last, one rename."""

import os
from pathlib import Path
from types import TracebackType
from typing import Self

import h5py
import numpy as np
import numpy.typing as npt
import xxhash

from vidcache.cache.features import FORMAT_VERSION, HEADER, MAGIC, FeaturePlan
from vidcache.cache.image import SparseImage
from vidcache.cache.layout import HASH_HEX, PAGE_BYTES, USER_BLOCK_BYTES, create_dataset, metadata_hash_of, seal
from vidcache.cache.place import build_folder, check_build_folder, check_space, lock_output, remove_build
from vidcache.files import pread_all, pwrite_all, sync_file, sync_folder

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
