"""Which videos are the same, bit for bit: the same file, or different files with the same clip."""

import numpy as np
import numpy.typing as npt

from vidcache.preprocess.analysis import Facts


def find_copies(facts: Facts) -> list[npt.NDArray[np.int64]]:
    """Group the videos that give a clip by file hash and clip hash.

    Black clips are equal without being copies: only their files are compared.

    Returns:
        Rows of each group, two or more, ascending; groups by their first row.
    """
    group = np.arange(len(facts))
    keys = [(facts.source_hash, facts.good)]
    if facts.clip_hash is not None and facts.black is not None:
        keys.append((facts.clip_hash, facts.good & ~facts.black))
    merged = True
    while merged:  # a video can join two groups: one by its file, one by its clip
        merged = False
        for values, usable in keys:
            rows = np.flatnonzero(usable & (values != b""))
            _, index = np.unique(values[rows], return_inverse=True)
            first = np.full(index.max(initial=-1) + 1, len(facts))
            np.minimum.at(first, index, group[rows])
            merged |= bool((group[rows] != first[index]).any())
            group[rows] = first[index]
    order = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))
    return [rows for rows in np.split(order, starts[1:]) if len(rows) > 1]
