"""Broken videos by the hundred: a build ends, leaves nothing behind, and no clip is other than what ffmpeg gives.

`make torture N=1000` sets VIDCACHE_TORTURE: so many mutated videos instead of the few of every run.
"""

import os
import random
import shutil
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tests.helpers import SHARED, run_ffmpeg
from tests.videos import probe
from vidcache.cache.format import Status
from vidcache.cache.reader import CacheReader
from vidcache.preprocess.build import build_cache
from vidcache.preprocess.options import BuildOptions
from vidcache.preprocess.video.decode import DecodeLimits
from vidcache.preprocess.video.ffmpeg import find_all_tools
from vidcache.spec import Spec, sample_indices

N = int(os.environ.get("VIDCACHE_TORTURE", "0")) or 480
ROUND = 240
SPEC = Spec(8, 24, 32)
LIMITS = DecodeLimits(timeout_seconds=60, max_pixels=1 << 22)
SEEDS = {
    "h264.mp4": ("-c:v", "libx264", "-bf", "2", "-g", "9"),
    "fragments.mp4": ("-c:v", "libx264", "-preset", "ultrafast", "-movflags", "frag_keyframe+empty_moov", "-g", "7"),
    "hevc.mkv": ("-c:v", "libx265", "-x265-params", "log-level=none"),
    "mpeg4.avi": ("-c:v", "mpeg4", "-bf", "2"),
    "mpeg2.ts": ("-c:v", "mpeg2video", "-bf", "2"),
    "mpeg1.mpg": ("-c:v", "mpeg1video"),
    "vp8.webm": ("-c:v", "libvpx"),
    "vp9.webm": ("-c:v", "libvpx-vp9"),
    "mjpeg.mov": ("-c:v", "mjpeg", "-pix_fmt", "yuvj420p"),
    "flv1.flv": ("-c:v", "flv1"),
    "wmv2.wmv": ("-c:v", "wmv2"),
    "anim.gif": (),
    "ffv1.nut": ("-c:v", "ffv1"),
}


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Good videos of many kinds, and the small ones of the odd files."""
    folder = tmp_path_factory.mktemp("seeds")
    for name, codec in SEEDS.items():
        run_ffmpeg("-f", "lavfi", "-i", "testsrc2=s=64x48:r=25", "-frames:v", "20", *codec, str(folder / name))
    odd = [path for path in sorted((SHARED / "odd").glob("*")) if path.suffix != ".tsv" and path.stat().st_size < 1e5]
    return {path.name: path.read_bytes() for path in [*sorted(folder.iterdir()), *odd]}


def mutated(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """One to eight accidents: flipped bits, wild numbers, lost, zeroed, doubled, foreign or missing parts."""
    broken = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 8))):
        if not broken:
            return bytes(broken)
        # Half of them near the start, where headers are.
        end = len(broken) if rng.random() < 0.5 else min(len(broken), 2048)
        at, length = rng.randrange(end), int(2 ** rng.uniform(0, 10))
        match rng.randrange(8):
            case 0:
                broken[at] ^= 1 << rng.randrange(8)
            case 1:
                broken[at : at + length] = rng.randbytes(length)
            case 2:
                broken[at : at + 4] = rng.choice(
                    (b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff", b"\x80\0\0\0", b"\0\0\0\1")
                )
            case 3:
                del broken[at : at + length]
            case 4:
                broken[at : at + length] = bytes(length)
            case 5:
                broken[at:at] = broken[at : at + length]
            case 6:
                start = rng.randrange(max(len(other), 1))
                broken[at : at + length] = other[start : start + length]
            case 7:
                del broken[rng.randrange(len(broken)) :]
    return bytes(broken)


def independent_frames(path: Path, stream: int, ffmpeg: str, run: int = 0) -> np.ndarray:
    """All frames of a video by a plain command, without our choice of frames."""
    scale = f"scale={SPEC.width}:{SPEC.height}:flags={SPEC.scaling}"
    safe = f"-v quiet -flags +bitexact -threads 1 -max_pixels {LIMITS.max_pixels} -reinit_filter 0".split()
    command = [ffmpeg, *safe, "-i", str(path), "-map", f"0:{stream}", "-vf", scale, "-fps_mode", "passthrough"]
    command += ["-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    garbage = {"MALLOC_PERTURB_": str(run)}  # what glibc fills new memory with
    ended = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, timeout=120, env=garbage)
    frame_bytes = SPEC.height * SPEC.width * 3
    whole = len(ended.stdout) // frame_bytes * frame_bytes
    return np.frombuffer(ended.stdout[:whole], np.uint8).reshape(-1, SPEC.height, SPEC.width, 3)


def children_of_this_process() -> set[str]:
    """Process ids, zombies included."""
    return {pid for file in Path("/proc/self/task").glob("*/children") for pid in file.read_text().split()}


def complaints(folder: Path, seeds: dict[str, bytes], first: int, count: int, outcomes: Counter[str]) -> list[str]:
    """Build a cache of mutated videos and compare each clip with an independent decode."""
    raw = folder / "raw" / "a"
    raw.mkdir(parents=True)
    names = sorted(seeds)
    for number in range(first, first + count):
        rng = random.Random(number)
        name = names[number % len(names)]
        (raw / f"{number:06}_{name}").write_bytes(mutated(seeds[name], seeds[rng.choice(names)], rng))
    open_files, children = os.listdir("/proc/self/fd"), children_of_this_process()
    options = BuildOptions(spec=SPEC, workers=2, limits=LIMITS)

    build_cache(folder / "raw", folder / "c.h5", options)

    assert len(open_files) == len(os.listdir("/proc/self/fd"))
    assert children == children_of_this_process()

    def check(row: int) -> str:
        path = folder / "raw" / os.fsdecode(paths[row])
        stream = probe(path).stream_index
        is_for_second = columns["codec"][row] in (b"av1", b"apng")
        ffmpeg = find_all_tools()[int(is_for_second)].ffmpeg
        expected = independent_frames(path, stream, ffmpeg)
        if len(expected) != columns["num_frames"][row]:
            return f"{path}: {columns['num_frames'][row]} frames in the ledger, {len(expected)} in fact"
        indices = sample_indices(len(expected), SPEC.num_frames)
        if (expected[indices] == clips[row]).all():
            return ""
        # What a broken packet leaves unwritten shows what was in its buffer before, and FFmpeg's own
        # threads race for buffers: it gives other pixels every time, or once in many times.
        again = (independent_frames(path, stream, ffmpeg, run) for run in range(64))
        varies = any(frames.tobytes() != expected.tobytes() for frames in again)
        return "" if status[row] == Status.DAMAGED and varies else f"{path}: other pixels"

    with CacheReader(folder / "c.h5") as reader, ThreadPoolExecutor(2) as pool:
        columns, paths = reader.columns, [reader.path_of(row) for row in range(len(reader))]
        status = columns["status"]
        good = np.flatnonzero(status != Status.FAILED)
        clips = dict(zip(good.tolist(), reader.read(good), strict=True))
        outcomes.update(Status(value).name for value in status.tolist())
        outcomes.update(error.split(b":")[0].decode() for error in columns["error"][status == Status.FAILED].tolist())
        found = [line for line in pool.map(check, good.tolist()) if line]
        assert (columns["num_real"][good] == np.minimum(columns["num_frames"][good], SPEC.num_frames)).all()
    if not found:
        shutil.rmtree(folder)
    return found


@pytest.mark.slow
def test_no_broken_video_breaks_a_build(tmp_path: Path, seeds: dict[str, bytes]) -> None:
    outcomes: Counter[str] = Counter()
    found: list[str] = []
    for first in range(0, N, ROUND):
        found += complaints(tmp_path / str(first), seeds, first, min(ROUND, N - first), outcomes)

    sys.stdout.write(f"\n{N} mutated videos: {dict(outcomes.most_common())}, {len(found)} complaints\n")
    assert not found
    # The mutations are neither harmless nor all deadly.
    assert min(outcomes["OK"], outcomes["DAMAGED"], outcomes["FAILED"]) > N // 20
