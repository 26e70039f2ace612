"""The facts of a folder of videos, from their headers: one ffprobe each, nothing is decoded."""

import contextlib
import os
import time
from collections import Counter
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt

from vidcache.cache.layout import ERROR_BYTES, RECORD, Status
from vidcache.cache.values import bounded
from vidcache.preprocess.analysis import Facts, Progress, no_progress
from vidcache.preprocess.backends import in_threads
from vidcache.preprocess.decode import Limits
from vidcache.preprocess.failure import Failure, Reason
from vidcache.preprocess.ffmpeg import Children, Tools, find_tools
from vidcache.preprocess.given import folder_splits, read_split_files
from vidcache.preprocess.opening import hash_video, open_video
from vidcache.preprocess.probe import Probe, probe_video
from vidcache.preprocess.record import failure_record
from vidcache.preprocess.resources import bound_workers
from vidcache.preprocess.sources import Sources, find_videos
from vidcache.text import one_line, printable


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
    limits = Limits(follow_links=follow_links)
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
        Children() as children,
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


def _probe(path: bytes, tools: Tools, children: Children, limits: Limits, deadline: float) -> Probe:
    """Ask ffprobe about a video; what is sure to give no clip is a failure as it would be in a build."""
    descriptor = open_video(path, follow_links=limits.follow_links)
    try:
        probe = probe_video(tools, children, descriptor, deadline=deadline, max_pixels=limits.max_pixels)
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
