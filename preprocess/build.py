"""From a folder of videos to a cache: plan, decode, split, finish.

The workers are threads, because the work is in the child processes; each writes its own slot.
Results leave through return values and callbacks: nothing is printed here.
"""

import contextlib
import dataclasses
import errno
import importlib.metadata
import os
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from vidcache.cache.builds import Manifest, open_previous_builds, partial_builds
from vidcache.cache.format import FORMAT_VERSION, Split, Status
from vidcache.cache.leakage import near_groups
from vidcache.cache.lock import clean_up
from vidcache.cache.reader import CacheReader
from vidcache.cache.writer import CacheWriter
from vidcache.errors import InputError, VidcacheError
from vidcache.outputs import CACHE, claim
from vidcache.preprocess.executors import Job, Records, WriteClip, decode
from vidcache.preprocess.options import (
    BuildOptions,
    check_class_sizes,
    check_reading,
    check_spec,
    choose_split,
    unused_columns,
)
from vidcache.preprocess.records import FAILURES, Problem, failures_path, find_problems, problem_of, write_failures
from vidcache.preprocess.reuse import (
    check_dropped,
    check_lost,
    copy_clips,
    invalidate_rows,
    is_current,
    reason_of,
    rows_to_retry,
)
from vidcache.preprocess.split.config import SplitConfig, Splitter
from vidcache.preprocess.split.predefined import expand
from vidcache.preprocess.video.classes import twin_notes
from vidcache.preprocess.video.ffmpeg import FFmpegBinaries, bound_workers, find_all_tools
from vidcache.preprocess.video.find import Sources, find_videos
from vidcache.preprocess.video.probe import HDR_TRANSFERS
from vidcache.spec import Spec
from vidcache.text import plural, printable

Progress = Callable[[int, int, int], None]  # rows done, rows failed, rows in all
OnProblem = Callable[[Problem], None]

DEFAULTS = BuildOptions()
_LESS = "use fewer --workers"
_REMEDIES = {
    errno.ENOSPC: "free some space, then",
    errno.EDQUOT: "free some space, then",
    errno.EFBIG: "raise the limit of the length of files (ulimit -f), then",
    errno.EMFILE: f"{_LESS}, or raise the limit of open files (ulimit -n), then",
    errno.ENFILE: f"{_LESS}, then",
    errno.ENOMEM: f"{_LESS}, or raise the limit of memory (ulimit -v), then",
    errno.EAGAIN: f"{_LESS}, or raise the limits of this process (ulimit -u and -v), then",
}


@dataclasses.dataclass(frozen=True)
class BuildReport:
    """What a build did.

    Attributes:
        cache: The file.
        fingerprint: Hash of its content.
        num_videos: Candidates, one row each.
        num_decoded: Videos that were opened by this run.
        num_reused: Videos that earlier runs had decoded.
        problems: Failed and damaged videos, by path.
        seconds: Wall-clock time.
        class_counts: Clips per class, in label order.
        split_counts: Clips in train, val and test.
        num_unused: Clips that a given split puts into none of them.
        notes: What the user should know about the folder and the split, a sentence each.
        skipped: Files that were no candidates, by reason.
        up_to_date: Nothing was written: there was nothing to do, or failed videos failed again as before.
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
    num_unused: int
    notes: tuple[str, ...]
    skipped: dict[str, int]
    up_to_date: bool

    @property
    def num_failed(self) -> int:
        """Rows without a clip."""
        return sum(problem.status is Status.FAILED for problem in self.problems)

    @property
    def num_damaged(self) -> int:
        """Clips with missing or broken frames."""
        return len(self.problems) - self.num_failed


def build_cache(
    raw: str | os.PathLike[str],
    cache: str | os.PathLike[str],
    options: BuildOptions = DEFAULTS,
    progress: Progress = lambda *_: None,
    on_problem: OnProblem = lambda _: None,
    **settings: Any,
) -> BuildReport:
    """Decode the videos of a folder into a cache, as far as earlier builds have not done it yet.

    One row per video, sorted by path: (T, H, W, 3) uint8, RGB. Videos that fail keep a row without a clip.

    >>> report = build_cache("raw", "cache.h5", workers=8)  # doctest: +SKIP
    >>> report.num_videos, report.num_failed, report.class_counts  # doctest: +SKIP

    Args:
        raw: Folder of class folders: `RAW/<class>/**/<video>`.
        cache: The file to write; an existing one stays readable until the new one is finished.
        options: How.
        progress: Called after every video, with the numbers of rows done, failed, and in all.
        on_problem: Called with every video that fails or is damaged, when it does.
        settings: Fields of `BuildOptions`, instead of those in `options`.

    Returns:
        What was done. `<cache>.failures.csv` lists the failed and damaged videos.

    Raises:
        InputError: No videos, no ffmpeg, a class with too few videos, no video decodes, an earlier build of this
            cache has another spec, the split cannot be made, or the cache is or lies in an input.
        CacheError: There is a file of that name which is no cache; or a damaged one, without `overwrite`.
        LockedError: Another build is writing this cache.
        VidcacheError: The disk is full or failed, or the folder has vanished; the same command resumes.
    """
    start = time.monotonic()
    raw, options = Path(raw), dataclasses.replace(options, **settings)
    inputs = [raw, *([options.labels] if options.labels else []), *map(Path, expand(options.split.get("files", ())))]
    output = claim(Path(cache), CACHE, inputs)
    claim(failures_path(output), FAILURES, inputs)
    workers, few_workers = bound_workers(options.workers)
    ffmpeg_dir = options.ffmpeg_dir and options.ffmpeg_dir.absolute()  # the same in a worker elsewhere
    options = dataclasses.replace(options, workers=workers, ffmpeg_dir=ffmpeg_dir)
    sources = find_videos(raw, options.layout, options.labels, follow_links=options.limits.follow_links)
    if not options.allow_tiny_classes:
        check_class_sizes(Counter(video.class_name for video in sources.videos), "videos")
    tools = find_all_tools(options.ffmpeg_dir)
    with contextlib.ExitStack() as stack:
        finished = None
        if os.path.lexists(output) and not options.overwrite:
            finished = stack.enter_context(CacheReader(output))
        partial = [] if options.overwrite else list(partial_builds(output).values())
        check_spec(output, options.spec, finished, partial)
        if finished:
            check_reading(output, finished.attributes, sources, options)
        config = choose_split(finished, sources, options.split)
        versions = [tools[0].version, *(build.ffmpeg_version for build in partial)]
        if finished and finished.is_current_format:  # its clips may be reused, so its ffmpeg counts too
            versions.append(finished.attributes["ffmpeg_version"])
        plan = make_plan(sources, options, config, versions)
        build = _Build(raw, output, options, sources, tools, finished, plan, config, progress, on_problem)
        try:
            report = build.report_if_current() or build.run()
        except OSError as error:
            remedy = _REMEDIES.get(error.errno or 0, "when the cause is gone,")
            raise VidcacheError(
                f"{printable(output)}: {error.strerror} while it was written. What was decoded is kept: "
                f"{remedy} run the same command again"
            ) from error
    notes = sources.notes + twin_notes(sources.classes) + unused_columns(config, sources, options.split) + report.notes
    notes += (few_workers,) if few_workers else ()
    return dataclasses.replace(report, seconds=time.monotonic() - start, notes=notes)


@dataclasses.dataclass
class _Build:
    """One build, with everything that is known before the first video is opened."""

    raw: Path
    output: Path
    options: BuildOptions
    sources: Sources
    tools: list[FFmpegBinaries]
    finished: CacheReader | None  # the cache that is to be replaced
    plan: Manifest
    config: SplitConfig
    progress: Progress
    on_problem: OnProblem

    def report_if_current(self) -> BuildReport | None:
        """Report on the finished cache if there is nothing to build: also when failed videos fail again as before."""
        finished, options = self.finished, self.options
        if finished is None or not is_current(self.raw, finished, self.plan, options):
            return None
        columns = finished.columns
        again = rows_to_retry(columns, retry_failed=options.retry_failed).tolist()
        with contextlib.closing(self._decode(again, lambda *_: None)) as results:
            for tried, (row, record) in enumerate(results, 1):
                if record["status"] != Status.FAILED or reason_of(record["error"]) != reason_of(columns["error"][row]):
                    return None
                self.progress(tried, tried, len(again))
        clean_up(self.output)
        report = self._report(columns, columns["split"], finished.fingerprint, len(again))
        return dataclasses.replace(report, up_to_date=True)

    def run(self) -> BuildReport:
        """Reuse what earlier builds have decoded, decode the rest, and publish the cache."""
        raw, output, options, plan, finished = self.raw, self.output, self.options, self.plan, self.finished
        # Before anything is decoded: it may refuse.
        splitter = Splitter(self.config, plan)
        with CacheWriter(output, plan) as writer:
            is_new = not writer.done.any()
            invalidate_rows(raw, writer, options)
            self._count(writer)
            donor = finished if finished and finished.is_current_format else None
            if not options.overwrite:
                with open_previous_builds(output, donor, plan) as donors:
                    for row in copy_clips(raw, writer, donors, options):
                        self._count(writer, row)
            if donor:  # before hours of decoding; for another format the loss is known only afterwards
                try:
                    check_dropped(raw, output, donor, writer, options.labels)
                except InputError:
                    if is_new:  # it would only be in the way of a split
                        writer.discard()
                    raise
            writer.drop_previous_builds()
            pending = writer.pending
            with contextlib.closing(self._decode(pending, writer.write_clip)) as results:
                for row, record in results:
                    writer.mark_done(row, record)
                    self._count(writer, row)
            dropped = check_dropped(raw, output, finished, writer, options.labels) if finished else ()
            if finished:
                check_lost(output, finished, writer)
            records, good = writer.records, writer.records["status"] != Status.FAILED
            problems = find_problems(plan, records)
            write_failures(output, problems, writer.folder)
            self._check_result(good, problems)
            columns = {name: records[name] for name in ("status", "perceptual_hash")}
            columns["near_group"] = near_groups(columns)
            assigned = splitter.assign(columns, good)
            header = writer.finish(assigned.group, assigned.split, columns["near_group"])
        report = self._report(records, assigned.split, header.fingerprint, len(pending))
        return dataclasses.replace(report, notes=(*assigned.notes, *dropped, *self._clip_notes(records)))

    def _decode(self, rows: list[int], write_clip: WriteClip) -> Records:
        plan, raw = self.plan, os.path.abspath(bytes(self.raw))
        # Longest first: a long video that starts last would keep one worker busy alone.
        jobs = [
            Job(row, raw, plan.paths[row], plan.source_bytes[row], plan.source_mtime_ns[row])
            for row in sorted(rows, key=lambda row: -plan.source_bytes[row])
        ]
        return decode(jobs, self.tools, write_clip, self.options)

    def _count(self, writer: CacheWriter, row: int | None = None) -> None:
        """Tell what is done, with one more row or at the beginning."""
        records = writer.records
        if row is None:
            self._num_done = int(writer.done.sum())
            self._num_failed = int((writer.done & (records["status"] == Status.FAILED)).sum())
        else:
            self._num_done += 1
            self._num_failed += int(records[row]["status"] == Status.FAILED)
            if records[row]["status"] != Status.OK:
                self.on_problem(problem_of(self.plan, records, row))
        self.progress(self._num_done, self._num_failed, self.plan.num_clips)

    def _check_result(self, good: np.ndarray[Any, Any], problems: tuple[Problem, ...]) -> None:
        if not good.any():
            raise InputError(
                f"{printable(self.output)}: none of {plural(len(good), 'video')} gave a clip ({problems[0].reason}: "
                f"{problems[0].detail}). See {printable(failures_path(self.output))}"
            )
        if not self.options.allow_tiny_classes:
            counts = Counter(dict.fromkeys(self.plan.classes, 0))
            counts.update(self.plan.classes[self.plan.labels[row]] for row in np.flatnonzero(good).tolist())
            check_class_sizes(counts, "videos that decode")

    def _clip_notes(self, records: np.ndarray[Any, Any]) -> list[str]:
        """Say why nothing was reused, and how many clips look washed out."""
        notes, finished = [], self.finished
        if finished and not finished.is_current_format:
            notes.append(
                f"the older cache had format version {finished.decoded_format}: every video was decoded again, since "
                f"version {FORMAT_VERSION} keeps more of each"
            )
        is_hdr = np.isin(records["transfer"], [name.encode() for name in HDR_TRANSFERS])
        count = int((is_hdr & (records["status"] != Status.FAILED)).sum())
        if count and not self.plan.spec.is_tonemapped:
            clips = plural(count, "clip")
            notes.append(f"{clips} of HDR videos (PQ, HLG) look washed out. --tonemap maps them to SDR")
        return notes

    def _report(self, facts: Any, split: np.ndarray[Any, Any], fingerprint: str, num_decoded: int) -> BuildReport:
        plan, good = self.plan, facts["status"] != Status.FAILED
        counts = np.bincount(np.asarray(plan.labels)[good], minlength=len(plan.classes)).tolist()
        train, val, test, unused = np.bincount(split[good], minlength=len(Split)).tolist()
        return BuildReport(
            cache=self.output,
            fingerprint=fingerprint,
            num_videos=plan.num_clips,
            num_decoded=num_decoded,
            num_reused=plan.num_clips - num_decoded,
            problems=find_problems(plan, facts),
            seconds=0.0,
            class_counts={printable(name): count for name, count in zip(plan.classes, counts, strict=True)},
            split_counts=(train, val, test),
            num_unused=unused,
            notes=(),
            skipped=self.sources.skipped,
            up_to_date=False,
        )


def make_plan(sources: Sources, options: BuildOptions, config: SplitConfig, ffmpeg_versions: list[str]) -> Manifest:
    """Write down everything that is known before the first video is opened."""
    versions = set(", ".join(ffmpeg_versions).split(", ")) - {""}
    label_of = {name: label for label, name in enumerate(sources.classes)}
    videos, spec = sources.videos, options.spec
    follow_links, ffmpeg_version = options.limits.follow_links, ", ".join(sorted(versions))
    return Manifest(
        spec=spec,
        classes=sources.classes,
        paths=tuple(video.path for video in videos),
        labels=tuple(label_of[video.class_name] for video in videos),
        source_bytes=tuple(video.num_bytes for video in videos),
        source_mtime_ns=tuple(video.mtime_ns for video in videos),
        attributes=plan_attributes(spec, sources.class_depth, config, ffmpeg_version, follow_links=follow_links),
    )


def plan_attributes(
    spec: Spec, class_depth: int, config: SplitConfig, ffmpeg_version: str, *, follow_links: bool = False
) -> dict[str, Any]:
    """Return the root attributes of a cache, always in the same order."""
    return {
        "sampling": spec.sampling,
        "scaling": spec.scaling,
        "class_depth": class_depth,
        **({"follow_links": 1} if follow_links else {}),
        **config.attributes(),
        "vidcache_version": importlib.metadata.version("vidcache"),
        "ffmpeg_version": ffmpeg_version,
    }
