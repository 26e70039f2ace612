"""Reading a cache: checked once, then bytes straight from the descriptor.

A file is trusted only after its header and metadata hashes are right; libhdf5 parses it then, and
only to compare the structure. Afterwards no HDF5 object is kept: reading is `preadv`, so a reader
works in threads, after fork and (by reopening) after pickling.
"""

import abc
import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import h5py
import numpy as np
import numpy.typing as npt

from vidcache.cache import layout
from vidcache.cache.layout import COLUMNS, USER_BLOCK_BYTES, Header, Split, Status
from vidcache.errors import CacheError
from vidcache.files import pread_all
from vidcache.spec import Spec
from vidcache.text import printable

Rows = npt.NDArray[np.int64]
_PLUGINS = threading.Lock()


class Reader(abc.ABC):
    """Clips to read: one cache, or several that are used as one.

    Attributes:
        spec: Shape of the clips.
        classes: Class names; a label is an index into them.
        columns: One (N, ...) array per column of `vidcache.cache.layout.COLUMNS`.
    """

    spec: Spec
    classes: tuple[str, ...]
    columns: dict[str, npt.NDArray[Any]]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self.columns["label"])

    @property
    @abc.abstractmethod
    def name(self) -> str:
        """The file, or the files, for messages."""

    @property
    @abc.abstractmethod
    def fingerprint(self) -> str:
        """Names the content: spec, classes, paths, labels and clips."""

    @property
    @abc.abstractmethod
    def split_hash(self) -> str:
        """Names the split: which path is in which part."""

    @abc.abstractmethod
    def close(self) -> None:
        """Give the descriptors back. Reading afterwards is an error."""

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
            ValueError: A row has no clip or does not exist, a frame does not exist, or `out` has
                another shape.
            CacheError: The file has become shorter since it was opened, or a clip is not what was
                written.
        """
        row_list = np.asarray(rows, np.int64)
        frame_list = None if frames is None else np.asarray(frames, np.int64)
        out = self._check_request(row_list, frame_list, out)
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
        """Rows that have a clip, ascending.

        Args:
            split: "train", "val" or "test"; None for all three.

        Raises:
            ValueError: There is no such split.
        """
        good = self.columns["status"] != Status.FAILED
        if split is None:
            return np.flatnonzero(good)
        if split.upper() not in Split.__members__:
            raise ValueError(f"split {split!r}, expected train, val or test")
        return np.flatnonzero(good & (self.columns["split"] == Split[split.upper()]))

    def _check_request(
        self, rows: Rows, frames: Rows | None, out: npt.NDArray[np.uint8] | None
    ) -> npt.NDArray[np.uint8]:
        """Refuse what cannot be read; return the buffer to read into."""
        inside = (rows >= 0) & (rows < len(self))
        if not inside.all():
            raise ValueError(f"row {rows[~inside][0]}, expected 0 to {len(self) - 1}")
        failed = rows[self.columns["status"][rows] == Status.FAILED]
        if len(failed):
            raise ValueError(f"row {failed[0]} has no clip ({printable(self.path_of(int(failed[0])))} failed)")
        if frames is not None and not ((frames >= 0) & (frames < self.spec.num_frames)).all():
            raise ValueError(f"frames {frames.tolist()}, expected 0 to {self.spec.num_frames - 1}")
        shape = (len(rows), *self.shape_of(frames))
        if out is None:
            return np.empty(shape, np.uint8)
        if out.shape != shape or out.dtype != np.uint8 or not out.flags.c_contiguous:
            raise ValueError(f"out is {out.dtype} {out.shape}, expected C-contiguous uint8 {shape}")
        return out


class CacheReader(Reader):
    """A finished cache, open for reading; may be shared by threads, forked and pickled.

    Args:
        path: The file.

    Attributes:
        path: The file.
        attributes: Root attributes of the file: how it was made.
        header: The user block.

    Raises:
        CacheError: The file is missing, unfinished, damaged, foreign or of another version.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._descriptor = -1
        try:
            self._descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise CacheError(
                f"{printable(path)}: {error.strerror}. Build it first: vidcache build RAW {printable(path)}"
            ) from None
        try:
            self.header = self._check_header()
            self._read_structure()
        except BaseException:
            self.close()
            raise

    def __del__(self) -> None:
        self.close()

    def __reduce__(self) -> tuple[type[Self], tuple[Path]]:
        return (type(self), (self.path,))

    def close(self) -> None:
        """Give the descriptor back. Reading afterwards is an error."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    @property
    def name(self) -> str:
        """The file, for messages."""
        return printable(self.path)

    def fileno(self) -> int:
        """Return the descriptor, which stays ours."""
        return self._descriptor

    @property
    def fingerprint(self) -> str:
        """Names the content: spec, classes, paths, labels and clips."""
        return self.header.fingerprint

    @property
    def split_hash(self) -> str:
        """Names the split: which path is in which part."""
        return self.header.split_hash

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
        if verify and layout.clip_hash_of(clip).encode() != self.columns["clip_hash"][row]:
            raise CacheError(
                f"{self.name}: the clip of row {row} ({printable(self.path_of(row))}) does not match its hash, "
                "expected what was written. List all with: vidcache verify"
            )
        if frames is not None:
            out[:] = clip[frames]

    def damaged_rows(self, rows: npt.ArrayLike | None = None) -> Rows:
        """Re-read clips and return the rows whose bytes are not what was written."""
        wanted = self.rows() if rows is None else np.asarray(rows, np.int64)
        buffer = np.empty((1, *self.spec.clip_shape), np.uint8)
        expected = self.columns["clip_hash"]
        return np.array(
            [
                row
                for row in wanted.tolist()
                if layout.clip_hash_of(self.read([row], out=buffer)).encode() != expected[row]
            ],
            np.int64,
        )

    def _check_header(self) -> Header:
        where = printable(self.path)
        try:
            block = os.pread(self._descriptor, USER_BLOCK_BYTES, 0)
        except OSError as error:
            raise CacheError(f"{where}: {error.strerror}. Expected a cache file") from None
        header = Header.from_bytes(block, where)
        size, clips_bytes = os.fstat(self._descriptor).st_size, header.num_clips * header.clip_bytes
        expected = max(header.file_bytes, header.clips_offset + clips_bytes)
        if size != expected:
            raise CacheError(
                f"{where}: {size:,} bytes long, expected {expected:,}. "
                "Restore a copy, or build it again with --overwrite"
            )
        found = layout.metadata_hash_of(self._descriptor, header.clips_offset, clips_bytes, size)
        if found != header.metadata_hash:
            raise CacheError(
                f"{where}: the columns are damaged (hash {found}, expected {header.metadata_hash}). "
                "Restore a copy, or build it again with --overwrite"
            )
        return header

    def _read_structure(self) -> None:
        where = printable(self.path)
        # The same descriptor, so that the file that is parsed is the file that was hashed.
        with _no_plugins(), os.fdopen(os.dup(self._descriptor), "rb") as raw, h5py.File(raw, "r") as file:
            try:
                self._check_structure(file)
                self.attributes = {name: _plain(value) for name, value in file.attrs.items()}
                self.spec = Spec(
                    self.header.num_frames,
                    self.header.height,
                    self.header.width,
                    self.attributes["sampling"],
                    self.attributes["scaling"],
                )
                names = [bytes(name) for name in file["classes"][:]]
                self.classes = tuple(os.fsdecode(name) for name in names)
                self.columns = {column.name: file["videos"][column.name][:] for column in COLUMNS}
            except (KeyError, ValueError, OSError) as error:
                raise CacheError(
                    f"{where}: no valid cache structure ({error}). Build it again with --overwrite"
                ) from error
        for name, found, expected in (
            ("fingerprint", layout.fingerprint_of(self.spec, names, self.columns), self.header.fingerprint),
            ("split_hash", layout.split_hash_of(self.columns), self.header.split_hash),
        ):
            if found != expected:
                raise CacheError(f"{where}: {name} is {found}, expected {expected}. Build it again with --overwrite")
        self._check_values()

    def _check_values(self) -> None:
        """Refuse numbers that would be used as indices or in arithmetic, and cannot be meant."""
        for name, highest in (
            ("label", len(self.classes) - 1),
            ("status", max(Status)),
            ("split", max(Split)),
            ("num_real", self.spec.num_frames),
            ("mean_rgb", 255),
        ):
            values = self.columns[name].reshape(len(self), -1)
            wrong = ~((values >= 0) & (values <= highest)).all(axis=1)  # NaN is wrong
            if wrong.any():
                row = int(np.flatnonzero(wrong)[0])
                found = values[row].tolist()
                raise CacheError(
                    f"{self.name}: {name} of row {row} is {found[0] if len(found) == 1 else found}, expected 0 to "
                    f"{highest}. Build it again with --overwrite"
                )

    def _check_structure(self, file: Any) -> None:
        """Refuse everything that could make libhdf5 read other files or run filters."""
        header = self.header
        expected = {f"videos/{c.name}": (header.num_clips, *c.shape) for c in COLUMNS}
        expected["clips"] = (header.num_clips, header.num_frames, header.height, header.width, 3)
        for name, shape in {**expected, "classes": None}.items():
            holder, place = file, ""
            for part in name.split("/"):  # each looked at before it is followed: a link opens other files
                place += f"/{part}"
                if part not in holder:
                    raise ValueError(f"{place} is missing")
                if not isinstance(holder.get(part, getlink=True), h5py.HardLink):
                    raise ValueError(f"{place} is a link")
                holder = holder[part]
            dataset = holder
            properties = dataset.id.get_create_plist() if isinstance(dataset, h5py.Dataset) else None
            if (
                properties is None
                or properties.get_layout() != h5py.h5d.CONTIGUOUS
                or properties.get_external_count()
                or properties.get_nfilters()
            ):
                raise ValueError(f"/{name} is no contiguous, unfiltered, internal dataset")
            if shape is not None and dataset.shape != shape:
                raise ValueError(f"/{name} has shape {dataset.shape}, expected {shape}")
        for column in COLUMNS:
            found, wanted = file["videos"][column.name].dtype, layout.column_dtype(column, 0)
            if found.kind != wanted.kind or (wanted.itemsize and found != wanted):
                raise ValueError(f"/videos/{column.name} is {found}, expected {wanted}")
        if file["clips"].dtype != np.uint8 or file["clips"].id.get_offset() != header.clips_offset:
            raise ValueError(f"/clips is not uint8 at byte {header.clips_offset}")
        for name in (*expected, "classes"):
            start = file[name].id.get_offset() or 0  # inside the user block: it has no storage
            if not USER_BLOCK_BYTES <= start <= header.file_bytes - file[name].nbytes:
                raise ValueError(f"/{name} lies at {start}, outside the file")


@contextlib.contextmanager
def _no_plugins() -> Iterator[None]:
    """Keep libhdf5 from loading code for a filter that a file names, from `HDF5_PLUGIN_PATH` or elsewhere."""
    with _PLUGINS:
        folders = [h5py.h5pl.get(index) for index in range(h5py.h5pl.size())]
        for _ in folders:
            h5py.h5pl.remove(0)
        try:
            yield
        finally:
            for folder in folders:
                h5py.h5pl.append(folder)


def _plain(value: Any) -> Any:
    """Turn an attribute into str, int, float or a list of them."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value
