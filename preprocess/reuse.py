"""Which videos need no decoding, because an earlier build has done it.

A video is the same when its path, size and time are; or, when it was moved or touched, its content.
"""

import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import numpy.typing as npt

from vidcache.cache.format import Plan, Status
from vidcache.cache.reader import CacheReader
from vidcache.cache.reuse import Donor
from vidcache.cache.writer import CacheWriter
from vidcache.errors import InputError, VidcacheError
from vidcache.preprocess.options import BuildOptions
from vidcache.preprocess.video.decode import DecodeLimits
from vidcache.preprocess.video.ffmpeg import start_threads
from vidcache.preprocess.video.source_file import Failure, hash_video, is_momentary
from vidcache.text import plural, printable

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
        or "near_group" not in reader.columns
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


def _hash_one(raw: Path, path: bytes, row: int, limits: DecodeLimits) -> tuple[int, bytes]:
    deadline = time.monotonic() + limits.timeout_seconds
    try:
        digest = hash_video(bytes(raw) + b"/" + path, deadline=deadline, follow_links=limits.follow_links)
        return row, digest.encode()
    except Failure:
        return row, b""


FEW = 2  # clips that may always be lost
MAX_LOST_FRACTION = 0.05  # for a reason of the moment
MAX_FAILED_FRACTION = 0.1  # for whatever reason
MAX_DROPPED_FRACTION = 0.5


def check_dropped(
    raw: Path, output: Path, finished: CacheReader, writer: CacheWriter, labels: Path | None = None
) -> tuple[str, ...]:
    """See that the videos of most clips of the older cache are still there, as themselves or under another name.

    Args:
        raw: The folder of videos.
        output: The cache.
        finished: The older one.
        writer: The new one, which has taken over what it can.
        labels: The list that names the videos, if one does.

    Returns:
        A sentence about the clips that the new cache will not have; none if there are no such clips.

    Raises:
        InputError: They are more than half of all, and more than 2; or all of a class whose folder is empty now.
    """
    columns, where = finished.columns, printable(labels or raw)
    had_clip = columns["status"] != Status.FAILED
    stayed = set(zip(columns["path"].tolist(), columns["source_hash"].tolist(), strict=True))
    found = zip(writer.plan.paths, writer.records["source_hash"].tolist(), writer.done.tolist(), strict=True)
    # A copy that was there before is no other clip that has moved.
    moved = [digest for path, digest, is_done in found if is_done and (path, digest) not in stayed]
    is_there = np.isin(columns["path"], writer.plan.paths) | np.isin(columns["source_hash"], moved)
    dropped = np.flatnonzero(had_clip & ~is_there)
    if not len(dropped):
        return ()
    num_clips = int(had_clip.sum())
    whole = _whole_classes(columns["label"], had_clip, dropped)
    emptied = [
        folder
        for row in dropped[np.isin(columns["label"][dropped], whole)].tolist()
        if (folder := _empty_folder(raw, finished.path_of(row)))
    ]
    if emptied or len(dropped) > max(FEW, MAX_DROPPED_FRACTION * num_clips):
        what = f", and {printable(emptied[0])} is empty" if emptied else ""
        raise InputError(
            f"{printable(output)}: {len(dropped)} of its {plural(num_clips, 'clip')} are of videos that are no longer "
            f"in {where}{what}; it stays as it is. If a folder is away, run the same command again "
            "when it is back; if they were removed for good, use another name, or replace it with --overwrite"
        )
    gone = f", all of class {', '.join(printable(finished.classes[label]) for label in whole)}" if whole else ""
    return (f"Dropped {plural(len(dropped), 'clip')} of videos that are no longer in {where}{gone}.",)


def _empty_folder(raw: Path, path: bytes) -> Path | None:
    """Return the folder that a video was in, or the part of it that is still there, if nothing is in that."""
    for folder in (raw / os.fsdecode(path)).parents:
        if folder == raw:
            break
        if folder.is_dir():
            return None if any(folder.iterdir()) else folder
    return None


def check_lost(output: Path, finished: CacheReader, writer: CacheWriter) -> None:
    """See that few videos which had a clip in the older cache have none now.

    Args:
        output: The cache.
        finished: The older one.
        writer: The new one, with every row completed.

    Raises:
        VidcacheError: They are more than 2 and more than 10 % of its clips, or 5 % for reasons of the moment.
    """
    columns, records = finished.columns, writer.records
    had_clip = columns["path"][columns["status"] != Status.FAILED]
    is_lost = (records["status"] == Status.FAILED) & np.isin(np.array(writer.plan.paths), had_clip)
    lost, num_momentary = np.flatnonzero(is_lost).tolist(), is_lost[rows_to_retry(records, retry_failed=False)].sum()
    if len(lost) <= max(FEW, MAX_FAILED_FRACTION * len(had_clip)) and num_momentary <= max(
        FEW, MAX_LOST_FRACTION * len(had_clip)
    ):
        return
    reasons = Counter(reason_of(records["error"][row]) for row in lost)
    said = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
    raise VidcacheError(
        f"{printable(output)}: {len(lost)} of its {plural(len(had_clip), 'clip')} would be lost, since their videos "
        f"failed this time ({said}; {printable(writer.plan.paths[lost[0]])}: "
        f"{records['error'][lost[0]].decode('utf-8', 'replace')}). It stays as it is, and what was decoded is "
        "kept: when the cause is gone, run the same command again. If they are to go, use another name, or --overwrite"
    )


def _whole_classes(
    label: npt.NDArray[np.integer[Any]], had_clip: npt.NDArray[np.bool_], dropped: npt.NDArray[np.int64]
) -> list[int]:
    """Return the labels of which every clip is dropped."""
    counts = np.bincount(label[had_clip]), np.bincount(label[dropped], minlength=int(label.max()) + 1)
    return [k for k, count in enumerate(counts[0].tolist()) if count and counts[1][k] == count]
