"""What a cache or a folder of videos holds: one line of facts per video, as columns.

Of a folder, headers are read and nothing is decoded; of a cache, a few frames of each clip. What is
odd about the facts is said in `findings`.
"""

import contextlib
import dataclasses
import os
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from vidcache.cache.format import ERROR_BYTES, RECORD, Split, Status
from vidcache.cache.reader import Reader
from vidcache.cache.validate import bounded
from vidcache.preprocess.executors import in_threads
from vidcache.preprocess.records import failure_record
from vidcache.preprocess.split.predefined import folder_splits, read_split_files
from vidcache.preprocess.video.decode import DecodeLimits
from vidcache.preprocess.video.ffmpeg import FFmpegBinaries, OpenVideo, SubprocessGroup, bound_workers, find_tools
from vidcache.preprocess.video.find import Sources, find_videos
from vidcache.preprocess.video.probe import Probe, probe_video
from vidcache.preprocess.video.source_file import Failure, Reason, hash_video, open_video
from vidcache.sampling import sample_indices
from vidcache.text import one_line, printable

# Of 255, for the mean of a clip. Clips of an infrared camera at night have 4, and people in them.
BLACK_BELOW = 1.0
# Of 255. One picture encoded as a video varies by 2 (H.264, crf 18) to 9 (MPEG-4, qscale 6); the noise
# of a real camera that nothing moves before, by 16 and more.
STILL_RANGE = 10
STILL_FRAMES = 5
_BATCH_BYTES = 16 << 20

Progress = Callable[[int, int, int], None]
Array = npt.NDArray[Any]


def no_progress(done: int, failed: int, total: int) -> None:
    """Tell nobody."""


@dataclasses.dataclass(frozen=True, eq=False)
class Facts:
    """A cache or a folder of videos: (N,) columns, one line per video, sorted by path.

    Attributes:
        name: The file or folder, printable.
        fingerprint: Of the cache; empty for a folder.
        classes: Class names; a label is an index into them.
        num_frames_per_clip: Frames of a clip (T).
        skipped: Files of the folder that are no candidates, by reason.
        notes: What the user should know about the folder, a sentence each.
        path: Below the raw folder, bytes.
        label: Index into `classes`.
        status: Values of `Status`. Of a folder: FAILED when the header cannot be read, DAMAGED when
            it promises more frames than the file holds; decoding can find more.
        error: "reason: detail", bytes; empty when ok.
        duration_seconds: 0 unknown.
        fps: Frames per second of duration; 0 unknown.
        width: Pixels, as displayed.
        height: Pixels, as displayed.
        num_frames: Frames available: decoded, or packets where nothing was decoded.
        num_real: Frames of the clip that are not padding.
        codec: As ffprobe names it.
        pixel_format: As ffprobe names it.
        transfer: Transfer function as ffprobe names it; empty unknown.
        source_bytes: Size of the file.
        source_hash: xxh3-128 of the file. Of a folder: empty where no other file has the same size.
        clip_hash: xxh3-128 of the clip; None for a folder.
        split: Values of `Split`; None for a folder without given splits.
        group: Videos that belong together, by number; None for a folder.
        black: The mean of the clip is below `BLACK_BELOW` of 255; None for a folder.
        still: In `STILL_FRAMES` evenly spaced frames of the clip no value changes by more than
            `STILL_RANGE` of 255; None for a folder.
    """

    name: str
    fingerprint: str
    classes: tuple[str, ...]
    num_frames_per_clip: int
    skipped: dict[str, int]
    path: Array
    label: Array
    status: Array
    error: Array
    duration_seconds: Array
    fps: Array
    width: Array
    height: Array
    num_frames: Array
    num_real: Array
    codec: Array
    pixel_format: Array
    transfer: Array
    source_bytes: Array
    source_hash: Array
    clip_hash: Array | None = None
    split: Array | None = None
    group: Array | None = None
    black: npt.NDArray[np.bool_] | None = None
    still: npt.NDArray[np.bool_] | None = None
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.path)

    @property
    def good(self) -> npt.NDArray[np.bool_]:
        """(N,) whether the video gives a clip."""
        return np.asarray(self.status != Status.FAILED)

    @property
    def padded(self) -> npt.NDArray[np.bool_]:
        """(N,) whether it gives a clip and has fewer than T frames."""
        return self.good & (self.num_real < self.num_frames_per_clip)

    @property
    def effective_fps(self) -> npt.NDArray[np.float64]:
        """(N,) frames of the clip per second of video, padding left out; NaN where unknown."""
        known = self.good & (self.duration_seconds > 0)
        rate = np.full(len(self), np.nan)
        np.divide(self.num_real, self.duration_seconds, out=rate, where=known)
        return rate

    def counts(self, which: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
        """(K,) videos per class, of those that `which` (N,) chooses."""
        return np.bincount(self.label[which], minlength=len(self.classes))

    def in_split(self, split: Split) -> npt.NDArray[np.bool_]:
        """(N,) whether it gives a clip of that split; nowhere without a split."""
        return np.zeros(len(self), bool) if self.split is None else self.good & (self.split == split)

    def name_of(self, row: int) -> str:
        """Path of a video, printable."""
        return printable(bytes(self.path[row]))

    def reason_of(self, row: int) -> str:
        """Code of what is wrong with a video; empty when nothing is."""
        return bytes(self.error[row]).split(b":")[0].decode("utf-8", "replace")


_COLUMNS = [field.name for field in dataclasses.fields(Facts)]


def facts_of_cache(reader: Reader, progress: Progress = no_progress) -> Facts:
    """Collect the facts of a cache, and look at a few frames of each of its clips.

    Args:
        reader: The cache.
        progress: Called with clips done, 0, and clips in all.

    Raises:
        CacheError: The file has become shorter since it was opened.
    """
    columns = {name: column for name, column in reader.columns.items() if name in _COLUMNS}
    good = columns["status"] != Status.FAILED
    return Facts(
        name=reader.name,
        fingerprint=reader.fingerprint,
        classes=reader.classes,
        num_frames_per_clip=reader.spec.num_frames,
        skipped={},
        notes=(),
        black=good & (reader.columns["mean_rgb"].max(axis=1) < BLACK_BELOW),
        still=_find_still(reader, progress),
        **columns,
    )


def _find_still(reader: Reader, progress: Progress) -> npt.NDArray[np.bool_]:
    """(N,) whether all frames are the same.

    Two frames of every clip, and five of the few that may be still: 75 kB for 112 x 112. Measured, 0.1 ms a clip
    from memory and 1.2 ms from a cold disk: 10 s to 2 minutes for 100,000 clips.
    """
    num_real, frame_bytes = reader.columns["num_real"], reader.spec.clip_bytes // reader.spec.num_frames
    still: npt.NDArray[np.bool_] = reader.columns["status"] != Status.FAILED
    done, total = 0, len(reader.rows())
    for num_frames in (2, STILL_FRAMES):
        for length in np.unique(num_real[still]).tolist():  # padding is the same frame by definition
            frames = sample_indices(max(length, 1), num_frames)
            rows = np.flatnonzero(still & (num_real == length))
            for batch in np.array_split(rows, -(-len(rows) * num_frames * frame_bytes // _BATCH_BYTES)):
                clips = reader.read(batch, frames=frames)
                still[batch] = (clips.max(axis=1) - clips.min(axis=1)).max(axis=(1, 2, 3)) <= STILL_RANGE
                done += len(batch)
                progress(min(done, total), 0, total)
    return still


def facts_of_folder(
    raw: Path,
    *,
    num_frames_per_clip: int = 64,
    workers: int = 1,
    ffmpeg_dir: Path | None = None,
    progress: Progress = no_progress,
    layout: str = "auto",
    labels: Path | None = None,
    follow_links: bool = False,
) -> Facts:
    """Collect the facts of a folder of videos.

    Args:
        raw: Folder of class folders.
        num_frames_per_clip: Frames of a clip (T), to say which would be padded.
        workers: Videos probed at a time.
        ffmpeg_dir: Folder of the ffprobe to use; None finds one.
        progress: Called with videos done, failed, and in all.
        layout: As of `find_videos`.
        labels: As of `find_videos`.
        follow_links: As of `find_videos`.

    Raises:
        InputError: As of `find_videos`, or there is no ffprobe.
    """
    tools, sources = find_tools(ffmpeg_dir), find_videos(raw, layout, labels, follow_links=follow_links)
    workers, _ = bound_workers(workers)
    limits = DecodeLimits(follow_links=follow_links)
    videos = sources.videos
    # Equal files have equal sizes: most sizes occur once, and those files need not be read.
    sizes = Counter(video.num_bytes for video in videos)
    root = os.path.abspath(os.fsencode(raw))

    def work(row: int) -> tuple[int, np.void]:
        path = os.path.join(root, videos[row].path)
        deadline = time.monotonic() + limits.timeout_seconds
        try:
            record = _record(_probe(path, tools, children, limits, deadline), num_frames_per_clip)
            if sizes[videos[row].num_bytes] > 1:
                record["source_hash"] = hash_video(path, deadline=deadline, follow_links=follow_links).encode()
        except Failure as failure:
            return row, failure_record(failure)
        return row, record

    records = np.zeros(len(videos), RECORD)
    failed = 0
    with (
        SubprocessGroup() as children,
        contextlib.closing(in_threads(work, range(len(videos)), workers, children)) as results,
    ):
        for done, (row, record) in enumerate(results, 1):
            records[row] = record
            failed += int(record["status"] == Status.FAILED)
            progress(done, failed, len(videos))
    label_of = {name: label for label, name in enumerate(sources.classes)}
    names = "status error duration_seconds fps width height num_frames num_real codec pixel_format transfer source_hash"
    return Facts(
        name=printable(raw),
        fingerprint="",
        classes=tuple(os.fsdecode(name) for name in sources.classes),
        num_frames_per_clip=num_frames_per_clip,
        skipped=sources.skipped,
        path=np.array([video.path for video in videos]),
        label=np.array([label_of[video.class_name] for video in videos]),
        source_bytes=np.array([video.num_bytes for video in videos]),
        split=_given_split(sources),
        notes=sources.notes,
        **{name: records[name] for name in names.split()},
    )


def _given_split(sources: Sources) -> npt.NDArray[np.uint8] | None:
    paths, labels = [video.path for video in sources.videos], sources.labels
    if sources.class_depth == 1:
        return folder_splits(paths).split
    return read_split_files([labels.file], paths).split if labels and labels.has_split else None


def _probe(
    path: bytes, tools: FFmpegBinaries, children: SubprocessGroup, limits: DecodeLimits, deadline: float
) -> Probe:
    """Ask ffprobe about a video; what is sure to give no clip is a failure as it would be in a build."""
    descriptor = open_video(path, follow_links=limits.follow_links)
    try:
        probe = probe_video(OpenVideo(descriptor, tools, children, deadline), limits.max_pixels)
    finally:
        os.close(descriptor)
    if probe.encrypted:
        raise Failure(Reason.ENCRYPTED, f"{probe.codec or 'unknown codec'}; the container says that it is encrypted")
    if probe.num_packets == 0:
        raise Failure(Reason.NO_FRAMES, "no packets in the file", 0, probe.num_frames_from_header)
    return probe


def _record(probe: Probe, num_frames_per_clip: int) -> np.void:
    """What a cache would keep of the video, as far as a header tells."""
    record = np.zeros((), RECORD)
    num_frames, claimed = probe.num_packets, probe.num_frames_from_header
    seconds = probe.duration_seconds or (num_frames / probe.fps_from_header if probe.fps_from_header else 0.0)
    damage = probe.more and f"{Reason.MISSING_FRAMES}: {probe.num_packets_in_file} in the stream; {probe.more}"
    if claimed > probe.num_packets_in_file:
        damage = f"{Reason.MISSING_FRAMES}: {probe.num_packets_in_file} in the file, the header says {claimed}"
    if damage:
        record["status"], record["error"] = Status.DAMAGED, one_line(damage, ERROR_BYTES).encode()
    values = {
        "width": probe.width,
        "height": probe.height,
        "rotation": probe.rotation,
        "duration_seconds": seconds,
        "fps": round(num_frames / seconds, 6) if seconds else 0.0,
        "num_frames": num_frames,
        "num_frames_from_header": claimed,
        "num_real": min(num_frames, num_frames_per_clip),
        "codec": probe.codec.encode()[:24],
        "pixel_format": probe.pixel_format.encode()[:24],
        "transfer": probe.transfer.encode()[:16],
    }
    for name, value in values.items():
        record[name] = bounded(name, value)
    return cast(np.void, record[()])
