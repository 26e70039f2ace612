"""Reading a cache: checked once, then bytes straight from the descriptor.

No HDF5 object is kept: reading is `preadv`, so a reader works in threads, after fork and (by reopening) after pickling.
"""

import abc
import bisect
import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import xxhash

from vidcache.cache.format import FORMAT_VERSION, NEAR_GROUP, Split, Status, clip_hash_of
from vidcache.cache.validate import read_metadata
from vidcache.errors import CacheError
from vidcache.files import pread_all
from vidcache.spec import Spec
from vidcache.text import difference, printable

Rows = npt.NDArray[np.int64]


class Reader(abc.ABC):
    """Clips to read: one cache, or several that are used as one; see `CacheReader`."""

    spec: Spec
    classes: tuple[str, ...]
    columns: dict[str, npt.NDArray[Any]]
    name: str
    fingerprint: str
    split_hash: str

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self.columns["label"])

    @abc.abstractmethod
    def close(self) -> None:
        """Close the files. Reading afterwards is an error."""

    @abc.abstractmethod
    def _read_clip(self, row: int, frames: Rows | None, out: npt.NDArray[np.uint8], verify: bool) -> None:
        """Read one clip into (T', H, W, 3); the request has been checked."""

    def read(
        self,
        rows: npt.ArrayLike,
        frames: npt.ArrayLike | None = None,
        out: npt.NDArray[np.uint8] | None = None,
        *,
        verify: bool = False,
    ) -> npt.NDArray[np.uint8]:
        """Read clips.

        Args:
            rows: (B,) rows that have a clip, any order.
            frames: (T',) frames of each clip to read, any order; None for all T.
            out: (B, T', H, W, 3) uint8, C-contiguous, to read into; None makes one.
            verify: Compare each clip with its hash; reads all its frames.

        Returns:
            `out`: RGB, 0 to 255.

        Raises:
            ValueError: A row has no clip or does not exist, a frame does not exist, or `out` has another shape.
            CacheError: The file has become shorter since it was opened, or a clip is not what was written.
        """
        row_list = np.asarray(rows, np.int64)
        frame_list = None if frames is None else np.asarray(frames, np.int64)
        self._check_request(row_list, frame_list)
        shape = (len(row_list), *self.shape_of(frame_list))
        out = np.empty(shape, np.uint8) if out is None else out
        if out.shape != shape or out.dtype != np.uint8 or not out.flags.c_contiguous:
            raise ValueError(f"out is {out.dtype} {out.shape}, expected C-contiguous uint8 {shape}")
        for clip, row in zip(out, row_list.tolist(), strict=True):
            self._read_clip(row, frame_list, clip, verify)
        return out

    def shape_of(self, frames: npt.ArrayLike | None = None) -> tuple[int, ...]:
        """(T', H, W, 3) of a clip with these frames; None for all."""
        num_frames = self.spec.num_frames if frames is None else len(np.asarray(frames))
        return (num_frames, self.spec.height, self.spec.width, 3)

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """(N,) index into `classes`, failed rows included."""
        return np.asarray(self.columns["label"], np.int64)

    def path_of(self, row: int) -> bytes:
        """Path of a clip's video below the raw folder."""
        return bytes(self.columns["path"][row])

    def rows(self, split: str | None = None) -> Rows:
        """Rows that have a clip, ascending; of "train", "val", "test" or "unused", None for all. Raises ValueError."""
        good = self.columns["status"] != Status.FAILED
        if split is None:
            return np.flatnonzero(good)
        if split.upper() not in Split.__members__:
            raise ValueError(f"split {split!r}, expected train, val or test")
        return np.flatnonzero(good & (self.columns["split"] == Split[split.upper()]))

    def _check_request(self, rows: Rows, frames: Rows | None) -> None:
        inside = (rows >= 0) & (rows < len(self))
        if not inside.all():
            raise ValueError(f"row {rows[~inside][0]}, expected 0 to {len(self) - 1}")
        failed = rows[self.columns["status"][rows] == Status.FAILED]
        if len(failed):
            raise ValueError(f"row {failed[0]} has no clip ({printable(self.path_of(int(failed[0])))} failed)")
        if frames is not None and not ((frames >= 0) & (frames < self.spec.num_frames)).all():
            raise ValueError(f"frames {frames.tolist()}, expected 0 to {self.spec.num_frames - 1}")


class CacheReader(Reader):
    """A finished cache, open for reading; may be shared by threads, forked and pickled.

    Args:
        path: The file.

    Attributes:
        path, name: The file, and its printable name.
        spec: Shape of the clips.
        classes: Class names; a label is an index into them.
        columns: One (N, ...) array per column of `vidcache.cache.format.COLUMNS`; `near_group` only where it is known.
        fingerprint: Names the content: spec, classes, paths, labels and clips.
        split_hash: Names the split: which path is in which part.
        attributes: Root attributes of the file: how it was made.
        header: The user block.
        decoded_format: Format version of the cache whose videos were decoded; `vidcache split` may have made a newer
            one of it.

    Raises:
        CacheError: The file is missing, unfinished, damaged, foreign or of another version.

    Example:
        >>> with CacheReader("cache.h5") as cache:  # doctest: +SKIP
        ...     clips = cache.read(cache.rows("train")[:8])  # (8, T, H, W, 3) uint8
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path, self.name = Path(path), printable(path)
        self._descriptor = -1
        try:
            self._descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # waits for no pipe
        except OSError as error:
            raise CacheError(f"{self.name}: {error.strerror}. Build it first: vidcache build RAW {self.name}") from None
        metadata = read_metadata(self._descriptor, self.name)  # where it raises, `__del__` closes the file
        self.header, self.attributes, self.spec = metadata.header, metadata.attributes, metadata.spec
        self.classes, self.columns = metadata.classes, metadata.columns
        self.fingerprint, self.split_hash = self.header.fingerprint, self.header.split_hash
        self.decoded_format = int(self.attributes.get("decoded_format", self.header.format_version))

    def __del__(self) -> None:
        self.close()

    def __reduce__(self) -> tuple[type[Self], tuple[Path]]:
        return (type(self), (self.path,))

    def close(self) -> None:
        """Close the file. Reading afterwards is an error."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def fileno(self) -> int:
        """Return the descriptor, which stays ours."""
        return self._descriptor

    @property
    def is_current_format(self) -> bool:
        """Whether the file knows everything about a video that a cache made today does."""
        return self.decoded_format == FORMAT_VERSION

    def _read_clip(self, row: int, frames: Rows | None, out: npt.NDArray[np.uint8], verify: bool) -> None:
        clip_bytes, offset = self.spec.clip_bytes, self.header.clips_offset + row * self.spec.clip_bytes
        try:
            if frames is not None and not verify:
                frame_bytes = clip_bytes // self.spec.num_frames
                for target, frame in zip(out, frames.tolist(), strict=True):
                    pread_all(self._descriptor, target.data.cast("B"), offset + frame * frame_bytes)
                return
            clip = out if frames is None else np.empty(self.spec.clip_shape, np.uint8)
            pread_all(self._descriptor, clip.data.cast("B"), offset)
        except EOFError as error:
            raise CacheError(
                f"{self.name}: {error}: it was cut while open. Restore a copy, or build it again"
            ) from None
        if verify and clip_hash_of(clip).encode() != self.columns["clip_hash"][row]:
            raise CacheError(
                f"{self.name}: the clip of row {row} ({printable(self.path_of(row))}) does not match its hash. "
                "List all such clips with: vidcache verify"
            )
        if frames is not None:
            out[:] = clip[frames]

    def damaged_rows(self, rows: npt.ArrayLike | None = None) -> Rows:
        """Re-read clips (None: all) and return the rows whose bytes are not what was written."""
        wanted = self.rows() if rows is None else np.asarray(rows, np.int64)
        clip, expected = np.empty((1, *self.spec.clip_shape), np.uint8), self.columns["clip_hash"]
        return np.array([r for r in wanted if clip_hash_of(self.read([r], out=clip)).encode() != expected[r]], np.int64)


class ConcatReader(Reader):
    """Caches of one spec and one list of classes, used as one; `readers` has one for each, in the given order."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.readers: list[CacheReader] = []
        try:
            for path in paths:
                self.readers.append(CacheReader(path))
                self._check_last()
        except BaseException:
            self.close()
            raise
        first = self.readers[0]
        self.spec, self.classes = first.spec, first.classes
        self.name = " + ".join(reader.name for reader in self.readers)
        # Paths of different widths become one as wide as the widest.
        self.columns = {
            name: np.concatenate([reader.columns[name] for reader in self.readers])
            for name in first.columns
            if name != NEAR_GROUP  # near-duplicates may be in different caches
        }
        for name in ("fingerprint", "split_hash"):
            hashes = "\n".join(getattr(reader, name) for reader in self.readers)
            setattr(self, name, xxhash.xxh3_128_hexdigest(hashes.encode()))
        self._starts = [0, *itertools.accumulate(len(reader) for reader in self.readers)]

    def __reduce__(self) -> tuple[type[Self], tuple[list[Path]]]:
        return (type(self), ([reader.path for reader in self.readers],))

    def close(self) -> None:
        """Close the files. Reading afterwards is an error."""
        for reader in self.readers:
            reader.close()

    def _read_clip(self, row: int, frames: Rows | None, out: npt.NDArray[np.uint8], verify: bool) -> None:
        index = bisect.bisect_right(self._starts, row) - 1
        self.readers[index].read([row - self._starts[index]], frames, out[None], verify=verify)

    def _check_last(self) -> None:
        first, last = self.readers[0], self.readers[-1]
        advice = "Build both with the same options and class folders, or use them one by one"
        if last.spec != first.spec:
            raise CacheError(f"{last.name}: clips are {last.spec!r}, but {first.spec!r} in {first.name}. {advice}")
        if last.classes != first.classes:
            names = difference(last.classes, first.classes)
            raise CacheError(f"{last.name}: has other classes than {first.name} ({names}). {advice}")


def open_caches(paths: Sequence[Path]) -> Reader:
    """Open one cache, or several as one; raises CacheError if one cannot be read, or they do not belong together."""
    return CacheReader(paths[0]) if len(paths) == 1 else ConcatReader(paths)
