"""What a split claims: by video, clips cut from one recording are in train and in test; by recording they are not.

    python -m tests.benchmarks.bench_split --data ../shared/data/overhead_home --scratch /tmp/vidcache-bench

The recording is the first two parts of the file name. The classifier is the simplest that can memorise: the class of
the training clip whose thumbnails are nearest. It needs no training, so many seeds can be asked.
"""

import argparse
import re
from pathlib import Path

import numpy as np

from vidcache.cache.format import Split
from vidcache.cache.leakage import find_leaks
from vidcache.cache.reader import CacheReader
from vidcache.eval.intervals import wilson_interval
from vidcache.preprocess.build import build_cache
from vidcache.preprocess.options import BuildOptions
from vidcache.preprocess.split.config import SplitOverrides
from vidcache.preprocess.split.groups import GroupBy
from vidcache.preprocess.split.resplit import split_cache

RECORDING = r"/(\d+_\d+)_"
RULES = {
    "by video, near-duplicates off": SplitOverrides(group_by=GroupBy("video"), near_duplicates="off"),
    "by video (default)": SplitOverrides(group_by=GroupBy("video"), near_duplicates="group"),
    "by recording": SplitOverrides(group_by=GroupBy("regex", RECORDING), near_duplicates="group"),
}


def measure(cache: Path) -> tuple[int, int, int, int, int]:
    """Test clips with their recording in train; pairs of a recording across splits; look-alikes across; right; all."""
    with CacheReader(cache) as reader:
        hashes = reader.columns["perceptual_hash"].astype(np.float32).reshape(len(reader), -1)
        vectors = hashes - hashes.mean(axis=1, keepdims=True)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        found = [re.search(RECORDING, path.decode()) for path in reader.columns["path"].tolist()]
        recording = np.array([match[1] if match else "" for match in found])
        splits, train, test = reader.columns["split"], reader.rows("train"), reader.rows("test")
        neighbours = int(np.isin(recording[test], recording[train]).sum())
        same = np.triu(recording[:, None] == recording, 1)
        pairs = int((same & (splits[:, None] != splits)).sum())
        nearest = train[(vectors[test] @ vectors[train].T).argmax(axis=1)]
        right = int((reader.labels[nearest] == reader.labels[test]).sum())
        leaks = len(find_leaks(reader).rows_of(Split.TEST))
        return neighbours, pairs, leaks, right, len(test)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=20)
    arguments = parser.parse_args()
    arguments.scratch.mkdir(parents=True, exist_ok=True)
    cache = arguments.scratch / "split.h5"
    build_cache(arguments.data, cache, BuildOptions(workers=2, overwrite=True))
    print(
        f"sums over {arguments.seeds} seeds; the interval is for clips drawn independently, which seeds of one set are not"
    )
    for name, rule in RULES.items():
        sums = np.zeros(5, int)
        accuracies = []
        for seed in range(arguments.seeds):
            split_cache(cache, SplitOverrides(**rule, seed=seed))
            result = measure(cache)
            sums += result
            accuracies.append(result[3] / result[4])
        neighbours, pairs, leaks, right, total = sums.tolist()
        low, high = wilson_interval(right, total)
        print(
            f"{name:30} test clips with their recording in train {neighbours / total:6.1%}; "
            f"pairs of a recording across splits {pairs / arguments.seeds:6.0f}; test clips that look like others "
            f"{leaks / total:6.1%}; nearest neighbour claims {right / total:.1%} ({low:.1%} to {high:.1%}; "
            f"seeds {min(accuracies):.1%} to {max(accuracies):.1%})"
        )


if __name__ == "__main__":
    main()
