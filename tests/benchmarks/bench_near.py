"""The leak guard: which copies of real and rendered clips it finds, what it pairs by mistake, how it scales.

    python -m tests.benchmarks.bench_near --data ../shared/data/overhead_home --scratch /tmp/vidcache-bench

Every video is rendered again by ffmpeg in each way; a pair is false when its clips come from different recordings
(the first two parts of the file name), since two clips of one recording can truly show the same.
"""

import argparse
import multiprocessing
import resource
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tests.helpers import TOOLS, run_ffmpeg
from vidcache.cache.reader import CacheReader
from vidcache.near_duplicates import NEAR, find_near_pairs
from vidcache.preprocess.build import build_cache
from vidcache.preprocess.demo import render_demo
from vidcache.preprocess.options import BuildOptions


def framed(height: float, width: float, colour: str) -> tuple[str, ...]:
    """Lay the picture into a frame of which it fills these parts."""
    return ("-vf", f"pad=ceil(iw/{width}/2)*2:ceil(ih/{height}/2)*2:-1:-1:{colour}")


def boxes(*places: tuple[float, float, float, float], colour: str = "white", text: bool = False) -> tuple[str, ...]:
    """Draw over the picture: left, top, width, height; with text that changes twice a second."""
    drawn = [(place, colour, "1") for place in places]
    if text:
        ((left, top, width, height),) = places
        letters = [((left + width * i / 10, top + height / 4, width / 20, height / 2), i) for i in range(1, 9)]
        drawn += [(place, "white", f"lt(mod(t*{1 + i % 3}\\,2)\\,1)") for place, i in letters]
    parts = (f"drawbox=iw*{x}:ih*{y}:iw*{w}:ih*{h}:{c}:fill:enable={when}" for (x, y, w, h), c, when in drawn)
    return ("-vf", ",".join(parts))


COPIES: dict[str, tuple[str, ...]] = {
    "re-encoded, crf 38": ("-crf", "38"),
    "half the size": ("-vf", "scale=iw/2:-2", "-crf", "28"),
    "brighter, more contrast": ("-vf", "eq=brightness=0.12:contrast=1.15"),
    "darker, less contrast": ("-vf", "eq=brightness=-0.12:contrast=0.85"),
    "5 % cut off each side": ("-vf", "crop=iw*0.9:ih*0.9"),
    "5 % cut off right and below": ("-vf", "crop=iw*0.95:ih*0.95:0:0"),
    "mirrored": ("-vf", "hflip"),
    "0.4 s later": ("-ss", "0.4"),
    "mirrored, cropped, 0.3 s later, brighter": ("-ss", "0.3", "-vf", "hflip,crop=iw*0.94:ih*0.94,eq=brightness=0.08"),
    "black border, 5 %": framed(0.9, 0.9, "black"),
    "white border, 10 %": framed(0.8, 0.8, "white"),
    "blue border, 10 %": framed(0.8, 0.8, "0x2040c0"),
    "black pillarbox, 12 %": framed(1, 0.75, "black"),
    "black pillarbox, 34 %": framed(1, 0.32, "black"),
    "white letterbox, 12 %": framed(0.75, 1, "white"),
    "time stamp in a box, above": boxes((0, 0, 0.45, 0.08), colour="black", text=True),
    "time stamp in a box, below": boxes((0.55, 0.92, 0.45, 0.08), colour="black", text=True),
    "subtitle box, lower 15 %": boxes((0, 0.85, 1, 0.15), colour="black", text=True),
    "subtitle box, 70 % wide, lower 20 %": boxes((0.15, 0.8, 0.7, 0.15), colour="black", text=True),
    "logo, 1 %, upper right": boxes((0.86, 0.04, 0.1, 0.1)),
    "logo, 1 %, lower left": boxes((0.04, 0.86, 0.1, 0.1)),
    "logo, 1 %, right, half way up": boxes((0.86, 0.45, 0.1, 0.1)),
    "logo, 1 %, in the middle": boxes((0.45, 0.45, 0.1, 0.1)),
    "two logos, above and below": boxes((0.86, 0.04, 0.1, 0.1), (0.04, 0.86, 0.1, 0.1)),
}


def hashes_of(raw: Path, cache: Path) -> tuple[npt.NDArray[np.uint8], list[str]]:
    """Build a cache; hashes and paths without ending of its clips."""
    build_cache(raw, cache, BuildOptions(workers=2, overwrite=True, allow_tiny_classes=True))
    with CacheReader(cache) as reader:
        rows = reader.rows()
        return reader.columns["perceptual_hash"][rows], [
            str(Path(reader.path_of(r).decode()).with_suffix("")) for r in rows
        ]


def recall(name: str, raw: Path, scratch: Path) -> None:
    """Print which copies of the videos below `raw` are found."""
    originals, paths = hashes_of(raw, scratch / "original.h5")
    pairs = find_near_pairs(originals).rows
    recordings = np.array(["_".join(Path(path).name.split("_")[:2]) for path in paths])
    total = int((recordings[:, None] != recordings).sum()) // 2

    def false(pairs: npt.NDArray[np.int64]) -> str:
        other = int((recordings[pairs[:, 0]] != recordings[pairs[:, 1]]).sum())
        return f"{other / max(total, 1):.3%}"

    print(f"\n{name}: {len(paths)} clips; {len(pairs)} pairs of one recording or look-alikes,")
    print(f"  {false(pairs)} of the pairs from different recordings")
    for copy, arguments in COPIES.items():
        folder = scratch / "copies"
        shutil.rmtree(folder, ignore_errors=True)
        videos = [path for path in sorted(raw.glob("*/*")) if path.is_file()]

        def render(video: Path, arguments: tuple[str, ...] = arguments, folder: Path = folder) -> None:
            target = folder / video.parent.name / f"{video.stem}.mp4"
            target.parent.mkdir(parents=True, exist_ok=True)
            run_ffmpeg("-i", str(video), *arguments, "-an", "-c:v", "libx264", "-preset", "ultrafast", str(target))

        with ThreadPoolExecutor(2) as pool:
            list(pool.map(render, videos))
        hashes, names = hashes_of(folder, scratch / "copy.h5")
        place = {path: row for row, path in enumerate(names)}
        both = find_near_pairs(np.concatenate([originals, hashes])).rows
        found = {tuple(pair) for pair in both.tolist()}
        hits = [(row, len(paths) + place[path]) in found for row, path in enumerate(paths)]
        contrast = originals.std(axis=(1, 2, 3))
        bright = [hit for hit, std in zip(hits, contrast, strict=True) if std >= 10]
        alike = false(find_near_pairs(hashes).rows)
        print(
            f"  {copy:42} {np.mean(hits):.3f} found; {np.mean(bright):.3f} of the {len(bright)} that are not in the "
            f"dark; among these copies false {alike}",
            flush=True,
        )


def scale(real: npt.NDArray[np.uint8], count: int, dense: bool) -> None:
    """Print time and memory for so many clips, 1 % of them near-copies."""
    rng = np.random.default_rng(0)
    if dense:  # all in one room: real clips, each with some other patch of its picture replaced
        hashes = real[rng.integers(len(real), size=count)]
        for row in range(count):
            top, left = rng.integers(0, 9, 2)
            hashes[row, :, top : top + 4, left : left + 4] = rng.integers(0, 256, (4, 4))
    else:  # smooth pictures that have nothing to do with each other, and drift
        hashes = np.empty((count, 16, 12, 12), np.uint8)
        grid = np.linspace(0, 3, 12)
        inside, part = np.minimum(grid.astype(int), 2), grid - np.minimum(grid.astype(int), 2)
        mix = np.zeros((12, 4))
        mix[np.arange(12), inside], mix[np.arange(12), inside + 1] = 1 - part, part
        for row in range(count):
            ends = rng.normal(128, 45, (2, 4, 4))
            path = np.linspace(0, 0.5, 16)[:, None, None]
            hashes[row] = np.clip(mix @ (ends[0] * (1 - path) + ends[1] * path) @ mix.T, 0, 255)
    copies = rng.permutation(count)[: count // 50]
    half = len(copies) // 2
    noisy = hashes[copies[:half]].astype(int) + rng.integers(-2, 3, (half, 16, 12, 12))
    hashes[copies[half : 2 * half]] = noisy.clip(0, 255)[..., ::-1]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    pairs = find_near_pairs(hashes)
    seconds = time.perf_counter() - start
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    found = {tuple(pair) for pair in pairs.rows.tolist()}
    wanted = [
        tuple(sorted(pair)) for pair in zip(copies[:half].tolist(), copies[half : 2 * half].tolist(), strict=True)
    ]
    hits = sum(pair in found for pair in wanted)
    kind = "one room" if dense else "different"
    print(
        f"  {count:7,} clips, {kind:9}: {seconds:6.1f} s, +{grown:5.0f} MiB; {hits} of {half} copies, {len(pairs.rows)} pairs",
        flush=True,
    )


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--counts", type=int, nargs="*", default=[1_000, 10_000, 100_000])
    arguments = parser.parse_args()
    scratch = arguments.scratch / "near"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    real, _ = hashes_of(arguments.data, scratch / "real.h5")
    print(f"threshold {NEAR}")
    for count in arguments.counts:
        for dense in (False, True):
            process = multiprocessing.get_context("fork").Process(target=scale, args=(real, count, dense))
            process.start()  # one for each, since the highest memory of a process never falls
            process.join()
    recall(arguments.data.name, arguments.data, scratch)
    render_demo(scratch / "demo", TOOLS, seed=0, workers=2)
    recall("rendered (vidcache demo)", scratch / "demo", scratch)


if __name__ == "__main__":
    main()
