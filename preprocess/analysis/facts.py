"""What `vidcache analyze` knows of each video, as columns.

Of a folder, headers are read and nothing is decoded; of a cache, a few frames of each clip.
"""

import contextlib
import dataclasses
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vidcache.cache.format import RECORD, Split, Status
from vidcache.cache.reader import Reader
from vidcache.preprocess.executors import in_threads
from vidcache.preprocess.records import failure_record, video_record
from vidcache.preprocess.split.predefined import folder_splits, read_split_files
from vidcache.preprocess.video.decode import DecodeLimits
from vidcache.preprocess.video.ffmpeg import OpenVideo, SubprocessGroup, bound_workers, find_tools
from vidcache.preprocess.video.find import find_videos
from vidcache.preprocess.video.probe import Probe, probe_video
from vidcache.preprocess.video.source_file import Failure, Reason, hash_video, open_video
from vidcache.spec import sample_indices
from vidcache.text import printable

BLACK_BELOW = 1.0  # of 255, the mean of a clip. An infrared camera at night has 4, with people in the picture
# Of 255. One picture encoded as a video varies by 2 (H.264, crf 18) to 9 (MPEG-4, qscale 6); the noise of a real
# camera in front of a still scene by 16 and more.
STILL_RANGE = 10
STILL_FRAMES = 5
_BATCH_BYTES = 16 << 20

Progress = Callable[[int, int, int], object]
Array = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]


@dataclasses.dataclass(frozen=True, eq=False)
class Facts:
    """A cache or a folder of videos: (N,) columns, one row per video, sorted by path."""

    name: str  # of the cache or folder, printable
    fingerprint: str  # of the cache; empty for a folder
    classes: tuple[str, ...]
    num_frames_per_clip: int
    skipped: dict[str, int]  # files of the folder that are no candidates, by reason
    path: Array  # bytes, below the raw folder
    label: Array  # index into `classes`
    status: Array  # `Status`; of a folder, decoding can find more damage
    error: Array  # b"reason: detail"; empty when ok
    duration_seconds: Array  # 0 unknown
    fps: Array  # frames per second of duration; 0 unknown
    width: Array  # pixels, as displayed
    height: Array
    num_frames: Array  # decoded; of a folder: packets
    num_real: Array  # frames of the clip that are not padding
    codec: Array  # as ffprobe names it, like the next two
    pixel_format: Array
    transfer: Array
    source_bytes: Array
    source_hash: Array  # xxh3-128; of a folder: empty where no other file has the same size
    clip_hash: Array | None = None  # None for a folder, like group, black and still
    split: Array | None = None  # `Split`; None for a folder without predefined splits
    group: Array | None = None
    black: Mask | None = None  # the mean of the clip is below `BLACK_BELOW`
    still: Mask | None = None  # no value changes by more than `STILL_RANGE` in `STILL_FRAMES` evenly spaced frames
    notes: tuple[str, ...] = ()  # what the user should know about the folder, a sentence each

    def __len__(self) -> int:
        return len(self.path)

    @property
    def good(self) -> Mask:
        """(N,) whether the video gives a clip."""
        return np.asarray(self.status != Status.FAILED)

    @property
    def padded(self) -> Mask:
        """(N,) whether it gives a clip and has fewer than T frames."""
        return self.good & (self.num_real < self.num_frames_per_clip)

    @property
    def effective_fps(self) -> npt.NDArray[np.float64]:
        """(N,) frames of the clip per second of video, without padding; NaN where unknown."""
        rates, known = np.full(len(self), np.nan), self.good & (self.duration_seconds > 0)
        np.divide(self.num_real, self.duration_seconds, out=rates, where=known)
        return rates

    def counts(self, chosen: Mask) -> npt.NDArray[np.int64]:
        """(K,) videos per class, of those that `chosen` (N,) has."""
        return np.bincount(self.label[chosen], minlength=len(self.classes))

    def in_split(self, split: Split) -> Mask:
        """(N,) whether it gives a clip of that split; nowhere without a split."""
        return np.zeros(len(self), bool) if self.split is None else self.good & (self.split == split)

    def names(self, rows: Array, remarks: Sequence[str] = ()) -> list[str]:
        """Paths of videos, printable, each with its remark, if there are any."""
        names = [printable(bytes(path)) for path in self.path[rows]]
        return [f"{name} ({remark})" for name, remark in zip(names, remarks, strict=True)] if remarks else names

    def split_names(self, rows: Array) -> list[str]:
        """Splits of videos: "train", "val", "test" or "unused"; empty without a split."""
        return [] if self.split is None else [Split(split).name.lower() for split in self.split[rows].tolist()]

    def reasons(self, rows: Array) -> list[str]:
        """Codes of what is wrong with videos."""
        return [bytes(error).split(b":")[0].decode("utf-8", "replace") for error in self.error[rows]]


_COLUMNS = {field.name for field in dataclasses.fields(Facts)}
_FROM_HEADER = _COLUMNS.intersection(RECORD.names or ()) - {"clip_hash"}


def facts_of_cache(reader: Reader, progress: Progress = lambda *_: None) -> Facts:
    """Collect the facts of a cache, and look at a few frames of each clip; progress(done, total, 0) counts clips."""
    columns = reader.columns
    return Facts(
        name=reader.name,
        fingerprint=reader.fingerprint,
        classes=reader.classes,
        num_frames_per_clip=reader.spec.num_frames,
        skipped={},
        notes=(),
        black=(columns["status"] != Status.FAILED) & (columns["mean_rgb"].max(axis=1) < BLACK_BELOW),
        still=_find_still(reader, progress),
        **{name: column for name, column in columns.items() if name in _COLUMNS},
    )


def _find_still(reader: Reader, progress: Progress) -> Mask:
    """Read two frames of every clip, and five of the few that may be still: 0.1 ms a clip, 1.2 ms from a cold disk."""
    num_real, frame_bytes = reader.columns["num_real"], reader.spec.clip_bytes // reader.spec.num_frames
    still: Mask = reader.columns["status"] != Status.FAILED
    done, total = 0, len(reader.rows())
    for num_frames in (2, STILL_FRAMES):
        for length in np.unique(num_real[still]).tolist():  # padding is the same frame by definition
            frames, rows = sample_indices(max(length, 1), num_frames), np.flatnonzero(still & (num_real == length))
            for batch in np.array_split(rows, -(-len(rows) * num_frames * frame_bytes // _BATCH_BYTES)):
                clips = reader.read(batch, frames=frames)
                still[batch] = (clips.max(axis=1) - clips.min(axis=1)).max(axis=(1, 2, 3)) <= STILL_RANGE
                done += len(batch)
                progress(min(done, total), total, 0)
    return still


def facts_of_folder(
    raw: Path,
    num_frames_per_clip: int = 64,
    workers: int = 1,
    *,
    ffmpeg_dir: Path | None = None,
    progress: Progress = lambda *_: None,
    **source_options: Any,
) -> Facts:
    """Collect the facts of RAW/<class>/<video> from headers; progress(done, total, failed) counts videos.

    Takes "layout", "labels" and "follow_links" of `find_videos`, and raises the same InputError, also without ffprobe.
    """
    tools, sources = find_tools(ffmpeg_dir), find_videos(raw, **source_options)
    limits = DecodeLimits(follow_links=source_options.get("follow_links", False))
    videos, labels, root = sources.videos, sources.labels, os.path.abspath(os.fsencode(raw))
    sizes = Counter(video.num_bytes for video in videos)  # only files of equal size can be copies: few are read

    def probe(row: int) -> tuple[int, np.void]:
        path, deadline = os.path.join(root, videos[row].path), time.monotonic() + limits.timeout_seconds
        try:
            with open(open_video(path, follow_links=limits.follow_links), "rb") as file:
                header = probe_video(OpenVideo(file.fileno(), tools, children, deadline), limits.max_pixels)
            record = _record(header, num_frames_per_clip)
            if sizes[videos[row].num_bytes] > 1:
                source_hash = hash_video(path, deadline=deadline, follow_links=limits.follow_links)
                record["source_hash"] = source_hash.encode()
        except Failure as failure:
            return row, failure_record(failure)
        return row, record

    records, failed = np.zeros(len(videos), RECORD), 0
    with SubprocessGroup() as children:
        results = in_threads(probe, range(len(videos)), bound_workers(workers)[0], children)
        with contextlib.closing(results):
            for done, (row, record) in enumerate(results, 1):
                records[row] = record
                failed += int(record["status"] == Status.FAILED)
                progress(done, len(videos), failed)
    paths, split = [video.path for video in videos], None
    if sources.class_depth == 1:
        split = folder_splits(paths).split
    elif labels and labels.has_split:
        split = read_split_files([labels.file], paths).split
    return Facts(
        name=printable(raw),
        fingerprint="",
        classes=tuple(os.fsdecode(name) for name in sources.classes),
        num_frames_per_clip=num_frames_per_clip,
        skipped=sources.skipped,
        notes=sources.notes,
        path=np.array(paths),
        label=np.searchsorted(sources.classes, [video.class_name for video in videos]),
        source_bytes=np.array([video.num_bytes for video in videos]),
        split=split,
        **{name: records[name] for name in _FROM_HEADER},
    )


def _record(probe: Probe, num_frames_per_clip: int) -> np.void:
    """What a cache would keep of the video, as far as its header tells; what cannot give a clip fails as in a build."""
    if probe.encrypted:
        raise Failure(Reason.ENCRYPTED, f"{probe.codec or 'unknown codec'}; the container says that it is encrypted")
    num_frames, claimed, in_file = probe.num_packets, probe.num_frames_from_header, probe.num_packets_in_file
    if num_frames == 0:
        raise Failure(Reason.NO_FRAMES, "no packets in the file", 0, claimed)
    damage = probe.more and f"{Reason.MISSING_FRAMES}: {in_file} in the stream; {probe.more}"
    if claimed > in_file:
        damage = f"{Reason.MISSING_FRAMES}: {in_file} in the file, the header says {claimed}"
    return video_record(probe, num_frames, min(num_frames, num_frames_per_clip), damage)
