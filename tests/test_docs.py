"""The README is true: its commands exist, its Python runs, its table is the file format."""

import re
from pathlib import Path

import pytest

from tests.helpers import skip_without_checkout
from vidcache import cli
from vidcache.cache.format import COLUMNS
from vidcache.eval.cli import main as videval
from vidcache.eval.predict_cli import main as vidpredict
from vidcache.train.cli import main as vidtrain

skip_without_checkout()
CHECKOUT = Path(__file__).parents[1]
README = (CHECKOUT / "README.md").read_text()
PROGRAMS = {"vidtrain": vidtrain, "videval": videval, "vidpredict": vidpredict}


def test_every_option_that_the_readme_shows_exists() -> None:
    shown = re.findall(r"^(?:\$ )?(vidcache \w+|vidtrain|videval|vidpredict) (.*)$", README, re.M)
    assert len(shown) >= 6
    for program, rest in shown:
        command = cli.main.get_command(None, program.split()[1]) if " " in program else PROGRAMS[program]  # type: ignore[arg-type]
        assert command is not None, program
        known = {name for parameter in command.params for name in parameter.opts}
        assert set(re.findall(r"--[a-z-]+", rest)) <= known, (program, rest)


def test_every_column_is_in_the_readme() -> None:
    for column in COLUMNS:
        assert f"`{column.name}`" in README, column.name


@pytest.mark.parametrize("block", re.findall(r"```python\n(.*?)```", README, re.S))
def test_python_blocks_run(block: str, cache_file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "cache.h5").symlink_to(cache_file)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}

    exec(compile(block, "README.md", "exec"), names)

    assert (4, 4, 16, 16, 3) == names["clips"].shape  # type: ignore[attr-defined]


def test_no_machine_and_no_registry_is_named() -> None:
    names = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "Makefile", "pyproject.toml", "mkdocs.yml", ".ci/run")
    texts = [*(CHECKOUT / name for name in names), *CHECKOUT.glob("docs/**/*.md")]
    assert len(texts) > 20
    for path in texts:
        assert not re.search(r"(?<![\w.])/(work|root)/|pypi\.org|pythonhosted", path.read_text(errors="ignore")), path
