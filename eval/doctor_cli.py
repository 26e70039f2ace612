"""`vidcache doctor`: a line for each check."""

from pathlib import Path

import click
from click.core import ParameterSource
from rich.text import Text

from vidcache.cli import Command, echo_json, json_option, option
from vidcache.console import SafeConsole
from vidcache.errors import VidcacheError
from vidcache.eval.doctor import OK, PROBLEM, WARNING, Asked, Check, examine
from vidcache.text import plural

_COLOURS = {OK: "green", WARNING: "yellow", PROBLEM: "bold red"}


@click.command(cls=Command)
@click.argument("path", default=".", type=click.Path(path_type=Path))
@option("--ffmpeg-dir", type=click.Path(path_type=Path), help="Folder of ffmpeg and ffprobe, as for build.")
@option("--weights", default="kinetics400", help="As for vidtrain: kinetics400, none, or the path of the file.")
@option(
    "--clips",
    type=click.IntRange(1),
    default=None,
    show_default="1,000; of a cache, those it has",
    help="How many clips must fit on the disk and in memory.",
)
@option(
    "--megabytes",
    type=click.IntRange(0, 100_000),
    default=256,
    help="Size of the file that measures the disk (MiB); 0: do not measure.",
)
@json_option()
@click.pass_context
def doctor(
    context: click.Context,
    path: Path,
    ffmpeg_dir: Path | None,
    weights: str,
    clips: int | None,
    megabytes: int,
    as_json: bool,
) -> None:
    """Check this machine, and PATH: the folder of a cache to be, or a cache; by default the folder we are in.

    A line for each thing: ok, warning or problem, what it is, what to do. Exit code 1 when there is a problem.

    \b
    vidcache doctor cache.h5
    """
    by_variable = context.get_parameter_source("ffmpeg_dir") is ParameterSource.ENVIRONMENT
    named_by = "VIDCACHE_FFMPEG_DIR" if by_variable else "--ffmpeg-dir"
    console, checks = SafeConsole(), []
    for check in examine(Asked(path, clips, megabytes, ffmpeg_dir, named_by, weights)):
        checks.append(check)
        if not as_json:
            console.print(_line(check), soft_wrap=True)
    counts = {status: sum(check.status == status for check in checks) for status in (OK, WARNING, PROBLEM)}
    if as_json:
        said = [
            {"name": check.name, "status": check.status, "found": check.found, "advice": check.advice}
            for check in checks
        ]
        echo_json({"checks": said, "num_problems": counts[PROBLEM], "num_warnings": counts[WARNING]})
    else:
        console.print(
            f"{plural(len(checks), 'check')}: {counts[OK]} ok, {plural(counts[WARNING], 'warning')}, "
            f"{plural(counts[PROBLEM], 'problem')}",
            highlight=False,
            soft_wrap=True,
        )
    if counts[PROBLEM]:
        raise VidcacheError(
            f"doctor: {plural(counts[PROBLEM], 'problem')}, expected none. Do what the lines say, and run it again"
        )


def _line(check: Check) -> Text:
    return Text.assemble((f"{check.status:8}", _COLOURS[check.status]), f"{check.name:11} {check.line()}")
