"""Which videos need no decoding, because a previous build has decoded them; and whether too many clips would be lost.

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

from vidcache.cache.builds import Manifest, PreviousBuild
from vidcache.cache.format import Status
from vidcache.cache.reader import CacheReader
from vidcache.cache.writer import CacheWriter
from vidcache.errors import InputError, VidcacheError
from vidcache.preprocess.options import BuildOptions
from vidcache.preprocess.video.decode import DecodeLimits
from vidcache.preprocess.video.ffmpeg import start_threads
from vidcache.preprocess.video.source_file import Failure, hash_video, is_momentary
from vidcache.text import plural, printable

_VERSIONS = {"vidcache_version", "ffmpeg_version"}
FEW = 2  # clips that may always be lost
MAX_LOST_FRACTION = 0.05  # for a reason of the moment
MAX_FAILED_FRACTION = 0.1  # for whatever reason
MAX_DROPPED_FRACTION = 0.5


def rows_to_retry(records: Any, *, retry_failed: bool) -> npt.NDArray[np.int64]:
    """Return the failed rows whose reason may be gone; with `retry_failed`, all that have failed."""
    failed = np.flatnonzero(records["status"] == Status.FAILED)
    return failed if retry_failed else failed[[is_momentary(reason_of(records["error"][row])) for row in failed]]


def reason_of(error: bytes) -> str:
    """Return the reason code of a value of the column "error"."""
    return error.decode("utf-8", "replace").partition(": ")[0]


def is_current(raw: Path, reader: CacheReader, manifest: Manifest, options: BuildOptions) -> bool:
    """Whether a finished cache is what a build of this manifest would give, whatever versions made it.

    With `check_contents`, the hashes of all videos and all clips are compared too.
    """
    expected = {name: value for name, value in manifest.attributes.items() if name not in _VERSIONS}
    if (
        not reader.is_current_format
        or "near_group" not in reader.columns
        or len(reader) != manifest.num_clips
        or reader.spec != manifest.spec
        or reader.classes != tuple(os.fsdecode(name) for name in manifest.classes)
        or any(reader.attributes.get(name) != value for name, value in expected.items())
        or any((reader.columns[name] != column).any() for name, column in manifest.columns().items())
    ):
        return False
    if not options.check_contents:
        return True
    hashes = _hash_videos(raw, manifest, range(manifest.num_clips), options)
    return all(reader.columns["source_hash"][row] == digest for row, digest in hashes) and not len(
        reader.damaged_rows()
    )


def invalidate_rows(raw: Path, writer: CacheWriter, options: BuildOptions) -> None:
    """Invalidate rows of an interrupted build: failures worth a retry; with `check_contents`, videos that changed."""
    for row in rows_to_retry(writer.records, retry_failed=options.retry_failed).tolist():
        writer.invalidate(row)
    if options.check_contents:
        done = np.flatnonzero(writer.done).tolist()
        for row, digest in _hash_videos(raw, writer.manifest, done, options):
            if writer.records[row]["source_hash"] != digest:
                writer.invalidate(row)


def copy_clips(raw: Path, writer: CacheWriter, builds: list[PreviousBuild], options: BuildOptions) -> Iterator[int]:
    """Copy the clips of previous builds, the best first, that are still valid; yields each row that was completed so.

    With `check_contents`, only hashes of videos count, not sizes and times. Raises OSError.
    """
    by_name: dict[tuple[bytes, int, int], tuple[PreviousBuild, int]] = {}
    by_content: dict[bytes, tuple[PreviousBuild, int]] = {}
    sizes: set[int] = set()
    for build in builds:
        usable = build.done.copy()
        usable[rows_to_retry(build.records, retry_failed=options.retry_failed)] = False
        names = (build.columns[name].tolist() for name in ("path", "source_bytes", "source_mtime_ns"))
        for row, (name, digest) in enumerate(zip(zip(*names, strict=True), build.records["source_hash"], strict=True)):
            if usable[row]:
                by_name.setdefault(name, (build, row))
                if digest:
                    by_content.setdefault(digest, (build, row))
                    sizes.add(name[1])
    manifest, to_hash = writer.manifest, []
    for row in writer.pending:
        name = manifest.paths[row], manifest.source_bytes[row], manifest.source_mtime_ns[row]
        candidate = None if options.check_contents else by_name.get(name)
        if candidate and writer.copy_clip_from(row, *candidate):
            yield row
        elif options.check_contents or manifest.source_bytes[row] in sizes:
            to_hash.append(row)
    for row, digest in _hash_videos(raw, manifest, to_hash, options):
        candidate = by_content.get(digest)
        if candidate and writer.copy_clip_from(row, *candidate):
            yield row


def check_dropped(
    raw: Path, output: Path, finished: CacheReader, writer: CacheWriter, labels: Path | None = None
) -> tuple[str, ...]:
    """Check that the videos of most clips of the older cache are still there, as themselves or under another name.

    The writer has copied what it can. Returns a sentence about the clips that the new cache will not have, if any.
    Raises InputError if they are over half of all, and over 2; or all clips of a class whose folder is empty now.
    """
    columns, where = finished.columns, printable(labels or raw)
    had_clip = columns["status"] != Status.FAILED
    unmoved = set(zip(columns["path"].tolist(), columns["source_hash"].tolist(), strict=True))
    rows = zip(writer.manifest.paths, writer.records["source_hash"].tolist(), writer.done.tolist(), strict=True)
    # A copy that was there before is not a clip that has moved.
    moved = [digest for path, digest, is_done in rows if is_done and (path, digest) not in unmoved]
    is_there = np.isin(columns["path"], writer.manifest.paths) | np.isin(columns["source_hash"], moved)
    dropped = np.flatnonzero(had_clip & ~is_there)
    if not len(dropped):
        return ()
    count = len(finished.classes)
    counts, num_dropped = (np.bincount(columns["label"][rows], minlength=count) for rows in (had_clip, dropped))
    whole = np.flatnonzero((counts > 0) & (counts == num_dropped)).tolist()  # classes
    of_whole = dropped[np.isin(columns["label"][dropped], whole)].tolist()
    emptied = next(filter(None, (_empty_folder(raw, finished.path_of(row)) for row in of_whole)), None)
    if emptied or len(dropped) > max(FEW, MAX_DROPPED_FRACTION * had_clip.sum()):
        what = f", and {printable(emptied)} is empty" if emptied else ""
        raise InputError(
            f"{printable(output)}: {len(dropped)} of its {plural(int(had_clip.sum()), 'clip')} are of videos that are "
            f"no longer in {where}{what}; it stays as it is. If a folder is away, run the same command again when it "
            "is back; if they were removed for good, use another name, or replace it with --overwrite"
        )
    gone = f", all of class {', '.join(printable(finished.classes[label]) for label in whole)}" if whole else ""
    return (f"Dropped {plural(len(dropped), 'clip')} of videos that are no longer in {where}{gone}.",)


def check_lost(output: Path, finished: CacheReader, writer: CacheWriter) -> None:
    """Check, when every row is completed, that few videos which had a clip in the older cache have none now.

    Raises VidcacheError if they are more than 2 and more than 10 % of its clips, or 5 % for reasons of the moment.
    """
    columns, records = finished.columns, writer.records
    had_clip = columns["path"][columns["status"] != Status.FAILED]
    is_lost = (records["status"] == Status.FAILED) & np.isin(np.array(writer.manifest.paths), had_clip)
    lost, num_momentary = np.flatnonzero(is_lost).tolist(), is_lost[rows_to_retry(records, retry_failed=False)].sum()
    few_failed = len(lost) <= max(FEW, MAX_FAILED_FRACTION * len(had_clip))
    if few_failed and num_momentary <= max(FEW, MAX_LOST_FRACTION * len(had_clip)):
        return
    reasons = Counter(reason_of(records["error"][row]) for row in lost).most_common()
    example = f"{printable(writer.manifest.paths[lost[0]])}: {records['error'][lost[0]].decode('utf-8', 'replace')}"
    raise VidcacheError(
        f"{printable(output)}: {len(lost)} of its {plural(len(had_clip), 'clip')} would be lost, since their videos "
        f"failed this time ({', '.join(f'{count} {reason}' for reason, count in reasons)}; {example}). It stays as it "
        "is, and what was decoded is kept: when the cause is gone, run the same command again. If they are to go, use "
        "another name, or --overwrite"
    )


def _empty_folder(raw: Path, path: bytes) -> Path | None:
    """Return the folder that a video was in, or the part of it that is still there, if nothing is in that."""
    folders = (raw / os.fsdecode(path)).parents
    there = next((folder for folder in folders if folder == raw or folder.is_dir()), raw)
    return None if there == raw or any(there.iterdir()) else there


def _hash_videos(
    raw: Path, manifest: Manifest, rows: Iterable[int], options: BuildOptions
) -> Iterator[tuple[int, bytes]]:
    """Hash source files; yields (row, hex digest), the digest empty for what cannot be read, or not in time."""
    parallel = joblib.Parallel(n_jobs=options.workers, backend="threading", return_as="generator")
    limits = options.limits
    jobs = (joblib.delayed(_hash_one)(bytes(raw) + b"/" + manifest.paths[row], row, limits) for row in rows)
    yield from start_threads(parallel, jobs)


def _hash_one(path: bytes, row: int, limits: DecodeLimits) -> tuple[int, bytes]:
    try:
        deadline = time.monotonic() + limits.timeout_seconds
        return row, hash_video(path, deadline=deadline, follow_links=limits.follow_links).encode()
    except Failure:
        return row, b""
