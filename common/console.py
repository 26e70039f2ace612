"""Where text reaches a terminal: the one place that makes what strangers wrote harmless.

Everything that a command prints goes through `SafeConsole` or `echo`: names of files, attributes of a cache and
messages of errors may hold anything. Files that are written are not this module's matter.
"""

import os
import sys
from collections.abc import Iterable
from typing import Any

import click
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from vidcache.text import harmless


class SafeConsole(Console):
    """A console on which text is only text: no markup, no emoji codes, and no control character but the newline.

    Args:
        is_verbose: Print details too.
        settings: As rich's console.
    """

    def __init__(self, *, is_verbose: bool = False, **settings: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **settings)
        self.is_verbose = is_verbose

    def detail(self, line: str) -> None:
        """Print a line that only `--verbose` asks for."""
        if self.is_verbose:
            self.print(line, soft_wrap=True)

    def render_str(self, text: str, **settings: Any) -> Text:
        """Make text of a string; escaped before a table measures it."""
        return super().render_str(harmless(text), **settings)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render anything; what was no string before is escaped here. Only rich's own segments move the cursor."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=harmless(segment.text))


def echo(message: str, *, err: bool = False) -> None:
    """Print a message on stdout or stderr."""
    click.echo(harmless(message), err=err)


def open_standard_streams() -> None:
    """Open the null device where stdin, stdout or stderr is closed, and print anything in any encoding.

    The next file that is opened takes the lowest free descriptor: without this a cache could become descriptor 1, and
    what is printed would be written into it.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # becomes `number`: all lower ones are open by now
            os.set_inheritable(number, True)  # as those of a shell: it is a child's, too
            setattr(sys, name, open(number, "w" if number else "r"))  # noqa: SIM115 -- lives as long as the process
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a name that the terminal's encoding lacks
