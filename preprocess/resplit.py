"""Split a finished cache anew: the same clips under other columns, nothing is decoded.

Written as a build is, into a new file that takes over every clip: a kill at any instant leaves the old split or the
new one. With a file system that can share blocks (Btrfs, XFS) that costs no space; elsewhere it is a copy.
"""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from vidcache.cache.donors import open_donors
from vidcache.cache.layout import Split, Status
from vidcache.cache.plan import Plan
from vidcache.cache.reader import CacheReader
from vidcache.cache.writer import CacheWriter, clean_up
from vidcache.errors import CacheError, InputError
from vidcache.preprocess.build import plan_attributes
from vidcache.preprocess.rule import Assignment, SplitChoice, SplitRule, Splitter
from vidcache.text import plural, printable


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
    rule: SplitRule
    split_hash: str
    class_counts: dict[str, tuple[int, ...]]
    num_groups: int
    num_moved: int
    notes: tuple[str, ...]
    up_to_date: bool


Progress = Callable[[int, int], None]  # clips done, clips in all


def split_cache(
    cache: Path, choice: SplitChoice, *, dry_run: bool = False, progress: Progress = lambda *_: None
) -> SplitReport:
    """Split a cache; what is not chosen stays as it is.

    Args:
        cache: A finished cache.
        choice: What to change.
        dry_run: Say what would be done; write nothing.
        progress: Called after every clip.

    Raises:
        CacheError: It is no cache, or a clip of it is damaged.
        InputError: The split cannot be made, or an interrupted build has clips that the cache lacks.
        LockedError: It is being built.
        VidcacheError: The disk has no room.
    """
    with CacheReader(cache) as reader:
        rule = choice.applied_to(SplitRule.from_attributes(reader.attributes))
        columns, depth = reader.columns, int(reader.attributes["class_depth"])
        attributes = plan_attributes(reader.spec, depth, rule, reader.attributes["ffmpeg_version"])
        # It was decoded by the vidcache that built it.
        attributes["vidcache_version"] = reader.attributes["vidcache_version"]
        plan = Plan(
            spec=reader.spec,
            classes=tuple(os.fsencode(name) for name in reader.classes),
            paths=tuple(columns["path"].tolist()),
            labels=tuple(columns["label"].tolist()),
            source_bytes=tuple(columns["source_bytes"].tolist()),
            source_mtime_ns=tuple(columns["source_mtime_ns"].tolist()),
            attributes=attributes,
        )
        splitter = Splitter(rule, plan.paths, plan.labels, plan.classes, depth)
        assigned = splitter.assign(columns, columns["status"] != Status.FAILED)
        same = (
            all(reader.attributes.get(name) == value for name, value in attributes.items())
            and (assigned.split == columns["split"]).all()
            and (assigned.group == columns["group"]).all()
        )
        split_hash = reader.split_hash
        if same and not dry_run:
            clean_up(cache)
        elif not same and not dry_run:
            split_hash = _write(cache, reader, plan, assigned, progress)
        return _report(reader, rule, split_hash, assigned, up_to_date=bool(same))


def _write(cache: Path, reader: CacheReader, plan: Plan, assigned: Assignment, progress: Progress) -> str:
    with CacheWriter(cache, plan) as writer, open_donors(cache, reader, plan.spec, plan.identity()) as donors:
        *partial, finished = donors
        known = set(zip(plan.paths, plan.source_bytes, plan.source_mtime_ns, strict=True))
        for donor in partial:
            names = zip(donor.paths.tolist(), donor.source_bytes.tolist(), donor.source_mtime_ns.tolist(), strict=True)
            more = sum(done and name not in known for name, done in zip(names, donor.done.tolist(), strict=True))
            if more:
                raise InputError(
                    f"{printable(cache)}: an interrupted build has {plural(more, 'video')} that are not in it yet, "
                    "expected a finished one. Run vidcache build again first, it goes on where it was"
                )
        for row in writer.pending:
            if not writer.take_over(row, finished, row):
                raise CacheError(
                    f"{printable(cache)}: the clip of row {row} ({printable(plan.paths[row])}) does not match its "
                    "hash, expected what was written. Decode it again: vidcache build RAW CACHE --check-contents"
                )
            progress(row + 1, plan.num_clips)
        return writer.finish(assigned.group, assigned.split).split_hash


def _report(
    reader: CacheReader, rule: SplitRule, split_hash: str, assigned: Assignment, *, up_to_date: bool
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
