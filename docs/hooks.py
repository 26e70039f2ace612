"""What MkDocs is told about this checkout: where the package is, and what its commands say of themselves.

The folders are mapped to one package (`pyproject.toml`), so griffe, which reads sources, would not find `vidcache`
here: a tree of links outside the checkout puts every file where its name says. It comes first on the path, so that
neither an old install nor another clone is documented.
"""

import importlib
import re
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

CHECKOUT = Path(__file__).parents[1]
COMMANDS = "<!-- commands -->"
_PROJECT = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())
_tree = tempfile.TemporaryDirectory(prefix="vidcache-docs-")


def on_startup(**_: Any) -> None:
    """Make the package importable and readable under its name."""
    link_package(Path(_tree.name))
    sys.path.insert(0, _tree.name)


def on_shutdown(**_: Any) -> None:
    """Remove the links."""
    _tree.cleanup()


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put what `--help` says where a page asks for it."""
    return markdown.replace(COMMANDS, describe_commands()) if COMMANDS in markdown else markdown


def link_package(folder: Path) -> None:
    """Link every file of the package into a folder, laid out as it is imported."""
    for name, source in sorted(_PROJECT["tool"]["setuptools"]["package-dir"].items()):
        target = folder.joinpath(*name.split("."))
        target.mkdir(exist_ok=True)  # of a sub-package
        for path in (CHECKOUT / source).iterdir():
            if path.is_file():
                (target / path.name).symlink_to(path)


def describe_commands() -> str:
    """Return what all commands say of themselves, a section each."""
    return "\n".join(f"## {name}\n\n```text\n{text}```\n" for name, text in help_texts())


def help_texts() -> Iterator[tuple[str, str]]:
    """Yield every command, and what it says on a terminal of 80 columns when asked for `--help`."""
    program = None
    for name, command in commands():
        first, *rest = name.split()
        settings: dict[str, Any] = {**command.context_settings, "terminal_width": 78}
        context = click.Context(command, program if rest else None, rest[0] if rest else first, **settings)
        program = program if rest else context
        yield name, re.sub(r"[ \t]+$", "", command.get_help(context), flags=re.M) + "\n"


def commands() -> Iterator[tuple[str, click.Command]]:
    """Yield every command that is installed, with its sub-commands behind it."""
    for program, place in _PROJECT["project"]["scripts"].items():
        module, _, attribute = place.partition(":")
        command = getattr(importlib.import_module(module), attribute)
        yield program, command
        if isinstance(command, click.Group):
            for name in command.list_commands(click.Context(command)):
                found = command.get_command(click.Context(command), name)
                if found:
                    yield f"{program} {name}", found
