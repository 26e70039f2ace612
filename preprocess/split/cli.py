"""`vidcache split`, and the options of a split, which `vidcache build` has too."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import click
from rich.table import Table
from rich.text import Text

from vidcache.cache.format import Split
from vidcache.cli import Command, echo_json, json_option, option, progress_console, seed_option, verbosity_options
from vidcache.console import Progress, SafeConsole
from vidcache.preprocess.split.assign import parse_fractions
from vidcache.preprocess.split.config import NEAR_DUPLICATES, SplitOverrides
from vidcache.preprocess.split.groups import parse_group_by
from vidcache.preprocess.split.resplit import SplitReport, split_cache
from vidcache.text import plural, printable

KEPT = "; what is done is kept: run the same command again to go on"


def parse_with(parser: Callable[[str], Any]) -> Callable[[click.Context, click.Parameter, str | None], Any]:
    """Make a click callback of a function that raises ValueError; None stays None."""

    def callback(ctx: click.Context, param: click.Parameter, value: str | None) -> Any:  # noqa: ARG001
        try:
            return None if value is None else parser(value)
        except ValueError as error:
            raise click.BadParameter(str(error)) from None

    return callback


_OPTIONS = (
    option(
        "--split",
        envvar="VIDCACHE_SPLIT_FRACTIONS",  # VIDCACHE_SPLIT chooses the clips of videval
        show_default="as in CACHE, or else 70/15/15",
        callback=parse_with(lambda text: text if text == "folders" else parse_fractions(text)),
        group="Split",
        help="Train/val/test percentages; or folders, for RAW/{train,val,test}/<class>/.",
    ),
    option(
        "--split-file",
        "files",
        envvar=None,
        multiple=True,
        metavar="FILE",
        group="Split",
        help="List with the split: CSV path,split; UCF101, HMDB51, Kinetics. Repeat it, or use 'quote*.txt'.",
    ),
    option(
        "--group-by",
        metavar="video|folder|regex:PATTERN|file:CSV",
        show_default="as in CACHE, or else video",
        callback=parse_with(parse_group_by),
        group="Split",
        help="How to group videos that must stay in one split: none, by RAW/<class>/<folder>/, by the capture of a "
        "pattern in the path, or by a CSV path,group.",
    ),
    option(
        "--near-duplicates",
        type=click.Choice(NEAR_DUPLICATES),
        show_default="as in CACHE, or else group",
        group="Split",
        help="Near-duplicate clips: keep in one split, report only, or skip the check.",
    ),
    seed_option(
        envvar="VIDCACHE_SPLIT_SEED",  # VIDCACHE_SEED is that of a run
        default=None,
        show_default="as in CACHE, or else 0",
        group="Split",
        help="Random seed of the split.",
    ),
)


def split_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of a split; `pop_overrides` collects their values."""
    for add_option in reversed(_OPTIONS):
        command = add_option(command)
    return command


def pop_overrides(values: dict[str, Any]) -> SplitOverrides:
    """Take the values of the split options out of those of all options.

    Raises:
        click.UsageError: Both lists and folders are to give the split.
    """
    overrides = {name: values.pop(name) for name in ("split", "files", "group_by", "near_duplicates", "seed")}
    split, files = overrides.pop("split"), overrides["files"]
    if files and split == "folders":
        raise click.UsageError("--split folders and --split-file exclude each other")
    overrides["fractions"] = None if split == "folders" else split
    overrides["source"] = "files" if files else "folders" if split == "folders" else "fractions" if split else None
    return cast("SplitOverrides", {name: value for name, value in overrides.items() if value not in (None, ())})


@click.command(cls=Command, kept=KEPT)
@click.argument("cache", type=click.Path(path_type=Path, dir_okay=False))
@split_options
@click.option("--dry-run", is_flag=True, help="Show the split; write nothing.")
@verbosity_options()
@json_option()
def split(cache: Path, dry_run: bool, as_json: bool, **values: Any) -> None:
    """Split the clips of CACHE into train, val and test again; nothing is decoded.

    Options that are not given stay as they are in CACHE. A kill at any instant leaves the old split or the new one.

    \b
    vidcache split cache.h5 --group-by folder
    vidcache split cache.h5 --group-by 'regex:_g([0-9]+)_' --split 80/10/10
    vidcache split cache.h5 --split-file trainlist01.txt --split-file testlist01.txt
    """
    overrides = pop_overrides(values)
    stderr = progress_console()
    with Progress(stderr, "splitting", "clips") as shown:
        report = split_cache(cache, overrides, dry_run=dry_run, progress=shown.update)
    show_notes(stderr, report.notes)
    if as_json:
        echo_json(_to_json(report))
    else:
        _show(SafeConsole(), report, dry_run)


def show_notes(console: SafeConsole, notes: tuple[str, ...]) -> None:
    """Print what the user should know about a split."""
    for note in notes:
        console.print(Text(f"Note: {note}"), soft_wrap=True)


def _show(console: SafeConsole, report: SplitReport, dry_run: bool) -> None:
    totals = [sum(counts) for counts in zip(*report.class_counts.values(), strict=True)]
    parts = [part for part in Split if part is not Split.UNUSED or totals[part]]
    table = Table("class", *(part.name.lower() for part in parts))
    for name, counts in report.class_counts.items():
        table.add_row(Text(name), *(str(counts[part]) for part in parts))
    table.add_section()
    table.add_row("all", *(str(totals[part]) for part in parts))
    console.print(table)
    result = f"split {report.split_hash}"
    if dry_run or report.up_to_date:
        result = "nothing was written" if dry_run else "it has this split already, nothing was written"
    by = printable(str(report.config.group_by))
    moved = f"{plural(report.num_groups, 'group')}, {plural(report.num_moved, 'clip')} moved"
    console.print(Text(f"{printable(report.cache)}: by {by}, {moved}; {result}"), soft_wrap=True)


def _to_json(report: SplitReport) -> dict[str, Any]:
    parts = [part.name.lower() for part in Split]
    return {
        "cache": printable(report.cache),
        **report.config.attributes(),
        "split_hash": report.split_hash,
        "num_groups": report.num_groups,
        "num_moved": report.num_moved,
        "up_to_date": report.up_to_date,
        "splits": {name: dict(zip(parts, counts, strict=True)) for name, counts in report.class_counts.items()},
        "notes": list(report.notes),
    }
