"""What is odd about clips that look alike: across splits, under two labels, or mirrored."""

from collections.abc import Iterator

import numpy as np

from vidcache.cache.leaks import find_duplicates, leaks_among
from vidcache.cache.mirrored import find_mirror_pairs, in_words
from vidcache.cache.reader import Reader
from vidcache.preprocess.finding import MAX_NAMES, Finding, Severity, share, some_names
from vidcache.text import plural, printable


def look_alikes(reader: Reader) -> Iterator[Finding]:
    """Find clips that show the same without being the same bit for bit: those are `video_findings.duplicates`.

    Args:
        reader: The cache, or several.
    """
    found = find_duplicates(reader.columns, splits=reader.columns["split"])
    near = found.rows
    if not len(near):
        return
    leaks = leaks_among(found, reader.columns["split"])
    across = len(leaks.pairs)
    if across:
        yield Finding(
            Severity.PROBLEM,
            f"{plural(len(np.unique(leaks.pairs)), 'clip')} of different splits look alike",
            f"{leaks.in_words.capitalize()}. For example {_examples(reader, leaks.pairs)}.",
            "The results are too good: the model is asked what it was taught. See them with vidcache leaks CACHE, keep "
            "them together with vidcache split CACHE --near-duplicates group.",
        )
    labels = reader.labels[near]
    clashing = near[labels[:, 0] != labels[:, 1]]
    if len(clashing):
        yield Finding(
            Severity.WARNING,
            f"{plural(len(clashing), 'pair')} of clips look alike, but are under two labels",
            f"Of {plural(len(near), 'pair')} that look alike. For example {_examples(reader, clashing)}.",
            "Watch some: cuts of one scene can differ in what happens for a moment, copies cannot. Correct labels that "
            "are wrong.",
        )
    if not across:
        clips = len(np.unique(near))
        yield Finding(
            Severity.NOTE,
            f"{plural(clips, 'clip')} look like others",
            f"{share(clips, len(reader.rows()))}, in {plural(len(near), 'pair')}; none straddle the splits. "
            f"For example {_examples(reader, near)}.",
            "They count as one when you ask how much data there is.",
        )


def mirror_images(reader: Reader) -> Iterator[Finding]:
    """Find classes that are told apart by left and right.

    Args:
        reader: The cache, or several.
    """
    pairs = find_mirror_pairs(reader)
    if pairs:
        yield Finding(
            Severity.WARNING if any(pair.share is not None for pair in pairs) else Severity.NOTE,
            "Classes are told apart by left and right",
            f"{in_words(pairs, reader.classes)}.",
            "vidtrain mirrors half of the clips and keeps their labels: train with --flip 0, and do not evaluate "
            "with videval --tta flip.",
        )


def _examples(reader: Reader, pairs: "np.ndarray[tuple[int, int], np.dtype[np.int64]]") -> str:
    names = [" and ".join(printable(reader.path_of(row)) for row in pair) for pair in pairs[:MAX_NAMES].tolist()]
    return some_names(names, len(pairs))
