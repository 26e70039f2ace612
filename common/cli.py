"""The `vidcache` command, and what all commands share: options, error messages, exit codes and Ctrl-C.

Each sub-command is imported only when it is called, so that `vidcache --help` is instant.
"""

import contextlib
import functools
import importlib
import importlib.util
import math
import os
import shlex
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from vidcache.console import SafeConsole, echo, open_standard_streams
from vidcache.errors import VidcacheError
from vidcache.text import harmless, printable, to_json

if not importlib.util.find_spec("fcntl"):  # here, since every program imports this first
    sys.exit("Error: vidcache runs on Linux and macOS, and on Windows inside WSL2 (wsl --install)")

_TYPED, _VERBOSITY = "vidcache.typed", "vidcache.verbosity"

# Sub-command: (where it lives, one line for --help).
COMMANDS = {
    "analyze": ("vidcache.preprocess.analysis.cli:analyze", "Check a dataset: duplicates, imbalance, damage."),
    "bench": ("vidcache.train.bench:bench", "Profile a training step: data or compute bound?"),
    "build": ("vidcache.preprocess.cli:build", "Decode a folder of videos into a cache."),
    "demo": ("vidcache.preprocess.cli:demo", "Render a small labelled set of motion videos."),
    "doctor": ("vidcache.eval.doctor:doctor", "Check this machine: packages, GPU, ffmpeg, weights, disk."),
    "eval": ("vidcache.eval.cli:main", "The same as videval: evaluate a checkpoint on the test clips."),
    "export": ("vidcache.eval.export:export", "Export a checkpoint to a file that runs without vidcache."),
    "info": ("vidcache.cache.cli:info", "Show what is in a cache."),
    "leaks": ("vidcache.cache.cli:leaks", "List clips of different splits that look alike."),
    "predict": ("vidcache.eval.predict_cli:main", "The same as vidpredict: classify video files."),
    "preview": ("vidcache.train.cli:preview", "Show clips before and after augmentation."),
    "split": ("vidcache.preprocess.split.cli:split", "Split a cache into train, val and test again."),
    "train": ("vidcache.train.cli:main", "The same as vidtrain: fine-tune a model on a cache."),
    "verify": ("vidcache.cache.cli:verify", "Check every structure and every clip of a cache."),
}


@contextlib.contextmanager
def _escaped_usage_errors() -> Iterator[None]:
    try:
        yield
    except click.UsageError as error:
        message = error.format_message()
        if harmless(message) == message:
            raise
        raise click.UsageError(harmless(message), error.ctx) from None


class _Program(click.Command):
    def main(self, *args: Any, **settings: Any) -> Any:
        """Run; Ctrl-C ends it at once while a command is imported and its options are read."""
        _handle_signals(signal.SIG_DFL)
        open_standard_streams()
        try:
            return super().main(*args, **settings)
        except OSError as error:  # what --help prints went to a full disk
            sys.exit(f"Error: {error.strerror}")

    def make_context(self, *args: Any, **settings: Any) -> click.Context:
        """Read the options; a mistyped name is escaped in the error."""
        with _escaped_usage_errors():
            return super().make_context(*args, **settings)


class LazyGroup(_Program, click.Group):
    """Finds its commands in `COMMANDS` and imports one when it is called."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands.update(dict.fromkeys(COMMANDS))  # type: ignore[arg-type]  # their names, for click's suggestions

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Import a command."""
        if cmd_name not in COMMANDS:
            return None
        module, _, name = COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name][1]) for name in sorted(COMMANDS)])


class Command(_Program):
    """A command whose expected errors are one line on stderr and an exit code.

    Args:
        kept: What an interruption leaves behind and how to continue: "; run the same command again to resume".
    """

    def __init__(self, *args: Any, kept: str = "", **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._kept = kept

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Remember what was typed, for `command_line`."""
        ctx.meta[_TYPED] = shlex.join([*ctx.command_path.split(), *args])
        return super().parse_args(ctx, args)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the options by their `group`, in order of appearance; those without a group come last."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            if isinstance(param, click.Option) and (record := param.get_help_record(ctx)):
                groups.setdefault(getattr(param, "group", "") or "Run", []).append(record)
        run = groups.pop("Run", [])
        for title, records in (*groups.items(), ("Run" if groups else "Options", run)):
            with formatter.section(title):
                formatter.write_dl(records)

    def invoke(self, ctx: click.Context) -> Any:
        """Run it; SIGINT and SIGTERM interrupt the work with exit code 130, and end the process once that is over.

        `VIDCACHE_DEBUG=1` shows the tracebacks of expected errors too.
        """
        interrupted = threading.Event()

        def interrupt(number: int, frame: Any) -> None:
            interrupted.set()
            signal.default_int_handler(number, frame)

        try:
            try:
                _handle_signals(interrupt)
                with _escaped_usage_errors():
                    return super().invoke(ctx)
            finally:
                _handle_signals(signal.SIG_DFL)
        except KeyboardInterrupt:
            _fail(ctx, f"interrupted{self._kept}", 130)
        except click.exceptions.Exit:
            raise
        except Exception as error:
            if interrupted.is_set():  # NumPy makes a TypeError of it, a lock that is taken a RuntimeError
                _fail(ctx, f"interrupted{self._kept}", 130)
            if isinstance(error, VidcacheError):
                _fail(ctx, str(error), error.exit_code)
            if not isinstance(error, OSError) or isinstance(error, BrokenPipeError):
                raise
            where = f"{error.filename}: " if error.filename else ""
            _fail(ctx, f"{where}{error.strerror or error}", 1)


def command_line() -> str:
    """Return the running command as typed in a shell, printable: `VIDCACHE_SEED=3 vidtrain c.h5`."""
    ctx = click.get_current_context()
    variables = [
        f"{param.envvar}={shlex.quote(os.environ[str(param.envvar)])}"
        for param in ctx.command.params
        if ctx.get_parameter_source(param.name or "") == click.core.ParameterSource.ENVIRONMENT
    ]
    return printable(" ".join([*variables, ctx.meta[_TYPED]]))


def _handle_signals(handler: Any) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as a shell's background jobs ignore SIGINT
            signal.signal(number, handler)


def _fail(ctx: click.Context, message: str, code: int) -> None:
    if os.environ.get("VIDCACHE_DEBUG") == "1":
        traceback.print_exc()
    echo(f"Error: {message}", err=True)
    ctx.exit(code)


# --- options ------------------------------------------------------------------------------------


class _Option(click.Option):
    def __init__(self, *args: Any, group: str = "", **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.group = group


def option(*names: str, group: str = "", **settings: Any) -> Callable[[Any], Any]:
    """A click option that can also be set as `VIDCACHE_<NAME>` (not with `envvar=None`) and shows its default.

    `group` is its section of `--help`: "Model", "Data", "Optimisation", ...; without, it is in the last one, "Run".
    """
    long = next(name for name in names if name.startswith("--")).split("/")[0]
    variable = "VIDCACHE_" + long.lstrip("-").replace("-", "_").upper()
    return click.option(
        *names, **{"cls": _Option, "group": group, "envvar": variable, "show_default": True, **settings}
    )


class FiniteRange(click.FloatRange):
    """A range of numbers without infinity and NaN, which `click.FloatRange` accepts."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Read a number."""
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{number} is not a finite number.", param, ctx)
        return number


def num_cpus() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


# Options that several commands share: `@device_option()`, or with other words `@device_option(help="...")`.
_FOLDER = click.Path(path_type=Path, file_okay=False)
device_option = functools.partial(
    option, "--device", default=None, show_default="cuda if available, else cpu", help="cpu, cuda, cuda:1, ..."
)
seed_option = functools.partial(option, "--seed", type=click.IntRange(0, 2**63 - 1), default=0, help="Random seed.")
workers_option = functools.partial(
    option, "--workers", type=click.IntRange(1), default=num_cpus, show_default="all CPUs", help="Videos in parallel."
)
ffmpeg_dir_option = functools.partial(option, "--ffmpeg-dir", type=_FOLDER, help="Folder of ffmpeg and ffprobe.")
json_option = functools.partial(
    click.option, "--json", "as_json", is_flag=True, help="Print exactly one JSON object on stdout."
)
version_option = functools.partial(click.version_option, package_name="vidcache")


def decode_options(command: Any) -> Any:
    """Add `--ffmpeg-dir`, `--timeout`, `--max-pixels` and `--keyframe-seek`, in the group "Decoding"."""
    add = functools.partial(option, group="Decoding")
    seek = "Decode only what the samples need: faster, same clip of an undamaged video; errors elsewhere go unseen."
    size, seconds = click.IntRange(1), FiniteRange(min=0, min_open=True)
    command = add("--keyframe-seek/--full-decode", "keyed", default=True, help=seek)(command)
    command = add("--max-pixels", type=size, default=8192 * 8192, help="Largest width * height of a video.")(command)
    command = add("--timeout", type=seconds, default=900.0, help="Seconds for one video.")(command)
    return ffmpeg_dir_option(group="Decoding")(command)


def verbosity_options(details: str = "") -> Callable[[Any], Any]:
    """Add `--quiet` and `--verbose`, which `progress_console` obeys."""

    def store(ctx: click.Context, param: click.Parameter, value: bool) -> None:
        if value and ctx.meta.setdefault(_VERBOSITY, param.name) != param.name:
            raise click.UsageError("--quiet cannot be combined with --verbose")

    def add(command: Any) -> Any:
        more = f"Show more: {f'{details}, and ' if details else ''}the time of each phase."
        for names, text in ((("--verbose", "-v"), more), (("--quiet", "-q"), "Show only results and errors.")):
            command = click.option(*names, is_flag=True, expose_value=False, callback=store, help=text)(command)
        return command

    return add


def progress_console() -> SafeConsole:
    """Return the console on stderr for progress and notes of this command, as loud as its options say."""
    verbosity = click.get_current_context().meta.get(_VERBOSITY)
    return SafeConsole(stderr=True, quiet=verbosity == "quiet", is_verbose=verbosity == "verbose")


def echo_json(value: dict[str, Any]) -> None:
    """Print one JSON object on stdout."""
    echo(to_json(value))


def check_png(ctx: click.Context, param: click.Parameter, value: Path | None) -> Path | None:  # noqa: ARG001
    """Refuse an output name that is not a picture's, so that no cache or checkpoint is replaced by one."""
    if value is not None and value.suffix.lower() != ".png":
        raise click.BadParameter(f"{value}: the name of a picture must end in .png")
    return value


def beside(path: Path, ending: str) -> Path:
    """Return the default output beside a cache: cache.h5 -> cache<ending>."""
    return path.with_name((path.stem if path.suffix == ".h5" else path.name) + ending)


def choose_device(name: str | None) -> str:
    """Check the value of `--device`; None is cuda where available, else cpu."""
    import torch  # 2 s: not for --help

    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise click.BadParameter(str(error).split("\n")[0], param_hint="--device") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise click.BadParameter(f"{device}, but torch {torch.__version__} sees no GPU", param_hint="--device")
    return name


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@version_option()
def main() -> None:
    """Decode every video once, train on the cache, evaluate honestly.

    \b
    vidcache build raw/ cache.h5 --workers 16
    vidtrain cache.h5
    videval cache.h5 --ckpt best.pt
    """
