"""From a folder of videos to a cache: plan, workers, journal, split, finish.

The workers are threads, because the work is in the child processes; each writes its own slot.
Results leave through return values and a callback: nothing is printed here.
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

from vidcache.cache.format import FORMAT_VERSION, Plan, Split, Status
from vidcache.cache.leakage import near_groups
from vidcache.cache.lock import clean_up
from vidcache.cache.reader import CacheReader
from vidcache.cache.reuse import Earlier, earlier_builds, open_donors
from vidcache.cache.writer import CacheWriter
from vidcache.errors import InputError, VidcacheError
from vidcache.outputs import CACHE, claim
from vidcache.preprocess.executors import Job, decode, find_all_tools
from vidcache.preprocess.options import BuildOptions
from vidcache.preprocess.records import FAILURES, Problem, failures_path, find_problems, problem_of, write_failures
from vidcache.preprocess.reuse import (
    check_dropped,
    check_lost,
    is_current,
    reason_of,
    reconsider,
    rows_to_retry,
    take_over,
)
from vidcache.preprocess.split.assign import MIN_CLASS_CLIPS
from vidcache.preprocess.split.config import SplitConfig, SplitOverrides, Splitter
from vidcache.preprocess.split.groups import GroupBy
from vidcache.preprocess.split.predefined import expand
from vidcache.preprocess.video.classes import LISTED, twin_notes
from vidcache.preprocess.video.ffmpeg import FFmpegBinaries, bound_workers
from vidcache.preprocess.video.find import Sources, find_videos
from vidcache.preprocess.video.probe import HDR_TRANSFERS
from vidcache.spec import Spec
from vidcache.text import plural, printable


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


def choose_rule(finished: CacheReader | None, sources: Sources, choice: SplitOverrides) -> SplitConfig:
    """Return how to split: as chosen; else as in the finished cache; else as lists or folders say, or the default.

    Raises:
        InputError: A list cannot be read.
    """
    rule = SplitConfig(source="folders" if sources.class_depth == 1 else "fractions")
    kept = finished is not None and int(finished.attributes["class_depth"]) == sources.class_depth
    if finished and kept:
        rule = SplitConfig.from_attributes(finished.attributes)
    labels = sources.labels
    # A cache keeps no lists: what it was divided by is named again with the labels.
    if labels and labels.has_split and not choice.source and (not kept or rule.source == "files"):
        choice = dataclasses.replace(choice, source="files", files=(labels.file,))
    if labels and labels.has_group and not choice.grouping and (not kept or rule.grouping.by == "file"):
        choice = dataclasses.replace(choice, grouping=GroupBy("file", labels.file))
    return choice.applied_to(rule)


def unused_columns(rule: SplitConfig, sources: Sources, choice: SplitOverrides) -> tuple[str, ...]:
    """Say which columns of the list of labels do not divide the cache, though nobody chose so in this command.

    The cache was divided before the list had them, or by `vidcache split` since: its attributes do not say which.
    """
    labels = sources.labels
    if labels is None:
        return ()
    file, notes = printable(labels.file), []
    if labels.has_split and not choice.source and rule.source != "files":
        notes.append(
            f"the column split of {file} is not used: the cache is split by {rule.source}. Use it with --split-file"
        )
    if labels.has_group and not choice.grouping and rule.grouping.by != "file":
        notes.append(
            f"the column group of {file} is not used: the cache is grouped by {rule.grouping.by}. Use it with --by file"
        )
    return tuple(f"{note} {file}" for note in notes)


def check_reading(output: Path, attributes: dict[str, Any], sources: Sources, options: BuildOptions) -> None:
    """Refuse to read the folders in another way than the finished cache did, unless that was asked for.

    Raises:
        InputError: The same videos would get other classes, or linked ones would be lost.
    """
    depth = int(attributes["class_depth"])
    if depth != sources.class_depth and options.layout == "auto" and not options.labels:
        way, advice = {
            LISTED: ("a list", "Name the list again with --labels"),
            0: ("RAW/<class>/", "Choose between them with --layout classes or --layout splits"),
        }.get(depth, ("RAW/<split>/<class>/", "Choose between them with --layout splits or --layout classes"))
        raise InputError(
            f"{printable(output)}: has its classes from {way}, but the folders now read in another way. {advice}, or "
            "choose another name for the cache"
        )
    if attributes.get("follow_links") and not options.limits.follow_links:
        raise InputError(
            f"{printable(output)}: was built with --follow-links, and without it linked videos would be lost. Name the "
            "option again, or choose another name for the cache"
        )


def make_plan(
    sources: Sources,
    spec: Spec,
    rule: SplitConfig,
    tools: FFmpegBinaries,
    earlier: list[Earlier],
    *,
    follow_links: bool = False,
) -> Plan:
    """Write down everything that is known before the first video is opened."""
    # Clips of earlier builds may be taken over, so their ffmpeg counts too.
    versions = {tools.version}.union(*(found.ffmpeg_version.split(", ") for found in earlier))
    classes = sources.classes
    label_of = {name: label for label, name in enumerate(classes)}
    videos = sources.videos
    return Plan(
        spec=spec,
        classes=classes,
        paths=tuple(video.path for video in videos),
        labels=tuple(label_of[video.class_name] for video in videos),
        source_bytes=tuple(video.num_bytes for video in videos),
        source_mtime_ns=tuple(video.mtime_ns for video in videos),
        attributes=plan_attributes(
            spec, sources.class_depth, rule, ", ".join(sorted(versions - {""})), follow_links=follow_links
        ),
    )


def plan_attributes(
    spec: Spec, class_depth: int, rule: SplitConfig, ffmpeg_version: str, *, follow_links: bool = False
) -> dict[str, Any]:
    """Return the root attributes of a cache, always in the same order."""
    return {
        "sampling": spec.sampling,
        "scaling": spec.scaling,
        "class_depth": class_depth,
        **({"follow_links": 1} if follow_links else {}),
        **rule.attributes(),
        "vidcache_version": importlib.metadata.version("vidcache"),
        "ffmpeg_version": ffmpeg_version,
    }


@dataclasses.dataclass(frozen=True)
class BuildReport:
    """What a build did.

    Attributes:
        cache: The file.
        fingerprint: Names its content.
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
        """Clips that are not all that their video promised."""
        return len(self.problems) - self.num_failed


_REMEDIES = {
    errno.ENOSPC: "free some space, then",
    errno.EDQUOT: "free some space, then",
    errno.EFBIG: "raise the limit of the length of files (ulimit -f), then",
    errno.EMFILE: "use fewer --workers, or raise the limit of open files (ulimit -n), then",
    errno.ENFILE: "use fewer --workers, then",
    errno.ENOMEM: "use fewer --workers, or raise the limit of memory (ulimit -v), then",
    errno.EAGAIN: "use fewer --workers, or raise the limits of this process (ulimit -u and -v), then",
}

Progress = Callable[[int, int, int], None]  # rows done, rows failed, rows in all
OnProblem = Callable[[Problem], None]


def build_cache(
    raw: Path,
    output: Path,
    options: BuildOptions,
    progress: Progress = lambda *_: None,
    on_problem: OnProblem = lambda _: None,
) -> BuildReport:
    """Decode the videos below `raw` into a cache, as far as earlier builds have not done it yet.

    Args:
        raw: RAW/<class>/**/<video>.
        output: The cache; an older one stays readable until the new one is finished.
        options: How.
        progress: Called after every video.
        on_problem: Called with every video that fails or is damaged, when it does.

    Returns:
        What was done. `<output>.failures.csv` lists the failed and damaged videos.

    Raises:
        InputError: No videos, no ffmpeg, a class with too few videos, no video decodes, an earlier build of this
            cache has another spec, the split cannot be made, or the output is or lies in an input.
        CacheError: There is a file of that name which is no cache; or a damaged one, without `overwrite`.
        LockedError: Another build is writing this cache.
        VidcacheError: The disk has no room or failed, or the videos are away; the same command resumes.
    """
    start = time.monotonic()
    read = [raw, *([options.labels] if options.labels else []), *map(Path, expand(options.split.files or ()))]
    output = claim(output, CACHE, read)
    claim(failures_path(output), FAILURES, read)
    workers, few_workers = bound_workers(options.workers)
    options = dataclasses.replace(options, workers=workers)
    follow_links = options.limits.follow_links
    sources = find_videos(raw, options.layout, options.labels, follow_links=follow_links)
    if not options.allow_tiny_classes:
        check_class_sizes(Counter(video.class_name for video in sources.videos), "videos")
    tools = find_all_tools(options.ffmpeg_dir)
    with contextlib.ExitStack() as stack:
        finished = None
        if os.path.lexists(output) and not options.overwrite:
            finished = stack.enter_context(CacheReader(output))
        earlier = [] if options.overwrite else earlier_builds(output, finished)
        _check_spec(output, options.spec, earlier)
        if finished:
            check_reading(output, finished.attributes, sources, options)
        rule = choose_rule(finished, sources, options.split)
        plan = make_plan(sources, options.spec, rule, tools[0], earlier, follow_links=follow_links)
        tell = progress, on_problem
        try:
            report = _report_if_current(raw, output, finished, plan, tools, options, progress) if finished else None
            report = report or _build(raw, output, finished, plan, rule, sources.class_depth, tools, options, tell)
        except OSError as error:
            remedy = _REMEDIES.get(error.errno or 0, "when the cause is gone,")
            raise VidcacheError(
                f"{printable(output)}: {error.strerror} while it was written. What was decoded is kept: "
                f"{remedy} run the same command again"
            ) from error
    notes = sources.notes + twin_notes(sources.classes) + unused_columns(rule, sources, options.split) + report.notes
    notes += (few_workers,) if few_workers else ()
    return dataclasses.replace(report, skipped=sources.skipped, seconds=time.monotonic() - start, notes=notes)


def _build(
    raw: Path,
    output: Path,
    finished: CacheReader | None,
    plan: Plan,
    rule: SplitConfig,
    class_depth: int,
    tools: list[FFmpegBinaries],
    options: BuildOptions,
    tell: tuple[Progress, OnProblem],
) -> BuildReport:
    splitter = Splitter(rule, plan.paths, plan.labels, plan.classes, class_depth)  # before anything is decoded
    with CacheWriter(output, plan) as writer:
        had_nothing = not writer.done.any()
        reconsider(raw, writer, options)
        tally = _Tally(writer, *tell)
        donor = finished if finished and finished.is_current_format else None
        if not options.overwrite:
            with open_donors(output, donor, plan.spec, plan.identity()) as donors:
                for row in take_over(raw, writer, donors, options):
                    tally.add(row)
        if donor:  # before hours of decoding; what becomes of the clips of another format is known only after it
            try:
                check_dropped(raw, output, donor, writer, options.labels)
            except InputError:
                if had_nothing:  # it would only be in the way of a split
                    writer.discard()
                raise
        writer.drop_earlier_builds()
        pending = writer.pending
        with contextlib.closing(decode(_jobs(raw, plan, pending), tools, writer.write_clip, options)) as results:
            for row, record in results:
                writer.complete(row, record)
                tally.add(row)
        dropped = check_dropped(raw, output, finished, writer, options.labels) if finished else ()
        if finished:
            check_lost(output, finished, writer)
        good = writer.records["status"] != Status.FAILED
        problems = find_problems(plan, writer.records)
        write_failures(output, problems, writer.folder)
        _check_result(output, plan, good, problems, options)
        columns = {name: writer.records[name] for name in ("status", "perceptual_hash")}
        columns["near_group"] = near_groups(columns)
        assigned = splitter.assign(columns, good)
        header = writer.finish(assigned.group, assigned.split, columns["near_group"])
    notes = (*assigned.notes, *dropped, *_format_notes(finished), *_hdr_notes(plan.spec, writer.records))
    return _report(output, plan, writer.records, assigned.split, header.fingerprint, notes, num_decoded=len(pending))


def _hdr_notes(spec: Spec, records: np.ndarray[Any, Any]) -> tuple[str, ...]:
    """Say how many clips look washed out."""
    names = [name.encode() for name in HDR_TRANSFERS]
    count = int((np.isin(records["transfer"], names) & (records["status"] != Status.FAILED)).sum())
    if not count or spec.is_tonemapped:
        return ()
    return (f"washed out beside others: {plural(count, 'clip')} of HDR videos (PQ, HLG). --tonemap maps them to SDR",)


def _format_notes(finished: CacheReader | None) -> tuple[str, ...]:
    """Say why nothing of a cache of an older format version was taken over."""
    if finished is None or finished.is_current_format:
        return ()
    found = finished.decoded_format
    return (
        f"the older cache had format version {found}: every video was decoded again, since version {FORMAT_VERSION} "
        "keeps more of each",
    )


def _check_spec(output: Path, spec: Spec, earlier: list[Earlier]) -> None:
    for found in earlier:
        if found.spec != spec:
            what = "holds" if found.where == output else "is half built with"
            same = str(found.spec) == str(spec)  # then the rules differ, with the version of vidcache
            there, wanted = (repr(found.spec), repr(spec)) if same else (str(found.spec), str(spec))
            raise InputError(f"{printable(output)}: {what} clips of {there}, expected {wanted}. Use another name")


def _report_if_current(
    raw: Path,
    output: Path,
    finished: CacheReader,
    plan: Plan,
    tools: list[FFmpegBinaries],
    options: BuildOptions,
    progress: Progress,
) -> BuildReport | None:
    """Report on the finished cache if there is nothing to build: also when failed videos fail again as they did."""
    columns = finished.columns
    if not is_current(raw, finished, plan, options):
        return None
    again = rows_to_retry(columns, retry_failed=options.retry_failed).tolist()
    with contextlib.closing(decode(_jobs(raw, plan, again), tools, lambda *_: None, options)) as results:
        for tried, (row, record) in enumerate(results, 1):
            if record["status"] != Status.FAILED or reason_of(record["error"]) != reason_of(columns["error"][row]):
                return None
            progress(tried, tried, len(again))
    clean_up(output)
    split, num_tried = columns["split"], len(again)
    return _report(output, plan, columns, split, finished.fingerprint, (), num_decoded=num_tried, current=True)


def _report(
    output: Path,
    plan: Plan,
    facts: Any,
    split: np.ndarray[Any, Any],
    fingerprint: str,
    notes: tuple[str, ...],
    *,
    num_decoded: int,
    current: bool = False,
) -> BuildReport:
    good = facts["status"] != Status.FAILED
    counts = np.bincount(np.asarray(plan.labels)[good], minlength=len(plan.classes)).tolist()
    train, val, test, unused = np.bincount(split[good], minlength=len(Split)).tolist()
    return BuildReport(
        cache=output,
        fingerprint=fingerprint,
        num_videos=plan.num_clips,
        num_decoded=num_decoded,
        num_reused=plan.num_clips - num_decoded,
        problems=find_problems(plan, facts),
        seconds=0.0,
        class_counts={printable(name): count for name, count in zip(plan.classes, counts, strict=True)},
        split_counts=(train, val, test),
        num_unused=unused,
        notes=notes,
        skipped={},
        up_to_date=current,
    )


def _jobs(raw: Path, plan: Plan, rows: list[int]) -> list[Job]:
    # Longest first: a long video that starts last would keep one worker busy alone.
    return [
        Job(row, os.path.abspath(bytes(raw)), plan.paths[row], plan.source_bytes[row], plan.source_mtime_ns[row])
        for row in sorted(rows, key=lambda row: -plan.source_bytes[row])
    ]


class _Tally:
    """Counts what is done, and tells it."""

    def __init__(self, writer: CacheWriter, progress: Progress, on_problem: OnProblem) -> None:
        self._writer, self._progress, self._on_problem = writer, progress, on_problem
        self._num_failed = int((writer.done & (writer.records["status"] == Status.FAILED)).sum())
        self._num_done = int(writer.done.sum())
        self._tell()

    def add(self, row: int) -> None:
        self._num_done += 1
        status = self._writer.records[row]["status"]
        self._num_failed += int(status == Status.FAILED)
        if status != Status.OK:
            self._on_problem(problem_of(self._writer.plan, self._writer.records, row))
        self._tell()

    def _tell(self) -> None:
        self._progress(self._num_done, self._num_failed, self._writer.plan.num_clips)


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
