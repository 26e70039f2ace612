"""`vidcache build` and `vidcache demo`: options in, tables and exit codes out."""

from collections import Counter
from pathlib import Path
from typing import Any

import click
from rich.table import Table
from rich.text import Text

from vidcache.cache.format import Status
from vidcache.cli import (
    Command,
    FiniteRange,
    echo_json,
    json_option,
    num_cpus,
    option,
    progress_console,
    verbosity_options,
)
from vidcache.console import Progress, SafeConsole, echo
from vidcache.errors import TooManyFailuresError
from vidcache.preprocess.build import BuildReport, build_cache, check_class_sizes
from vidcache.preprocess.demo import CLASSES, render_demo
from vidcache.preprocess.options import BACKENDS, BuildOptions
from vidcache.preprocess.records import Problem, failures_path
from vidcache.preprocess.split.cli import SplitCommand, make_choice, parse_with, show_notes, split_options
from vidcache.preprocess.video.classes import twin_notes
from vidcache.preprocess.video.decode import DecodeLimits
from vidcache.preprocess.video.ffmpeg import find_tools
from vidcache.preprocess.video.find import check_source_options, find_videos, source_options
from vidcache.preprocess.video.source_file import is_momentary
from vidcache.spec import SCALING, TONEMAPPED, Spec
from vidcache.text import plural, printable


def parse_size(text: str) -> tuple[int, int]:
    """Read "112" or "96x128" (height x width).

    Raises:
        ValueError: It is neither, or a side is not 16 to 1024.
    """
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.isdecimal() for part in parts):
        raise ValueError(f"size {text!r}, expected one number or HEIGHTxWIDTH, like 112 or 96x128")
    height, width = int(parts[0]), int(parts[-1])
    Spec(height=height, width=width)
    return height, width


def parse_max_failures(text: str) -> tuple[float, bool]:
    """Read "20" or "5%".

    Returns:
        The number, and whether it is a percentage.

    Raises:
        ValueError: It is neither.
    """
    number = text.removesuffix("%")
    try:
        value = float(number)
    except ValueError:
        value = -1.0
    percent = text.endswith("%")
    if value < 0 or (percent and value > 100) or (not percent and value != int(value)):
        raise ValueError(f"max-failures {text!r}, expected a count or a percentage, like 20 or 5%")
    return value, percent


@click.command(cls=SplitCommand)
@click.argument("raw", type=click.Path(path_type=Path))
@click.argument("cache", type=click.Path(path_type=Path, dir_okay=False))
@option(
    "--workers",
    type=click.IntRange(1),
    default=num_cpus,
    show_default="all CPUs",
    help="Videos decoded at a time.",
)
@option("--backend", type=click.Choice(BACKENDS), default="threads", help="Who decodes: this machine, or a cluster.")
@option("--scheduler", metavar="ADDRESS", help="Of the Dask or Ray cluster.")
@option("--num-frames", type=click.IntRange(2, 1024), default=64, help="Frames per clip (T).")
@option("--size", default="112", callback=parse_with(parse_size), help="Pixels: one number, or HEIGHTxWIDTH.")
@source_options
@split_options
@option("--allow-tiny-classes", is_flag=True, help="Accept classes with fewer than 3 videos.")
@option("--ffmpeg-dir", type=click.Path(path_type=Path, file_okay=False), help="Folder of ffmpeg and ffprobe.")
@option("--timeout", type=FiniteRange(min=0, min_open=True), default=900.0, help="Seconds for one video.")
@option(
    "--max-pixels", type=click.IntRange(1), default=DecodeLimits.max_pixels, help="Largest width * height of a video."
)
@option(
    "--keyed/--no-keyed",
    default=True,
    help="Skip what no sample of a long video needs; the clip is the same, broken frames elsewhere go unseen.",
)
@option(
    "--tonemap/--no-tonemap",
    default=False,
    help="Map HDR videos (PQ, HLG) to SDR, some seconds each; without, they look washed out. FFmpeg 7.1 or newer.",
)
@option(
    "--max-failures",
    default="10%",
    callback=parse_with(parse_max_failures),
    help="More failed videos: exit code 3.",
)
@click.option("--retry-failed", is_flag=True, help="Decode again all videos that failed.")
@click.option(
    "--verify-sources", "check_contents", is_flag=True, help="Compare hashes of videos and clips, not sizes and times."
)
@click.option("--overwrite", is_flag=True, help="Use nothing of an earlier CACHE, which may be damaged.")
@click.option("--dry-run", is_flag=True, help="Say what would be built; write nothing.")
@verbosity_options("every video that fails or is damaged, when it does")
@json_option()
def build(
    raw: Path,
    cache: Path,
    workers: int,
    backend: str,
    scheduler: str | None,
    num_frames: int,
    size: tuple[int, int],
    layout: str,
    labels: Path | None,
    follow_links: bool,
    allow_tiny_classes: bool,
    ffmpeg_dir: Path | None,
    timeout: float,
    max_pixels: int,
    keyed: bool,
    tonemap: bool,
    max_failures: tuple[float, bool],
    retry_failed: bool,
    check_contents: bool,
    overwrite: bool,
    dry_run: bool,
    as_json: bool,
    **split_values: Any,
) -> None:
    """Decode RAW/<class>/**/<video> into CACHE; the class folders, sorted, are the labels.

    RAW/{train,val,test}/<class>/ gives the split too. Where a list names videos and classes: --labels.

    Running it again decodes only what is new, changed, or was not reached when it was interrupted.

    \b
    vidcache build raw/ cache.h5 --workers 16
    """
    if backend == "dask" and not scheduler:
        raise click.UsageError("--backend dask: needs --scheduler ADDRESS, for example tcp://127.0.0.1:8786")
    if backend == "threads" and scheduler:
        raise click.UsageError("--scheduler: means nothing without --backend dask or ray")
    check_source_options(layout, labels)
    options = BuildOptions(
        spec=Spec(num_frames, *size, scaling=TONEMAPPED if tonemap else SCALING),
        workers=workers,
        backend=backend,
        scheduler=scheduler,
        layout=layout,
        labels=labels,
        split=make_choice(split_values),
        allow_tiny_classes=allow_tiny_classes,
        ffmpeg_dir=ffmpeg_dir,
        limits=DecodeLimits(timeout, max_pixels, keyed, follow_links),
        retry_failed=retry_failed,
        check_contents=check_contents,
        overwrite=overwrite,
    )
    if dry_run:
        _dry_run(raw, options, as_json)
        return
    stderr = progress_console()
    with Progress(stderr, "decoding", "videos") as shown:
        report = build_cache(
            raw,
            cache,
            options,
            lambda done, failed, total: shown.update(done, total, failed),
            lambda problem: stderr.detail(f"{problem.status.name.lower()}: {_in_words(problem)}"),
        )
    _show_report(stderr, report)
    if as_json:
        echo_json(_build_json(report))
    allowed = max_failures[0] * (report.num_videos / 100 if max_failures[1] else 1)
    if report.num_failed > allowed:
        raise TooManyFailuresError(
            f"{printable(cache)}: finished, but {report.num_failed} of {report.num_videos} videos failed, expected at "
            f"most {allowed:g}. See {printable(failures_path(cache))}, or raise --max-failures"
        )


def _dry_run(raw: Path, options: BuildOptions, as_json: bool) -> None:
    sources = find_videos(raw, options.layout, options.labels, follow_links=options.limits.follow_links)
    notes = sources.notes + twin_notes(sources.classes)
    counts = Counter(video.class_name for video in sources.videos)
    num_bytes = sum(video.num_bytes for video in sources.videos)
    cache_bytes = len(sources.videos) * options.spec.clip_bytes
    if as_json:
        classes = {printable(name): counts[name] for name in sources.classes}
        echo_json(
            {
                "num_videos": len(sources.videos),
                "classes": classes,
                "num_bytes": num_bytes,
                "cache_bytes": cache_bytes,
                "notes": list(notes),
            }
        )
    else:
        table = Table("class", "videos")
        for name in sources.classes:
            table.add_row(Text(printable(name)), str(counts[name]))
        console = SafeConsole()
        console.print(table)
        console.print(
            f"{plural(len(sources.videos), 'video')}, {plural(len(counts), 'class', 'classes')}, "
            f"{num_bytes / 1e6:,.1f} MB; the cache will have {cache_bytes / 1e6:,.1f} MB. Nothing was written."
        )
        _show_skipped(console, sources.skipped)
        show_notes(console, notes)
    if not options.allow_tiny_classes:
        check_class_sizes(counts, "videos")


def _show_report(console: SafeConsole, report: BuildReport) -> None:
    if report.problems:
        table = Table("status", "reason", "videos", "for example")
        groups: dict[tuple[str, str], list[Any]] = {}
        for problem in report.problems:
            groups.setdefault((problem.status.name.lower(), problem.reason), []).append(problem)
        for (status, reason), members in sorted(groups.items(), key=lambda item: -len(item[1])):
            table.add_row(status, reason, str(len(members)), Text(_in_words(members[0]), overflow="fold"))
        console.print(table)
        console.print(Text(f"All of them: {printable(failures_path(report.cache))}"), soft_wrap=True)
        if report.num_failed:
            console.print(_fate_of_failures(report))
    _show_skipped(console, report.skipped)
    show_notes(console, report.notes)
    train, val, test = report.split_counts
    rate = report.num_decoded / report.seconds if report.seconds else 0.0
    tried = f", {plural(report.num_decoded, 'video')} failed again" if report.num_decoded else ""
    done = (
        f"{report.num_decoded} decoded, {report.num_reused} reused in {report.seconds:.1f} s ({rate:.1f} videos/s)"
        if not report.up_to_date
        else f"up to date{tried}, nothing was written ({report.seconds:.1f} s)"
    )
    SafeConsole(stderr=True).print(  # the result: also of a quiet build
        Text(
            f"{printable(report.cache)}: {plural(report.num_videos - report.num_failed, 'clip')} of "
            f"{plural(len(report.class_counts), 'class', 'classes')} (train {train}, val {val}, test {test}"
            f"{f', unused {report.num_unused}' if report.num_unused else ''}), "
            f"{report.num_failed} failed, {report.num_damaged} damaged; {done}"
        ),
        soft_wrap=True,
    )


def _fate_of_failures(report: BuildReport) -> str:
    """Say which failed videos another run tries again."""
    failed = [problem.reason for problem in report.problems if problem.status is Status.FAILED]
    passing = sum(is_momentary(reason) for reason in failed)
    if passing == len(failed):
        return "The next run tries the failed videos again."
    kept = "is kept until the video changes, or is tried again with --retry-failed"
    if not passing:
        return f"What failed {kept}."
    return f"The next run tries {passing} of the {len(failed)} failed videos again; what else failed {kept}."


def _in_words(problem: Problem) -> str:
    return printable(problem.path) + f": {problem.detail}"


def _show_skipped(console: SafeConsole, skipped: dict[str, int]) -> None:
    if skipped:
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(skipped.items()))
        console.print(Text(f"Files left out: {reasons}"))


def _build_json(report: BuildReport) -> dict[str, Any]:
    return {
        "cache": printable(report.cache),
        "fingerprint": report.fingerprint,
        "num_videos": report.num_videos,
        "num_clips": report.num_videos - report.num_failed,
        "num_failed": report.num_failed,
        "num_damaged": report.num_damaged,
        "num_decoded": report.num_decoded,
        "num_reused": report.num_reused,
        "seconds": round(report.seconds, 3),
        "classes": report.class_counts,
        "splits": dict(zip(("train", "val", "test"), report.split_counts, strict=True)) | {"unused": report.num_unused},
        "notes": list(report.notes),
    }


@click.command(cls=Command)
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@option(
    "--seed",
    envvar="VIDCACHE_DEMO_SEED",
    type=click.IntRange(0, 2**63 - 1),
    default=0,
    help="Another seed gives other videos.",
)
@option("--workers", type=click.IntRange(1), default=num_cpus, show_default="all CPUs", help="Videos at a time.")
@option("--ffmpeg-dir", type=click.Path(path_type=Path, file_okay=False), help="Folder of ffmpeg and ffprobe.")
@verbosity_options()
def demo(folder: Path, seed: int, workers: int, ffmpeg_dir: Path | None) -> None:
    """Render a small labelled set of motion videos into FOLDER/<class>/.

    \b
    vidcache demo demo/raw
    """
    with Progress(progress_console(), "rendering", "videos") as shown:
        paths = render_demo(folder, find_tools(ffmpeg_dir), seed=seed, workers=workers, progress=shown.update)
    echo(f"{printable(folder)}: {plural(len(paths), 'video')} of {plural(len(CLASSES), 'class', 'classes')}")
