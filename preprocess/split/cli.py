"""`vidcache split`, and the options of a split, which `vidcache build` has too."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from rich.table import Table
from rich.text import Text

from vidcache.cache.format import Split
from vidcache.cli import Command, echo_json, json_option, option, progress_console, verbosity_options
from vidcache.console import Progress, SafeConsole
from vidcache.preprocess.split.assign import parse_fractions
from vidcache.preprocess.split.config import NEAR_DUPLICATES, SplitOverrides
from vidcache.preprocess.split.groups import parse_grouping
from vidcache.preprocess.split.resplit import SplitReport, split_cache
from vidcache.text import plural, printable


class SplitCommand(Command):
    """A command that writes a cache; its `--by` takes one word or two: `--by video`, `--by regex PATTERN`."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, kept="; what is done is kept: run the same command again to go on", **settings)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Join the two words before click sees them."""
        joined: list[str] = []
        words = iter(args)
        for word in words:
            if word == "--":
                joined += [word, *words]
            elif word == "--by":
                joined += [word, *_joined(words)]
            else:
                joined.append(word)
        return super().parse_args(ctx, joined)


def _joined(words: Any) -> list[str]:
    by = next(words, None)
    argument = next(words, None) if by in ("regex", "file") else None
    said = " ".join(word for word in (by, argument) if word is not None)
    return [] if by is None else [said]


def parse_with(parser: Callable[[str], Any]) -> Callable[[click.Context, click.Parameter, str | None], Any]:
    """Make a click callback of a function that raises ValueError; None stays None."""

    def callback(ctx: click.Context, param: click.Parameter, value: str | None) -> Any:  # noqa: ARG001
        try:
            return None if value is None else parser(value)
        except ValueError as error:
            raise click.BadParameter(str(error)) from None

    return callback


def _parse_split(text: str) -> tuple[float, float, float] | str:
    return "folders" if text == "folders" else parse_fractions(text)


def split_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """How to split; `make_choice` collects it."""
    for decorate in reversed(
        [
            option(
                "--split",
                envvar="VIDCACHE_SPLIT_FRACTIONS",  # VIDCACHE_SPLIT says which clips videval takes
                default=None,
                show_default="as in CACHE, or else 70/15/15",
                callback=parse_with(_parse_split),
                help="Train/val/test percentages; or folders, for RAW/{train,val,test}/<class>/.",
            ),
            option(
                "--split-file",
                "split_files",
                envvar=None,
                multiple=True,
                metavar="FILE",
                help="List that gives the split: CSV path,split; UCF101, HMDB51, Kinetics. Repeat it, or 'quote*.txt'.",
            ),
            option(
                "--by",
                default=None,
                metavar="video|folder|regex PATTERN|file CSV",
                show_default="as in CACHE, or else video",
                callback=parse_with(parse_grouping),
                help="What stays together: each video alone, RAW/<class>/<folder>/, what a pattern finds in the path, "
                "or a CSV path,group.",
            ),
            option(
                "--near-duplicates",
                type=click.Choice(NEAR_DUPLICATES),
                default=None,
                show_default="as in CACHE, or else group",
                help="Clips that look alike: keep them together, only count them, or do not look.",
            ),
            option(
                "--seed",
                envvar="VIDCACHE_SPLIT_SEED",  # VIDCACHE_SEED is that of a run
                type=click.IntRange(0, 2**63 - 1),
                default=None,
                show_default="as in CACHE, or else 0",
                help="Of the split.",
            ),
        ]
    ):
        command = decorate(command)
    return command


def make_choice(values: dict[str, Any]) -> SplitOverrides:
    """Take the options of the split out of all options.

    Raises:
        click.UsageError: Both a list and something else are to say where videos go.
    """
    split, files = values.pop("split"), values.pop("split_files")
    if files and split == "folders":
        raise click.UsageError("--split folders: means nothing with --split-file; choose one of them")
    source = "files" if files else "folders" if split == "folders" else "fractions" if split else None
    return SplitOverrides(
        grouping=values.pop("by"),
        source=source,
        fractions=None if split == "folders" else split,
        seed=values.pop("seed"),
        near_duplicates=values.pop("near_duplicates"),
        files=tuple(files) or None,
    )


@click.command(cls=SplitCommand)
@click.argument("cache", type=click.Path(path_type=Path, dir_okay=False))
@split_options
@click.option("--dry-run", is_flag=True, help="Show the split; write nothing.")
@verbosity_options()
@json_option()
def split(cache: Path, dry_run: bool, as_json: bool, **values: Any) -> None:
    """Divide the clips of CACHE into train, val and test again; nothing is decoded.

    What is not given stays as it is in CACHE. A kill at any instant leaves the old split or the new one.

    \b
    vidcache split cache.h5 --by folder
    vidcache split cache.h5 --by regex '_g([0-9]+)_' --split 80/10/10
    vidcache split cache.h5 --split-file trainlist01.txt --split-file testlist01.txt
    """
    choice = make_choice(values)
    stderr = progress_console()
    with Progress(stderr, "splitting", "clips") as shown:
        report = split_cache(cache, choice, dry_run=dry_run, progress=shown.update)
    show_notes(stderr, report.notes)
    if as_json:
        echo_json(_split_json(report))
    else:
        _show(SafeConsole(), report, dry_run)


def show_notes(console: SafeConsole, notes: tuple[str, ...]) -> None:
    """Print what the user should know about a split."""
    for note in notes:
        console.print(Text(f"Note: {note}"), soft_wrap=True)


def _show(console: SafeConsole, report: SplitReport, dry_run: bool) -> None:
    shown = [
        part for part in Split if part is not Split.UNUSED or any(line[part] for line in report.class_counts.values())
    ]
    table = Table("class", *(part.name.lower() for part in shown))
    for name, counts in report.class_counts.items():
        table.add_row(Text(name), *(str(counts[part]) for part in shown))
    table.add_section()
    totals = [sum(counts[part] for counts in report.class_counts.values()) for part in shown]
    table.add_row("all", *map(str, totals))
    console.print(table)
    rule = report.rule.attributes()
    done = (
        "nothing was written"
        if dry_run
        else "it was split so already, nothing was written"
        if report.up_to_date
        else f"split {report.split_hash}"
    )
    console.print(
        Text(
            f"{printable(report.cache)}: by {printable(rule['split_by'])}, {plural(report.num_groups, 'group')}, "
            f"{plural(report.num_moved, 'clip')} moved; {done}"
        ),
        soft_wrap=True,
    )


def _split_json(report: SplitReport) -> dict[str, Any]:
    parts = [part.name.lower() for part in Split]
    return {
        "cache": printable(report.cache),
        **report.rule.attributes(),
        "split_hash": report.split_hash,
        "num_groups": report.num_groups,
        "num_moved": report.num_moved,
        "up_to_date": report.up_to_date,
        "splits": {name: dict(zip(parts, counts, strict=True)) for name, counts in report.class_counts.items()},
        "notes": list(report.notes),
    }
