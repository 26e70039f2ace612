"""`vidcache doctor`: every check where all is well and where it is not, and nothing left behind."""

import hashlib
import importlib.metadata
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from tests.helpers import TOOLS
from vidcache import cli
from vidcache.errors import InputError
from vidcache.eval.doctor import Check, check_ffmpeg, check_packages, check_path, check_torch, check_weights, guarded

MAIN = "import sys; sys.argv[0] = 'vidcache'; from vidcache.cli import main; main()"
# As if torch and h5py were not installed: quick, and what a broken installation looks like.
BROKEN = f"import sys; sys.modules['torch'] = sys.modules['h5py'] = sys.modules['ffmpeg'] = None; {MAIN}"


def by_name(checks: Any) -> dict[str, Check]:
    return {check.name: check for check in checks}


def test_a_line_for_each_check_and_nothing_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    result = CliRunner().invoke(cli.main, ["doctor", "--weights", "none", "--clips", "3"])

    assert 0 == result.exit_code, result.output
    *lines, last = result.stdout.splitlines()
    names = [re.fullmatch(r"(?:ok|warning) +(gpu \d+|\w+) +\S.+", line)[1] for line in lines]  # type: ignore[index]
    assert "python packages torch gpu ffmpeg ffmpeg space locks".split() == [name.split()[0] for name in names]
    assert re.fullmatch(r"8 checks: \d ok, \d warnings?, 0 problems", last)
    assert [] == list(tmp_path.iterdir())


@pytest.mark.slow
def test_json_is_one_object_and_a_problem_is_exit_1(cache_file: Path, tmp_path: Path) -> None:
    options = ["--ffmpeg-dir", str(tmp_path), "--weights", f"{tmp_path}/none.pth", "-v"]

    result = CliRunner().invoke(cli.main, ["doctor", str(cache_file), "--json", *options])

    report = json.loads(result.stdout)
    assert 1 == result.exit_code
    assert "Error: doctor: 2 problems. Follow the advice above" in result.stderr
    assert {"checks", "num_problems", "num_warnings"} == set(report)
    assert all({"name", "status", "found", "advice"} == set(check) for check in report["checks"])
    checks = {check["name"]: check for check in report["checks"]}
    assert ["ffmpeg", "weights"] == sorted(name for name in checks if checks[name]["status"] == "problem")
    assert f"{tmp_path}/none.pth: no such file" == checks["weights"]["found"]
    assert re.match(r"Download https://\S+b3b3357e\.pth to it", checks["weights"]["advice"])
    assert "Python platform: " in checks["environment"]["found"]  # torch.utils.collect_env
    assert 2 == report["num_problems"]
    assert report["num_warnings"] == sum(check["status"] == "warning" for check in report["checks"])


def test_broken_packages_are_problems_and_no_traceback(tmp_path: Path) -> None:
    broken = subprocess.run([sys.executable, "-c", BROKEN, "doctor", str(tmp_path)], capture_output=True, text=True)

    assert 1 == broken.returncode
    for name, module in (("torch", "torch"), ("weights", "torch"), ("ffmpeg", "ffmpeg"), ("path", "h5py")):
        line = rf"^problem {name} +ModuleNotFoundError: .*{module}.*\. Check permissions, or install vidcache again"
        assert re.search(line, broken.stdout, re.M), broken.stdout
    assert re.search(r"^ok +packages ", broken.stdout, re.M)
    assert "Traceback" not in broken.stdout + broken.stderr
    assert broken.stderr.startswith("Error: doctor: 4 problems.")


def test_any_exception_is_reported_as_a_check() -> None:
    def fail(error: Exception) -> Any:
        yield Check("first", "ok", "as it should be")
        raise error

    first, ours = guarded("second", fail(InputError("x.h5: too short. Build it again. Or not")))
    _, other = guarded("second", fail(ZeroDivisionError("two\nlines \x1b")))

    assert ("first", Check("second", "problem", "x.h5: too short", "Build it again. Or not")) == (first.name, ours)
    assert ("second", "problem", r"ZeroDivisionError: two lines \x1b") == other[:3]


# --- packages, GPUs, weights -------------------------------------------------------------------


def test_requirements_are_compared_as_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    real = by_name(check_packages())
    installed = {"numpy": "2.10.1", "click": "8.1.9", "torch": "2.14.1+cu130", "rich": "16.0"}
    needs = ["numpy>=2.9", "click>=8.2", "torch>=2.10", "rich>=15,<16", "h5py>=3", 'pytest>=8; extra == "dev"']

    def distributions(name: str) -> list[SimpleNamespace]:
        return [SimpleNamespace(version=installed[name])] if name in installed else []

    monkeypatch.setattr(importlib.metadata, "requires", lambda _: needs)
    monkeypatch.setattr(importlib.metadata, "distributions", distributions)
    unmet = by_name(check_packages())["packages"]

    assert ("problem", "click 8.1.9, rich 16.0, h5py is missing") == (unmet.status, unmet.found)
    assert unmet.advice.startswith(f"{sys.executable} -m pip install 'click>=8.2' 'rich")
    assert {"ok"} == {check.status for check in real.values()}
    assert re.search(r"Python 3\.\d+.* vidcache \d+\.\d+\.\d+ from /", real["python"].found)
    assert "packaging " in real["packages"].found
    assert "ray " not in real["packages"].found


def test_it_says_why_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    def why() -> str:
        check = by_name(check_torch(verbose=False))["gpu"]
        assert "warning" == check.status
        return f"{check.found}. {check.advice}"

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert "no GPU: torch finds none. Install its driver" in why()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert "no GPU: CUDA_VISIBLE_DEVICES is '-1'. unset CUDA_VISIBLE_DEVICES" in why()
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "no GPU: torch is built for CPUs only. If there is a GPU, install torch" in why()


def test_each_gpu_is_named_with_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda _: SimpleNamespace(name="NVIDIA T9", major=7, minor=5)
    )
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: ((15 - 10 * index) * 10**9, 16 * 10**9))

    _, free, used = check_torch(verbose=False)

    assert Check("gpu 0", "ok", "NVIDIA T9, capability 7.5, 15 GB of 16 GB free") == free
    assert Check("gpu 1", "warning", "NVIDIA T9, capability 7.5, 5 GB of 16 GB free") == used


@pytest.mark.slow
def test_weights_are_looked_for_where_torch_keeps_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from vidcache import model

    path = tmp_path / "hub" / "checkpoints" / "r3d_18-b3b3357e.pth"
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (missing,) = check_weights("kinetics400")
    path.parent.mkdir(parents=True)
    torch.save(model.R3D18(400).state_dict(), path)
    (altered,) = guarded("weights", check_weights("kinetics400"))
    monkeypatch.setattr(model, "KINETICS_SHA256", hashlib.sha256(path.read_bytes()).hexdigest()[:8])

    assert ("warning", f"{path}: not downloaded") == missing[1:3]
    assert "problem" == altered.status
    assert f"{path}: sha256 " in altered.found
    assert "ok" == next(check_weights("kinetics400")).status == next(check_weights(str(path))).status


# --- ffmpeg, folders, caches -------------------------------------------------------------------


def make_ffmpeg(folder: Path, change: str = ":") -> Path:
    """An ffmpeg that changes each argument before it goes on."""
    folder.mkdir()
    (folder / "ffprobe").symlink_to(TOOLS.ffprobe)
    (folder / "ffmpeg").write_text(
        f'#!/bin/sh\nfor a in "$@"; do shift; {change}; set -- "$@" "$a"; done\nexec {TOOLS.ffmpeg} "$@"\n'
    )
    (folder / "ffmpeg").chmod(0o755)
    return folder


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (r"""a=$(printf %s "$a" | sed 's/\]select=/]negate,select=/')""", "gives wrong frames of a test video"),
        ('case "$a" in -fps_mode) echo "[error] Unknown option" >&2; exit 1;; esac', "cannot decode a test video: "),
    ],
)
def test_an_ffmpeg_that_decodes_wrongly_is_noticed(
    tmp_path: Path, change: str, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_ffmpeg(tmp_path / "bad", change)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    given, _ = check_ffmpeg(folder)
    good, newer, fallback = check_ffmpeg(make_ffmpeg(tmp_path / "good"))

    assert "problem" == given.status
    assert f"{TOOLS.version} from folder {folder} ({folder}/ffmpeg) {found}" in given.found
    assert "--ffmpeg-dir" in given.advice
    assert ("ok", "ok", "warning") == (good.status, newer.status, fallback.status)
    assert good.found.endswith("decodes test videos correctly")
    assert "from package imageio-ffmpeg" in newer.found


def test_an_ffmpeg_that_gives_other_pixels_is_noticed(tmp_path: Path) -> None:
    given, _ = check_ffmpeg(
        make_ffmpeg(tmp_path / "bad", r"""a=$(printf %s "$a" | sed 's/flags=[a-z]*/flags=area/')""")
    )

    assert "warning" == given.status
    assert "scales a test video to other pixels than elsewhere" in given.found


def test_space_and_cache_of_a_path(cache_file: Path, tmp_path: Path) -> None:
    cache, planned = by_name(check_path(cache_file, None)), by_name(check_path(tmp_path, 10**12))
    (damaged,) = guarded("path", check_path(Path(__file__), None))
    folder, read_only = by_name(check_path(tmp_path, None)), by_name(check_path(Path("/proc"), None))

    assert f"{cache_file}: 23 clips of 4 frames of 16x16" == cache["cache"].found
    assert "23 clips of 4 frames of 16x16 need 7.07e-05 GB" in cache["space"].found
    assert "warning" == planned["space"].status
    assert "Free some space" in planned["space"].advice
    assert ("problem", "path") == (damaged.status, damaged.name)
    assert "1,000 clips of 64 frames of 112x112 need 2.41 GB" in folder["space"].found
    assert f"{tmp_path}: files can be made and locked" == folder["locks"].found
    assert ("warning", "/proc: no file can be made and locked (No such file or directory)") == read_only["locks"][1:3]
