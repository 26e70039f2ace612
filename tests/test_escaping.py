"""What strangers wrote into a cache, a checkpoint or a name never acts on a terminal or a page."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import click
import h5py
import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table
from rich.text import Text

from tests.helpers import forge_cache, make_cache, tiny_models
from vidcache.checkpoint import Checkpoint
from vidcache.cli import main
from vidcache.console import SafeConsole, echo
from vidcache.html import render_page
from vidcache.text import harmless, printable, to_csv, to_json
from vidcache.train.cli import main as vidtrain

# Colours, a title, a link, a cursor that moves up, 8-bit CSI, a bell, text from right to left, line separators, markup.
HOSTILE = "\x1b[31mR\x1b]0;T\x07\x1b]8;;http://x\x1b\\L\x1b[2A\x9b2J\u202eX\u2066\u2028\u2029\x7f\ufeff[red]<b>&:smile:"
ACTIVE = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]")


def assert_harmless(text: str, where: object) -> None:
    found = ACTIVE.search(text)
    assert not found, (where, text[max(0, found.start() - 80) : found.end() + 80])


@given(st.text())
def test_what_is_printable_stays_as_it_is(text: str) -> None:
    assert printable(printable(text)) == printable(text)
    assert harmless(harmless(text)) == harmless(text)
    assert harmless(text).count("\n") == text.count("\n")
    assert json.loads(to_json({text: text})) == {text: text}
    assert_harmless(to_json({text: text}, indent=2) + to_csv([text], [[text]]), text)


def test_a_console_escapes_whatever_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    console = SafeConsole(width=2000)
    table = Table(HOSTILE, "n")
    table.add_row(HOSTILE, Text(HOSTILE))
    table.add_row(Text(HOSTILE), "1")

    console.print(HOSTILE, soft_wrap=True)
    console.print(Text(HOSTILE), soft_wrap=True)
    console.print(table)
    echo(HOSTILE)
    echo(HOSTILE, err=True)

    out, err = capsys.readouterr()
    assert_harmless(out + err, "console")
    assert f"{printable(HOSTILE)}\n" == err
    assert 7 == out.count("[red]<b>&:smile:")  # and markup is text


def test_a_page_escapes_whatever_it_shows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "vidcache_page").mkdir()
    (tmp_path / "vidcache_page" / "__init__.py").touch()
    (tmp_path / "vidcache_page" / "p.html").write_text("<p title='{{ name }}'>{{ name }}{{ 1.5 }}{{ path }}</p>")
    monkeypatch.syspath_prepend(tmp_path)

    page = render_page("vidcache_page", "p.html", name=HOSTILE, path=Path(HOSTILE))

    assert_harmless(page, "page")
    assert "<b>" not in page
    assert "1.5" in page


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache and a checkpoint with such text wherever text can be."""
    folder = tmp_path_factory.mktemp("hostile")
    name = HOSTILE.replace("/", "")
    cache = make_cache(
        folder / f"c{name}.h5", {f"a{name}": 14, f"b{name}": 14}, failed=(3, 20), learnable=True, prefix=name
    )

    def change(file: h5py.File) -> None:
        for column in ("error", "codec", "pixel_format"):
            values = file[f"videos/{column}"][:]
            values[:] = f"no_frames{HOSTILE}: {HOSTILE}".encode()[: values.dtype.itemsize]
            file[f"videos/{column}"][:] = values
        status = file["videos/status"][:]
        status[status == 0] = np.where(np.arange((status == 0).sum()) % 3, 0, 1)  # some are damaged
        file["videos/status"][:] = status
        file.attrs[f"note{HOSTILE}"] = np.bytes_(HOSTILE.encode())
        for key in ("vidcache_version", "ffmpeg_version"):
            file.attrs[key] = np.bytes_(file.attrs[key] + HOSTILE.encode())

    forge_cache(cache, change)
    with tiny_models():
        run(vidtrain, cache, "--weights", "none", "--epochs", 1, "--device", "cpu", "--out", folder / "best.pt")
        checkpoint = Checkpoint.load(folder / "best.pt")
        config: dict[str, Any] = {**checkpoint.config, "weights": HOSTILE, "lr_schedule": HOSTILE}
        versions = {"vidcache": HOSTILE, HOSTILE: HOSTILE}
        dataclasses.replace(checkpoint, config=config, versions=versions).save(folder / f"m{name}.pt")
        refused = dataclasses.replace(checkpoint, fingerprint=HOSTILE, split_hash=HOSTILE)
        refused.save(folder / "other.pt")
    return folder


def run(command: click.Command, *arguments: object) -> Any:
    result = CliRunner().invoke(command, [str(argument) for argument in arguments], prog_name="vidcache")
    assert result.exception is None or isinstance(result.exception, SystemExit), (arguments, result.exception)
    assert_harmless(result.stdout + result.stderr, arguments)
    return result


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("info CACHE", 0),
        ("info CACHE --json", 0),
        ("verify CACHE", 0),
        ("analyze CACHE", 0),
        ("analyze CACHE --json", 0),
        ("split CACHE --seed 3 --dry-run", 0),
        ("split CACHE --seed 3 --dry-run --json", 0),
        ("leaks CACHE --max-distance 0.1 --json", 0),
        ("leaks CACHE --max-distance 0.1", 0),
        ("preview CACHE", 0),
        ("eval CACHE --ckpt CKPT --device cpu", 0),
        ("eval CACHE --ckpt CKPT --device cpu --json", 0),
        ("eval CACHE --ckpt best.pt --compare CKPT --device cpu", 0),
        ("eval CACHE --ckpt other.pt", 5),
        ("train CACHE --init CKPT --epochs 1 --device cpu --out new.pt", 0),
        ("train CACHE --fail-on-leaks --weights none --out odd.pt", 2),
        ("doctor CACHE --weights none", None),
        ("info HOSTILE", 4),
        ("predict HOSTILE --ckpt CKPT --device cpu", 3),
        ("info CACHE --HOSTILE", 2),
        ("preview CACHE --out HOSTILE", 2),
        ("HOSTILE", 2),
    ],
)
def test_no_command_lets_it_through(
    folder: Path, words: str, code: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    names = {"CACHE": next(folder.glob("c*.h5")).name, "CKPT": next(folder.glob("m*.pt")).name, "HOSTILE": HOSTILE}
    arguments = [names.get(word, word.replace("HOSTILE", HOSTILE)) for word in words.split()]

    with tiny_models():
        result = run(main, *arguments)

    if code is not None:
        assert code == result.exit_code, result.output
    for path in folder.rglob("*"):
        if path.suffix in (".html", ".csv", ".json") and path.is_file():
            assert_harmless(path.read_text(), path.name)
