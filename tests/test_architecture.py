"""Who may import whom, and what must not be imported at all (DESIGN, section 2)."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import skip_without_checkout

CHECKOUT = Path(__file__).parents[1]
# Folder: the folders of ours that it may import, apart from the package root.
MAY_IMPORT = {
    "common": set(),
    "cache": {"cache"},
    "preprocess": {"preprocess", "preprocess.video", "preprocess.split", "preprocess.analysis", "cache"},
    "preprocess.video": {"preprocess.video", "cache"},
    "preprocess.split": {"preprocess", "preprocess.split", "preprocess.video", "cache"},
    "preprocess.analysis": {"preprocess", "preprocess.analysis", "preprocess.split", "preprocess.video", "cache"},
    "eval": {"eval", "eval.report", "cache", "preprocess", "preprocess.video"},
    "eval.report": {"eval", "eval.report", "cache"},
    "train": {"train", "cache", "eval", "eval.report"},
}
TEXTS = {".py", ".html", ".css", ".js"}
MAX_LINES, MAX_FILES, MAX_FILE_LINES, MAX_ARGUMENTS = 15_400, 90, 400, 6
FILES = sorted(path for folder in MAY_IMPORT for path in (CHECKOUT / folder.replace(".", "/")).glob("*.py"))


def folder_of(path: Path) -> str:
    """The sub-package that a file is in, as `preprocess.video`."""
    return ".".join(path.parent.relative_to(CHECKOUT).parts)


def imports_of(path: Path) -> set[str]:
    """Absolute names of everything a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{folder_of(path)}/{path.name}")
def test_imports_go_in_the_allowed_direction(path: Path) -> None:
    folder = folder_of(path)
    if path == CHECKOUT / "common/__init__.py":
        return  # the public names: imported when they are used
    for name in imports_of(path):
        first, *rest = name.split(".")
        assert first not in MAY_IMPORT, f"bare import of {name}"
        target = max(
            (known for known in MAY_IMPORT if f"{'.'.join(rest)}.".startswith(f"{known}.")), key=len, default=""
        )
        assert not target or target in MAY_IMPORT[folder], f"{folder}/ may not import {name}"
        if folder.startswith("preprocess"):
            assert first not in ("torch", "torchvision")
            assert not name.startswith("vidcache.cache.stream")
        if folder == "common":
            assert first not in ("ffmpeg", "h5py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{folder_of(path)}/{path.name}")
def test_everything_is_printed_where_control_characters_are_escaped(path: Path) -> None:
    if path.name != "console.py":
        assert "rich.console.Console" not in imports_of(path), "use vidcache.console.SafeConsole"
        assert not re.search(r"click\.(echo|secho|style)\b", path.read_text()), "use vidcache.console.echo"


def test_nothing_at_the_root_hides_the_package() -> None:
    skip_without_checkout()
    assert not (CHECKOUT / "vidcache").exists()


def test_preprocess_does_not_load_torch() -> None:
    code = "import sys, vidcache.preprocess.cli; assert 'torch' not in sys.modules"

    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_helpers_of_the_tests_do_not_load_torch() -> None:
    """A test of pure arithmetic starts in a second, not in ten."""
    code = "import sys, tests.conftest, tests.helpers; assert 'torch' not in sys.modules"

    subprocess.run([sys.executable, "-c", code], check=True, cwd=CHECKOUT)


def test_the_house_stays_small() -> None:
    """A budget: what does not earn its lines for a user is left out (CONTRIBUTING)."""
    skip_without_checkout()
    folders = [folder.replace(".", "/") for folder in MAY_IMPORT]
    files = [path for folder in folders for path in (CHECKOUT / folder).iterdir() if path.suffix in TEXTS]
    num_lines = {path: len(path.read_text().splitlines()) for path in files}

    assert sum(num_lines.values()) <= MAX_LINES
    assert len(files) <= MAX_FILES
    assert not [path for path in files if num_lines[path] > MAX_FILE_LINES]


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{folder_of(path)}/{path.name}")
def test_functions_take_a_handful_of_arguments(path: Path) -> None:
    """A command takes an argument for each of its options; everything else takes at most 6, or a dataclass."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef) and not any("option" in ast.unparse(line) for line in node.decorator_list):
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            names = [argument.arg for argument in arguments if argument.arg not in ("self", "cls")]
            assert len(names) <= MAX_ARGUMENTS, f"{node.name}({', '.join(names)})"


def test_every_folder_says_what_it_is_for() -> None:
    skip_without_checkout()
    for folder in MAY_IMPORT:
        docstring = ast.get_docstring(ast.parse((CHECKOUT / folder.replace(".", "/") / "__init__.py").read_text()))
        assert docstring
        assert "urns" in docstring.split(".")[0] or folder == "common"
        assert "ay import" in docstring
