"""What earlier builds have decoded: the finished cache and builds that were interrupted.

A donor offers completed rows; whether a row is still good for a video is the caller's question,
whether its bytes are still what was written is answered by the clip's hash after copying.
"""

import dataclasses
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from vidcache.cache import format as layout
from vidcache.cache import journal
from vidcache.cache.format import COLUMNS, RECORD, Layout, Plan, Stage
from vidcache.cache.lock import own_builds
from vidcache.cache.reader import CacheReader
from vidcache.files import pread_all, read_small, write_text_atomically
from vidcache.spec import Spec
from vidcache.untrusted import build

SPLIT_MARK = "split"  # file in the folder of a build that decodes nothing: all that it has is in the finished cache


@dataclasses.dataclass(frozen=True)
class Donor:
    """Completed rows of an earlier build.

    Attributes:
        ffmpeg_version: Of the ffmpeg that decoded them.
        paths: (N,) S*, of all rows.
        source_bytes: (N,) int64.
        source_mtime_ns: (N,) int64.
        records: (N,) of dtype `RECORD`; meaningful where `done`.
        done: (N,) bool.
        descriptor: Of the file that holds the clips, open for reading.
        clips_offset: Where its first clip begins.
    """

    ffmpeg_version: str
    paths: npt.NDArray[np.bytes_]
    source_bytes: npt.NDArray[np.int64]
    source_mtime_ns: npt.NDArray[np.int64]
    records: np.ndarray[Any, Any]
    done: npt.NDArray[np.bool_]
    descriptor: int
    clips_offset: int


@dataclasses.dataclass(frozen=True)
class Skeleton:
    """plan.json: what a later process must know of a build folder; written when the rest is there.

    Attributes:
        plan: Identity of the plan.
        spec: Shape of its clips.
        ffmpeg_version: Of the ffmpeg that decodes for it.
        num_clips: Rows (N).
        path_bytes: Width of the `path` column.
        layout: Where everything lies in data.h5.
        skeleton_hash: Of what is in data.h5 from the start: HDF5 metadata and the plan's columns.
    """

    plan: str
    spec: Spec
    ffmpeg_version: str
    num_clips: int
    path_bytes: int
    layout: Layout
    skeleton_hash: str

    @classmethod
    def of(cls, plan: Plan, made: Layout, descriptor: int) -> "Skeleton":
        """Describe a skeleton that has just been made."""
        digest = skeleton_hash(descriptor, made, plan.num_clips, plan.path_bytes, plan.spec)
        version = str(plan.attributes.get("ffmpeg_version", ""))
        return cls(plan.identity(), plan.spec, version, plan.num_clips, plan.path_bytes, made, digest)

    def save(self, folder: Path) -> None:
        """Write plan.json into a build folder, in one step."""
        facts = json.dumps(dataclasses.asdict(self))
        write_text_atomically(folder / "plan.json", json.dumps({"hash": _hash(facts), "facts": facts}))

    @classmethod
    def load(cls, folder: Path) -> "Skeleton | None":
        """Read it back; None where there is none, not a whole one, or one of another format version."""
        try:
            whole = json.loads(read_small(folder / "plan.json"))
            if whole["hash"] != _hash(whole["facts"]):
                return None
            found = build(cls, json.loads(whole["facts"]))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None
        if not 0 < found.num_clips * (found.spec.clip_bytes + found.path_bytes) < found.layout.file_bytes:
            return None
        # One with other columns is of another format version.
        return found if {column.name for column in COLUMNS} == found.layout.column_offsets.keys() else None

    def matches(self, descriptor: int) -> bool:
        """Whether an open data.h5 still is what was made."""
        made = self.layout
        if os.fstat(descriptor).st_size != made.file_bytes:
            return False
        return skeleton_hash(descriptor, made, self.num_clips, self.path_bytes, self.spec) == self.skeleton_hash


def _hash(text: str) -> str:
    return xxhash.xxh3_128_hexdigest(text.encode())


def skeleton_hash(descriptor: int, made: Layout, num_clips: int, path_bytes: int, spec: Spec) -> str:
    """Hash data.h5 without the clips and the columns that are filled in later."""
    gaps = [(made.clips_offset, num_clips * spec.clip_bytes), (made.file_bytes, 0)]
    for column in COLUMNS:
        if column.stage is not Stage.PLAN:
            width = layout.column_dtype(column, path_bytes).itemsize * int(np.prod(column.shape, initial=1))
            gaps.append((made.column_offsets[column.name], width * num_clips))
    return layout.hash_between(descriptor, sorted(gaps))


def partial_builds(output: Path) -> dict[Path, Skeleton]:
    """List the interrupted builds of a cache whose plan can be read, without splits: those have decoded nothing."""
    found = ((folder, Skeleton.load(folder)) for folder in own_builds(output))
    return {folder: skeleton for folder, skeleton in found if skeleton and not (folder / SPLIT_MARK).exists()}


@dataclasses.dataclass(frozen=True)
class Earlier:
    """What is known of an earlier build before anything of it is used.

    Attributes:
        where: The finished cache, or the folder of an interrupted build.
        spec: Of its clips.
        ffmpeg_version: Of the ffmpeg that decoded them; empty if none of them can be taken over.
    """

    where: Path
    spec: Spec
    ffmpeg_version: str


def earlier_builds(output: Path, finished: CacheReader | None) -> list[Earlier]:
    """List the interrupted builds of a cache, and the finished one if there is one."""
    found = [
        Earlier(folder, skeleton.spec, skeleton.ffmpeg_version) for folder, skeleton in partial_builds(output).items()
    ]
    if finished:
        version = str(finished.attributes.get("ffmpeg_version", "")) if finished.is_current_format else ""
        found.append(Earlier(output, finished.spec, version))
    return found


@contextmanager
def open_donors(output: Path, finished: CacheReader | None, spec: Spec, own: str) -> Iterator[list[Donor]]:
    """Open everything whose clips have this spec: interrupted builds first, then the finished cache.

    Args:
        output: The cache.
        finished: The same, if there is one.
        spec: Of the clips that are wanted.
        own: Identity of the plan that asks, which is no donor to itself.
    """
    descriptors: list[int] = []
    donors: list[Donor] = []
    try:
        for folder, skeleton in partial_builds(output).items():
            if skeleton.spec == spec and skeleton.plan != own:
                donor = _open_partial(folder, skeleton, descriptors)
                donors += [donor] if donor else []
        if finished and finished.spec == spec:
            donors.append(_finished(finished))
        yield donors
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def records_of(columns: dict[str, np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    """Return the records, (N,) of dtype `RECORD`, that a cache's columns came from."""
    records = np.zeros(len(columns["status"]), RECORD)
    for name in RECORD.names or ():
        records[name] = columns[name]
    return records


def _finished(reader: CacheReader) -> Donor:
    columns = reader.columns
    return Donor(
        str(reader.attributes.get("ffmpeg_version", "")),
        columns["path"],
        columns["source_bytes"],
        columns["source_mtime_ns"],
        records_of(columns),
        np.ones(len(columns["path"]), bool),
        reader.fileno(),
        reader.header.clips_offset,
    )


def _open_partial(folder: Path, skeleton: Skeleton, descriptors: list[int]) -> Donor | None:
    try:
        descriptor = os.open(folder / "data.h5", os.O_RDONLY | os.O_CLOEXEC)
        descriptors.append(descriptor)
        entries = (folder / "journal").read_bytes()
    except OSError:
        return None
    if not skeleton.matches(descriptor):
        return None
    columns = {}
    for column in COLUMNS:
        if column.stage is Stage.PLAN:
            columns[column.name] = np.empty(skeleton.num_clips, layout.column_dtype(column, skeleton.path_bytes))
            view = columns[column.name].view(np.uint8).data
            pread_all(descriptor, view, skeleton.layout.column_offsets[column.name])
    records, done, _ = journal.decode_entries(skeleton.plan, skeleton.num_clips, entries)
    return Donor(
        skeleton.ffmpeg_version,
        columns["path"],
        columns["source_bytes"],
        columns["source_mtime_ns"],
        records,
        done,
        descriptor,
        skeleton.layout.clips_offset,
    )
