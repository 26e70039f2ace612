"""The programs around their commands: names, versions, and where they are started from."""

import hashlib
import os
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from tests.helpers import make_cache, make_raw
from vidcache.cache.reader import CacheReader
from vidcache.cli import main
from vidcache.eval.cli import main as videval
from vidcache.eval.predict_cli import main as vidpredict
from vidcache.spec import Spec
from vidcache.train.cli import main as vidtrain

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
PROGRAMS: dict[str, click.Command] = {"vidcache": main, "vidtrain": vidtrain, "videval": videval, "vidpredict": vidpredict}  # fmt: skip
MODULES = {"vidcache": "cli", "vidtrain": "train.cli", "videval": "eval.cli", "vidpredict": "eval.predict_cli"}


@pytest.mark.parametrize("program", PROGRAMS)
def test_version_and_help_of_every_program_are_instant(program: str) -> None:
    code = (
        f"import sys; from vidcache.{MODULES[program]} import main\n"
        f"main(['--help'], standalone_mode=False)\n"
        f"main(['--version'], prog_name={program!r}, standalone_mode=False)\n"
        "assert 'torch' not in sys.modules"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert ended.stdout.endswith(f"\n{program}, version 0.1.0\n")


@pytest.mark.parametrize(("name", "program"), [("train", "vidtrain"), ("eval", "videval"), ("predict", "vidpredict")])
def test_the_programs_are_sub_commands_too(name: str, program: str) -> None:
    alone = CliRunner().invoke(PROGRAMS[program], ["--help"], prog_name=program)
    result = CliRunner().invoke(main, [name, "--help"], prog_name="vidcache")

    assert alone.stdout.split("\n\n", 1)[1] == result.stdout.split("\n\n", 1)[1]
    assert result.stdout.startswith(f"Usage: vidcache {name} [OPTIONS] ")


@pytest.mark.parametrize(
    ("typed", "answer"),
    [("bild", " Did you mean 'build'?"), ("vidtrain", " Did you mean 'train'?"), ("qqqq", "")],
)
def test_a_mistyped_command_is_answered_with_what_it_resembles(typed: str, answer: str) -> None:
    result = CliRunner().invoke(main, [typed, "--workers", "3"])

    assert 2 == result.exit_code
    if hasattr(click.exceptions, "NoSuchCommand"):  # older versions of click know no suggestions
        assert result.stderr.endswith(f"Error: No such command '{typed}'.{answer}\n")


@pytest.mark.parametrize("place", [*MODULES.values(), "train"])
def test_where_files_cannot_be_locked_one_line_says_what_can(place: str) -> None:
    code = f"import runpy, sys; sys.modules['fcntl'] = None; runpy.run_module('vidcache.{place}', run_name='__main__')"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

    assert 1 == ended.returncode
    assert "Error: vidcache runs on Linux and macOS, and on Windows inside WSL2 (wsl --install)\n" == ended.stderr


# --- closed streams -------------------------------------------------------------------------------

TINY = "from tests.helpers import tiny_models; from vidcache.{} import main\nwith tiny_models(): main(prog_name={!r})"
PLAIN = "from vidcache.{} import main; main(prog_name={!r})"
EVERY = (
    ("vidcache info c.h5", 0),
    ("vidcache info no.h5", 4),
    ("vidcache bild", 2),
    ("vidcache verify c.h5 --json", 0),
    ("vidcache build raw new.h5 --num-frames 4 --size 16", 0),
    ("vidcache split new.h5 --seed 3", 0),
    ("vidcache leaks c.h5", 0),
    ("vidcache analyze raw", 0),
    ("vidcache preview c.h5", 0),
    ("vidtrain c.h5 --weights none --epochs 1 --device cpu", 0),
    ("videval c.h5 --device cpu", 0),
    ("vidpredict raw --device cpu", 0),
)


def start(command: str, redirection: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    """Run a command with some of its streams closed, or led elsewhere."""
    program, *arguments = shlex.split(command)
    run = PLAIN if program == "vidcache" else TINY
    words = [sys.executable, "-c", run.format(MODULES[program], program), *arguments]
    shell = ["bash", "-c", f'"$@" {redirection}; exit ${{PIPESTATUS[0]}}', "bash", *words]
    return subprocess.run(shell, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_cache(tmp_path / "c.h5", {"a": 12, "b": 12}, spec=Spec(4, 16, 16), learnable=True)
    make_raw(tmp_path / "raw", {"a": 3, "b": 3}, num_frames=8)
    return tmp_path


@pytest.mark.slow
def test_no_file_becomes_a_stream_that_was_closed(folder: Path) -> None:
    """Every command, all three closed: the first file that it opens would be its stdin, the third its stderr."""
    inputs = [folder / "c.h5", *sorted((folder / "raw").rglob("*.mkv"))]
    before = [hashlib.sha256(path.read_bytes()).hexdigest() for path in inputs]

    for command, code in EVERY:
        assert code == start(command, "<&- >&- 2>&-", folder).returncode, command

    assert before == [hashlib.sha256(path.read_bytes()).hexdigest() for path in inputs]
    with CacheReader(folder / "new.h5") as reader:
        assert [] == reader.damaged_rows().tolist()
    assert (folder / "raw.analysis" / "summary.json").stat().st_size > 100
    assert (folder / "best.eval" / "report.html").stat().st_size > 100


@pytest.mark.slow
@pytest.mark.parametrize(("closed", "null"), [("<&-", "</dev/null"), (">&-", ">/dev/null"), ("2>&-", "2>/dev/null")])
def test_a_closed_stream_is_the_null_device(folder: Path, closed: str, null: str) -> None:
    for command, code in EVERY[:2]:
        without, with_null = (start(command, redirection, folder) for redirection in (closed, null))

        assert code == without.returncode == with_null.returncode
        assert (with_null.stdout, with_null.stderr) == (without.stdout, without.stderr)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("command", ["vidcache info c.h5", "vidcache --help"])
def test_results_that_nobody_takes_are_an_error(folder: Path, command: str) -> None:
    full, gone = (start(command, redirection, folder) for redirection in ("> /dev/full", "| true"))

    assert (1, "Error: No space left on device\n") == (full.returncode, full.stderr)
    assert (1, "") == (gone.returncode, gone.stderr)
