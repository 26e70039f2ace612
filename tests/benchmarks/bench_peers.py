"""A build beside what a user would write with another library: the same frames, scaled to the same size, in two processes.

    python tests/benchmarks/bench_peers.py --data ../shared/data/overhead_home --scratch /tmp/bench

Each loop is as the documentation of its library has it, and saves one .npy file for each video; the build also
hashes, checks, looks for near-duplicates, splits, and survives a crash. Wall and CPU seconds are of whole processes,
imports included, medians of rounds in which all take their turn, beside both floors of `bench_build.py`. Libraries
that are not installed are left out. torchcodec needs the shared libraries of an ffmpeg.
"""

import argparse
import importlib.util
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing import Pool
from pathlib import Path
from typing import Any

import numpy as np

from tests.benchmarks.bench_build import corpora, make_parser, run_build, run_floor
from vidcache.spec import Spec, sample_indices

Clip = np.ndarray[Any, Any]
SPEC = Spec()


def with_pyav(path: str) -> Clip:
    """Decode with PyAV."""
    import av

    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        wanted, frames = set(sample_indices(stream.frames, SPEC.num_frames).tolist()), []
        for index, frame in enumerate(container.decode(stream)):
            if index in wanted:
                frames.append(frame.to_ndarray(format="rgb24", width=SPEC.width, height=SPEC.height))
    return np.stack(frames)


def with_opencv(path: str) -> Clip:
    """Decode with OpenCV."""
    import cv2

    cv2.setNumThreads(1)
    video, frames = cv2.VideoCapture(path, cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1]), []
    num_frames = int(video.get(cv2.CAP_PROP_FRAME_COUNT))
    wanted = set(sample_indices(num_frames, SPEC.num_frames).tolist())
    for index in range(num_frames):
        if not video.grab():
            break
        if index in wanted:
            frame = cv2.resize(video.retrieve()[1], (SPEC.width, SPEC.height))
            frames.append(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))
    return np.stack(frames)


def with_decord2(path: str) -> Clip:
    """Decode with decord2."""
    import decord

    video = decord.VideoReader(path, width=SPEC.width, height=SPEC.height, num_threads=1)
    clip: Clip = video.get_batch(np.unique(sample_indices(len(video), SPEC.num_frames))).asnumpy()
    return clip


def with_torchcodec(path: str) -> Clip:
    """Decode with torchcodec."""
    import torch
    from torchcodec.decoders import VideoDecoder
    from torchcodec.transforms import Resize

    torch.set_num_threads(1)
    decoder = VideoDecoder(
        path, num_ffmpeg_threads=1, dimension_order="NHWC", transforms=[Resize((SPEC.height, SPEC.width))]
    )
    wanted = np.unique(sample_indices(decoder.metadata.num_frames, SPEC.num_frames))
    clip: Clip = decoder.get_frames_at(wanted.tolist()).data.numpy()
    return clip


PEERS: dict[str, Callable[[str], Clip]] = {
    "av": with_pyav,
    "cv2": with_opencv,
    "decord": with_decord2,
    "torchcodec": with_torchcodec,
}


def _save(job: tuple[str, str, str]) -> None:
    peer, path, output = job
    np.save(output, PEERS[peer](path))


def run_peer(peer: str, raw: Path, output: Path, workers: int) -> float:
    """Seconds of a process that decodes all videos in a pool of processes."""
    output.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "tests.benchmarks.bench_peers", "--peer", peer, "--workers", str(workers)]
    start = time.perf_counter()
    subprocess.run([*command, "--data", str(raw), "--scratch", str(output)], check=True, stderr=subprocess.DEVNULL)
    return time.perf_counter() - start


def bench(name: str, raw: Path, scratch: Path, workers: int, rounds: int) -> None:
    """Print wall and CPU seconds of every way, the fastest wall first."""
    cache, output = scratch / "peers.h5", scratch / "peers"
    ways: dict[str, Callable[[], float]] = {
        "decoding": lambda: run_floor(raw, workers),
        "decoding and scaling": lambda: run_floor(raw, workers, scaled=True),
        "vidcache build": lambda: run_build(raw, cache, workers),
    }
    for peer in PEERS:
        if importlib.util.find_spec(peer):
            ways[peer] = lambda peer=peer: run_peer(peer, raw, output, workers)  # type: ignore[misc]
    walls: dict[str, list[float]] = {way: [] for way in ways}
    cpus: dict[str, list[float]] = {way: [] for way in ways}
    run_floor(raw, workers)  # the page cache
    for _ in range(rounds):
        for way, run in ways.items():
            before = _cpu_of_children()
            try:
                walls[way].append(run())
            except subprocess.CalledProcessError:
                print(f"{name}: {way} failed", file=sys.stderr)
                continue
            cpus[way].append(_cpu_of_children() - before)
    num = sum(path.is_file() for path in raw.glob("*/**/*"))
    for way in sorted((way for way in ways if walls[way]), key=lambda way: statistics.median(walls[way])):
        wall, cpu = statistics.median(walls[way]), statistics.median(cpus[way])
        print(f"{name:8} {num:4} files  {way:22} wall {wall:7.2f} s  CPU {cpu:7.2f} s", flush=True)


def _cpu_of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    """Run what is asked for."""
    parser = make_parser(__doc__ or "", "real,720p,1080p,tiny")
    parser.add_argument("--peer", choices=PEERS, help=argparse.SUPPRESS)  # one loop, as `run_peer` starts it
    arguments = parser.parse_args()
    scratch = arguments.scratch
    scratch.mkdir(parents=True, exist_ok=True)
    if arguments.peer:
        paths = sorted(str(path) for path in arguments.data.glob("*/**/*") if path.is_file())
        jobs = [(arguments.peer, path, os.fspath(scratch / f"{index}.npy")) for index, path in enumerate(paths)]
        with Pool(arguments.workers) as pool:
            for _ in pool.imap_unordered(_save, jobs):
                pass
        return
    for name, raw in corpora(arguments, copies=2):
        bench(name, raw, scratch, arguments.workers, arguments.pairs)


if __name__ == "__main__":
    main()
