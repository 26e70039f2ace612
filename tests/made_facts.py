"""Facts of videos that are nowhere: nothing is odd about them but what a test makes odd."""

from typing import Any

import numpy as np
import numpy.typing as npt

from vidcache.cache.format import Split
from vidcache.preprocess.analysis.facts import Facts


def make_facts(counts: dict[str, int], *, seed: int = 0, **columns: Any) -> Facts:
    """Ordinary videos in which nothing is odd: of a folder, or of a cache with `split=`."""
    rng, n = np.random.default_rng(seed), sum(counts.values())
    label = np.repeat(np.arange(len(counts)), list(counts.values()))
    num_frames = rng.integers(70, 140, n)
    facts: dict[str, Any] = {
        "path": np.array([f"c{k}/{row:06}.mp4".encode() for row, k in enumerate(label.tolist())]),
        "label": label,
        "status": np.zeros(n, np.uint8),
        "error": np.zeros(n, "S240"),
        "duration_seconds": num_frames / 25,
        "fps": np.full(n, 25.0),
        "width": np.full(n, 320),
        "height": np.full(n, 240),
        "num_frames": num_frames,
        "codec": np.full(n, b"h264"),
        "pixel_format": np.full(n, b"yuv420p"),
        "transfer": np.full(n, b"bt709", "S16"),
        "source_bytes": rng.integers(50_000, 100_000, n),
        "source_hash": np.array([f"{row:032x}".encode() for row in range(n)]),
        "skipped": {},
        "fingerprint": "",
    } | columns
    facts.setdefault("num_real", np.minimum(facts["num_frames"], 64))
    if facts.get("split") is not None:
        facts = {"clip_hash": facts["source_hash"], "black": np.zeros(n, bool), "still": np.zeros(n, bool)} | facts
    return Facts(name="made", classes=tuple(counts), num_frames_per_clip=64, **facts)


def make_split(counts: dict[str, int], *, test: int = 10, val: int = 10) -> npt.NDArray[np.uint8]:
    """A split that gives each class this many val and test clips."""
    parts = [
        np.repeat([Split.TRAIN, Split.VAL, Split.TEST], [max(count - val - test, 0), val, test])[:count]
        for count in counts.values()
    ]
    return np.concatenate(parts).astype(np.uint8)


EVEN = {"a": 40, "b": 40, "c": 40}
SPLIT = make_split(EVEN)


def make_varied_facts(counts: dict[str, int], seed: int, **columns: Any) -> Facts:
    """Videos of every kind, whatever their class."""
    rng, n = np.random.default_rng(seed), sum(counts.values())
    width = rng.choice([320, 640, 1280], n)
    varied = {"fps": rng.choice([24.0, 25.0, 30.0], n), "width": width, "height": width * 3 // 4}
    varied |= {"num_frames": rng.integers(20, 300, n), "codec": rng.choice([b"h264", b"mpeg4"], n)}
    return make_facts(counts, seed=seed, **{**varied, **columns})


def where(rows: Any, value: Any, otherwise: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """A column with another value in some rows."""
    column = otherwise.copy()
    column[rows] = value
    return column
