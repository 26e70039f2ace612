"""What `vidpredict` takes beside `vidcache build` and `videval` of the same files, and beside their decoding alone.

    python tests/benchmarks/bench_predict.py --data ../shared/data/overhead_home --scratch /tmp/vidcache-bench

Whole commands, in turn. All clips but one of each class, without which there is no split, are test clips: vidpredict
has so many more to do. The model is an R3D-18 with random weights: what it says is of no interest here. The floor is a
build alone: no video is predicted without being decoded.
"""

import argparse
import csv
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

from vidcache.cache.reader import CacheReader
from vidcache.checkpoint import Checkpoint
from vidcache.model import R3D18
from vidcache.preprocess.video.find import find_videos

BIN = Path(sys.executable).parent


def timed(*command: object) -> tuple[float, str]:
    """Seconds that a command takes, and what it prints."""
    start = time.perf_counter()
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=True)
    return time.perf_counter() - start, done.stdout


def main() -> None:
    """Print medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--size", type=int, default=112)
    parser.add_argument("--num-frames", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    arguments.scratch.mkdir(parents=True, exist_ok=True)
    cache, ckpt, lists = (arguments.scratch / name for name in ("predict.h5", "predict.pt", "all_test.csv"))
    with lists.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "split"])
        trained: set[bytes] = set()
        for video in find_videos(arguments.data).videos:
            split = "test" if video.class_name in trained else "train"
            writer.writerow([video.path.decode(), split])
            trained.add(video.class_name)
    build = [BIN / "vidcache", "build", arguments.data, cache, "--overwrite", "--workers", 2, "--size", arguments.size]
    build += ["--split-file", lists, "--near-duplicates", "off"]
    evaluate = [BIN / "videval", cache, "--ckpt", ckpt, "--out", arguments.scratch / "predict.eval", "--json"]
    predict = [BIN / "vidpredict", arguments.data, "--ckpt", ckpt, "--workers", 2, "--json"]
    timed(*build)
    with CacheReader(cache) as reader:
        torch.manual_seed(0)
        model = R3D18(len(reader.classes))
        Checkpoint(
            model.state_dict(), reader.classes, reader.spec, arguments.num_frames_used, reader.fingerprint,
            reader.split_hash, {}, 1, {},
        ).save(ckpt)  # fmt: skip
        num_clips = len(reader.rows("test"))
    times: dict[str, list[float]] = {"build": [], "videval": [], "vidpredict": []}
    for _ in range(arguments.repeats):
        times["build"].append(timed(*build)[0])
        seconds, said = timed(*evaluate)
        assert json.loads(said)["num_clips"] == num_clips
        times["videval"].append(seconds)
        seconds, said = timed(*predict)
        assert json.loads(said)["num_failed"] == 0
        times["vidpredict"].append(seconds)
    medians = {name: statistics.median(values) for name, values in times.items()}
    both = [b + e for b, e in zip(times["build"], times["videval"], strict=True)]
    ratio = statistics.median(two / one for two, one in zip(both, times["vidpredict"], strict=True))
    print(
        f"{num_clips} videos, {arguments.size} pixels, {arguments.num_frames_used} frames shown: build "
        f"{medians['build']:.1f} s, videval {medians['videval']:.1f} s, vidpredict {medians['vidpredict']:.1f} s; "
        f"vidpredict is {ratio:.2f} times as fast as both (floor, a build alone: "
        f"{medians['vidpredict'] / medians['build']:.2f} times its time)"
    )


if __name__ == "__main__":
    main()
