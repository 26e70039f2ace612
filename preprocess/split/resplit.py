"""Split a finished cache again: the same clips with other columns, nothing is decoded.

Written as a build is, into a new file that takes over every clip: a kill at any instant leaves the old split or the
new one. It needs the space of a second cache while it is written.
"""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from vidcache.cache.builds import SPLIT_MARK, Manifest, PreviousBuild, partial_builds
from vidcache.cache.format import Split, Status
from vidcache.cache.leakage import near_groups
from vidcache.cache.lock import clean_up
from vidcache.cache.reader import CacheReader
from vidcache.cache.writer import CacheWriter
from vidcache.errors import CacheError, InputError, LockedError
from vidcache.files import follow
from vidcache.near_duplicates import perceptual_hash
from vidcache.preprocess.build import plan_attributes
from vidcache.preprocess.split.config import Assignment, SplitConfig, SplitOverrides, Splitter
from vidcache.text import printable

Columns = dict[str, np.ndarray[Any, Any]]
Progress = Callable[[int, int], None]  # clips done, clips in all

_ORIGIN = "decoded_format"  # attribute of a cache that was split again under a newer format


@dataclasses.dataclass(frozen=True)
class SplitReport:
    """What a split did."""

    cache: Path
    config: SplitConfig  # how it is split now
    split_hash: str
    class_counts: dict[str, tuple[int, ...]]  # clips in train, val, test and unused, in label order
    num_groups: int  # that have a clip
    num_moved: int  # clips that are in another split than before
    notes: tuple[str, ...]  # what the user should know, a sentence each
    up_to_date: bool  # the cache had this split already; nothing was written


def split_cache(
    cache: Path,
    overrides: SplitOverrides = SplitOverrides(),  # noqa: B008 -- never changed
    *,
    dry_run: bool = False,
    progress: Progress = lambda *_: None,
) -> SplitReport:
    """Split a cache; what is not overridden stays as it is.

    Args:
        cache: A finished cache.
        overrides: What to change: `SplitOverrides(seed=1)`.
        dry_run: Report what would be done; write nothing.
        progress: Called after every clip.

    Raises:
        CacheError: It is not a cache, or a clip of it is damaged.
        InputError: The split cannot be made, or a build of it was interrupted.
        LockedError: It is being built, or has been replaced meanwhile.
        VidcacheError: The disk has no room.
    """
    cache = follow(cache)
    with CacheReader(cache) as reader:
        config = SplitConfig.from_attributes(reader.attributes).override(overrides)
        columns = _current_columns(reader)
        manifest = _manifest(reader, columns, config)
        assignment = Splitter(config, manifest).assign(columns, columns["status"] != Status.FAILED)
        up_to_date = (not reader.is_current_format or "near_group" in reader.columns) and all(
            reader.attributes.get(name) == value for name, value in manifest.attributes.items() if name != _ORIGIN
        )
        is_same = all(np.array_equal(getattr(assignment, name), columns[name]) for name in ("group", "split"))
        if up_to_date and not is_same and not overrides:
            note = "the split stays as it is; this version would choose another one, ask for it with --seed"
            assignment, is_same = Assignment(columns["group"], columns["split"], (*assignment.notes, note)), True
        up_to_date = up_to_date and is_same
        split_hash = reader.split_hash
        if up_to_date and not dry_run:
            clean_up(cache, SPLIT_MARK)
        elif not dry_run:
            split_hash = _write(reader, manifest, columns, assignment, progress)
        rows = reader.rows()
        counts = np.zeros((len(reader.classes), len(Split)), np.int64)
        np.add.at(counts, (reader.labels[rows], assignment.split[rows]), 1)
        return SplitReport(
            cache=cache,
            config=config,
            split_hash=split_hash,
            class_counts={printable(name): tuple(n) for name, n in zip(reader.classes, counts.tolist(), strict=True)},
            num_groups=len(np.unique(assignment.group[rows])),
            num_moved=int((assignment.split[rows] != columns["split"][rows]).sum()),
            notes=assignment.notes,
            up_to_date=up_to_date,
        )


def _manifest(reader: CacheReader, columns: Columns, config: SplitConfig) -> Manifest:
    attributes = plan_attributes(
        reader.spec,
        int(reader.attributes["class_depth"]),
        config,
        reader.attributes["ffmpeg_version"],
        follow_links=bool(reader.attributes.get("follow_links")),
    )
    attributes["vidcache_version"] = reader.attributes["vidcache_version"]  # of the vidcache that decoded it
    if not reader.is_current_format:
        # A newer file has no more of its videos than the old one: the next build decodes them again.
        attributes[_ORIGIN] = reader.decoded_format
    names = ("path", "label", "source_bytes", "source_mtime_ns")
    paths, labels, num_bytes, times = (tuple(columns[name].tolist()) for name in names)
    return Manifest(reader.spec, tuple(map(os.fsencode, reader.classes)), paths, labels, num_bytes, times, attributes)


def _current_columns(reader: CacheReader) -> Columns:
    """Return the columns as a cache made today has them, as far as they can be known without the videos."""
    columns = dict(reader.columns)
    if not reader.is_current_format:
        columns["perceptual_hash"] = columns["perceptual_hash"].copy()
        for row in reader.rows().tolist():
            (clip,) = reader.read([row])
            columns["perceptual_hash"][row] = perceptual_hash(clip[: max(columns["num_real"][row], 1)])
    columns["near_group"] = near_groups(columns)
    return columns


def _write(
    reader: CacheReader, manifest: Manifest, columns: Columns, assignment: Assignment, progress: Progress
) -> str:
    cache = reader.path
    finished = PreviousBuild.from_cache(reader, columns)
    with CacheWriter(cache, manifest) as writer:
        # Nobody else writes now, since the writer has the lock: do not throw away what another build has done.
        (writer.folder / SPLIT_MARK).touch()
        if not os.path.samestat(os.fstat(reader.fileno()), os.stat(cache)):
            raise LockedError(f"{printable(cache)}: replaced by another build meanwhile. Run the same command again")
        if partial_builds(cache):
            raise InputError(
                f"{printable(cache)}: a build of it was interrupted, and what it has decoded would be lost. Run "
                "vidcache build again first, it resumes"
            )
        for row in writer.pending:
            if not writer.copy_clip_from(row, finished, row):
                raise CacheError(
                    f"{printable(cache)}: the clip of row {row} ({printable(manifest.paths[row])}) does not match its "
                    "hash. Decode it again: vidcache build RAW CACHE --verify-sources"
                )
            progress(row + 1, manifest.num_clips)
        return writer.finish(assignment.group, assignment.split, columns["near_group"]).split_hash
