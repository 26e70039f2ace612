"""Every advice that a message gives can be followed: its options and commands exist where it is given."""

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from tests.helpers import make_cache, skip_without_checkout, tiny_models
from vidcache.cli import COMMANDS, main
from vidcache.train.cli import main as vidtrain

skip_without_checkout()
CHECKOUT = Path(__file__).parents[1]
FOLDERS = ("common", "cache", "preprocess", "eval", "train")
PROGRAMS = {"vidtrain": "train", "videval": "eval", "vidpredict": "predict"}
# Which commands can give the messages of a file: the first pattern that matches. None: those that the message names.
GIVEN_BY: tuple[tuple[str, tuple[str, ...]], ...] = (
    (r"train/bench", ("bench", "train")),
    (r"train/(cli|preview)", ("train", "preview")),
    (r"train/(data|task|augment)", ("train", "bench")),
    (r"train/", ("train",)),
    (r"eval/predict", ("predict",)),
    (r"eval/export", ("export",)),
    (r"eval/doctor", ("doctor", "train", "build")),
    (r"eval/", ("eval",)),
    (r"preprocess/(split_|resplit)", ("split",)),
    (r"preprocess/analy|preprocess/.*findings", ("analyze", "build")),
    (r"preprocess/", ("build", "split")),
    (r"cache/features|cache/feature_writer", ("train",)),
    (r"cache/cli", ("info", "verify", "leaks")),
    (r"common/model", ("train",)),
    (r"common/cli", tuple(COMMANDS)),
)
# Options of the programs of others, that a message names.
OF_OTHERS = {"ray start": {"--head"}, "torchrun": {"--nproc-per-node"}, "wsl": {"--install"}}
# What follows the word vidcache where no command is meant.
ENGLISH = {
    "that",
    "reads",
    "again",
    "everywhere",
    "checkpoint",
    "normalises",
    "with",
    "on",
    "and",
    "is",
    "has",
    "needs",
    "runs",
}


def messages() -> Iterator[tuple[str, str]]:
    """Every text of the sources with a blank in it that is no docstring: (where, text); values in it are {}."""
    for path in (path for folder in FOLDERS for path in sorted((CHECKOUT / folder).glob("**/*.py"))):
        tree = ast.parse(path.read_text())
        inner = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
        inner |= {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                text = "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inner:
                text = node.value
            else:
                continue
            if " " in text:
                yield f"{path.relative_to(CHECKOUT)}:{node.lineno}", text


def command(name: str) -> click.Command:
    module, _, attribute = COMMANDS[name][0].partition(":")
    found: click.Command = getattr(importlib.import_module(module), attribute)
    return found


def options(name: str) -> set[str]:
    return {flag for parameter in command(name).params for flag in (*parameter.opts, *parameter.secondary_opts)} | {
        "--help"
    }


def named(text: str) -> set[str]:
    """Commands that a text names; building a cache is said in words, too."""
    found = {PROGRAMS[word] for word in re.findall(r"\b(vidtrain|videval|vidpredict)\b", text)}
    found |= {word for word in re.findall(r"(?<!that )(?<!this )\bvidcache ([a-z]+)", text) if word not in ENGLISH}
    return found | ({"build"} if re.search(r"\b[Bb]uil[dt]\b", text) else set())


def unknown(where: str, text: str) -> set[str]:
    """What a message names and its reader does not have."""
    shown = named(text)
    wrong = {f"vidcache {word}" for word in shown if word not in COMMANDS}
    given_by = next((commands for pattern, commands in GIVEN_BY if re.match(pattern, where)), ())
    known = {flag for name in {*shown, *given_by} & set(COMMANDS) for flag in options(name)} | {"--version"}
    known |= {flag for program, flags in OF_OTHERS.items() if program in text for flag in flags}
    return wrong | set(re.findall(r"(?<![\w-])--[a-z][a-z-]*[a-z]", text)) - known


def test_every_option_and_command_of_every_message_exists_where_it_is_given() -> None:
    found = list(messages())
    assert sum("--" in text for _, text in found) > 100

    assert {} == {f"{where} {text}": wrong for where, text in found if (wrong := unknown(where, text))}


@pytest.mark.parametrize(
    ("where", "text", "wrong"),
    [
        ("train/run.py:1", "It differs. Accept it with --allow-mismatch", {"--allow-mismatch"}),
        ("train/run.py:1", "It differs. Use videval --allow-mismatch", set()),
        ("cache/validate.py:1", "It is damaged. Use --overwrite", {"--overwrite"}),
        ("cache/validate.py:1", "It is damaged. Build it again with --overwrite", set()),
        ("eval/cli.py:1", "Look with vidcache show {}", {"vidcache show"}),
    ],
)
def test_an_advice_that_nobody_can_follow_is_noticed(where: str, text: str, wrong: set[str]) -> None:
    assert wrong == unknown(where, text)


def test_what_a_resumed_run_advises_can_be_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of another cache, of other options: each refusal names a way out, and that way ends with exit code 0."""
    monkeypatch.chdir(tmp_path)
    make_cache(Path("one.h5"), {"a": 12, "b": 12}, learnable=True)
    make_cache(Path("other.h5"), {"a": 12, "b": 12}, seed=1, learnable=True)
    flags = ["--weights", "none", "--epochs", "1", "--amp", "off", "--flip", "0", "--device", "cpu"]

    def call(*arguments: str) -> tuple[int, str]:
        result = CliRunner().invoke(vidtrain, [*arguments], catch_exceptions=False)
        return result.exit_code, " ".join(result.stderr.split())

    with tiny_models():
        assert 0 == call("one.h5", *flags)[0]
        code, said = call("other.h5", "--resume")
        assert 5 == code
        assert "Continue with its own cache, or use another --out" in said
        assert "--allow-mismatch" not in said
        assert 0 == call("one.h5", "--resume")[0]
        assert 0 == call("other.h5", *flags, "--out", "new.pt")[0]
        code, said = call("one.h5", "--resume", "--freeze", "stem", "--cache-features", "2")
        assert 2 == code
        assert "--freeze stem: the run in best.run has none. Leave it out, or" in said
        assert 0 == call("one.h5", *flags, "--freeze", "stem", "--cache-features", "2", "--out", "third.pt")[0]


def test_the_program_itself_lists_what_the_table_has() -> None:
    assert set(COMMANDS) == set(main.list_commands(click.Context(main)))  # type: ignore[attr-defined]
