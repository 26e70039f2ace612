"""A signal at any line: `python -m tests.interrupts FOLDER N` interrupts N builds, each at another line of Python.

A signal that a test sends arrives where a program spends its time, which is in a wait. Here each build runs in a
forked child that traces its own main thread, and the child signals itself at a line that was drawn: half of them from all
lines after the lock was taken, half from the last ones, between the end of the work and the end of the process. The
lines of the standard library, joblib, click and h5py count too.

Prints a line of JSON for each build: the exit code ("hangs" after a minute), whether the cache was there afterwards as
it has to be, whether the signal came at all, and what was said on stderr.
"""

import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path
from types import FrameType
from typing import Any

import vidcache.cache.writer
import vidcache.cli
import vidcache.preprocess.cli
from tests.helpers import make_raw

LAST_LINES = 150
SIGNALS = signal.SIGINT, signal.SIGTERM
SIGNALLED = "the signal comes"
FINISHED = 0
NEVER = 1 << 62


def main(folder: Path, num_runs: int) -> None:
    """Interrupt builds in a folder."""
    rng, cache = random.Random(num_runs), folder / "out" / "c.h5"
    cache.parent.mkdir(parents=True)
    raw = make_raw(folder / "raw", {"a": 3, "b": 3}, num_frames=8)
    command = ["build", str(raw), str(cache), "--workers", "2", "--num-frames", "4", "--size", "16", "--json"]
    assert _run(command, NEVER, folder / "said") == FINISHED
    golden, num_lines = cache.read_bytes(), int((folder / "said").read_text().rsplit("\n", 1)[1])
    for index in range(num_runs):
        shutil.rmtree(cache.parent)
        cache.parent.mkdir()
        line = rng.randrange(num_lines) if index % 2 else num_lines - rng.randrange(LAST_LINES)
        code = _run(command, line, folder / "said", SIGNALS[index // 2 % 2])
        over = code in (FINISHED, *(-number for number in SIGNALS))
        whole = cache.read_bytes() == golden if cache.exists() else not over
        said = (folder / "said").read_text()
        print(json.dumps({"code": code, "whole": whole, "came": SIGNALLED in said, "said": said}))


def _run(command: list[str], line: int, said: Path, number: int = signal.SIGTERM) -> int | str:
    child = os.fork()
    if child == 0:
        _build(command, line, said, number)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "hangs"


def _build(command: list[str], line: int, said: Path, number: int) -> None:
    """Run a command in this process, signal it at its n-th line after it has taken the lock, and end."""
    num_lines, code = 0, 1
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal num_lines
        if event == "line":
            num_lines += 1
            if num_lines == line:
                sys.stderr.write(f"{SIGNALLED}\n")
                sys.stderr.flush()
                signal.raise_signal(number)
        return trace

    def lock_and_trace(output: Path) -> int:
        descriptor, frame = lock_output(output), sys._getframe(1)
        while frame:
            frame.f_trace, frame = trace, frame.f_back
        sys.settrace(trace)
        return descriptor

    lock_output, vidcache.cache.writer.lock_output = vidcache.cache.writer.lock_output, lock_and_trace
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115 -- lives as long as the process
    sys.stderr = open(said, "w")  # noqa: SIM115
    try:
        vidcache.cli.main(command, prog_name="vidcache")
    except SystemExit as error:
        code = int(error.code or 0)
    except BaseException:
        sys.settrace(None)
        traceback.print_exc()
    finally:
        sys.settrace(None)
        sys.stderr.write(f"\n{num_lines}")
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
