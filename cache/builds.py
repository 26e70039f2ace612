"""Builds on disk: the manifest, the skeleton of the file that a build fills in, its journal, and previous builds.

While `cache.h5` is built, `.cache.h5.build/<hash of the manifest>/` has `plan.json`, `data.h5` and `journal`. Clips of
previous builds can be copied: the caller decides whether one is still valid for its video; its hash is checked after.
"""

import contextlib
import dataclasses
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import h5py
import numpy as np
import numpy.typing as npt
import xxhash

from vidcache.cache.format import (
    COLUMNS,
    FORMAT,
    FORMAT_VERSION,
    PAGE_BYTES,
    RECORD,
    USER_BLOCK_BYTES,
    Array,
    Stage,
    column_dtype,
    create_dataset,
    hash_between,
)
from vidcache.cache.lock import own_builds
from vidcache.cache.reader import CacheReader
from vidcache.files import pread_all, pwrite_all, read_small, write_text_atomically
from vidcache.spec import Spec
from vidcache.untrusted import build

_PLANNED = [column for column in COLUMNS if column.stage is Stage.PLAN]


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What is known before the first video is opened: one row for each, sorted by its path below the raw folder.

    A label is an index into `classes`; the attributes (str, int, float, lists of them) become those of the HDF5 file.
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

    def columns(self) -> dict[str, Array]:
        """Return the columns that are known now, (N,) each."""
        values = (self.paths, self.labels, self.source_bytes, self.source_mtime_ns)
        return {
            column.name: np.array(value, column_dtype(column, self.path_bytes))
            for column, value in zip(_PLANNED, values, strict=True)
        }

    def hash(self) -> str:
        """Hash all of it: a build is resumed in place only under the same manifest."""
        fields = [getattr(self, field.name) for field in dataclasses.fields(self)]
        return xxhash.xxh3_128_hexdigest(repr((self.spec.to_dict(), *fields[1:])).encode())


# --- skeleton ------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Skeleton:
    """plan.json: what a later process must know about a build folder; written when the rest is there.

    `content_hash` is over what is in data.h5 from the start: HDF5 metadata and the columns of the manifest.
    """

    manifest_hash: str
    spec: Spec
    ffmpeg_version: str
    num_clips: int
    path_bytes: int
    column_offsets: dict[str, int]
    clips_offset: int
    file_bytes: int
    content_hash: str = ""

    def save(self, folder: Path) -> None:
        """Write plan.json into a build folder, in one step."""
        facts = json.dumps(dataclasses.asdict(self))
        text = json.dumps({"hash": xxhash.xxh3_128_hexdigest(facts.encode()), "facts": facts})
        write_text_atomically(folder / "plan.json", text)

    @classmethod
    def load(cls, folder: Path) -> Self | None:
        """Read it back; None where there is none, not a whole one, or one of a vidcache with other columns."""
        try:
            whole = json.loads(read_small(folder / "plan.json"))
            if whole["hash"] != xxhash.xxh3_128_hexdigest(whole["facts"].encode()):
                return None
            skeleton = build(cls, json.loads(whole["facts"]))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None
        if not 0 < skeleton.num_clips * (skeleton.spec.clip_bytes + skeleton.path_bytes) < skeleton.file_bytes:
            return None
        return skeleton if {column.name for column in COLUMNS} == skeleton.column_offsets.keys() else None

    def matches(self, descriptor: int) -> bool:
        """Whether an open data.h5 still is what was made."""
        return os.fstat(descriptor).st_size == self.file_bytes and self.hash_content(descriptor) == self.content_hash

    def hash_content(self, descriptor: int) -> str:
        """Hash an open data.h5 without the clips and the columns that are filled in later."""
        gaps = [(self.clips_offset, self.num_clips * self.spec.clip_bytes), (self.file_bytes, 0)]
        for column in COLUMNS:
            if column.stage is not Stage.PLAN:
                row_bytes = np.dtype((column.dtype, column.shape)).itemsize
                gaps.append((self.column_offsets[column.name], row_bytes * self.num_clips))
        return hash_between(descriptor, sorted(gaps))


def create_skeleton(descriptor: int, manifest: Manifest) -> Skeleton:
    """Write a complete HDF5 file in which only `/classes`, attributes and the manifest's columns have content.

    Every dataset is contiguous, allocated now and never filled, so the file is sparse and this takes about a
    millisecond whatever its size.
    """
    spec, count, classes = manifest.spec, manifest.num_clips, manifest.classes
    # In memory, where only the written pages exist: libhdf5 never sees a full disk.
    in_memory = sys.platform == "linux"
    with os.fdopen(os.memfd_create("hdf5"), "w+b", 0) if in_memory else tempfile.TemporaryFile(buffering=0) as image:
        with h5py.File(
            image,
            "w",
            libver="earliest",
            userblock_size=USER_BLOCK_BYTES,
            # Only datasets above the threshold start on a page: small columns stay packed.
            alignment_threshold=min(1 << 20, count * spec.clip_bytes),
            alignment_interval=PAGE_BYTES,
        ) as file:
            attributes = {"format": FORMAT.decode(), "format_version": FORMAT_VERSION, **manifest.attributes}
            for name, value in attributes.items():
                file.attrs[name] = np.bytes_(os.fsencode(value)) if isinstance(value, str) else value
            width = max(len(name) for name in classes)
            names = create_dataset(file, "classes", np.dtype(f"S{width}"), (len(classes),))
            names.write(h5py.h5s.ALL, h5py.h5s.ALL, np.array(classes, f"S{width}"))
            videos, offsets = file.create_group("videos"), {}
            for column in COLUMNS:
                dtype = column_dtype(column, manifest.path_bytes)
                dataset = create_dataset(videos, column.name, dtype, (count, *column.shape))
                h5py.Dataset(dataset).attrs["meaning"] = np.bytes_(column.meaning)
                offsets[column.name] = dataset.get_offset()
            clips_offset = create_dataset(file, "clips", np.dtype("|u1"), (count, *spec.clip_shape)).get_offset()
        file_bytes = _copy_sparse(image.fileno(), descriptor)
    for name, values in manifest.columns().items():
        pwrite_all(descriptor, memoryview(values.tobytes()), offsets[name])
    version = str(manifest.attributes.get("ffmpeg_version", ""))
    where = offsets, clips_offset, file_bytes
    skeleton = Skeleton(manifest.hash(), spec, version, count, manifest.path_bytes, *where)
    return dataclasses.replace(skeleton, content_hash=skeleton.hash_content(descriptor))


def _copy_sparse(source: int, target: int) -> int:
    """Copy a file to an empty one, holes as holes; return its length."""
    num_bytes, end = os.fstat(source).st_size, 0
    os.ftruncate(target, num_bytes)
    while end < num_bytes:
        try:
            start = os.lseek(source, end, os.SEEK_DATA)
        except OSError:  # nothing but a hole is left
            break
        end = os.lseek(source, start, os.SEEK_HOLE)
        pwrite_all(target, memoryview(os.pread(source, end - start, start)), start)
    return num_bytes


# --- journal -------------------------------------------------------------------------------------

_ENTRY = np.dtype([("row", "<u8"), ("record", RECORD)])
ENTRY_BYTES = _ENTRY.itemsize + 8


def encode_entry(manifest_hash: str, row: int, record: np.void) -> bytes:
    """Return the journal entry of a completed row, `ENTRY_BYTES` long; its checksum is seeded with the manifest."""
    entry = np.zeros((), _ENTRY)
    entry["row"], entry["record"] = row, record
    body = entry.tobytes()
    return body + _checksum(manifest_hash, body).to_bytes(8, "little")


def decode_entries(manifest_hash: str, num_clips: int, data: bytes) -> tuple[Array, npt.NDArray[np.bool_], int]:
    """Read entries up to the first that is torn, altered, or belongs to another manifest or to no row.

    Returns (N,) records, of which the last entry of a row counts; (N,) bool, which rows have one; the good bytes.
    """
    records, done = np.zeros(num_clips, RECORD), np.zeros(num_clips, bool)
    position = 0
    while position + ENTRY_BYTES <= len(data):
        body, end = data[position : position + _ENTRY.itemsize], position + ENTRY_BYTES
        entry = np.frombuffer(body, _ENTRY, count=1)[0]
        checksum = int.from_bytes(data[end - 8 : end], "little")
        if checksum != _checksum(manifest_hash, body) or entry["row"] >= num_clips:
            break
        records[entry["row"]], done[entry["row"]], position = entry["record"], True, end
    return records, done, position


def _checksum(manifest_hash: str, body: bytes) -> int:
    return xxhash.xxh3_64_intdigest(body, seed=int(manifest_hash[:16], 16))


# --- previous builds -----------------------------------------------------------------------------

SPLIT_MARK = "split"  # file in the folder of a build that decodes nothing: all that it has is in the finished cache


@dataclasses.dataclass(frozen=True)
class PreviousBuild:
    """A finished cache or an interrupted build, open for reading."""

    columns: dict[str, Array]  # at least those of the manifest, (N,) each
    records: Array  # (N,) of dtype `RECORD`, meaningful where `done`
    done: npt.NDArray[np.bool_]
    descriptor: int  # the file that holds the clips
    clips_offset: int

    @classmethod
    def from_cache(cls, reader: CacheReader, columns: dict[str, Array]) -> Self:
        """Take a finished cache as a build; the columns may know more than those of the file."""
        records = np.zeros(len(reader), RECORD)
        for name in RECORD.names or ():
            records[name] = columns[name]
        return cls(columns, records, np.ones(len(reader), bool), reader.fileno(), reader.header.clips_offset)

    @classmethod
    def from_folder(cls, folder: Path, skeleton: Skeleton, descriptor: int) -> Self:
        """Take an interrupted build; `descriptor` is that of its data.h5."""
        columns = {}
        for column in _PLANNED:
            columns[column.name] = np.empty(skeleton.num_clips, column_dtype(column, skeleton.path_bytes))
            pread_all(descriptor, columns[column.name].view(np.uint8).data, skeleton.column_offsets[column.name])
        entries = (folder / "journal").read_bytes()
        records, done, _ = decode_entries(skeleton.manifest_hash, skeleton.num_clips, entries)
        return cls(columns, records, done, descriptor, skeleton.clips_offset)


def partial_builds(output: Path) -> dict[Path, Skeleton]:
    """List the interrupted builds of a cache that can be read; interrupted splits have decoded nothing."""
    skeletons = {folder: Skeleton.load(folder) for folder in own_builds(output) if not (folder / SPLIT_MARK).exists()}
    return {folder: skeleton for folder, skeleton in skeletons.items() if skeleton}


@contextlib.contextmanager
def open_previous_builds(
    output: Path, finished: CacheReader | None, manifest: Manifest
) -> Iterator[list[PreviousBuild]]:
    """Open all builds with clips of the same spec but that of the manifest: interrupted ones, then the finished one."""
    with contextlib.ExitStack() as stack:
        builds = []
        for folder, skeleton in partial_builds(output).items():
            if skeleton.spec == manifest.spec and skeleton.manifest_hash != manifest.hash():
                with contextlib.suppress(OSError):
                    descriptor = os.open(folder / "data.h5", os.O_RDONLY | os.O_CLOEXEC)
                    stack.callback(os.close, descriptor)
                    if skeleton.matches(descriptor):
                        builds.append(PreviousBuild.from_folder(folder, skeleton, descriptor))
        if finished and finished.spec == manifest.spec:
            builds.append(PreviousBuild.from_cache(finished, finished.columns))
        yield builds
