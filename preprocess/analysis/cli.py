"""`vidcache analyze`: options in; findings, and a folder of files, out."""

import os
from pathlib import Path
from typing import Any

import click
from rich.text import Text

from vidcache import cli
from vidcache.console import Progress, SafeConsole
from vidcache.errors import CacheError
from vidcache.outputs import PAGE, PICTURE, begins, claim_folder
from vidcache.preprocess.options import check_source_options, source_options
from vidcache.text import plural, printable

FILES = {
    "summary.json": begins("the summary of an analysis", b'{\n  "path": '),
    "videos.csv": begins("the videos of an analysis", b"path,class,status,error,"),
    "analysis.html": PAGE,
    **dict.fromkeys(("durations.png", "effective_fps.png", "failures.png", "videos_per_class.png"), PICTURE),
}
STYLES = {"problem": "bold red", "warning": "bold yellow", "note": "bold blue"}


@click.command(cls=cli.Command)
@click.argument("path", metavar="CACHE|RAW", type=click.Path(path_type=Path))
@cli.option(
    "--out",
    envvar="VIDCACHE_ANALYSIS_OUT",
    type=click.Path(path_type=Path, file_okay=False),
    show_default="cache.analysis beside cache.h5, raw.analysis beside raw",
    help="Folder for the results.",
)
@cli.workers_option(help="Videos to probe in parallel.")
@cli.option("--num-frames", type=click.IntRange(2, 1024), default=64, help="Frames per clip (T) to assume for RAW.")
@cli.ffmpeg_dir_option(help="Folder of ffprobe, for RAW.")
@source_options
@cli.verbosity_options()
@cli.json_option()
@click.pass_context
def analyze(
    ctx: click.Context, /, path: Path, out: Path | None, workers: int, num_frames: int, as_json: bool, **sources: Any
) -> None:
    """Check a dataset for problems: duplicates, imbalance, damage, shortcuts.

    Reads the headers of RAW/<class>/**/<video> and decodes nothing. Writes analysis.html, summary.json, videos.csv
    and charts as PNG.

    \b
    vidcache analyze cache.h5
    vidcache analyze raw/
    """
    check_source_options(sources["layout"], sources["labels"])
    name = Path(os.path.abspath(path)) if path.is_dir() else path  # "." and ".." have a name too, a link stays one
    folder = out or (name.with_name(f"{name.name}.analysis") if path.is_dir() else cli.beside(path, ".analysis"))
    folder = claim_folder(folder, FILES, [path, *([sources["labels"]] if sources["labels"] else [])])
    if not path.is_dir():
        _check_cache(ctx, path)
    with Progress(cli.progress_console(), "looking at videos", "videos") as shown:
        # scikit-learn and matplotlib take 2 s to import: not for --help
        from vidcache.cache.reader import CacheReader
        from vidcache.preprocess.analysis.checks import Finding, look_alikes, mirror_images, run_checks
        from vidcache.preprocess.analysis.facts import facts_of_cache, facts_of_folder
        from vidcache.preprocess.analysis.report import draw_all, summarise, write_analysis
        from vidcache.preprocess.analysis.shortcuts import find_shortcuts

        findings: list[Finding] = []
        if path.is_dir():
            facts = facts_of_folder(path, num_frames, workers, progress=shown.update, **sources)
        else:
            with CacheReader(path) as reader:
                facts, findings = facts_of_cache(reader, shown.update), [*look_alikes(reader), *mirror_images(reader)]
        shown.start_phase("looking for shortcuts")
        study = find_shortcuts(facts)
        shown.start_phase("drawing")
        charts = draw_all(facts)
        summary = {**summarise(facts, study, run_checks(facts, study, findings), charts), "out": printable(folder)}
        write_analysis(folder, facts, summary, charts)
    if as_json:
        cli.echo_json(summary)
    else:
        _show(SafeConsole(), summary)


def _check_cache(ctx: click.Context, path: Path) -> None:
    name = printable(path)
    if not path.exists():
        raise CacheError(f"{name}: not there. Name a cache, or a folder RAW/<class>/<video>")
    for param in ("num_frames", "ffmpeg_dir", "layout", "labels", "follow_links"):
        # In the environment, where it is for `vidcache build`, it is no mistake.
        if ctx.get_parameter_source(param) is click.core.ParameterSource.COMMANDLINE:
            raise click.UsageError(
                f"--{param.replace('_', '-')}: means nothing for the cache {name}, only for a folder"
            )


def _show(console: SafeConsole, summary: dict[str, Any]) -> None:
    """Print the findings; names are text, never markup."""
    videos, classes = plural(summary["num_videos"], "video"), plural(len(summary["classes"]), "class", "classes")
    bad = ", ".join(f"{summary[f'num_{kind}']:,} {kind}" for kind in ("failed", "damaged", "padded"))
    console.print(Text(f"{summary['path']}: {videos} of {classes}; {bad}"), soft_wrap=True)
    for finding in summary["findings"]:
        severity = finding["severity"]
        title = (f"\n{severity}: ", STYLES[severity]), (finding["title"], "bold")
        console.print(Text.assemble(*title, f"\n  {finding['detail']}\n  {finding['advice']}"), soft_wrap=True)
    end = "" if summary["findings"] else "No problems found.\n"
    console.print(Text(f"{end}\nPage, charts and tables: {summary['out']}"), soft_wrap=True)
