"""What is installed from the wheel; `make test-wheel` runs all tests against it, outside the checkout."""

import importlib.metadata
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

import vidcache

pytestmark = pytest.mark.skipif(os.environ.get("VIDCACHE_WHEEL") != "1", reason="about a wheel: make test-wheel")
DATA = {
    "vidcache/page.css",
    "vidcache/py.typed",
    "vidcache/eval/report/report.html",
    "vidcache/preprocess/analysis/report.html",
}
EXTRAS = ("accelerate", "dask", "onnx", "playwright", "ray", "tensorboard")


def test_the_package_under_test_is_the_one_from_the_wheel() -> None:
    found = Path(vidcache.__file__).resolve()

    assert found.is_relative_to(Path(sys.prefix).resolve())
    assert ("site-packages", "vidcache") == found.parts[-3:-1]
    # An editable install has a file that says so.
    assert "editable" not in (importlib.metadata.distribution("vidcache").read_text("direct_url.json") or "")


def test_no_extra_is_there_to_help() -> None:
    assert [] == [name for name in EXTRAS if importlib.util.find_spec(name)]


def test_the_wheel_has_one_name_and_all_its_data() -> None:
    files = [path for path in importlib.metadata.files("vidcache") or [] if path.suffix != ".pyc"]
    inside = {str(path) for path in files if path.parts[0] == "vidcache"}

    others = {path.parts[0] for path in files} - {"vidcache", ".."}  # .. is where the commands go
    assert all(name.endswith(".dist-info") for name in others), others
    assert DATA == {path for path in inside if not path.endswith(".py")}
    assert {"LICENSE"} <= {path.name for path in files}


@pytest.mark.parametrize("command", ["vidcache", "vidtrain", "videval", "vidpredict"])
def test_every_command_is_installed_and_starts(command: str, tmp_path: Path) -> None:
    program = [str(Path(sys.executable).with_name(command)), "--help"]

    ended = subprocess.run(program, capture_output=True, text=True, check=True, cwd=tmp_path)

    assert ended.stdout.startswith(f"Usage: {command} ")
