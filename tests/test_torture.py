"""Nothing is lost: accidents at every write, power losses, kills; and the suites that say so have teeth.

`make torture N=1000` sets VIDCACHE_TORTURE: so many random accidents of each kind, instead of the few that
every run of the tests can afford. The exhaustive ones are exhaustive always.
"""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.faults import MUTANTS
from tests.helpers import TOOLS, make_raw
from vidcache.cache.reader import CacheReader
from vidcache.preprocess.build import build_cache
from vidcache.preprocess.options import BuildOptions
from vidcache.preprocess.split.config import SplitOverrides
from vidcache.spec import Spec

CHECKOUT = Path(__file__).parents[1]
N = int(os.environ.get("VIDCACHE_TORTURE", "0"))
PARTS = 2
# Suite: runs of each part, and how many there are at least; 0 is every case there is.
SUITES = {
    "kills": (0, 200),  # before and in the middle of every call of a fresh build, a resume, a rebuild, an append
    "errors": (0, 350),  # ENOSPC, EIO, EINTR, short writes at every call
    "power": (N or 260, 250),
    "chains": (N or 20, 20),
    "rot": (N or 40, 40),
}


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shim that makes accidents."""
    compiler, library = shutil.which("cc"), tmp_path_factory.mktemp("torture") / "faultfs.so"
    if sys.platform != "linux" or compiler is None:
        pytest.skip("the shim needs Linux and a C compiler")
    source = CHECKOUT / "tests" / "faultfs.c"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
    return library


def run_suite(library: Path, suite: str, runs: int, part: int = 0, parts: int = 1, mutant: str = "") -> dict[str, Any]:
    # In memory where possible: what a disk would do is simulated.
    root = Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else library.parent
    folder = root / f"vidcache-{os.getpid()}-{suite}-{part}-{mutant}"
    command = [sys.executable, "-m", "tests.faults", folder, library, suite, runs, part, parts, mutant]
    environment = {**os.environ, "LD_PRELOAD": str(library)}
    environment.pop("COVERAGE_PROCESS_CONFIG", None)  # thousands of forks that die: nothing to measure, and slow
    try:
        ended = subprocess.run(
            [str(word) for word in command if word != ""],
            cwd=CHECKOUT, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert ended.returncode == 0, ended.stderr[-2000:]
        figures: dict[str, Any] = json.loads(ended.stdout)
        if N:
            sys.stderr.write(f"{suite} {mutant}: {figures['runs']} runs, {len(figures['violations'])} violations\n")
        return figures
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def test_a_fresh_build_is_killed_at_every_fourth_call_and_loses_nothing(library: Path) -> None:
    figures = run_suite(library, "fresh", 0, part=1, parts=4)

    assert ([], True) == (figures["violations"][:5], figures["runs"] >= 30)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("suite", SUITES)
def test_no_accident_loses_anything(library: Path, suite: str, part: int) -> None:
    runs, at_least = SUITES[suite]
    figures = run_suite(library, suite, runs, part, PARTS)

    assert [] == figures["violations"][:5]
    assert figures["runs"] >= at_least


@pytest.mark.slow
@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_broken_protocol_is_caught(library: Path, mutant: str) -> None:
    suite, _ = MUTANTS[mutant]
    figures = run_suite(library, suite, 0 if suite == "kills" else 300, mutant=mutant)

    assert figures["violations"], f"{figures['runs']} runs of {suite} saw nothing"


@pytest.mark.slow
def test_the_shim_sees_every_call_that_strace_sees(library: Path, tmp_path: Path) -> None:
    strace = shutil.which("strace")
    if not strace:
        pytest.skip("needs strace")
    code = (
        "import sys; from pathlib import Path; from contextlib import ExitStack; import tests.faults as f\n"
        "folder = Path(sys.argv[1]); raws = f._make_raws(folder); out = folder / 'out'; out.mkdir()\n"
        "shim = f.load_shim(sys.argv[2])\n"
        "with ExitStack() as stack:\n"
        "    f._stand_in(stack, shim, raws['a'], []); shim.faultfs_arm(bytes(out), 0, 0, 0, -1)\n"
        "    f.build_cache(raws['a'], out / 'c.h5', f.OPTIONS); shim.faultfs_disarm(); print(shim.faultfs_calls())\n"
    )
    calls = "write,pwrite64,pwritev,writev,ftruncate,fsync,fdatasync,rename,renameat,renameat2,unlink,unlinkat,mkdir,"
    calls += "mkdirat,rmdir,link,linkat,copy_file_range,sendfile,fallocate,openat,open,creat"
    trace, out = tmp_path / "trace", tmp_path / "x"
    out.mkdir()
    command = [strace, "-f", "-y", "-e", f"trace={calls}", "-o", trace, sys.executable, "-c", code, out, library]
    environment = {**os.environ, "LD_PRELOAD": str(library)}
    ended = subprocess.run(command, cwd=CHECKOUT, env=environment, capture_output=True, text=True, check=False)
    if "ptrace" in ended.stderr:
        pytest.skip("this container may not trace")

    assert ended.returncode == 0, ended.stderr
    lines = [line for line in trace.read_text().splitlines() if f"{out}/out" in line and " = -1 " not in line]
    opens = [line for line in lines if "open" in line.split("(")[0]]
    created = {line.split('"')[1] for line in opens if "O_CREAT" in line}
    seen = len(lines) - len(opens) + len(created) + len([line for line in opens if "O_TRUNC" in line])
    assert not [line for line in lines if "sync(" in line]  # the shim does not pass syncs on
    assert seen < int(ended.stdout) < 1.6 * seen


# --- real builds, really killed -----------------------------------------------------------------

SPEC = Spec(8, 48, 64)
COMMAND = "import sys; from vidcache.cli import main; main()"


def alive(marker: str) -> list[str]:
    """Processes whose command line has the marker."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
        except OSError:
            continue
        if marker in words and int(folder.name) != os.getpid():
            found.append(words)
    return found


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_real_builds_killed_at_any_time_lose_nothing(tmp_path: Path) -> None:
    raw = make_raw(tmp_path / "raw", {"a": 12, "b": 12}, num_frames=50)
    build_cache(raw, tmp_path / "golden.h5", BuildOptions(spec=SPEC, workers=2))
    golden = (tmp_path / "golden.h5").read_bytes()
    rng, cache = random.Random(0), tmp_path / "out" / "c.h5"
    cache.parent.mkdir()
    command = [sys.executable, "-c", COMMAND, "build", str(raw), str(cache), "--workers", "2", "--num-frames", "8"]
    tools = tmp_path / "tools"  # a name by which to find its children
    tools.mkdir()
    for name in ("ffmpeg", "ffprobe"):
        (tools / name).symlink_to(getattr(TOOLS, name))
    command += ["--size", "48x64", "--json", "--ffmpeg-dir", str(tools)]
    kills, finished = 0, 0
    while kills < max(20, N // 20):
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        lock, deadline = cache.with_name("c.h5.lock"), time.monotonic() + 30
        while not lock.exists() and child.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(rng.uniform(0.0, 0.6))
        how = rng.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT))
        with contextlib.suppress(ProcessLookupError):
            if rng.random() < 0.3:
                os.killpg(child.pid, how)  # its children are in a group of their own
            else:
                child.send_signal(how)
        child.communicate(timeout=60)
        lock.unlink(missing_ok=True)
        if child.returncode == 0:
            finished += 1
            assert golden == cache.read_bytes()
            cache.unlink()
            continue
        kills += 1
        assert child.returncode in (-how, 130)
        assert not cache.exists() or golden == cache.read_bytes()
        start = time.monotonic()
        while (left := alive(str(tools / "ff"))) and time.monotonic() - start < 30:
            time.sleep(0.02)
        assert [] == left

    report = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert golden == cache.read_bytes()
    assert 24 == report["num_decoded"] + report["num_reused"]


@pytest.mark.slow
def test_a_reader_never_sees_half_a_cache(tmp_path: Path) -> None:
    """Builds take the cache's place again and again while a reader opens it again and again."""
    raw = make_raw(tmp_path / "raw", {"a": 4}, num_frames=8)
    options = [
        BuildOptions(spec=Spec(4, 16, 16), split=SplitOverrides(seed=seed), overwrite=True, workers=2)
        for seed in range(3)
    ]
    build_cache(raw, tmp_path / "c.h5", options[0])
    races = max(50, N // 10)

    with ThreadPoolExecutor(1) as pool:
        builds: Future[None] = pool.submit(
            lambda: [build_cache(raw, tmp_path / "c.h5", options[n % 3]) for n in range(races // 10)] and None
        )
        opened = 0
        while not builds.done() or opened < races:
            with CacheReader(tmp_path / "c.h5") as reader:
                assert 0 == len(reader.damaged_rows())
            opened += 1
        builds.result()
    assert opened >= races
