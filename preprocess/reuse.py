"""Which videos need no decoding, because an earlier build has done it.

A video is the same when its path, size and time are; or, when it was moved or touched, its content.
"""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import joblib
import numpy as np

from vidcache.cache.donors import Donor
from vidcache.cache.layout import Status
from vidcache.cache.plan import Plan
from vidcache.cache.reader import CacheReader
from vidcache.cache.writer import CacheWriter
from vidcache.preprocess.failure import Failure
from vidcache.preprocess.opening import hash_video

VERSIONS = {"vidcache_version", "ffmpeg_version"}


def is_current(raw: Path, reader: CacheReader, plan: Plan, *, check_contents: bool, workers: int) -> bool:
    """Whether a finished cache is what a build of this plan would give.

    Another version of vidcache or ffmpeg alone makes no cache out of date.

    Args:
        raw: The folder that the paths are relative to.
        reader: The cache.
        plan: The plan.
        check_contents: Compare the hashes of all videos and all clips too.
        workers: Files read at a time.
    """
    wanted = {name: value for name, value in plan.attributes.items() if name not in VERSIONS}
    if (
        not reader.is_current_format
        or len(reader) != plan.num_clips
        or reader.spec != plan.spec
        or reader.classes != tuple(os.fsdecode(name) for name in plan.classes)
        or any(reader.attributes.get(name) != value for name, value in wanted.items())
        or any((reader.columns[name] != column).any() for name, column in plan.columns().items())
    ):
        return False
    if not check_contents:
        return True
    known = reader.columns["source_hash"]
    hashes = _hashes(raw, plan, range(plan.num_clips), workers)
    return all(known[row] == digest for row, digest in hashes) and not len(reader.damaged_rows())


def reconsider(raw: Path, writer: CacheWriter, *, check_contents: bool, retry_failed: bool, workers: int) -> None:
    """Take back rows that an interrupted build had completed, but that are to be done again.

    Args:
        raw: The folder that the paths are relative to.
        writer: The build.
        check_contents: Those whose video has another hash than when it was decoded.
        retry_failed: The failed ones.
        workers: Files read at a time.
    """
    if retry_failed:
        for row in np.flatnonzero(writer.done & (writer.records["status"] == Status.FAILED)).tolist():
            writer.forget(row)
    if check_contents:
        done = np.flatnonzero(writer.done).tolist()
        for row, digest in _hashes(raw, writer.plan, done, workers):
            if writer.records[row]["source_hash"] != digest:
                writer.forget(row)


def take_over(
    raw: Path,
    writer: CacheWriter,
    donors: list[Donor],
    *,
    check_contents: bool,
    retry_failed: bool,
    workers: int,
) -> Iterator[int]:
    """Complete what earlier builds have decoded; yields each row that was done so.

    Args:
        raw: The folder that the paths are relative to.
        writer: The new build.
        donors: The earlier builds, the best first.
        check_contents: Believe hashes only, not sizes and times.
        retry_failed: Leave failed videos to be decoded again.
        workers: Files read at a time.

    Raises:
        OSError: The disk is full or broken.
    """
    offers = _Offers(donors, retry_failed)
    plan, left = writer.plan, []
    for row in writer.pending:
        name = plan.paths[row], plan.source_bytes[row], plan.source_mtime_ns[row]
        offer = None if check_contents else offers.by_name.get(name)
        if offer and writer.take_over(row, *offer):
            yield row
        elif check_contents or plan.source_bytes[row] in offers.sizes:
            left.append(row)
    for row, digest in _hashes(raw, plan, left, workers):
        offer = offers.by_content.get(digest)
        if offer and writer.take_over(row, *offer):
            yield row


class _Offers:
    """The rows of all donors, by what a video is known by."""

    def __init__(self, donors: list[Donor], retry_failed: bool) -> None:
        self.by_name: dict[tuple[bytes, int, int], tuple[Donor, int]] = {}
        self.by_content: dict[bytes, tuple[Donor, int]] = {}
        self.sizes: set[int] = set()
        for donor in donors:
            offered = donor.done & ~((donor.records["status"] == Status.FAILED) & retry_failed)
            for row in np.flatnonzero(offered).tolist():
                size = int(donor.source_bytes[row])
                self.by_name.setdefault((donor.paths[row], size, int(donor.source_mtime_ns[row])), (donor, row))
                digest = donor.records[row]["source_hash"]
                if digest:
                    self.by_content.setdefault(digest, (donor, row))
                    self.sizes.add(size)


def _hashes(raw: Path, plan: Plan, rows: Iterable[int], workers: int) -> Iterator[tuple[int, bytes]]:
    """Hash source files; yields (row, hex digest), the digest empty for what cannot be read."""
    parallel = joblib.Parallel(n_jobs=workers, backend="threading", return_as="generator")
    yield from parallel(joblib.delayed(_hash_one)(raw, plan.paths[row], row) for row in rows)


def _hash_one(raw: Path, path: bytes, row: int) -> tuple[int, bytes]:
    try:
        return row, hash_video(bytes(raw) + b"/" + path).encode()
    except Failure:
        return row, b""
