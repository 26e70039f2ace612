"""What a new build would lose of the cache that it replaces: a folder that is away for a minute is no reason to."""

import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vidcache.cache.layout import Status
from vidcache.cache.reader import CacheReader
from vidcache.cache.writer import CacheWriter
from vidcache.errors import InputError, VidcacheError
from vidcache.preprocess.reuse import reason_of, rows_to_retry
from vidcache.text import plural, printable

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
