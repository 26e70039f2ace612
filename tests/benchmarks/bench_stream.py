"""How fast clips come from a cache, beside the floor and beside what users do today.

    python tests/benchmarks/bench_stream.py --data ../shared/data/overhead_home --scratch /tmp/bench

Everything reads the same clips in the same random order in batches of the same size, warm, in turn in each
round. The floor is a bare loop of `os.preadv` over the same offsets into the two buffers of the stream in turn
(huge pages: reading into a plain numpy buffer is slower than the stream). Peers come with the `bench` extra;
one that is not installed, or does not load, is left out and named. torchcodec needs FFmpeg's shared libraries.
"""

import argparse
import importlib
import os
import resource
import statistics
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from vidcache.cache.dataset import ClipDataset
from vidcache.cache.reader import CacheReader
from vidcache.cache.stream import epoch_order, stream_batches
from vidcache.spec import sample_indices

Contender = Callable[[], int]


def cpu_seconds() -> float:
    """Of this process and of all its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


class H5pyDataset(Dataset[tuple[torch.Tensor, int]]):
    """What a tutorial writes: `dataset[i]`, the file opened in the worker."""

    def __init__(self, path: Path, rows: np.ndarray[Any, Any]) -> None:
        self.path, self.rows = path, rows
        self.file: Any = None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        if self.file is None:
            self.file = h5py.File(self.path, "r")
        row = int(self.rows[index])
        return torch.from_numpy(self.file["clips"][row]), int(self.file["videos/label"][row])


def drain(loader: Any, batch_size: int) -> int:
    """Take all batches; return the number of clips."""
    return sum(min(len(batch[0]), batch_size) for batch in loader)


def contenders(cache: Path, raw: Path, scratch: Path, order: np.ndarray[Any, Any], size: int) -> dict[str, Contender]:
    """Everything that reads the clips of `order`."""
    reader = CacheReader(cache)
    spec, header = reader.spec, reader.header
    first, second = (np.empty((size, *spec.clip_shape), np.uint8) for _ in range(2))

    def bare(rows: np.ndarray[Any, Any], *buffers: np.ndarray[Any, Any]) -> int:
        targets = [memoryview(buffer).cast("B") for buffer in buffers]
        for index, row in enumerate(rows.tolist()):
            start = index % size * spec.clip_bytes
            os.preadv(
                reader.fileno(),
                [targets[index // size % len(targets)][start : start + spec.clip_bytes]],
                header.clips_offset + row * spec.clip_bytes,
            )
        return len(rows)

    def floor_of_two() -> int:
        with ThreadPoolExecutor(2) as pool:
            return sum(pool.map(bare, np.array_split(order, 2), (first, second)))

    def copies() -> int:
        second.fill(1)
        for start in range(0, len(order), size):
            for place in range(len(order[start : start + size])):
                first[place] = second[place]
        return len(order)

    def fancy() -> int:
        with h5py.File(cache, "r") as file:
            some = order[:16]
            file["clips"][np.sort(some)]
        return len(some)

    memory = np.memmap(cache, np.uint8, "r", header.clips_offset, (len(reader), *spec.clip_shape))

    def memmap() -> int:
        for start in range(0, len(order), size):
            rows = order[start : start + size]
            torch.stack([torch.from_numpy(np.array(memory[row])) for row in rows.tolist()])
        return len(order)

    def ours(threads: int) -> Contender:
        def run() -> int:
            stream = stream_batches(reader, order, size, num_threads=threads)
            return sum(len(batch.rows) for batch in stream)

        return run

    dataset = ClipDataset(cache)
    place_of = {row: place for place, row in enumerate(dataset.rows.tolist())}
    sampler = [place_of[row] for row in order.tolist()]
    found: dict[str, Contender] = {
        "floor: os.preadv": lambda: bare(order, first, second),
        "the same in 2 threads": floor_of_two,
        "one copy per clip": copies,
        "stream, 1 thread": ours(1),
        "stream, 2 threads": ours(2),
        "ClipDataset, 2 workers": lambda: drain(DataLoader(dataset, size, sampler=sampler, num_workers=2), size),
        "h5py dataset[i], 2 workers": lambda: drain(DataLoader(H5pyDataset(cache, order), size, num_workers=2), size),
        "h5py dataset[[i, ...]]": fancy,
        "memmap and collate": memmap,
    }
    for name, made in (("webdataset of .npy", webdataset_of), ("opencv", opencv_of), ("torchcodec", torchcodec_of)):
        try:
            found[name] = made(reader, raw, scratch, order, size)
        except Exception as error:
            print(f"{name} left out: {str(error).strip().splitlines()[0][:100]}")
    return found


def webdataset_of(reader: CacheReader, raw: Path, scratch: Path, order: np.ndarray[Any, Any], size: int) -> Contender:
    """Shards of .npy, read in shard order: it cannot do better than sequential."""
    webdataset = importlib.import_module("webdataset")
    shards = []
    for index, rows in enumerate(np.array_split(order, 4)):
        shards.append(str(scratch / f"shard_{index}.tar"))
        with tarfile.open(shards[-1], "w") as tar:
            for row in rows.tolist():
                data = BytesIO()
                np.save(data, reader.read([row])[0])
                for suffix, content in (("npy", data.getvalue()), ("cls", str(reader.labels[row]).encode())):
                    member = tarfile.TarInfo(f"{row:06}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, BytesIO(content))

    def run() -> int:
        pipeline = webdataset.WebDataset(shards, shardshuffle=False).decode().to_tuple("npy", "cls")
        return drain(DataLoader(pipeline.batched(size), batch_size=None, num_workers=2), size)

    return run


class Decoding(Dataset[tuple[torch.Tensor, int]]):
    """Decodes when asked, as a project without a cache does."""

    def __init__(self, decode: Callable[[str], np.ndarray[Any, Any]], paths: list[str]) -> None:
        self.decode, self.paths = decode, paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.from_numpy(self.decode(self.paths[index])), 0


def decode_by_opencv(path: str) -> np.ndarray[Any, Any]:
    """Read all frames, resize the sampled ones."""
    import cv2

    cv2.setNumThreads(1)
    video, frames = cv2.VideoCapture(path), []
    while True:
        good, frame = video.read()
        if not good:
            break
        frames.append(frame)
    chosen = [frames[index] for index in sample_indices(len(frames), 64).tolist()]
    return np.stack([cv2.cvtColor(cv2.resize(frame, (112, 112)), cv2.COLOR_BGR2RGB) for frame in chosen])


def decode_by_torchcodec(path: str) -> np.ndarray[Any, Any]:
    """Decode the sampled frames, resize them."""
    from torchcodec.decoders import VideoDecoder

    decoder = VideoDecoder(path, num_ffmpeg_threads=1)
    frames = decoder.get_frames_at(sample_indices(len(decoder), 64).tolist()).data
    resized = torch.nn.functional.interpolate(frames.float(), (112, 112), mode="bilinear", antialias=True)
    return np.asarray(resized.round().to(torch.uint8).permute(0, 2, 3, 1).numpy())


def decoding(
    decode: Callable[[str], Any], reader: CacheReader, raw: Path, order: np.ndarray[Any, Any], size: int
) -> Contender:
    """A DataLoader that decodes; a part of the clips is enough."""
    paths = [os.fsdecode(os.fsencode(raw) + b"/" + reader.path_of(row)) for row in order[:64].tolist()]
    decode(paths[0])
    return lambda: drain(DataLoader(Decoding(decode, paths), size, num_workers=2), size)


def opencv_of(reader: CacheReader, raw: Path, scratch: Path, order: np.ndarray[Any, Any], size: int) -> Contender:
    """OpenCV, on the fly."""
    return decoding(decode_by_opencv, reader, raw, order, size)


def torchcodec_of(reader: CacheReader, raw: Path, scratch: Path, order: np.ndarray[Any, Any], size: int) -> Contender:
    """torchcodec, on the fly."""
    return decoding(decode_by_torchcodec, reader, raw, order, size)


MEMORY = """
import re, sys
from pathlib import Path
import torch
from vidcache.cache.reader import CacheReader
from vidcache.cache.stream import stream_batches
def peak_mib(): return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024
with CacheReader(sys.argv[1]) as reader:
    rows, bare, peaks = reader.rows(), peak_mib(), []
    for epoch in range(50):
        for batch in stream_batches(reader, rows[:64], 16):
            pass
        peaks.append(peak_mib() - bare)
print(f"memory of the stream: {peaks[0]:.0f} MiB after 1 epoch, {peaks[-1]:.0f} after 50; "
      f"two batches are {2 * 16 * reader.spec.clip_bytes / 2**20:.0f}")
"""


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="RAW/<class>/<video> of real videos")
    parser.add_argument("--cache", type=Path, required=True, help="what vidcache build makes of them")
    parser.add_argument("--scratch", type=Path, default=Path("/tmp/vidcache-bench"))
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    arguments.scratch.mkdir(parents=True, exist_ok=True)
    with CacheReader(arguments.cache) as reader:
        order = epoch_order(reader.rows(), 0, 1)
    runs: dict[str, list[tuple[float, float]]] = {}
    for round_ in range(arguments.rounds + 1):
        if not round_:
            found = contenders(arguments.cache, arguments.data, arguments.scratch, order, arguments.batch_size)
        for name, run in found.items():
            cpu, start = cpu_seconds(), time.perf_counter()
            num_clips = run()
            figures = (num_clips / (time.perf_counter() - start), 1000 * (cpu_seconds() - cpu) / num_clips)
            if round_:  # the first one warms up
                runs.setdefault(name, []).append(figures)
    floors = [speed for speed, _ in runs["floor: os.preadv"]]
    copies = [cpu for _, cpu in runs["one copy per clip"]]
    print(f"{len(order)} clips of 64 x 112 x 112, batches of {arguments.batch_size}, torch {torch.__version__}")
    for name, figures_of in runs.items():
        speed, cpu = (statistics.median(values) for values in zip(*figures_of, strict=True))
        ratio = statistics.median(one / floor for (one, _), floor in zip(figures_of, floors, strict=True))
        work = statistics.median(one / copy for (_, one), copy in zip(figures_of, copies, strict=True))
        print(
            f"{name:28} {speed:8.0f} clips/s  {cpu:7.2f} ms CPU/clip  {ratio:6.3f} of the floor's speed  "
            f"{work:6.1f} times the CPU of a copy"
        )
    subprocess.run([sys.executable, "-c", MEMORY, str(arguments.cache)], check=True)


if __name__ == "__main__":
    main()
