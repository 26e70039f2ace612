"""The file format, as data: user block, columns, skeleton.

A cache is one HDF5 file: `[user block, 4096 bytes][HDF5 metadata and columns][clips]`. Everything
has its final place before the first clip is written, so writing is `pwrite` and reading is
`preadv`; libhdf5 only makes the empty skeleton, and checks a file whose hash is already known good.
"""

import dataclasses
import enum
import io
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import h5py
import numpy as np
import xxhash

from vidcache.errors import CacheError
from vidcache.files import pwrite_all
from vidcache.outputs import name_of
from vidcache.spec import Spec

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


FORMAT = b"vidcache"
FORMAT_VERSION = 2
USER_BLOCK_BYTES = 4096
PAGE_BYTES = 4096
HASH_HEX = 32  # characters of a 128-bit hash
ERROR_BYTES = 240


class Status(enum.IntEnum):
    """What became of a video."""

    OK = 0
    DAMAGED = 1  # a clip is there, but frames were missing or broken
    FAILED = 2  # no frame could be decoded: the row has no clip


class Split(enum.IntEnum):
    """Which part of the data a clip belongs to."""

    TRAIN = 0
    VAL = 1
    TEST = 2
    UNUSED = 3


class Stage(enum.Enum):
    """When the value of a column is known."""

    PLAN = "plan"
    DECODE = "decode"
    FINISH = "finish"


class Column(NamedTuple):
    """One dataset of `/videos`: `shape` is that of one row, `since` the first format version that has it."""

    name: str
    dtype: str
    stage: Stage
    meaning: str
    shape: tuple[int, ...] = ()
    since: int = 1


# `path` is as wide as the longest path of the cache; S* columns are bytes padded with NUL.
COLUMNS = (
    Column("path", "S", Stage.PLAN, "below the raw folder, bytes as the file system has them"),
    Column("label", "<i4", Stage.PLAN, "index into /classes"),
    Column("source_bytes", "<i8", Stage.PLAN, "size of the video file"),
    Column("source_mtime_ns", "<i8", Stage.PLAN, "modification time, ns since 1970"),
    Column("status", "|u1", Stage.DECODE, "0 ok, 1 damaged, 2 failed (no clip)"),
    Column("error", f"S{ERROR_BYTES}", Stage.DECODE, "reason code, colon, detail; empty when ok"),
    Column("source_hash", f"S{HASH_HEX}", Stage.DECODE, "xxh3-128 of the video file"),
    Column("clip_hash", f"S{HASH_HEX}", Stage.DECODE, "xxh3-128 of the clip"),
    Column(
        "perceptual_hash", "|u1", Stage.DECODE, "grey thumbnails of 16 evenly spaced frames, bars cut off", (16, 12, 12)
    ),
    Column("width", "<i4", Stage.DECODE, "pixels, as displayed (after rotation)"),
    Column("height", "<i4", Stage.DECODE, "pixels, as displayed (after rotation)"),
    Column("rotation", "<i2", Stage.DECODE, "degrees clockwise that the decoder turned: 0, 90, 180, 270"),
    Column("fps", "<f8", Stage.DECODE, "decoded frames per second of duration; 0 unknown"),
    Column("duration_seconds", "<f8", Stage.DECODE, "last minus first timestamp plus one frame"),
    Column("num_frames", "<i8", Stage.DECODE, "frames that really decoded; packets where only parts were"),
    Column("num_frames_from_header", "<i8", Stage.DECODE, "what the file claims; -1 unknown"),
    Column("num_real", "<i4", Stage.DECODE, "frames of the clip that are not padding"),
    Column("codec", "S24", Stage.DECODE, "as ffprobe names it"),
    Column("pixel_format", "S24", Stage.DECODE, "as ffprobe names it"),
    Column("transfer", "S16", Stage.DECODE, "transfer function as ffprobe names it; empty unknown", since=2),
    Column("primaries", "S16", Stage.DECODE, "colour primaries as ffprobe names them; empty unknown", since=2),
    Column("mean_rgb", "<f4", Stage.DECODE, "mean of all pixels of the clip, 0 to 255", (3,)),
    Column("group", "<i4", Stage.FINISH, "clips that belong together: a split by fractions parts none"),
    Column("split", "|u1", Stage.FINISH, "0 train, 1 val, 2 test, 3 unused"),
    Column("near_group", "<i8", Stage.FINISH, "first row of the near-duplicates it belongs to; -1 failed", since=2),
)
NEAR_GROUP = "near_group"  # the first caches of version 2 lack it


def columns_of(format_version: int) -> tuple[Column, ...]:
    """Return the columns that a cache of a format version has; older ones lack the newer columns."""
    return tuple(column for column in COLUMNS if column.since <= format_version)


# What a worker knows of a video once it is decoded; also the body of a journal record.
RECORD = np.dtype([(c.name, c.dtype, c.shape) for c in COLUMNS if c.stage is Stage.DECODE])

# Everything little-endian, no padding; the last eight bytes of the user block hash the rest of it.
HEADER = np.dtype(
    [
        ("format", "S8"),
        ("format_version", "<u4"),
        ("complete", "<u4"),
        ("num_clips", "<u8"),
        ("num_frames", "<u4"),
        ("height", "<u4"),
        ("width", "<u4"),
        ("reserved", "<u4"),
        ("clips_offset", "<u8"),
        ("clip_bytes", "<u8"),
        ("file_bytes", "<u8"),
        ("metadata_hash", f"S{HASH_HEX}"),
        ("fingerprint", f"S{HASH_HEX}"),
        ("split_hash", f"S{HASH_HEX}"),
    ]
)


@dataclasses.dataclass(frozen=True)
class Header:
    """The user block: the only bytes that are written last, and the first that a reader checks.

    Attributes:
        metadata_hash: xxh3-128 of everything but this block and the clips.
        fingerprint: What is in the cache; see `fingerprint_of`.
        split_hash: Which clip is in which split; see `split_hash_of`.
        format_version: 1 to `FORMAT_VERSION`.
    """

    num_clips: int
    num_frames: int
    height: int
    width: int
    clips_offset: int
    file_bytes: int
    metadata_hash: str
    fingerprint: str
    split_hash: str
    format_version: int = FORMAT_VERSION

    @property
    def clip_bytes(self) -> int:
        """Size of one clip, in bytes."""
        return self.num_frames * self.height * self.width * 3

    def to_bytes(self) -> bytes:
        """Return the user block, 4096 bytes."""
        fields = np.zeros((), HEADER)
        for name, value in dataclasses.asdict(self).items():
            fields[name] = value.encode("ascii") if isinstance(value, str) else value
        fields["format"], fields["complete"] = FORMAT, 1
        fields["clip_bytes"] = self.clip_bytes
        return seal(fields)

    @classmethod
    def from_bytes(cls, block: bytes, where: str) -> Self:
        """Read a user block back.

        Args:
            block: The first bytes of the file.
            where: The file's name, for messages.

        Raises:
            CacheError: It is not the user block of a finished, undamaged cache of a version that can be read.
        """
        rebuild = "Restore a copy, or build it again with --overwrite"
        fields = unseal(block, HEADER, where, rebuild)
        version = int(fields["format_version"])
        if not 1 <= version <= FORMAT_VERSION:
            older = "Use the vidcache that made it, or build it again under another name"
            raise CacheError(
                f"{where}: format version {version}, but this vidcache reads versions 1 to {FORMAT_VERSION}. "
                f"{'Use a newer vidcache' if version > FORMAT_VERSION else older}"
            )
        expected = int(fields["num_frames"]) * int(fields["height"]) * int(fields["width"]) * 3
        if fields["complete"] != 1 or fields["clip_bytes"] != expected:
            raise CacheError(f"{where}: the header is of no finished cache. {rebuild}")
        values: dict[str, Any] = {field.name: fields[field.name].item() for field in dataclasses.fields(cls)}
        texts = {name: value.decode("ascii", "replace") for name, value in values.items() if isinstance(value, bytes)}
        return cls(**{**values, **texts})


def seal(fields: np.ndarray[Any, Any]) -> bytes:
    """Return a user block: fields, zeros, and a hash of both in the last eight bytes."""
    body = fields.tobytes().ljust(USER_BLOCK_BYTES - 8, b"\0")
    return body + xxhash.xxh3_64_intdigest(body).to_bytes(8, "little")


def unseal(block: bytes, dtype: np.dtype[Any], where: str, rebuild: str, magic: bytes = FORMAT) -> np.void:
    """Read the fields of a user block back.

    Args:
        block: The first bytes of the file.
        dtype: Of the fields.
        where: The file's name, for messages.
        rebuild: What to do when it is damaged.
        magic: What it has to begin with, 8 bytes.

    Raises:
        CacheError: It is no whole, undamaged user block.
    """
    if block[: len(magic)] != magic:
        known = name_of(block)
        wanted = name_of(magic)
        what = f"is {known}, not {wanted}" if known else f"no {magic.decode()} file (it begins with {block[:8]!r})"
        raise CacheError(f"{where}: {what}. Name {wanted}")
    if len(block) < USER_BLOCK_BYTES:
        raise CacheError(f"{where}: {len(block)} bytes, expected {USER_BLOCK_BYTES} or more. {rebuild}")
    body, digest = block[: USER_BLOCK_BYTES - 8], block[USER_BLOCK_BYTES - 8 : USER_BLOCK_BYTES]
    found, expected = int.from_bytes(digest, "little"), xxhash.xxh3_64_intdigest(body)
    if found != expected:
        raise CacheError(f"{where}: the header is damaged (checksum {found:016x}, expected {expected:016x}). {rebuild}")
    fields: np.void = np.frombuffer(block, dtype, count=1)[0]
    return fields


def hash_between(descriptor: int, gaps: Iterable[tuple[int, int]]) -> str:
    """Hash the bytes of a file from the user block to its end, leaving out some.

    Args:
        descriptor: The file.
        gaps: (offset, size) of what is left out, ascending; the last one is (file length, 0).
    """
    digest = xxhash.xxh3_128()
    position = USER_BLOCK_BYTES
    for offset, size in gaps:
        while position < offset:
            chunk = os.pread(descriptor, min(1 << 22, offset - position), position)
            if not chunk:
                return digest.hexdigest()  # a truncated file: the hash will differ
            digest.update(chunk)
            position += len(chunk)
        position = offset + size
    return digest.hexdigest()


def metadata_hash_of(descriptor: int, clips_offset: int, clips_bytes: int, file_bytes: int) -> str:
    """Hash everything but the user block and the clips.

    libhdf5 puts the clips last in all but tiny files, where some metadata can follow them.
    """
    return hash_between(descriptor, [(clips_offset, clips_bytes), (file_bytes, 0)])


def clip_hash_of(clip: np.ndarray[Any, Any]) -> str:
    """Hash the bytes of a C-contiguous clip."""
    return xxhash.xxh3_128_hexdigest(clip.data)


def fingerprint_of(spec: Spec, classes: Sequence[bytes], columns: dict[str, np.ndarray[Any, Any]]) -> str:
    """Hash what a model is trained on: spec, classes, paths, labels, source and clip hashes."""
    digest = xxhash.xxh3_128(repr(sorted(spec.to_dict().items())).encode())
    for class_name in classes:
        digest.update(len(class_name).to_bytes(8, "little") + class_name)
    for name in ("path", "label", "source_hash", "clip_hash"):
        digest.update(np.ascontiguousarray(columns[name]).data)
    return digest.hexdigest()


def split_hash_of(columns: dict[str, np.ndarray[Any, Any]]) -> str:
    """Hash which path is in which split."""
    digest = xxhash.xxh3_128()
    for name in ("path", "split"):
        digest.update(np.ascontiguousarray(columns[name]).data)
    return digest.hexdigest()


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where everything lies in a skeleton: byte offsets from the start of the file."""

    column_offsets: dict[str, int]
    clips_offset: int
    file_bytes: int


def column_dtype(column: Column, path_bytes: int) -> np.dtype[Any]:
    """Return the dtype of a column; `path` is `path_bytes` wide."""
    return np.dtype(f"S{path_bytes}") if column.name == "path" else np.dtype(column.dtype)


def create_skeleton(
    path: Path,
    spec: Spec,
    classes: Sequence[bytes],
    num_clips: int,
    path_bytes: int,
    attributes: dict[str, Any],
) -> Layout:
    """Create a complete HDF5 file in which only `/classes` and the attributes have content.

    Every dataset is contiguous, allocated now and never filled, so the file is sparse and this
    takes about a millisecond whatever its size. libhdf5 never sees the disk: full, it would leave
    an open file that it cannot close.

    Args:
        path: File to create.
        spec: Shape of the clips.
        classes: Names in label order, as bytes.
        num_clips: Rows (N). >= 1.
        path_bytes: Width of the `path` column.
        attributes: Extra root attributes: str, int, float or lists of them.

    Returns:
        Where the columns and the clips lie.

    Raises:
        OSError: The disk is full, or there is such a file.
    """
    image = SparseImage()
    with h5py.File(
        image,
        "w",
        libver="earliest",
        userblock_size=USER_BLOCK_BYTES,
        # Only datasets above the threshold start on a page: small columns stay packed.
        alignment_threshold=min(1 << 20, num_clips * spec.clip_bytes),
        alignment_interval=PAGE_BYTES,
    ) as file:
        for name, value in {
            "format": FORMAT.decode(),
            "format_version": FORMAT_VERSION,
            **attributes,
        }.items():
            file.attrs[name] = np.bytes_(os.fsencode(value)) if isinstance(value, str) else value
        width = max(len(name) for name in classes)
        names = create_dataset(file, "classes", np.dtype(f"S{width}"), (len(classes),))
        names.write(h5py.h5s.ALL, h5py.h5s.ALL, np.array(classes, f"S{width}"))
        videos = file.create_group("videos")
        for column in COLUMNS:
            dataset = create_dataset(videos, column.name, column_dtype(column, path_bytes), (num_clips, *column.shape))
            attribute = h5py.Dataset(dataset).attrs
            attribute["meaning"] = np.bytes_(column.meaning)
        clips = create_dataset(file, "clips", np.dtype("|u1"), (num_clips, *spec.clip_shape))
        offsets = {column.name: file["videos"][column.name].id.get_offset() for column in COLUMNS}
        clips_offset = clips.get_offset()
    with path.open("xb") as out:
        image.save(out.fileno())
    return Layout(offsets, clips_offset, image.num_bytes)


def create_dataset(group: Any, name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Any:
    """Add a contiguous dataset to an open file: allocated now, never filled, without a time stamp."""
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_layout(h5py.h5d.CONTIGUOUS)
    properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    properties.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    properties.set_obj_track_times(False)  # the same input gives the same bytes
    kind = h5py.h5t.py_create(dtype, logical=True)
    return h5py.h5d.create(group.id, name.encode(), kind, h5py.h5s.create_simple(shape), properties)


@dataclasses.dataclass(frozen=True)
class Plan:
    """Everything about a cache that is known before the first video is opened.

    Attributes:
        spec: Shape of the clips.
        classes: Names in label order.
        paths: Relative path of every video, sorted; one row each.
        labels: Index into `classes`, one per video.
        source_bytes: Size of each video file.
        source_mtime_ns: Modification time of each video file.
        attributes: Root attributes of the HDF5 file: str, int, float or lists of them.
    """

    spec: Spec
    classes: tuple[bytes, ...]
    paths: tuple[bytes, ...]
    labels: tuple[int, ...]
    source_bytes: tuple[int, ...]
    source_mtime_ns: tuple[int, ...]
    attributes: dict[str, Any]

    @property
    def num_clips(self) -> int:
        """Rows of the cache (N)."""
        return len(self.paths)

    @property
    def path_bytes(self) -> int:
        """Width of the `path` column."""
        return max(len(path) for path in self.paths)

    def columns(self) -> dict[str, np.ndarray[Any, Any]]:
        """Return the columns that are known now, (N,) each."""
        values = {
            "path": self.paths,
            "label": self.labels,
            "source_bytes": self.source_bytes,
            "source_mtime_ns": self.source_mtime_ns,
        }
        return {
            column.name: np.array(values[column.name], column_dtype(column, self.path_bytes))
            for column in COLUMNS
            if column.stage is Stage.PLAN
        }

    def identity(self) -> str:
        """Hash of the whole plan: a build is resumed in place only under the same one."""
        fields = (
            self.spec.to_dict(),
            self.classes,
            self.paths,
            self.labels,
            self.source_bytes,
            self.source_mtime_ns,
            self.attributes,
        )
        return xxhash.xxh3_128_hexdigest(repr(fields).encode())
