"""Output on a terminal or in a log: escaped text, and how far long work is."""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, Self

import click
from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bar
from rich.segment import Segment
from rich.text import Text

from vidcache.text import harmless

INTERVAL_SECONDS = 30.0  # between two lines of a log


class SafeConsole(Console):
    """A console without markup, emoji codes and control characters other than the newline.

    Args:
        is_verbose: Print details too.
        settings: As rich's console.
    """

    def __init__(self, *, is_verbose: bool = False, **settings: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **settings)
        self.is_verbose = is_verbose

    def detail(self, line: str) -> None:
        """Print a line only with `--verbose`."""
        if self.is_verbose:
            self.print(line, soft_wrap=True)

    def render_str(self, text: str, **settings: Any) -> Text:
        """Escape a string before a table measures it."""
        return super().render_str(harmless(text), **settings)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Escape everything else; only rich's own segments move the cursor."""
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


class Progress:
    """A bar on a terminal, a line every half minute in a log, nothing on a quiet console.

    A verbose console gets a line at the end of every phase too: its count and its time.

    Args:
        console: That of stderr.
        phase: What is done first: "decoding".
        unit: What is counted, plural: "videos".
        clock: Seconds.
    """

    def __init__(
        self, console: SafeConsole, phase: str, unit: str = "", clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._console, self._clock = console, clock
        self._begin(phase, unit)
        self._bar = Bar(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rest]}", markup=False),
            console=console,
            disable=not console.is_terminal,
            transient=True,
            redirect_stdout=False,  # it is for results, also where it is a file and stderr is not
        )
        self._task = self._bar.add_task(phase, total=None, rest="")
        self._over = threading.Event()
        self._lines = threading.Thread(target=self._print_lines, name="progress", daemon=True)

    def _begin(self, name: str, unit: str) -> None:
        self._name, self._unit, self._started = name, unit, self._clock()
        self._first: tuple[float, int] | None = None  # time and count of the first report
        self._done, self._note = 0, ""
        self._total: int | None = None
        self._failed: int | None = None

    def __enter__(self) -> Self:
        self._bar.start()
        if not self._console.is_terminal and not self._console.quiet:
            self._lines.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if not kind:
            self._finish_phase()
        self.stop()

    def stop(self) -> None:
        """Show nothing from now on; the cursor of a terminal is back."""
        self._over.set()
        self._bar.stop()
        if self._lines.is_alive():
            self._lines.join(1)  # it may wait for whoever reads stderr

    def start_phase(self, name: str, unit: str = "") -> None:
        """Begin with another part of the work."""
        self._finish_phase()
        self._begin(name, unit)
        self._bar.reset(self._task, total=None, description=name, rest="")

    def update(self, done: int, total: int, failed: int | None = None, note: str = "") -> None:
        """Report how much of this phase is done, how many of those failed, if they can, and a note to show."""
        self._done, self._total, self._failed, self._note = done, total, failed, note
        self._first = self._first or (self._clock(), done)
        self._bar.update(self._task, completed=done, total=total, rest=self._rest())

    def line(self) -> str:
        """Return everything in one line."""
        if self._total is None:
            return f"{self._name} for {in_words(self._clock() - self._started)}"
        count = f"{self._name}: {self._done:,} of {self._total:,} {self._unit}"
        return ", ".join(part for part in (count, self._rest()) if part)

    def _rest(self) -> str:
        """Return rate, time left, failures and note, as far as they are known."""
        parts = []
        if self._first and self._total is not None:
            seconds, done = self._clock() - self._first[0], self._done - self._first[1]
            if seconds > 0 and done > 0:
                rate = done / seconds
                parts.append(f"{rate:.1f} {self._unit}/s" if rate >= 0.1 else f"{rate * 60:.1f} {self._unit}/min")
                if self._done < self._total:
                    parts.append(f"{in_words((self._total - self._done) / rate)} left")
        if self._failed is not None:
            parts.append(f"{self._failed:,} failed")
        return ", ".join([*parts, self._note] if self._note else parts)

    def _print_lines(self) -> None:
        while not self._over.wait(INTERVAL_SECONDS):
            self._console.print(self.line(), soft_wrap=True)

    def _finish_phase(self) -> None:
        count = f"{self._done:,} {self._unit} in " if self._total is not None else ""
        self._console.detail(f"{self._name}: {count}{in_words(self._clock() - self._started)}")


def in_words(seconds: float) -> str:
    """Return a duration for people.

    >>> in_words(4.25), in_words(45), in_words(200), in_words(9000)
    ('4.2 s', '45 s', '3.3 min', '2.5 h')
    """
    if seconds < 100:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
