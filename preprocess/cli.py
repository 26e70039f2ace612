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
    decode_options,
    echo_json,
    ffmpeg_dir_option,
    json_option,
    option,
    progress_console,
    seed_option,
    verbosity_options,
    workers_option,
)
from vidcache.console import Progress, SafeConsole, echo
from vidcache.errors import TooManyFailuresError
from vidcache.preprocess.build import BuildReport, build_cache
from vidcache.preprocess.demo import CLASSES, render_demo
from vidcache.preprocess.options import (
    BACKENDS,
    BuildOptions,
    check_class_sizes,
    check_source_options,
    source_options,
)
from vidcache.preprocess.records import Problem, failures_path
from vidcache.preprocess.split.cli import KEPT, parse_with, pop_overrides, show_notes, split_options
from vidcache.preprocess.video.classes import twin_notes
from vidcache.preprocess.video.decode import DecodeLimits
from vidcache.preprocess.video.ffmpeg import find_tools
from vidcache.preprocess.video.find import find_videos
from vidcache.preprocess.video.source_file import is_momentary
from vidcache.spec import SCALING, TONEMAPPED, Spec
from vidcache.text import plural, printable


def parse_size(text: str) -> tuple[int, int]:
    """Read "112" or "96x128" (height x width); raises ValueError unless both are 16 to 1024."""
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.isdecimal() for part in parts):
        raise ValueError(f"size {text!r} is neither one number nor HEIGHTxWIDTH, like 112 or 96x128")
    height, width = int(parts[0]), int(parts[-1])
    Spec(height=height, width=width)
    return height, width


def parse_max_failures(text: str) -> tuple[float, bool]:
    """Read "20" or "5%": the number, and whether it is a percentage; raises ValueError."""
    is_percent = text.endswith("%")
    try:
        value = float(text.removesuffix("%"))
    except ValueError:
        value = -1.0
    if value < 0 or (is_percent and value > 100) or (not is_percent and value != int(value)):
        raise ValueError(f"max-failures {text!r} is neither a count nor a percentage, like 20 or 5%")
    return value, is_percent


@click.command(cls=Command, kept=KEPT)
@click.argument("raw", type=click.Path(path_type=Path))
@click.argument("cache", type=click.Path(path_type=Path, dir_okay=False))
@option("--num-frames", type=click.IntRange(2, 1024), default=64, group="Clips", help="Frames per clip (T).")
@option("--size", default="112", callback=parse_with(parse_size), group="Clips", help="Pixels: 112, or HEIGHTxWIDTH.")
@option(
    "--tonemap/--no-tonemap",
    default=False,
    group="Clips",
    help="Map HDR videos (PQ, HLG), which look washed out otherwise, to SDR; slow. Needs FFmpeg 7.1 or newer.",
)
@source_options
@option("--allow-tiny-classes", is_flag=True, group="Videos", help="Accept classes with fewer than 3 videos.")
@split_options
@workers_option(group="Decoding")
@option("--backend", type=click.Choice(BACKENDS), default="threads", group="Decoding", help="Threads, Dask or Ray.")
@option("--scheduler", metavar="ADDRESS", group="Decoding", help="Address of the Dask or Ray cluster.")
@decode_options
@option(
    "--max-failures",
    default="10%",
    callback=parse_with(parse_max_failures),
    help="Exit with code 3 if more videos than this fail.",
)
@click.option("--retry-failed", is_flag=True, help="Decode again all videos that failed.")
@click.option(
    "--verify-sources", "check_contents", is_flag=True, help="Compare hashes of videos and clips, not sizes and times."
)
@click.option("--overwrite", is_flag=True, help="Ignore and replace an existing CACHE, which may be damaged.")
@click.option("--dry-run", is_flag=True, help="Show what would be built; write nothing.")
@verbosity_options("every video that fails or is damaged, when it does")
@json_option()
def build(
    raw: Path,
    cache: Path,
    num_frames: int,
    size: tuple[int, int],
    tonemap: bool,
    timeout: float,
    max_pixels: int,
    keyed: bool,
    follow_links: bool,
    max_failures: tuple[float, bool],
    dry_run: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    """Decode RAW/<class>/**/<video> into CACHE; the class folders, sorted, are the labels.

    RAW/{train,val,test}/<class>/ gives the split too. Where a list names videos and classes: --labels.

    Running it again decodes only what is new, changed, or was not reached when it was interrupted.

    \b
    vidcache build raw/ cache.h5 --workers 16
    """
    backend, scheduler = settings["backend"], settings["scheduler"]
    if backend == "dask" and not scheduler:
        raise click.UsageError("--backend dask: needs --scheduler ADDRESS, for example tcp://127.0.0.1:8786")
    if backend == "threads" and scheduler:
        raise click.UsageError("--scheduler: requires --backend dask or ray")
    check_source_options(settings["layout"], settings["labels"])
    spec = Spec(num_frames, *size, scaling=TONEMAPPED if tonemap else SCALING)
    limits = DecodeLimits(timeout, max_pixels, keyed, follow_links)
    split = pop_overrides(settings)  # takes its options out of the others
    options = BuildOptions(spec=spec, limits=limits, split=split, **settings)
    if dry_run:
        _dry_run(raw, options, as_json=as_json)
        return
    stderr = progress_console()
    with Progress(stderr, "decoding", "videos") as bar:
        report = build_cache(
            raw,
            cache,
            options,
            lambda done, failed, total: bar.update(done, total, failed),
            lambda problem: stderr.detail(f"{problem.status.name.lower()}: {problem}"),
        )
    _show_report(stderr, report)
    if as_json:
        echo_json(_build_json(report))
    allowed = max_failures[0] * (report.num_videos / 100 if max_failures[1] else 1)
    if report.num_failed > allowed:
        raise TooManyFailuresError(
            f"{printable(cache)}: finished, but {report.num_failed} of {report.num_videos} videos failed, more than "
            f"the {allowed:g} allowed. See {printable(failures_path(cache))}, or raise --max-failures"
        )


def _dry_run(raw: Path, options: BuildOptions, *, as_json: bool) -> None:
    sources = find_videos(raw, options.layout, options.labels, follow_links=options.limits.follow_links)
    notes = sources.notes + twin_notes(sources.classes)
    counts = Counter(video.class_name for video in sources.videos)
    classes = {printable(name): counts[name] for name in sources.classes}
    num_bytes = sum(video.num_bytes for video in sources.videos)
    sizes = {"num_bytes": num_bytes, "cache_bytes": counts.total() * options.spec.clip_bytes}
    if as_json:
        echo_json({"num_videos": counts.total(), "classes": classes, **sizes, "notes": list(notes)})
    else:
        table, console = Table("class", "videos"), SafeConsole()
        for name, count in classes.items():
            table.add_row(Text(name), str(count))
        console.print(table)
        console.print(
            f"{plural(counts.total(), 'video')}, {plural(len(counts), 'class', 'classes')}, {num_bytes / 1e6:,.1f} MB; "
            f"the cache will have {sizes['cache_bytes'] / 1e6:,.1f} MB. Nothing was written."
        )
        _show_notes(console, sources.skipped, notes)
    if not options.allow_tiny_classes:
        check_class_sizes(counts, "videos")


def _show_report(console: SafeConsole, report: BuildReport) -> None:
    if report.problems:
        table = Table("status", "reason", "videos", "for example")
        groups: dict[tuple[str, str], list[Problem]] = {}
        for problem in report.problems:
            groups.setdefault((problem.status.name.lower(), problem.reason), []).append(problem)
        for (status, reason), members in sorted(groups.items(), key=lambda item: -len(item[1])):
            table.add_row(status, reason, str(len(members)), Text(str(members[0]), overflow="fold"))
        console.print(table)
        console.print(Text(f"All of them: {printable(failures_path(report.cache))}"), soft_wrap=True)
    if report.num_failed:
        num_again = sum(is_momentary(video.reason) for video in report.problems if video.status is Status.FAILED)
        more = "." if num_again == report.num_failed else "; --retry-failed tries all of them."
        console.print(f"The next run tries {num_again} of {plural(report.num_failed, 'failed video')} again{more}")
    _show_notes(console, report.skipped, report.notes)
    rate = report.num_decoded / max(report.seconds, 1e-9)
    counts = f"{report.num_decoded} decoded, {report.num_reused} reused"
    work = f"{counts} in {report.seconds:.1f} s ({rate:.1f} videos/s)"
    if report.up_to_date:
        again = f", {plural(report.num_decoded, 'video')} failed again" if report.num_decoded else ""
        work = f"up to date{again}, nothing was written ({report.seconds:.1f} s)"
    train, val, test = report.split_counts
    unused = f", unused {report.num_unused}" if report.num_unused else ""
    clips = plural(report.num_videos - report.num_failed, "clip")
    SafeConsole(stderr=True).print(  # the result: also of a quiet build
        Text(
            f"{printable(report.cache)}: {clips} of {plural(len(report.class_counts), 'class', 'classes')} "
            f"(train {train}, val {val}, test {test}{unused}), {report.num_failed} failed, {report.num_damaged} "
            f"damaged; {work}"
        ),
        soft_wrap=True,
    )


def _show_notes(console: SafeConsole, skipped: dict[str, int], notes: tuple[str, ...]) -> None:
    if skipped:
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(skipped.items()))
        console.print(Text(f"Files left out: {reasons}"))
    show_notes(console, notes)


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
@seed_option(envvar="VIDCACHE_DEMO_SEED", help="Random seed: another one gives other videos.")
@workers_option()
@ffmpeg_dir_option()
@verbosity_options()
def demo(folder: Path, seed: int, workers: int, ffmpeg_dir: Path | None) -> None:
    """Render a small labelled set of motion videos into FOLDER/<class>/.

    \b
    vidcache demo demo/raw
    """
    with Progress(progress_console(), "rendering", "videos") as bar:
        paths = render_demo(folder, find_tools(ffmpeg_dir), seed=seed, workers=workers, progress=bar.update)
    echo(f"{printable(folder)}: {plural(len(paths), 'video')} of {plural(len(CLASSES), 'class', 'classes')}")
