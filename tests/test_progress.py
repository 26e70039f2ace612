"""Long work says how far it is: a bar on a terminal, lines in a log, and as much as -q and -v want."""

import io
import shlex
import threading
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from tests.helpers import make_cache, make_raw, tiny_models
from vidcache import console as progress
from vidcache.cli import COMMANDS, main
from vidcache.console import Progress, SafeConsole, in_words
from vidcache.spec import Spec

LONG = {"analyze", "bench", "build", "demo", "eval", "export", "leaks", "predict", "split", "train", "verify"}


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_line_says_done_of_rate_left_and_failed() -> None:
    clock = Clock()
    shown = Progress(SafeConsole(file=io.StringIO()), "decoding", "videos", clock)
    assert "decoding for 0.0 s" == shown.line()

    shown.update(100, 1340, 0)
    assert "decoding: 100 of 1,340 videos, 0 failed" == shown.line()  # what was there before has no rate
    clock.now = 20
    shown.update(140, 1340, 3)
    assert "decoding: 140 of 1,340 videos, 2.0 videos/s, 10.0 min left, 3 failed" == shown.line()
    clock.now = 3620
    shown.update(160, 1340, 3)
    assert "decoding: 160 of 1,340 videos, 1.0 videos/min, 19.8 h left, 3 failed" == shown.line()
    shown.update(1340, 1340, 3)
    assert "decoding: 1,340 of 1,340 videos, 0.3 videos/s, 3 failed" == shown.line()


@pytest.mark.parametrize(
    ("seconds", "words"), [(0, "0.0 s"), (9.94, "9.9 s"), (45, "45 s"), (200, "3.3 min"), (9000, "2.5 h")]
)
def test_durations_are_as_people_say_them(seconds: float, words: str) -> None:
    assert words == in_words(seconds)


class Waited(io.StringIO):
    """A log that a test can wait for."""

    def __init__(self) -> None:
        super().__init__()
        self.written = threading.Event()

    def write(self, text: str) -> int:
        count = super().write(text)
        if "\n" in text:
            self.written.set()
        return count


def test_a_log_gets_a_line_at_every_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "INTERVAL_SECONDS", 0.01)
    log = Waited()
    with Progress(SafeConsole(file=log), "decoding", "videos") as shown:
        shown.update(3, 8, 1)
        assert log.written.wait(60)
        log.written.clear()
        assert log.written.wait(60)  # also while nothing moves

    assert "decoding: 3 of 8 videos, 1 failed\n" in log.getvalue()


def test_half_a_minute_is_the_interval_and_short_work_says_nothing() -> None:
    log = io.StringIO()
    with Progress(SafeConsole(file=log), "decoding", "videos") as shown:
        shown.update(3, 8, 1)

    assert 30 == progress.INTERVAL_SECONDS
    assert "" == log.getvalue()


def test_a_quiet_console_gets_no_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "INTERVAL_SECONDS", 0.01)
    log = io.StringIO()
    with Progress(SafeConsole(file=log, quiet=True), "decoding", "videos"):
        assert not [thread for thread in threading.enumerate() if thread.name == "progress"]


def test_a_terminal_gets_a_bar_and_its_cursor_back() -> None:
    terminal = io.StringIO()
    with Progress(SafeConsole(file=terminal, force_terminal=True, width=160), "decoding", "videos") as shown:
        shown.update(3, 8, 1)
        shown._bar.refresh()

    said = terminal.getvalue()
    assert "3/8" in said
    assert "1 failed" in said
    assert said.rindex("\x1b[?25h") > said.rindex("\x1b[?25l")


def test_a_verbose_console_gets_the_time_of_each_phase() -> None:
    clock, log = Clock(), io.StringIO()
    with Progress(SafeConsole(file=log, is_verbose=True), "decoding", "videos", clock) as shown:
        shown.update(8, 8, 1)
        clock.now = 4
        shown.start_phase("drawing")
        clock.now = 125

    assert ["decoding: 8 videos in 4.0 s", "drawing: 2.0 min"] == log.getvalue().splitlines()


# --- the options ------------------------------------------------------------------------------------


def params_of(name: str) -> set[str]:
    command = main.get_command(click.Context(main), name)
    assert command
    return {option for parameter in command.params for option in parameter.opts}


def test_every_long_command_has_quiet_and_verbose() -> None:
    assert {name for name in COMMANDS if {"-q", "--quiet", "-v", "--verbose"} <= params_of(name)} == LONG


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("long")
    make_cache(folder / "c.h5", {"a": 12, "b": 12}, spec=Spec(4, 16, 16), learnable=True)
    raw = make_raw(folder / "raw", {"a": 3, "b": 3}, num_frames=8)
    (raw / "a" / "broken.mkv").write_bytes(b"broken" * 50)
    (raw / "a" / "notes.txt").write_text("no video")
    with tiny_models():
        run(folder, f"train c.h5 --weights none --epochs 1 --device cpu --out {folder / 'best.pt'}")
    return folder


def run(folder: Path, command: str) -> Any:
    words = [str(folder / word) if (folder / word).exists() else word for word in shlex.split(command)]
    with tiny_models():
        result = CliRunner().invoke(main, words, prog_name="vidcache")
    assert 0 == result.exit_code, result.output
    return result


# Command, a line that -v adds, whether it has notes that -q leaves out, and the result that stays.
EVERY: tuple[tuple[str, str, str, str], ...] = (
    (
        "build raw n.h5 --num-frames 4 --size 16 --overwrite --max-failures 1",
        "failed: a/broken.mkv: ",
        "Files left out",
        "6 clips of 2 classes",
    ),
    ("split c.h5 --seed 3 --dry-run", "splitting: ", "", "nothing was written"),
    ("verify c.h5", "checking: 24 clips in ", "", "24 clips checked"),
    ("leaks c.h5 --out {}.png", "comparing clips: ", "", "no clip looks like"),
    ("analyze raw", "looking for shortcuts: ", "", "7 videos of 2 classes"),
    (
        "train c.h5 --weights none --epochs 1 --device cpu --out {}",
        "epoch 1, step 1 of ",
        "duplicate check",
        "epoch 1 of 1",
    ),
    ("eval c.h5 --ckpt best.pt --device cpu", "predicting: ", "", "accuracy"),
    ("predict raw/b --ckpt best.pt --device cpu", "predicting: 3 videos in ", "", "b_0.mkv: "),
)


@pytest.mark.slow
@pytest.mark.parametrize(("command", "detail", "note", "result"), EVERY, ids=lambda value: str(value).split(" ")[0])
def test_quiet_and_verbose_change_what_is_said(
    folder: Path, tmp_path: Path, command: str, detail: str, note: str, result: str
) -> None:
    def said(option: str) -> tuple[str, str]:
        found = run(folder, f"{command.format(tmp_path / f'r{option}.pt')} {option}")
        return found.stdout, found.stderr

    out, err = said("")
    assert detail not in out + err
    assert note in err
    assert result in out + err

    out, err = said("--verbose")
    assert detail in err
    assert result in out + err

    out, err = said("-q")
    assert result in out + err
    assert len(err.splitlines()) == (result in err)


def test_quiet_and_verbose_exclude_each_other(folder: Path) -> None:
    result = CliRunner().invoke(main, ["verify", str(folder / "c.h5"), "-q", "-v"])

    assert 2 == result.exit_code
    assert "Error: --quiet cannot be combined with --verbose" in result.stderr
