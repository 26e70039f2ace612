"""What the clips of a cache are, class by class and split by split, for the report."""

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

from vidcache.cache.layout import Split, Status
from vidcache.cache.reader import Reader
from vidcache.text import plural, printable

_SPLITS = (Split.TRAIN, Split.VAL, Split.TEST)
_SHOWN = 3  # frame rates and sizes


@dataclasses.dataclass(frozen=True)
class SplitFacts:
    """The clips of one split.

    Attributes:
        name: "train", "val" or "test".
        num_clips: How many.
        num_groups: Of so many recordings (or whatever keeps clips together).
        num_padded: Clips that repeat their last frame.
        num_damaged: Clips with missing or broken frames.
        durations: Shortest, median and longest, in words.
        rates: The most frequent frame rates, in words.
        sizes: The most frequent frame sizes, in words.
    """

    name: str
    num_clips: int
    num_groups: int
    num_padded: int
    num_damaged: int
    durations: str
    rates: str
    sizes: str


def split_facts(reader: Reader) -> list[SplitFacts]:
    """Describe train, val and test."""
    return [_facts(reader, split) for split in _SPLITS]


def class_counts(reader: Reader) -> list[dict[str, Any]]:
    """Count the clips of each class (its printable name) by split, in label order."""
    columns = reader.columns
    good = columns["status"] != Status.FAILED
    counts = {
        split.name.lower(): np.bincount(
            reader.labels[good & (columns["split"] == split)], minlength=len(reader.classes)
        ).tolist()
        for split in _SPLITS
    }
    return [
        {"class": printable(name), **{split: values[k] for split, values in counts.items()}}
        for k, name in enumerate(reader.classes)
    ]


def _facts(reader: Reader, split: Split) -> SplitFacts:
    rows, columns = reader.rows(split.name.lower()), reader.columns
    sizes = [
        f"{w} x {h}" for w, h in zip(columns["width"][rows].tolist(), columns["height"][rows].tolist(), strict=True)
    ]
    rates = [f"{rate:.4g} fps" for rate in columns["fps"][rows].round(1).tolist()]
    return SplitFacts(
        name=split.name.lower(),
        num_clips=len(rows),
        num_groups=len(np.unique(columns["group"][rows])),
        num_padded=int((columns["num_real"][rows] < reader.spec.num_frames).sum()),
        num_damaged=int((columns["status"][rows] == Status.DAMAGED).sum()),
        durations=_spread(columns["duration_seconds"][rows]),
        rates=_most_frequent(rates),
        sizes=_most_frequent(sizes),
    )


def _spread(seconds: npt.NDArray[np.float64]) -> str:
    known = seconds[seconds > 0]
    if not len(known):
        return "unknown"
    low, median, high = np.percentile(known, [0, 50, 100])
    return f"{low:.3g} to {high:.3g} s, median {median:.3g} s"


def _most_frequent(names: list[str]) -> str:
    if not names:
        return ""
    values, counts = np.unique(names, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    said = ", ".join(f"{values[k]} ({counts[k]:,})" for k in order[:_SHOWN])
    rest = len(values) - _SHOWN
    return f"{said} and {plural(rest, 'other')}" if rest > 0 else said
