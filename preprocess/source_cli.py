"""The options that say how a folder of videos is read: of `vidcache build` and `vidcache analyze`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from vidcache.cli import option

follow_links_option = option(
    "--follow-links", is_flag=True, show_default=False, help="Follow symbolic links to folders and videos."
)


def source_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """What the classes are, and whether links are followed."""
    for decorate in (
        follow_links_option,
        option(
            "--labels",
            envvar=None,
            type=click.Path(path_type=Path, dir_okay=False),
            help="CSV with the columns path,label[,split][,group]: names the videos below RAW and their classes.",
        ),
        option(
            "--layout",
            type=click.Choice(("auto", "classes", "splits")),
            default="auto",
            help="RAW/<class>/ (classes) or RAW/{train,val,test}/<class>/ (splits); auto looks at the folders' names.",
        ),
    ):
        command = decorate(command)
    return command


def check_source_options(layout: str, labels: Path | None) -> None:
    """Refuse options that contradict each other.

    Raises:
        click.UsageError: Both folders and a list are to say what the classes are.
    """
    if labels and layout != "auto":
        raise click.UsageError(f"--layout {layout}: means nothing with --labels; choose one of them")
