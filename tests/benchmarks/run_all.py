"""Run every benchmark and write what they print, with the machine and the versions, to RESULTS.md beside this file.

    python tests/benchmarks/run_all.py --data ../shared/data/overhead_home --scratch /tmp/vidcache-bench

A part that is not asked for (`--only`) keeps what an earlier run wrote, with its date. A part that fails keeps it too,
and is the exit code. Nothing else should run on the machine: a figure is a ratio of two things measured in turn, but
caches and cores are shared.
"""

import argparse
import dataclasses
import datetime
import importlib.metadata
import os
import platform
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

from vidcache.preprocess.video.ffmpeg import find_tools

RESULTS = Path(__file__).with_name("RESULTS.md")
PACKAGES = "vidcache torch torchvision numpy h5py opencv-python-headless torchcodec webdataset kornia".split()


@dataclasses.dataclass(frozen=True)
class Part:
    """One benchmark.

    Attributes:
        name: For `--only`.
        question: What it answers, and what its floor is.
        asked: The figures that were asked for, or ""; so that a miss can be seen.
        arguments: Of python; DATA and SCRATCH stand for the folders, CACHE for what `vidcache build` makes of DATA.
    """

    name: str
    question: str
    asked: str
    arguments: str


PARTS = (
    Part(
        "build",
        "A build beside its floor (decoding the same files and throwing them away) and a second one (that also scales).",
        "0.92 of the first floor for 720p and 1080p, 0.75 for 320x240 and tiny clips; Python at most 5 % of the decoders' "
        "CPU; 0.2 ms for each of 100,000 unchanged files; a long video by key frames 3 times as fast.",
        "tests/benchmarks/bench_build.py --data DATA --scratch SCRATCH",
    ),
    Part(
        "stream",
        "Clips from a cache beside a bare preadv loop over the same offsets (the floor) and beside other ways to feed a "
        "training loop, each used as its documentation says.",
        "0.95 of the floor; two threads 1.5 times one; at most 1.15 times the CPU of one copy; memory of two batches.",
        "tests/benchmarks/bench_stream.py --data DATA --cache CACHE --scratch SCRATCH",
    ),
    Part(
        "augment",
        "Flip, four jitters and normalisation of a clip beside torchvision v2 clip by clip, and kornia.",
        "linear 20 times as fast as torchvision, exact 2 times.",
        "tests/benchmarks/bench_augment.py --cache CACHE",
    ),
    Part(
        "train",
        "The loop of vidtrain beside bare steps on a resident batch (the floor: 1.00), and a step in every way beside "
        "the plain one.",
        "The loop at 0.99 or more with 16 and with 64 frames.",
        "tests/benchmarks/bench_train.py --cache CACHE --scratch SCRATCH",
    ),
    Part(
        "learned",
        "The same with the weights of `make demo`: gradients of weights that have learned nothing are so sensitive that "
        "bf16 cannot be judged by them.",
        "",
        "tests/benchmarks/bench_train.py --cache CACHE --scratch SCRATCH --init demo/best.pt",
    ),
    Part(
        "near",
        "The leak guard: which copies it finds, what it pairs by mistake, how it scales.",
        "Recall of 0.95 at no more than 1 % of false pairs.",
        "-m tests.benchmarks.bench_near --data DATA --scratch SCRATCH",
    ),
    Part(
        "split",
        "What a split by video claims, and one by recording.",
        "",
        "-m tests.benchmarks.bench_split --data DATA --scratch SCRATCH",
    ),
    Part(
        "predict",
        "vidpredict beside build and videval of the same files; the floor is the build alone.",
        "At least as fast as both.",
        "tests/benchmarks/bench_predict.py --data DATA --scratch SCRATCH --size 56",
    ),
)


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="RAW/<class>/<video> of real videos")
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--only", default="", help="Parts, with commas; default: all.")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    chosen = set(arguments.only.split(",")) if arguments.only else {part.name for part in PARTS}
    if unknown := chosen - {part.name for part in PARTS}:
        parser.error(f"--only: no part {', '.join(sorted(unknown))}")
    arguments.scratch.mkdir(parents=True, exist_ok=True)
    sections, failed = read_sections(arguments.out), []
    cache = arguments.scratch / "data.h5"
    places = {"DATA": arguments.data, "SCRATCH": arguments.scratch, "CACHE": cache}
    build = [Path(sys.executable).with_name("vidcache"), "build", arguments.data, cache, "--workers", "2"]
    for part in PARTS:
        if part.name not in chosen:
            continue
        if "CACHE" in part.arguments and subprocess.run(build, check=False).returncode:
            failed.append(part.name)
            continue
        words = re.sub("DATA|SCRATCH|CACHE", lambda place: str(places[place[0]]), part.arguments)
        print(f"\n== {part.name}: {part.question}", flush=True)
        started, said = time.perf_counter(), []
        with subprocess.Popen([sys.executable, *shlex.split(words)], stdout=subprocess.PIPE, text=True) as process:
            for line in process.stdout or ():
                print(line, end="", flush=True)
                said.append(line)
        if process.returncode:
            failed.append(part.name)
            continue
        sections[part.name] = describe(part, "".join(said), time.perf_counter() - started)
        arguments.out.write_text(document(sections))
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def read_sections(path: Path) -> dict[str, str]:
    """Return what an earlier run wrote, part by part."""
    text = path.read_text() if path.exists() else ""
    return dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", text, re.M | re.S))


def describe(part: Part, said: str, seconds: float) -> str:
    """Write a section."""
    asked = f"\nAsked for: {part.asked}\n" if part.asked else ""
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    return (
        f"\n{part.question}\n{asked}\n    python {part.arguments}\n\n{today}, {machine()}, {versions()}; {seconds:.0f} s"
        f"\n\n```\n{said.strip()}\n```\n\n"
    )


def document(sections: dict[str, str]) -> str:
    """Put the sections together, in their order."""
    parts = [f"## {part.name}\n{sections[part.name]}" for part in PARTS if part.name in sections]
    return (
        "# Measured\n\nWritten by `make bench`; what it printed, row by row, lost ones too. DATA is a folder of real videos "
        "(277 clips of 320x240, 7 classes), CACHE what `vidcache build` makes of it, SCRATCH a folder for caches and rendered "
        "videos.\n\n" + "".join(parts)
    ).rstrip() + "\n"


def machine() -> str:
    """Name the processor and what there is of it."""
    try:
        model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
        name = model[1] if model else platform.processor()
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    except (OSError, ValueError):
        return platform.platform()
    return f"{os.cpu_count()} cores of {name}, {memory:.0f} GiB, {platform.system()} {platform.release()}"


def versions() -> str:
    """Name what is installed; a peer that is not is left out."""
    found = [f"Python {platform.python_version()}"]
    for package in PACKAGES:
        try:
            found.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return ", ".join([*found, f"ffmpeg {find_tools().version}"])


if __name__ == "__main__":
    main()
