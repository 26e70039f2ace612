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

    for now, done, failed, words in (
        (0, 100, 0, "100 of 1,340 videos, 0 failed"),  # what was there before has no rate
        (20, 140, 3, "140 of 1,340 videos, 2.0 videos/s, 10.0 min left, 3 failed"),
        (3620, 160, 3, "160 of 1,340 videos, 1.0 videos/min, 19.8 h left, 3 failed"),
        (3620, 1340, 3, "1,340 of 1,340 videos, 0.3 videos/s, 3 failed"),
    ):
        clock.now = now
        shown.update(done, 1340, failed)
        assert f"decoding: {words}" == shown.line()
    assert ["0.0 s", "9.9 s", "45 s", "3.3 min", "2.5 h"] == [in_words(s) for s in (0, 9.94, 45, 200, 9000)]


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
    assert 30 == progress.INTERVAL_SECONDS
    monkeypatch.setattr(progress, "INTERVAL_SECONDS", 0.01)
    log = Waited()
    with Progress(SafeConsole(file=log), "decoding", "videos") as shown:
        shown.update(3, 8, 1)
        assert log.written.wait(60)
        log.written.clear()
        assert log.written.wait(60)  # also while nothing moves

    assert "decoding: 3 of 8 videos, 1 failed\n" in log.getvalue()


@pytest.mark.parametrize(("quiet", "interval"), [(True, 0.01), (False, 30)])
def test_a_quiet_console_and_short_work_get_no_lines(
    quiet: bool, interval: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "INTERVAL_SECONDS", interval)
    log = io.StringIO()
    with Progress(SafeConsole(file=log, quiet=quiet), "decoding", "videos") as shown:
        shown.update(3, 8, 1)
        assert quiet is not any(thread.name == "progress" for thread in threading.enumerate())

    assert "" == log.getvalue()


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


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("long")
    make_cache(folder / "c.h5", {"a": 12, "b": 12}, spec=Spec(4, 16, 16), learnable=True)
    raw = make_raw(folder / "raw", {"a": 3, "b": 3}, num_frames=8)
    (raw / "a" / "broken.mkv").write_bytes(b"broken" * 50)
    (raw / "a" / "notes.txt").write_text("no video")
    run(folder, f"train c.h5 --weights none --epochs 1 --device cpu --out {folder / 'best.pt'}")
    return folder


def run(folder: Path, command: str) -> Any:
    words = [str(folder / word) if (folder / word).exists() else word for word in shlex.split(command)]
    with tiny_models():
        result = CliRunner().invoke(main, words, prog_name="vidcache")
    assert 0 == result.exit_code, result.output
    return result


# Command, a line that -v adds, a note that -q leaves out, and the result that stays.
EVERY = (
    ("build raw n.h5 --num-frames 4 --size 16 --overwrite --max-failures 1", "failed: a/broken.mkv: ", "Files left out", "6 clips of 2 classes"),
    ("split c.h5 --seed 3 --dry-run", "splitting: ", "", "nothing was written"),
    ("verify c.h5", "checking: 24 clips in ", "", "24 clips checked"),
    ("leaks c.h5 --out {}.png", "comparing clips: ", "", "no clip looks like"),
    ("analyze raw", "looking for shortcuts: ", "", "7 videos of 2 classes"),
    ("train c.h5 --weights none --epochs 1 --device cpu --out {}", "epoch 1, step 1 of ", "duplicate check", "epoch 1 of 1"),
    ("eval c.h5 --ckpt best.pt --device cpu", "predicting: ", "", "accuracy"),
    ("predict raw/b --ckpt best.pt --device cpu", "predicting: 3 videos in ", "", "b_0.mkv: "),
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("command", "detail", "note", "result"), EVERY, ids=lambda value: str(value).split(" ")[0])
def test_quiet_and_verbose_change_what_is_said(
    folder: Path, tmp_path: Path, command: str, detail: str, note: str, result: str
) -> None:
    for option in ("", "-v", "-q"):
        ended = run(folder, f"{command.format(tmp_path / f'r{option}.pt')} {option}")

        assert result in ended.output
        assert (detail in ended.output) == (option == "-v")
        if option == "-q":
            assert len(ended.stderr.splitlines()) == (result in ended.stderr)
        else:
            assert note in ended.stderr


def test_every_long_command_has_quiet_and_verbose(folder: Path) -> None:
    options = {name: main.get_command(click.Context(main), name).params for name in COMMANDS}  # type: ignore[union-attr]
    flags = {name: {flag for parameter in params for flag in parameter.opts} for name, params in options.items()}
    assert {name for name in COMMANDS if {"-q", "--quiet", "-v", "--verbose"} <= flags[name]} == LONG

    result = CliRunner().invoke(main, ["verify", str(folder / "c.h5"), "-q", "-v"])

    assert 2 == result.exit_code
    assert "Error: --quiet cannot be combined with --verbose" in result.stderr
