"""`vidcache analyze`: options in, findings in words and a folder of files out."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.text import Text

from vidcache.cli import Command, beside, echo_json, json_option, num_cpus, option, progress_console, verbosity_options
from vidcache.console import Progress, SafeConsole
from vidcache.errors import CacheError
from vidcache.outputs import PAGE, PICTURE, begins, claim_folder
from vidcache.preprocess.options import check_source_options, source_options
from vidcache.text import plural, printable

if TYPE_CHECKING:  # numpy, h5py, scikit-learn and matplotlib take 2 s to import: not for --help
    from vidcache.preprocess.analysis.checks import Finding
    from vidcache.preprocess.analysis.facts import Facts

_CHARTS = "durations effective_fps failures frame_rates frame_sizes frames_available padding videos_per_class".split()
FILES = {
    "summary.json": begins("the summary of an analysis", b'{\n  "path": '),
    "videos.csv": begins("the videos of an analysis", b"path,class,status,error,"),
    "analysis.html": PAGE,
    **dict.fromkeys((f"{name}.png" for name in _CHARTS), PICTURE),
}
STYLES = {"problem": "bold red", "warning": "bold yellow", "note": "bold blue"}


@click.command(cls=Command)
@click.argument("path", metavar="CACHE|RAW", type=click.Path(path_type=Path))
@option(
    "--out",
    envvar="VIDCACHE_ANALYSIS_OUT",
    type=click.Path(path_type=Path, file_okay=False),
    default=None,
    show_default="cache.analysis beside cache.h5, raw.analysis beside raw",
    help="Folder of the results.",
)
@option(
    "--workers", type=click.IntRange(1), default=num_cpus, show_default="all CPUs", help="Videos looked at at a time."
)
@option("--num-frames", type=click.IntRange(2, 1024), default=64, help="Frames per clip (T) to expect; only for RAW.")
@option("--ffmpeg-dir", type=click.Path(path_type=Path, file_okay=False), help="Folder of ffprobe; only for RAW.")
@source_options
@verbosity_options()
@json_option()
@click.pass_context
def analyze(
    ctx: click.Context,
    path: Path,
    out: Path | None,
    workers: int,
    num_frames: int,
    ffmpeg_dir: Path | None,
    layout: str,
    labels: Path | None,
    follow_links: bool,
    as_json: bool,
) -> None:
    """Show what a cache or a folder of videos holds, and what is odd about it.

    Of RAW/<class>/**/<video> headers are read and nothing is decoded. Writes analysis.html, summary.json,
    videos.csv and the charts as PNG.

    \b
    vidcache analyze cache.h5
    vidcache analyze raw/
    """
    check_source_options(layout, labels)
    is_folder = path.is_dir()
    folder = claim_folder(_output_folder(path, out, is_folder), FILES, [path, *([labels] if labels else [])])
    if not is_folder:
        _check_cache_options(ctx, path)
    look_alikes: tuple[Finding, ...] = ()
    with Progress(progress_console(), "looking at videos", "videos") as shown:

        def progress(done: int, failed: int, total: int) -> None:
            shown.update(done, total, failed)

        if is_folder:
            from vidcache.preprocess.analysis.facts import facts_of_folder

            facts = facts_of_folder(
                path,
                num_frames_per_clip=num_frames,
                workers=workers,
                ffmpeg_dir=ffmpeg_dir,
                progress=progress,
                layout=layout,
                labels=labels,
                follow_links=follow_links,
            )
        else:
            facts, look_alikes = _cache_facts(path, progress)

        from vidcache.preprocess.analysis.charts import draw_all
        from vidcache.preprocess.analysis.checks import find_all
        from vidcache.preprocess.analysis.report import summarise, write_analysis
        from vidcache.preprocess.analysis.shortcuts import study_shortcuts

        shown.start_phase("looking for shortcuts")
        study = study_shortcuts(facts)
        shown.start_phase("drawing")
        charts = draw_all(facts)
        summary = {**summarise(facts, study, find_all(facts, study, look_alikes), charts), "out": printable(folder)}
        write_analysis(folder, facts, summary, charts)
    if as_json:
        echo_json(summary)
    else:
        _show(SafeConsole(), summary)


def _output_folder(path: Path, out: Path | None, is_folder: bool) -> Path:
    if not is_folder:
        return out or beside(path, ".analysis")
    raw = Path(os.path.abspath(path))  # "." and ".." have a name too, a link stays one
    return out or raw.with_name(f"{raw.name}.analysis")


def _check_cache_options(ctx: click.Context, path: Path) -> None:
    if not path.exists():
        raise CacheError(
            f"{printable(path)}: not there, expected a cache, or a folder RAW/<class>/<video>. "
            "Check the name, or build it: vidcache build RAW CACHE"
        )
    for name in ("num_frames", "ffmpeg_dir", "layout", "labels", "follow_links"):
        # Set in the environment for `vidcache build`, it is no mistake here.
        if ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
            raise click.UsageError(
                f"--{name.replace('_', '-')}: means nothing for the cache {printable(path)}: its clips are made"
            )


def _cache_facts(cache: Path, progress: Callable[[int, int, int], None]) -> "tuple[Facts, tuple[Finding, ...]]":
    from vidcache.cache.reader import CacheReader
    from vidcache.preprocess.analysis.checks import look_alikes, mirror_images
    from vidcache.preprocess.analysis.facts import facts_of_cache

    with CacheReader(cache) as reader:
        return facts_of_cache(reader, progress), (*look_alikes(reader), *mirror_images(reader))


def _show(console: SafeConsole, summary: dict[str, Any]) -> None:
    """Print what was found in words; names are text, never markup."""

    def say(*parts: tuple[str, str]) -> None:
        console.print(Text.assemble(*parts), soft_wrap=True)

    videos, classes = plural(summary["num_videos"], "video"), plural(len(summary["classes"]), "class", "classes")
    bad = f"{summary['num_failed']:,} failed, {summary['num_damaged']:,} damaged, {summary['num_padded']:,} padded"
    say((f"{summary['path']}: {videos} of {classes}; {bad}", ""))
    for finding in summary["findings"]:
        severity = finding["severity"]
        say(("\n", ""), (f"{severity}: ", STYLES[severity]), (finding["title"], "bold"))
        say((f"  {finding['detail']}\n  {finding['advice']}", ""))
    if not summary["findings"]:
        say((f"Nothing odd was found in {summary['path']}.", ""))
    say((f"\nPage, charts and tables: {summary['out']}", ""))
