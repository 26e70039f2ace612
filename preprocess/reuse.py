"""Which videos need no decoding, because an earlier build has done it.

A video is the same when its path, size and time are; or, when it was moved or touched, its content.
"""

import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import numpy.typing as npt

from vidcache.cache.donors import Donor
from vidcache.cache.layout import Status
from vidcache.cache.plan import Plan
from vidcache.cache.reader import CacheReader
from vidcache.cache.writer import CacheWriter
from vidcache.preprocess.decode import Limits
from vidcache.preprocess.failure import Failure, is_momentary
from vidcache.preprocess.opening import hash_video
from vidcache.preprocess.options import BuildOptions
from vidcache.preprocess.resources import start_threads

VERSIONS = {"vidcache_version", "ffmpeg_version"}


def rows_to_retry(records: Any, *, retry_failed: bool) -> npt.NDArray[np.int64]:
    """Return the failed rows whose verdict may be another one by now.

    Args:
        records: Columns "status" and "error", (N,) each.
        retry_failed: Take all failed rows, also those that fail because of the bytes of the video.
    """
    failed = np.flatnonzero(records["status"] == Status.FAILED)
    return failed if retry_failed else failed[[is_momentary(reason_of(records["error"][row])) for row in failed]]


def reason_of(error: bytes) -> str:
    """Return the reason code of a value of the column "error"."""
    return error.decode("utf-8", "replace").partition(": ")[0]


def is_current(raw: Path, reader: CacheReader, plan: Plan, options: BuildOptions) -> bool:
    """Whether a finished cache is what a build of this plan would give.

    Another version of vidcache or ffmpeg alone makes no cache out of date.

    Args:
        raw: The folder that the paths are relative to.
        reader: The cache.
        plan: The plan.
        options: Whether to compare the hashes of all videos and all clips too.
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
    if not options.check_contents:
        return True
    known = reader.columns["source_hash"]
    hashes = _hashes(raw, plan, range(plan.num_clips), options)
    return all(known[row] == digest for row, digest in hashes) and not len(reader.damaged_rows())


def reconsider(raw: Path, writer: CacheWriter, options: BuildOptions) -> None:
    """Take back rows that an interrupted build had completed, but that are to be done again.

    Those are failures that may be none by now, and, if contents are to be checked, videos with another hash than when
    they were decoded.

    Args:
        raw: The folder that the paths are relative to.
        writer: The build.
        options: How.
    """
    for row in rows_to_retry(writer.records, retry_failed=options.retry_failed).tolist():
        writer.forget(row)
    if options.check_contents:
        done = np.flatnonzero(writer.done).tolist()
        for row, digest in _hashes(raw, writer.plan, done, options):
            if writer.records[row]["source_hash"] != digest:
                writer.forget(row)


def take_over(raw: Path, writer: CacheWriter, donors: list[Donor], options: BuildOptions) -> Iterator[int]:
    """Complete what earlier builds have decoded; yields each row that was done so.

    Args:
        raw: The folder that the paths are relative to.
        writer: The new build.
        donors: The earlier builds, the best first.
        options: Whether to believe hashes only, not sizes and times, and which failures count.

    Raises:
        OSError: The disk is full or broken.
    """
    offers, check_contents = _Offers(donors, options), options.check_contents
    plan, left = writer.plan, []
    for row in writer.pending:
        name = plan.paths[row], plan.source_bytes[row], plan.source_mtime_ns[row]
        offer = None if check_contents else offers.by_name.get(name)
        if offer and writer.take_over(row, *offer):
            yield row
        elif check_contents or plan.source_bytes[row] in offers.sizes:
            left.append(row)
    for row, digest in _hashes(raw, plan, left, options):
        offer = offers.by_content.get(digest)
        if offer and writer.take_over(row, *offer):
            yield row


class _Offers:
    """The rows of all donors, by what a video is known by."""

    def __init__(self, donors: list[Donor], options: BuildOptions) -> None:
        self.by_name: dict[tuple[bytes, int, int], tuple[Donor, int]] = {}
        self.by_content: dict[bytes, tuple[Donor, int]] = {}
        self.sizes: set[int] = set()
        for donor in donors:
            offered = donor.done.copy()
            offered[rows_to_retry(donor.records, retry_failed=options.retry_failed)] = False
            for row in np.flatnonzero(offered).tolist():
                size = int(donor.source_bytes[row])
                self.by_name.setdefault((donor.paths[row], size, int(donor.source_mtime_ns[row])), (donor, row))
                digest = donor.records[row]["source_hash"]
                if digest:
                    self.by_content.setdefault(digest, (donor, row))
                    self.sizes.add(size)


def _hashes(raw: Path, plan: Plan, rows: Iterable[int], options: BuildOptions) -> Iterator[tuple[int, bytes]]:
    """Hash source files; yields (row, hex digest), the digest empty for what cannot be read, or not in time."""
    parallel = joblib.Parallel(n_jobs=options.workers, backend="threading", return_as="generator")
    limits = options.limits
    yield from start_threads(parallel, (joblib.delayed(_hash_one)(raw, plan.paths[row], row, limits) for row in rows))


def _hash_one(raw: Path, path: bytes, row: int, limits: Limits) -> tuple[int, bytes]:
    deadline = time.monotonic() + limits.timeout_seconds
    try:
        digest = hash_video(bytes(raw) + b"/" + path, deadline=deadline, follow_links=limits.follow_links)
        return row, digest.encode()
    except Failure:
        return row, b""
