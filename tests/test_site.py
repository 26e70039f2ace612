"""README and site are true: their commands parse, their Python runs, their tables are the code, what they name exists."""

import contextlib
import dataclasses
import importlib.util
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import pytest

from tests.helpers import skip_without_checkout, tiny_models
from vidcache import errors
from vidcache.cache.format import COLUMNS, FORMAT_VERSION, HEADER
from vidcache.preprocess.video.source_file import Reason
from vidcache.train.callbacks import EpochResult

skip_without_checkout()
CHECKOUT = Path(__file__).parents[1]
DOCS = CHECKOUT / "docs"
PAGES = {str(path.relative_to(DOCS)): path.read_text() for path in sorted(DOCS.rglob("*.md"))}
PAGES["README.md"] = (CHECKOUT / "README.md").read_text()
TOOL = ("mkdocs", "material", "mkdocstrings", "mkdocstrings_handlers")


def load_hooks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_hooks", DOCS / "hooks.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


HOOKS = load_hooks()
PROGRAMS: dict[str, click.Command] = dict(HOOKS.commands())
HAS_LIGHTNING = importlib.util.find_spec("lightning") is not None


def blocks_of(page: str, language: str) -> list[str]:
    return re.findall(rf"^```(?:{language})\n(.*?)^```", PAGES[page], re.S | re.M)


def rows_of(page: str, heading: str) -> list[list[str]]:
    """The cells of the first table below a heading, without backticks; its head is left out."""
    table = PAGES[page].split(f"## {heading}\n")[1].split("\n|", 1)[1].split("\n\n")[0]
    lines = table.splitlines()[2:]
    return [[cell.strip().replace("`", "") for cell in line.strip("| ").split(" | ")] for line in lines]


# --- commands -------------------------------------------------------------------------------------


def command_lines() -> Iterator[tuple[str, list[str]]]:
    """Every line of a page that a reader may type, in words."""
    for page in PAGES:
        for block in blocks_of(page, "shell|console|bash|sh"):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line.strip().removeprefix("$ "), comments=True)
                if "||" not in words and words and (words[0] in PROGRAMS or words[0] == "torchrun"):
                    yield page, words


def find_command(words: list[str]) -> tuple[str, list[str]]:
    """The command that a line calls, and its arguments."""
    if words[0] == "torchrun":
        return "vidtrain", words[words.index("vidcache.train") + 1 :]
    if words[0] == "vidcache":
        return f"vidcache {words[1]}", words[2:]
    return words[0], words[1:]


def test_every_command_line_is_one_that_the_program_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("cache.h5", "ucf101.h5", "home.h5", "best.pt", "other.pt", "split1.pt", "split2.pt"):
        Path(name).touch()  # what the lines of the pages point at, as far as it must be there
    lines = list(command_lines())
    assert len(lines) > 30
    for page, words in lines:
        name, arguments = find_command(words)
        assert name in PROGRAMS, (page, words)
        try:
            PROGRAMS[name].make_context(name, [*arguments])
        except click.ClickException as error:
            pytest.fail(f"{page}: {' '.join(words)}: {error.format_message()}")


def test_every_option_in_the_text_exists() -> None:
    options = {
        name: {flag for parameter in command.params for flag in (*parameter.opts, *parameter.secondary_opts)}
        for name, command in PROGRAMS.items()
    }
    for page, text in PAGES.items():
        prose = re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)
        shown = set(re.findall(r"`(--[a-z][a-z-]*)", prose)) - {"--help"}
        assert shown <= set().union(*options.values()), page
        for called in re.findall(r"`((?:vidcache \w+|vidtrain|videval|vidpredict)\b[^`]*)`", prose):
            name, arguments = find_command(called.split())
            assert {word for word in arguments if word.startswith("--")} <= options[name] | {"--help"}, (page, called)


def test_every_command_is_on_its_page() -> None:
    page = HOOKS.on_page_markdown(PAGES["cli.md"])

    assert len(PROGRAMS) > 14
    for name in PROGRAMS:
        if name != "vidcache":
            assert f"\n## {name}\n\n```text\nUsage: {name} " in page


# --- Python and tables ----------------------------------------------------------------------------

# What the names of a page's blocks must be in the end.
EXPECTED: dict[str, Callable[[dict[str, Any]], bool]] = {
    "README.md": lambda names: names["clips"].shape == (4, 4, 16, 16, 3),
    "format.md": lambda names: names["clips"].shape == (24, 4, 16, 16, 3),
    "howto/lightning.md": lambda names: names["metrics"].num_clips == len(names["found"].labels) > 0,
    "api/preprocess.md": lambda names: names["report"].class_counts == {"jump": 4, "run": 5},
    "api/train.md": lambda names: len(names["result"].epochs) == 2,
    "api/eval.md": lambda names: (
        names["evaluation"].metrics.num_clips > 0 and names["prediction"].top[0][0] in ("jump", "run")
    ),
}
# Pages whose Python runs in one folder: each goes on with the files of those before it.
CHAINS = (("README.md",), ("format.md",), ("howto/lightning.md",), ("api/preprocess.md", "api/train.md", "api/eval.md"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*LeafSpec")  # Lightning's own
@pytest.mark.parametrize("chain", CHAINS)
def test_python_blocks_run(
    chain: tuple[str, ...], cache_file: Path, raw_dir: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The blocks of a page one after the other, as its reader would run them."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "raw").symlink_to(raw_dir)
    if "api/preprocess.md" not in chain:
        (tmp_path / "cache.h5").symlink_to(cache_file)
    for page in chain:
        names: dict[str, Any] = {}
        blocks = [block for block in blocks_of(page, "python") if "lightning" not in block or HAS_LIGHTNING]
        assert blocks
        with tiny_models() if page.startswith("api/") else contextlib.nullcontext():
            for block in blocks:
                exec(compile(block, page, "exec"), names)
        assert EXPECTED[page](names), page


def test_the_tables_are_those_of_the_code() -> None:
    assert sorted(page for page in PAGES if blocks_of(page, "python")) == sorted(sum(CHAINS, ()))
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    codes = sorted({0, *(kind.exit_code for kind in kinds if issubclass(kind, errors.VidcacheError))})
    assert [str(code) for code in codes] == [row[0] for row in rows_of("cli.md", "Exit codes")]
    assert [str(reason) for reason in Reason] == [row[0] for row in rows_of("cli.md", "Why a video fails")]
    fields = [field.name for field in dataclasses.fields(EpochResult)]
    assert fields == [row[0] for row in rows_of("output.md", "metrics.csv")]
    columns = [[c.name, c.dtype, "x".join(map(str, c.shape)), c.meaning] for c in COLUMNS]
    assert columns == rows_of("format.md", "The columns")
    header = [(name, str(HEADER.fields[name][1])) for name in HEADER.names or ()]  # type: ignore[index]
    assert header == [(name, offset) for offset, name, *_ in rows_of("format.md", "The user block")]
    assert f"Format version {FORMAT_VERSION}." in PAGES["format.md"]
    assert all(f"`{column.name}`" in PAGES["README.md"] for column in COLUMNS)


# --- what is named -------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES)
def test_every_file_and_test_that_is_named_is_there(page: str) -> None:
    for path in re.findall(r"(?<![\w.])((?:cache|common|docs|eval|preprocess|tests|train)/[\w/]+\.\w+)", PAGES[page]):
        assert (CHECKOUT / path).exists(), path
    for path, name in re.findall(r"(tests/\w+\.py)::(\w+)", PAGES[page]):
        assert f"\ndef {name}(" in (CHECKOUT / path).read_text(), f"{path}::{name}"


def test_every_threat_has_a_test() -> None:
    rows = [line for line in PAGES["security.md"].splitlines() if line.startswith("| ") and "shown by" not in line]
    assert len(rows) > 25
    for row in rows:
        assert "tests/test_" in row, row


def test_no_machine_and_no_registry_is_named() -> None:
    names = ("CHANGELOG.md", "CONTRIBUTING.md", "Makefile", "pyproject.toml", "mkdocs.yml", ".ci/run", "docs/hooks.py")
    texts = {**PAGES, **{name: (CHECKOUT / name).read_text() for name in names}}
    for name, text in texts.items():
        assert not re.search(r"(?<![\w.])/(work|root)/|pypi\.org|pythonhosted", text), name


# --- the build -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    missing = [name for name in TOOL if not importlib.util.find_spec(name)]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed: make docs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    quiet = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}  # the theme's word on its successor
    built = subprocess.run(command, cwd=CHECKOUT, env=quiet, capture_output=True, text=True, check=False)

    assert 0 == built.returncode, built.stderr
    assert "WARNING" not in built.stderr
    pages = {path: path.read_text() for path in (tmp_path / "site").rglob("*.html")}
    assert len(PAGES) == len(pages)  # 404.html instead of the README
    for path, html in pages.items():
        tags = re.findall(r"<(?:script|link|img|iframe|source)\b[^>]*>", html)
        assert not [tag for tag in tags if re.search(r"""(?:src|href)=["']?(?:https?:)?//""", tag)], path
        assert not re.search(r"<(?:class|video|split|folder|output)\b", html), path  # RAW/<class>/<video> is text
    for path in (tmp_path / "site").rglob("*.css"):
        assert not re.search(r"(?:url\(|@import)[^)]*//", re.sub(r"data:[^)]*", "", path.read_text())), path
    for name in ("CacheReader", "ClipDataset", "stream_batches"):
        assert f"{name}</span>" in pages[tmp_path / "site" / "api" / "cache.html"]
