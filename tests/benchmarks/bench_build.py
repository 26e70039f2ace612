"""What a build costs, each figure beside its floor: decoding the same files with nothing around it.

    python tests/benchmarks/bench_build.py --data ../shared/data/overhead_home --scratch /tmp/bench

A build and its floor, `xargs -P2 ffmpeg -threads 1 -i X -map 0:v:0 -an -f null -`, run in turn; a ratio
is the median over the pairs. A second floor does what no build can do without: it also scales 64 frames
to RGB, with the scaler of the cache. Rendered videos are kept in the scratch folder.
"""

import argparse
import json
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from vidcache.cache.format import RECORD, clip_hash_of
from vidcache.cache.writer import CacheWriter
from vidcache.preprocess.build import make_plan
from vidcache.preprocess.options import BuildOptions
from vidcache.preprocess.split.assign import assign_splits
from vidcache.preprocess.split.config import SplitConfig
from vidcache.preprocess.video.decode import DecodeLimits, decode_video
from vidcache.preprocess.video.ffmpeg import SubprocessGroup, find_tools
from vidcache.preprocess.video.find import find_videos
from vidcache.spec import Spec

TOOLS = find_tools()
VIDCACHE = str(Path(sys.executable).with_name("vidcache"))
# The command, with what the operating system says of this process and of its children.
MEASURED = """
import json, re, resource, sys
from pathlib import Path
from vidcache.cli import main
def peak_kib():  # ru_maxrss would begin with that of the process that forked us
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
import vidcache.preprocess.cli
start_kib = peak_kib()
try:
    main(sys.argv[1:])
finally:
    own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    figures = {"own": own.ru_utime + own.ru_stime, "children": children.ru_utime + children.ru_stime,
               "start_kib": start_kib, "peak_kib": peak_kib()}
    print(json.dumps(figures), file=sys.stderr)
"""


def render(folder: Path, count: int, size: str, seconds: float, copies: int = 1) -> Path:
    """Render H.264 clips of moving detail, as a camera gives them, and copies of them."""
    folder = folder / f"{size}_{seconds:g}s_{count}_{copies}"
    if not (folder / "done").exists():
        for index in range(count):
            path = folder / "raw" / f"class_{index % 2}" / f"{index:03}.mp4"
            path.parent.mkdir(parents=True, exist_ok=True)
            source = f"testsrc2=s={size}:r=30:d={seconds},rotate=0.05*t+{index},noise=alls=12:allf=t+u"
            codec = ["-c:v", "libx264", "-preset", "medium", "-crf", "23", "-pix_fmt", "yuv420p"]
            command = [TOOLS.ffmpeg, "-v", "error", "-y", "-f", "lavfi", "-i", source, *codec, str(path)]
            subprocess.run(command, check=True)
            for copy in range(1, copies):
                shutil.copy(path, path.with_name(f"{index:03}_{copy}.mp4"))
        (folder / "done").touch()
    return folder / "raw"


def run_floor(raw: Path, workers: int, *, scaled: bool = False) -> float:
    """Seconds to decode every video with nothing around it."""
    files = "\0".join(str(path) for path in sorted(raw.glob("*/**/*")) if path.is_file())
    spec = Spec()
    chosen = f"select='lt(n,{spec.num_frames})',scale={spec.width}:{spec.height}:flags={spec.scaling}"
    end = f"-vf {shlex.quote(chosen)} -fps_mode passthrough -pix_fmt gbrp -f rawvideo -y /dev/null"
    command = f"xargs -0 -P{workers} -I X {shlex.quote(TOOLS.ffmpeg)} -v error -nostdin -threads 1 -i X -map 0:v:0 -an "
    command += end if scaled else "-f null -"
    start = time.perf_counter()
    subprocess.run(command, shell=True, input=files.encode(), check=False)
    return time.perf_counter() - start


def run_build(raw: Path, cache: Path, workers: int, *arguments: str) -> float:
    """Seconds from the start of the process to its end."""
    for path in cache.parent.glob(f"*{cache.stem}*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    command = [VIDCACHE, "build", str(raw), str(cache), "--workers", str(workers), "--max-failures", "100%", *arguments]
    start = time.perf_counter()
    subprocess.run(command, stderr=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start


def measure(raw: Path, cache: Path, workers: int, *arguments: str) -> dict[str, float]:
    """CPU seconds and memory of a build's own process and of its children."""
    cache.unlink(missing_ok=True)
    command = [sys.executable, "-c", MEASURED, "build", str(raw), str(cache), "--workers", str(workers), *arguments]
    ended = subprocess.run([*command, "--max-failures", "100%"], stderr=subprocess.PIPE, text=True, check=True)
    figures: dict[str, float] = json.loads(ended.stderr.splitlines()[-1])
    return figures


def bench_speed(name: str, raw: Path, scratch: Path, workers: int, pairs: int) -> None:
    """Print the speed of a build beside its floor."""
    num = sum(path.is_file() for path in raw.glob("*/**/*"))
    builds: list[float] = []
    floors: list[float] = []
    scaled: list[float] = []
    run_floor(raw, workers)  # the page cache
    for _ in range(pairs):
        floors.append(run_floor(raw, workers))
        scaled.append(run_floor(raw, workers, scaled=True))
        builds.append(run_build(raw, scratch / "bench.h5", workers))
    ratio = statistics.median(floor / build for floor, build in zip(floors, builds, strict=True))
    second = statistics.median(floor / build for floor, build in zip(scaled, builds, strict=True))
    cpu = measure(raw, scratch / "bench.h5", workers)
    floor, build = statistics.median(floors), statistics.median(builds)
    print(
        f"{name:24} {num:5} files  build {build:7.2f} s ({num / build:6.1f}/s)  floor {floor:7.2f} s  "
        f"speed {ratio:.2f} of the floor, {second:.2f} of one that scales too  python {100 * cpu['own'] / cpu['children']:.1f} % of the decoders' CPU  "
        f"memory {cpu['peak_kib'] / 1024:.0f} MiB ({(cpu['peak_kib'] - cpu['start_kib']) / 1024:+.0f})",
        flush=True,
    )


def bench_up_to_date(scratch: Path, num_files: int, runs: int) -> None:
    """Print what it costs to see that there is nothing to do."""
    raw, cache, spec = scratch / f"files_{num_files}", scratch / f"files_{num_files}.h5", Spec(2, 16, 16)
    if not raw.exists():
        for index in range(num_files):
            path = raw / f"class_{index % 100:02}" / f"part_{index // 1000:04}" / f"video_{index:07}.mp4"
            if index % 1000 < 100:
                path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"x" * (index % 50 + 1))
    if not cache.exists():
        rule = SplitConfig()
        plan = make_plan(find_videos(raw), BuildOptions(spec=spec), rule, TOOLS, [])
        with CacheWriter(cache, plan) as writer:
            record = np.zeros((), RECORD)
            record["clip_hash"] = clip_hash_of(np.zeros(spec.clip_shape, np.uint8)).encode()
            for row in range(plan.num_clips):
                writer.mark_done(row, record[()])
            good = np.ones(plan.num_clips, bool)
            split = assign_splits(plan.paths, plan.labels, good, rule.fractions, rule.seed)
            writer.finish(np.arange(plan.num_clips, dtype=np.int32), split)
    command = [VIDCACHE, "build", str(raw), str(cache), "--num-frames", "2", "--size", "16", "--max-failures", "100%"]
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        ended = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=True)
        times.append(time.perf_counter() - start)
        assert "up to date" in ended.stderr, ended.stderr
    start = time.perf_counter()
    listed = sum(1 for _ in _stat_all(raw))
    floor = time.perf_counter() - start
    seconds = statistics.median(times)
    figures = measure_up_to_date(command)
    print(
        f"up to date               {num_files} files  {seconds:.2f} s = {1000 * seconds / num_files:.3f} ms/file  "
        f"floor (os.walk, lstat of {listed}) {floor:.2f} s  memory {figures['peak_kib'] / 1024:.0f} MiB "
        f"({(figures['peak_kib'] - figures['start_kib']) / 1024:+.0f})",
        flush=True,
    )


def measure_up_to_date(command: list[str]) -> dict[str, float]:
    """Memory of the up-to-date check."""
    ended = subprocess.run(
        [sys.executable, "-c", MEASURED, *command[1:]], stderr=subprocess.PIPE, text=True, check=True
    )
    figures: dict[str, float] = json.loads(ended.stderr.splitlines()[-1])
    return figures


def _stat_all(folder: Path) -> Iterator[os.stat_result]:
    for parent, _, names in os.walk(folder):
        for name in names:
            yield os.lstat(f"{parent}/{name}")


def bench_long(scratch: Path, hours: float) -> None:
    """Print the memory that one very long video takes."""
    raw = scratch / f"long_{hours:g}h"
    video = raw / "class" / "long.mp4"
    if not video.exists():
        video.parent.mkdir(parents=True)
        source = f"color=gray:s=64x48:r=30:d={hours * 3600}"
        codec = ["-c:v", "libx264", "-preset", "ultrafast"]
        command = [TOOLS.ffmpeg, "-v", "error", "-f", "lavfi", "-i", source, *codec, str(video)]
        subprocess.run(command, check=True)
    start = time.perf_counter()
    figures = measure(raw, scratch / "long.h5", 1, "--allow-tiny-classes")
    print(
        f"one video of {hours:g} hours    build {time.perf_counter() - start:.1f} s  memory "
        f"{figures['peak_kib'] / 1024:.0f} MiB ({(figures['peak_kib'] - figures['start_kib']) / 1024:+.0f})",
        flush=True,
    )


def bench_keyed(scratch: Path, minutes: float, pairs: int) -> None:
    """Print what decoding by key frames saves: 1080p, a key frame every 2 s."""
    video = scratch / f"keyed_{minutes:g}min.mp4"
    if not video.exists():
        source = f"testsrc2=s=1920x1080:r=30:d={60 * minutes},noise=alls=8:allf=t"
        codec = [
            "-c:v",
            "libx264",
            "-preset",
            "veryfast",
            "-crf",
            "26",
            "-g",
            "60",
            "-keyint_min",
            "60",
            "-sc_threshold",
            "0",
        ]
        command = [TOOLS.ffmpeg, "-v", "error", "-y", "-f", "lavfi", "-i", source, *codec, "-pix_fmt", "yuv420p"]
        part = video.with_name("part.mp4")
        subprocess.run([*command, str(part)], check=True)
        part.rename(video)
    seconds: dict[bool, list[float]] = {True: [], False: []}
    clips = {}
    with SubprocessGroup() as children:
        for _ in range(pairs):
            for keyed, runs in seconds.items():
                start = time.perf_counter()
                decoded = decode_video(video, Spec(), [TOOLS], children, DecodeLimits(keyed=keyed))
                runs.append(time.perf_counter() - start)
                clips[keyed], skipped = decoded.clip, decoded.stats.num_skipped
                assert keyed == (skipped > 0)
    assert (clips[True] == clips[False]).all()
    ratio = statistics.median(whole / by_keys for whole, by_keys in zip(seconds[False], seconds[True], strict=True))
    print(
        f"{minutes:g} minutes of 1080p      as a whole {statistics.median(seconds[False]):.1f} s  by key frames "
        f"{statistics.median(seconds[True]):.1f} s  {ratio:.1f} times as fast, the same clip",
        flush=True,
    )


def make_parser(description: str, only: str) -> argparse.ArgumentParser:
    """Options that the benchmarks of builds share."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="RAW/<class>/<video> of real videos")
    parser.add_argument("--scratch", type=Path, default=Path("/tmp/vidcache-bench"))
    parser.add_argument("--pairs", type=int, default=5, help="Rounds in which all take their turn.")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", default=only)
    return parser


def corpora(arguments: argparse.Namespace, copies: int) -> Iterator[tuple[str, Path]]:
    """Yield the name and the folder of each kind of video that is asked for; the long ones are copied."""
    scratch, only = arguments.scratch, arguments.only.split(",")
    if "real" in only and arguments.data:
        yield "real", arguments.data
    for name, count, size, seconds, times in (
        ("720p", 8, "1280x720", 10, copies),
        ("1080p", 6, "1920x1080", 10, copies),
        ("tiny", 200, "160x120", 2, 1),
    ):
        if name in only:
            yield name, render(scratch, count, size, seconds, copies=times)


def main() -> None:
    """Run what is asked for."""
    parser = make_parser(__doc__ or "", "real,720p,1080p,tiny,current,keyed,long")
    parser.add_argument("--files", type=int, default=100_000)
    arguments = parser.parse_args()
    only, scratch = arguments.only.split(","), arguments.scratch
    scratch.mkdir(parents=True, exist_ok=True)
    for name, raw in corpora(arguments, copies=5):
        bench_speed(name, raw, scratch, arguments.workers, arguments.pairs)
    if "current" in only:
        bench_up_to_date(scratch, arguments.files, arguments.pairs)
    if "keyed" in only:
        bench_keyed(scratch, 10, arguments.pairs)
    if "long" in only:
        bench_long(scratch, 4)


if __name__ == "__main__":
    main()
