"""Split a finished cache anew: the same clips under other columns, nothing is decoded.

Written as a build is, into a new file that takes over every clip: a kill at any instant leaves the old split or the
new one. It needs the space of a second cache while it is written.
"""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from vidcache.cache.format import Plan, Split, Status
from vidcache.cache.leakage import near_groups
from vidcache.cache.reader import CacheReader
from vidcache.cache.reuse import SPLIT_MARK, open_donors, partial_builds, records_of
from vidcache.cache.writer import CacheWriter
from vidcache.errors import CacheError, InputError, LockedError
from vidcache.files import follow
from vidcache.near_duplicates import perceptual_hash
from vidcache.preprocess.build import plan_attributes
from vidcache.preprocess.split.config import Assignment, SplitConfig, SplitOverrides, Splitter
from vidcache.text import printable


@dataclasses.dataclass(frozen=True)
class SplitReport:
    """What a split did.

    Attributes:
        cache: The file.
        rule: How it is split now.
        split_hash: Names the split.
        class_counts: Clips of each class in train, val, test and unused, in label order.
        num_groups: Groups that have a clip.
        num_moved: Clips that are in another split than before.
        notes: What the user should know, a sentence each.
        up_to_date: It was split so already; nothing was written.
    """

    cache: Path
    rule: SplitConfig
    split_hash: str
    class_counts: dict[str, tuple[int, ...]]
    num_groups: int
    num_moved: int
    notes: tuple[str, ...]
    up_to_date: bool


Progress = Callable[[int, int], None]  # clips done, clips in all


def split_cache(
    cache: Path, choice: SplitOverrides, *, dry_run: bool = False, progress: Progress = lambda *_: None
) -> SplitReport:
    """Split a cache; what is not chosen stays as it is.

    Args:
        cache: A finished cache.
        choice: What to change.
        dry_run: Say what would be done; write nothing.
        progress: Called after every clip.

    Raises:
        CacheError: It is no cache, or a clip of it is damaged.
        InputError: The split cannot be made, or a build of it was interrupted.
        LockedError: It is being built, or has been replaced meanwhile.
        VidcacheError: The disk has no room.
    """
    cache = follow(cache)
    with CacheReader(cache) as reader:
        rule = choice.applied_to(SplitConfig.from_attributes(reader.attributes))
        columns, depth = _current_columns(reader), int(reader.attributes["class_depth"])
        follow_links = bool(reader.attributes.get("follow_links"))
        ffmpeg_version = reader.attributes["ffmpeg_version"]
        attributes = plan_attributes(reader.spec, depth, rule, ffmpeg_version, follow_links=follow_links)
        # It was decoded by the vidcache that built it.
        attributes["vidcache_version"] = reader.attributes["vidcache_version"]
        # What they kept of a video then is no more for being in a newer file: the next build decodes it again.
        origin = {} if reader.is_current_format else {"decoded_format": reader.decoded_format}
        plan = Plan(
            spec=reader.spec,
            classes=tuple(os.fsencode(name) for name in reader.classes),
            paths=tuple(columns["path"].tolist()),
            labels=tuple(columns["label"].tolist()),
            source_bytes=tuple(columns["source_bytes"].tolist()),
            source_mtime_ns=tuple(columns["source_mtime_ns"].tolist()),
            attributes={**attributes, **origin},
        )
        columns["near_group"] = near_groups(columns)
        splitter = Splitter(rule, plan.paths, plan.labels, plan.classes, depth)
        assigned = splitter.assign(columns, columns["status"] != Status.FAILED)
        same = (
            (not reader.is_current_format or "near_group" in reader.columns)
            and all(reader.attributes.get(name) == value for name, value in attributes.items())
            and (assigned.split == columns["split"]).all()
            and (assigned.group == columns["group"]).all()
        )
        split_hash = reader.split_hash
        if not same and not dry_run:
            split_hash = _write(cache, reader, plan, columns, assigned, progress)
        return _report(reader, rule, split_hash, assigned, up_to_date=bool(same))


def _current_columns(reader: CacheReader) -> dict[str, np.ndarray[Any, Any]]:
    """Return the columns as a cache made today has them, as far as they can be known without the videos."""
    if reader.is_current_format:
        return dict(reader.columns)
    hashes = reader.columns["perceptual_hash"].copy()
    for row in reader.rows().tolist():
        (clip,) = reader.read([row])
        hashes[row] = perceptual_hash(clip[: max(reader.columns["num_real"][row], 1)])
    return {**reader.columns, "perceptual_hash": hashes}


def _write(
    cache: Path,
    reader: CacheReader,
    plan: Plan,
    columns: dict[str, np.ndarray[Any, Any]],
    assigned: Assignment,
    progress: Progress,
) -> str:
    with CacheWriter(cache, plan) as writer, open_donors(cache, reader, plan.spec, plan.identity()) as donors:
        finished = dataclasses.replace(donors[-1], records=records_of(columns))
        _check_alone(cache, reader, writer)
        for row in writer.pending:
            if not writer.take_over(row, finished, row):
                raise CacheError(
                    f"{printable(cache)}: the clip of row {row} ({printable(plan.paths[row])}) does not match its "
                    "hash, expected what was written. Decode it again: vidcache build RAW CACHE --verify-sources"
                )
            progress(row + 1, plan.num_clips)
        return writer.finish(assigned.group, assigned.split, columns["near_group"]).split_hash


def _check_alone(cache: Path, reader: CacheReader, writer: CacheWriter) -> None:
    """Refuse to throw away what another build has done. Nobody else writes now: the writer has the lock."""
    (writer.folder / SPLIT_MARK).touch()
    read, there = os.fstat(reader.fileno()), os.stat(cache)
    if (read.st_dev, read.st_ino) != (there.st_dev, there.st_ino):
        raise LockedError(
            f"{printable(cache)}: another build has replaced it meanwhile, expected the file that was read. "
            "Run the same command again"
        )
    if partial_builds(cache):
        raise InputError(
            f"{printable(cache)}: a build of it was interrupted, expected none: what it has decoded would be lost. "
            "Run vidcache build again first, it goes on where it was"
        )


def _report(
    reader: CacheReader, rule: SplitConfig, split_hash: str, assigned: Assignment, *, up_to_date: bool
) -> SplitReport:
    rows = reader.rows()
    counts = np.zeros((len(reader.classes), len(Split)), np.int64)
    np.add.at(counts, (reader.labels[rows], assigned.split[rows]), 1)
    names = [printable(name) for name in reader.classes]
    return SplitReport(
        cache=reader.path,
        rule=rule,
        split_hash=split_hash,
        class_counts={name: tuple(line) for name, line in zip(names, counts.tolist(), strict=True)},
        num_groups=len(np.unique(assigned.group[rows])),
        num_moved=int((assigned.split[rows] != reader.columns["split"][rows]).sum()),
        notes=assigned.notes,
        up_to_date=up_to_date,
    )
