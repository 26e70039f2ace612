"""The file format, as data: columns, user block, hashes.

A cache is one HDF5 file: `[user block, 4096 bytes][HDF5 metadata and columns][clips]`. Everything has its final place
before the first clip is written, so writing is `pwrite` and reading is `preadv`; libhdf5 only makes the empty skeleton
(`vidcache.cache.manifest`), and parses a file whose hash is already known good (`vidcache.cache.validate`).
"""

import dataclasses
import enum
import os
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Self

import h5py
import numpy as np
import xxhash

from vidcache.errors import CacheError
from vidcache.outputs import name_of
from vidcache.spec import Spec

FORMAT = b"vidcache"
FORMAT_VERSION = 2
USER_BLOCK_BYTES = 4096
PAGE_BYTES = 4096
HASH_HEX = 32  # characters of a 128-bit hash
ERROR_BYTES = 240

Array = np.ndarray[Any, Any]


class Status(enum.IntEnum):
    """What became of a video."""

    OK = 0
    DAMAGED = 1  # there is a clip, but frames were missing or broken
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

# What a worker knows of a video once it is decoded; also the body of a journal entry.
RECORD = np.dtype([(c.name, c.dtype, c.shape) for c in COLUMNS if c.stage is Stage.DECODE])


def columns_of(format_version: int) -> tuple[Column, ...]:
    """Return the columns that a cache of a format version has; older ones lack the newer columns."""
    return tuple(column for column in COLUMNS if column.since <= format_version)


def column_dtype(column: Column, path_bytes: int) -> np.dtype[Any]:
    """Return the dtype of a column; `path` is `path_bytes` wide."""
    return np.dtype(f"S{path_bytes}") if column.name == "path" else np.dtype(column.dtype)


def create_dataset(group: Any, name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Any:
    """Add a contiguous dataset to an open file: allocated now, never filled, without a time stamp."""
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_layout(h5py.h5d.CONTIGUOUS)
    properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    properties.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    properties.set_obj_track_times(False)  # the same input gives the same bytes
    kind = h5py.h5t.py_create(dtype, logical=True)
    return h5py.h5d.create(group.id, name.encode(), kind, h5py.h5s.create_simple(shape), properties)


# --- user block ----------------------------------------------------------------------------------

_COUNTS = ("num_frames", "height", "width", "reserved")
_HASHES = ("metadata_hash", "fingerprint", "split_hash")
# Everything little-endian, no padding; the last eight bytes of the user block hash the rest of it.
HEADER = np.dtype(
    [("format", "S8"), ("format_version", "<u4"), ("complete", "<u4"), ("num_clips", "<u8")]
    + [(name, "<u4") for name in _COUNTS]
    + [(name, "<u8") for name in ("clips_offset", "clip_bytes", "file_bytes")]
    + [(name, f"S{HASH_HEX}") for name in _HASHES]
)


@dataclasses.dataclass(frozen=True)
class Header:
    """The user block: the only bytes that are written last, and the first that a reader checks.

    Hashes are hex: of everything but this block and the clips, `fingerprint_of` and `split_hash_of`.
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
        """Return the user block, 4096 bytes: fields, zeros, and a hash of both in the last eight."""
        fields = np.zeros((), HEADER)
        for name, value in dataclasses.asdict(self).items():
            fields[name] = value.encode("ascii") if isinstance(value, str) else value
        fields["format"], fields["complete"], fields["clip_bytes"] = FORMAT, 1, self.clip_bytes
        return seal(fields)

    @classmethod
    def from_bytes(cls, block: bytes, where: str) -> Self:
        """Read a user block back; raises CacheError if no finished, undamaged cache of a known version has it."""
        if block[: len(FORMAT)] != FORMAT:
            known = name_of(block)
            what = f"is {known}, not a cache" if known else f"not a file of vidcache (it begins with {block[:8]!r})"
            raise CacheError(f"{where}: {what}. Name a cache")
        rebuild = "Restore a copy, or build it again with --overwrite"
        if len(block) < USER_BLOCK_BYTES:
            raise CacheError(f"{where}: {len(block)} bytes, expected {USER_BLOCK_BYTES} or more. {rebuild}")
        if block != seal(np.frombuffer(block, np.uint8, USER_BLOCK_BYTES - 8)):
            raise CacheError(f"{where}: the header is damaged (wrong checksum). {rebuild}")
        fields = np.frombuffer(block, HEADER, count=1)[0]
        version = int(fields["format_version"])
        if not 1 <= version <= FORMAT_VERSION:
            older = "Use the vidcache that made it, or build it again under another name"
            raise CacheError(
                f"{where}: format version {version}, but this vidcache reads versions 1 to {FORMAT_VERSION}. "
                f"{'Use a newer vidcache' if version > FORMAT_VERSION else older}"
            )
        expected = int(fields["num_frames"]) * int(fields["height"]) * int(fields["width"]) * 3
        if fields["complete"] != 1 or fields["clip_bytes"] != expected:
            raise CacheError(f"{where}: the header does not belong to a finished cache. {rebuild}")
        values: dict[str, Any] = {field.name: fields[field.name].item() for field in dataclasses.fields(cls)}
        return cls(**{**values, **{name: values[name].decode("ascii", "replace") for name in _HASHES}})


def seal(fields: Array) -> bytes:
    """Return a user block of fields."""
    body = fields.tobytes().ljust(USER_BLOCK_BYTES - 8, b"\0")
    return body + xxhash.xxh3_64_intdigest(body).to_bytes(8, "little")


# --- hashes --------------------------------------------------------------------------------------


def hash_between(descriptor: int, gaps: Iterable[tuple[int, int]]) -> str:
    """Hash a file from the user block on without some gaps, (offset, size), ascending; the last is (file length, 0)."""
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
    """Hash everything but the user block and the clips; in tiny files some metadata follows the clips."""
    return hash_between(descriptor, [(clips_offset, clips_bytes), (file_bytes, 0)])


def clip_hash_of(clip: Array) -> str:
    """Hash the bytes of a C-contiguous clip."""
    return xxhash.xxh3_128_hexdigest(clip.data)


def fingerprint_of(spec: Spec, classes: Sequence[bytes], columns: dict[str, Array]) -> str:
    """Hash what a model is trained on: spec, classes, paths, labels, source and clip hashes."""
    digest = xxhash.xxh3_128(repr(sorted(spec.to_dict().items())).encode())
    for class_name in classes:
        digest.update(len(class_name).to_bytes(8, "little") + class_name)
    for name in ("path", "label", "source_hash", "clip_hash"):
        digest.update(np.ascontiguousarray(columns[name]).data)
    return digest.hexdigest()


def split_hash_of(columns: dict[str, Array]) -> str:
    """Hash which path is in which split."""
    digest = xxhash.xxh3_128()
    for name in ("path", "split"):
        digest.update(np.ascontiguousarray(columns[name]).data)
    return digest.hexdigest()
