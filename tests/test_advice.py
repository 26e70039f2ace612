"""Every advice that a message gives can be followed: its options and commands exist."""

import ast
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
OF_OTHERS = {"--head", "--nproc-per-node", "--install"}  # ray start, torchrun, wsl


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


def options(name: str) -> set[str]:
    command = main.get_command(click.Context(main), name)
    assert command
    return {flag for parameter in command.params for flag in (*parameter.opts, *parameter.secondary_opts)}


def test_every_option_and_command_of_every_message_exists() -> None:
    known = set().union(*map(options, COMMANDS)) | {"--help", "--version"} | OF_OTHERS
    found = [(where, text) for where, text in messages() if "--" in text or "vid" in text]
    assert len(found) > 100
    for where, text in found:
        assert set(re.findall(r"\bvidcache ([a-z]+) [A-Z{-]", text)) <= set(COMMANDS), (where, text)
        assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*[a-z]", text)) <= known, (where, text)


@pytest.mark.slow
def test_what_a_resumed_run_advises_can_be_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of another cache, of other options: each refusal names a way out, and that way ends with exit code 0."""
    monkeypatch.chdir(tmp_path)
    make_cache(Path("one.h5"), {"a": 12, "b": 12}, learnable=True)
    make_cache(Path("other.h5"), {"a": 12, "b": 12}, seed=1, learnable=True)
    flags = ["--weights", "none", "--epochs", "1", "--amp", "off", "--flip", "0", "--device", "cpu"]
    features = ["--freeze", "stem", "--cache-features", "2"]

    def call(*arguments: str) -> tuple[int, str]:
        result = CliRunner().invoke(vidtrain, [*arguments], catch_exceptions=False)
        return result.exit_code, " ".join(result.stderr.split())

    with tiny_models():
        assert 0 == call("one.h5", *flags)[0]
        code, said = call("other.h5", "--resume")
        assert 5 == code
        assert "Continue with its own cache, or use another --out" in said
        assert 0 == call("one.h5", "--resume")[0]
        assert 0 == call("other.h5", *flags, "--out", "new.pt")[0]
        code, said = call("one.h5", "--resume", *features)
        assert 2 == code
        assert "--freeze stem: the run in best.run has none. Leave it out, or" in said
        assert 0 == call("one.h5", *flags, *features, "--out", "third.pt")[0]
