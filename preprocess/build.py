"""From a folder of videos to a cache: plan, workers, journal, split, finish.

The workers are threads, because the work is in the child processes; each writes its own slot.
Results leave through return values and a callback: nothing is printed here.
"""

import csv
import dataclasses
import importlib.metadata
import io
import time
import warnings
from collections import Counter
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, cast

import joblib
import numpy as np

from vidcache.cache.layout import ERROR_BYTES, RECORD, Status, clip_hash_of
from vidcache.cache.writer import CacheWriter, Plan
from vidcache.errors import InputError
from vidcache.files import write_text_atomically
from vidcache.preprocess.decode import Decoded, Limits, decode_video
from vidcache.preprocess.failure import Failure
from vidcache.preprocess.ffmpeg import Children, Tools, find_tools, find_tools_on_path
from vidcache.preprocess.perceptual import perceptual_hash
from vidcache.preprocess.sources import Sources, find_videos
from vidcache.preprocess.split import MIN_CLASS_CLIPS, assign_splits
from vidcache.spec import Spec
from vidcache.text import one_line, plural, printable


@dataclasses.dataclass(frozen=True)
class BuildOptions:
    """How to build; the defaults are those of the command.

    Attributes:
        spec: Shape of the clips.
        workers: Videos decoded at a time.
        seed: Of the split.
        fractions: Of train, val and test; sum 1.
        allow_tiny_classes: Accept classes with fewer than 3 clips.
        ffmpeg_dir: Folder of the ffmpeg to use; None finds one.
        limits: Bounds for one video.
    """

    spec: Spec = Spec()
    workers: int = 1
    seed: int = 0
    fractions: tuple[float, float, float] = (0.70, 0.15, 0.15)
    allow_tiny_classes: bool = False
    ffmpeg_dir: Path | None = None
    limits: Limits = Limits()


@dataclasses.dataclass(frozen=True)
class Problem:
    """A video that failed or is damaged.

    Attributes:
        path: Below the raw folder.
        class_name: Its class.
        status: FAILED or DAMAGED.
        reason: The code.
        detail: One line.
        num_frames: Frames that decoded.
    """

    path: bytes
    class_name: bytes
    status: Status
    reason: str
    detail: str
    num_frames: int


@dataclasses.dataclass(frozen=True)
class BuildReport:
    """What a build did.

    Attributes:
        cache: The file.
        fingerprint: Names its content.
        num_videos: Candidates, one row each.
        num_decoded: Videos that were opened by this run.
        num_reused: Rows that an interrupted run had completed.
        problems: Failed and damaged videos, by path.
        seconds: Wall-clock time.
        class_counts: Clips per class, in label order.
        split_counts: Clips in train, val and test.
        skipped: Files that were no candidates, by reason.
    """

    cache: Path
    fingerprint: str
    num_videos: int
    num_decoded: int
    num_reused: int
    problems: tuple[Problem, ...]
    seconds: float
    class_counts: dict[str, int]
    split_counts: tuple[int, int, int]
    skipped: dict[str, int]

    @property
    def num_failed(self) -> int:
        """Rows without a clip."""
        return sum(problem.status is Status.FAILED for problem in self.problems)

    @property
    def num_damaged(self) -> int:
        """Clips that are not all that their video promised."""
        return len(self.problems) - self.num_failed


Progress = Callable[[int, int, int], None]  # rows done, rows failed, rows in all


def build_cache(raw: Path, output: Path, options: BuildOptions, progress: Progress = lambda *_: None) -> BuildReport:
    """Decode every video below `raw` into a cache, or finish a build that was interrupted.

    Args:
        raw: RAW/<class>/**/<video>.
        output: The cache; an older one stays readable until the new one is finished.
        options: How.
        progress: Called after every video.

    Returns:
        What was done. `<output>.failures.csv` lists the failed and damaged videos.

    Raises:
        InputError: No videos, no ffmpeg, a class with too few videos, or no video decodes.
        LockedError: Another build is writing this cache.
        VidcacheError: The disk has no room.
        OSError: The disk filled up or broke; the same command resumes.
    """
    start = time.monotonic()
    sources = find_videos(raw)
    if not options.allow_tiny_classes:
        check_class_sizes(Counter(video.class_name for video in sources.videos), "videos")
    tools = [find_tools(options.ffmpeg_dir)]
    on_path = find_tools_on_path()
    if on_path and on_path.ffmpeg != tools[0].ffmpeg:
        tools.append(on_path)  # it may know a codec that the first lacks
    plan = make_plan(sources, options, tools[0])
    with CacheWriter(output, plan) as writer:
        pending = writer.pending
        _decode_pending(raw, writer, pending, tools, options, progress)
        good = np.array([writer.records[row]["status"] != Status.FAILED for row in range(plan.num_clips)])
        problems = _problems(plan, writer.records)
        write_failures(output, problems)
        _check_result(output, plan, good, problems, options)
        split = assign_splits(plan.paths, plan.labels, good, options.fractions, options.seed)
        header = writer.finish(np.arange(plan.num_clips, dtype=np.int32), split)
    counts = Counter(np.asarray(plan.labels)[good].tolist())
    return BuildReport(
        cache=output,
        fingerprint=header.fingerprint,
        num_videos=plan.num_clips,
        num_decoded=len(pending),
        num_reused=plan.num_clips - len(pending),
        problems=problems,
        seconds=time.monotonic() - start,
        class_counts={printable(name): counts[label] for label, name in enumerate(plan.classes)},
        split_counts=tuple(np.bincount(split[good], minlength=3).tolist()),
        skipped=sources.skipped,
    )


def check_class_sizes(counts: Counter[bytes], noun: str) -> None:
    """Refuse classes that cannot be in train, val and test.

    Raises:
        InputError: Names every class with fewer than 3.
    """
    tiny = [f"{printable(name)} ({count})" for name, count in sorted(counts.items()) if count < MIN_CLASS_CLIPS]
    if tiny:
        raise InputError(
            f"classes with fewer than {MIN_CLASS_CLIPS} {noun}: {', '.join(tiny)}; expected at least one each for "
            "train, val and test. Add videos, or accept it with --allow-tiny-classes"
        )


def make_plan(sources: Sources, options: BuildOptions, tools: Tools) -> Plan:
    """Write down everything that is known before the first video is opened."""
    classes = sources.classes
    label_of = {name: label for label, name in enumerate(classes)}
    videos = sources.videos
    return Plan(
        spec=options.spec,
        classes=classes,
        paths=tuple(video.path for video in videos),
        labels=tuple(label_of[video.class_name] for video in videos),
        source_bytes=tuple(video.num_bytes for video in videos),
        source_mtime_ns=tuple(video.mtime_ns for video in videos),
        attributes={
            "sampling": options.spec.sampling,
            "scaling": options.spec.scaling,
            "split_by": "video",
            "split_seed": options.seed,
            "split_fractions": [round(fraction, 9) for fraction in options.fractions],
            "vidcache_version": importlib.metadata.version("vidcache"),
            "ffmpeg_version": tools.version,
        },
    )


def _decode_pending(
    raw: Path,
    writer: CacheWriter,
    pending: list[int],
    tools: list[Tools],
    options: BuildOptions,
    progress: Progress,
) -> None:
    total, failed = writer.plan.num_clips, 0
    for record in writer.records.values():
        failed += record["status"] == Status.FAILED
    progress(total - len(pending), failed, total)
    # Longest first: a long video that starts last would keep one worker busy alone.
    order = sorted(pending, key=lambda row: -writer.plan.source_bytes[row])
    with Children() as children:
        parallel = joblib.Parallel(
            n_jobs=options.workers, backend="threading", return_as="generator_unordered", batch_size=1
        )
        results: Generator[tuple[int, np.void], None, None] = parallel(
            joblib.delayed(_work)(raw, row, writer, tools, children, options) for row in order
        )
        try:
            for done, (row, record) in enumerate(results, total - len(pending) + 1):
                writer.complete(row, record)
                failed += record["status"] == Status.FAILED
                progress(done, failed, total)
        except BaseException:
            children.close()  # before joblib waits for its threads
            with warnings.catch_warnings():  # joblib's, that some work was in vain
                warnings.simplefilter("ignore")
                results.close()
            raise


def _work(
    raw: Path, row: int, writer: CacheWriter, tools: list[Tools], children: Children, options: BuildOptions
) -> tuple[int, np.void]:
    """Decode one video into its slot; runs in a worker."""
    path = bytes(raw) + b"/" + writer.plan.paths[row]
    try:
        decoded = decode_video(path, options.spec, tools, children, options.limits)
    except Failure as failure:
        return row, failure_record(failure)
    writer.write_clip(row, decoded.clip)
    return row, clip_record(decoded)


def clip_record(decoded: Decoded) -> np.void:
    """Return what the cache keeps of a decoded video, a scalar of dtype `RECORD`."""
    record = np.zeros((), RECORD)
    probe, clip = decoded.probe, decoded.clip
    num_frames = decoded.ledger.num_frames
    seconds = probe.duration_seconds or (num_frames / probe.fps_from_header if probe.fps_from_header else 0.0)
    values: dict[str, Any] = {
        "status": Status.DAMAGED if decoded.damage else Status.OK,
        "error": one_line(decoded.damage, ERROR_BYTES).encode(),
        "source_hash": decoded.source_hash.encode(),
        "clip_hash": clip_hash_of(clip).encode(),
        "perceptual_hash": perceptual_hash(clip),
        "width": probe.width,
        "height": probe.height,
        "rotation": probe.rotation,
        "fps": round(num_frames / seconds, 6) if seconds else 0.0,
        "duration_seconds": seconds,
        "num_frames": num_frames,
        "num_frames_from_header": probe.num_frames_from_header,
        "num_real": decoded.num_real,
        "codec": probe.codec.encode()[:24],
        "pixel_format": probe.pixel_format.encode()[:24],
        # In integers: a float sum would depend on how numpy orders it.
        "mean_rgb": clip.reshape(-1, 3).sum(axis=0, dtype=np.int64) / (clip.size // 3),
    }
    for name, value in values.items():
        record[name] = value
    return cast(np.void, record[()])


def failure_record(failure: Failure) -> np.void:
    """Return what the cache keeps of a video that gave no clip, a scalar of dtype `RECORD`."""
    record = np.zeros((), RECORD)
    record["status"] = Status.FAILED
    record["error"] = one_line(str(failure), ERROR_BYTES).encode()
    record["num_frames_from_header"] = -1
    return cast(np.void, record[()])


def _problems(plan: Plan, records: dict[int, np.void]) -> tuple[Problem, ...]:
    problems = []
    for row in range(plan.num_clips):
        record = records[row]
        if record["status"] != Status.OK:
            reason, _, detail = record["error"].decode("utf-8", "replace").partition(": ")
            problems.append(
                Problem(
                    plan.paths[row],
                    plan.classes[plan.labels[row]],
                    Status(record["status"]),
                    reason,
                    detail,
                    int(record["num_frames"]),
                )
            )
    return tuple(problems)


def failures_path(output: Path) -> Path:
    """Return where the failures of a cache are listed: cache.h5 -> cache.failures.csv."""
    return output.with_name(f"{output.stem}.failures.csv")


def write_failures(output: Path, problems: tuple[Problem, ...]) -> None:
    """Write `<output>.failures.csv`; with no problems it has only its header."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["path", "class", "status", "reason", "num_frames", "detail"])
    for problem in problems:
        path, class_name = printable(problem.path), printable(problem.class_name)
        table.writerow(
            [
                path,
                class_name,
                problem.status.name.lower(),
                problem.reason,
                problem.num_frames,
                problem.detail,
            ]
        )
    write_text_atomically(failures_path(output), text.getvalue())


def _check_result(
    output: Path, plan: Plan, good: np.ndarray[Any, Any], problems: tuple[Problem, ...], options: BuildOptions
) -> None:
    if not good.any():
        raise InputError(
            f"{printable(output)}: none of {plural(len(good), 'video')} gave a clip ({problems[0].reason}: "
            f"{problems[0].detail}), expected at least one. See {printable(failures_path(output))}"
        )
    if not options.allow_tiny_classes:
        counts = Counter(dict.fromkeys(plan.classes, 0))
        counts.update(plan.classes[plan.labels[row]] for row in np.flatnonzero(good).tolist())
        check_class_sizes(counts, "videos that decode")
