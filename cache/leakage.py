"""The leak guard: clips of a cache that show the same, and which of them are in different splits.

Reads columns only, never clips; what it is told by them is in `vidcache.near_duplicates`.
"""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vidcache.cache.format import NEAR_GROUP, Split, Status
from vidcache.cache.reader import Reader
from vidcache.near_duplicates import NEAR, NearPairs, find_near_pairs
from vidcache.sampling import sample_indices
from vidcache.text import plural, printable

Rows = npt.NDArray[np.int64]


def near_groups(columns: Any) -> Rows:
    """Return (N,) the first row of the near-duplicates that each clip belongs to, directly or through others.

    A clip that looks like no other is a group of its own; a failed video has -1. Read from the column where a cache has
    it, else searched for: the time grows as N ** 2.

    Args:
        columns: Columns "status" and "perceptual_hash", and "near_group" if it is known, (N, ...) each.
    """
    stored = _stored(columns)
    if stored is not None:
        return stored
    from scipy.sparse import coo_array  # not for `vidcache info`
    from scipy.sparse.csgraph import connected_components

    has_clip = columns["status"] != Status.FAILED
    edges = _search(columns, np.flatnonzero(has_clip), NEAR, None).edges
    graph = coo_array((np.ones(len(edges), bool), (edges[:, 0], edges[:, 1])), shape=(len(has_clip),) * 2)
    _, first, group = np.unique(connected_components(graph, directed=False)[1], return_index=True, return_inverse=True)
    return np.where(has_clip, first[group], -1).astype(np.int64)


def find_duplicates(columns: Any, threshold: float = NEAR, splits: npt.NDArray[np.uint8] | None = None) -> NearPairs:
    """Find clips that are the same or look it.

    Args:
        columns: As for `near_groups`; where the groups are known, only clips of one group are compared.
        threshold: Largest distance that counts.
        splits: (N,) values of `Split`: of a clip with very many look-alikes, one of each split is among the pairs.

    Returns:
        Pairs of rows that have a clip.
    """
    group = _stored(columns) if threshold <= NEAR else None
    rows = np.flatnonzero(columns["status"] != Status.FAILED)
    if group is not None:
        rows = rows[np.bincount(group[rows], minlength=len(group))[group[rows]] > 1]
    return _search(columns, rows, threshold, splits)


def _stored(columns: Any) -> Rows | None:
    """Return the column `near_group`, if there is one."""
    return columns.get(NEAR_GROUP) if isinstance(columns, dict) else None


def _search(columns: Any, rows: Rows, threshold: float, splits: npt.NDArray[np.uint8] | None) -> NearPairs:
    """Compare the clips of some rows."""
    near = find_near_pairs(columns["perceptual_hash"][rows], threshold, None if splits is None else splits[rows])
    same = np.arange(len(columns["status"]))
    same[rows] = rows[near.same]
    return NearPairs(rows[near.rows], near.distances, same)


@dataclasses.dataclass(frozen=True)
class Leaks:
    """What is in more than one split.

    Attributes:
        pairs: (P, 2) rows that look alike and are in different splits, nearest first.
        distances: (P,) float32.
        splits: (N,) values of `Split`.
    """

    pairs: Rows
    distances: npt.NDArray[np.float32]
    splits: npt.NDArray[np.uint8]

    def rows_of(self, split: Split) -> Rows:
        """Clips of a split that look like one of another split, ascending."""
        rows = np.unique(self.pairs)
        found: Rows = rows[self.splits[rows] == split]
        return found

    @property
    def in_words(self) -> str:
        """One line."""
        if not len(self.pairs):
            return "no clip looks like one of another split"
        counts = [(split, len(self.rows_of(split))) for split in (Split.VAL, Split.TEST)]
        said = " and ".join(plural(count, f"{split.name.lower()} clip") for split, count in counts if count)
        verb = "looks" if sum(count for _, count in counts) == 1 else "look"
        return f"{said} {verb} like clips of another split ({plural(len(self.pairs), 'pair')})"


def find_leaks(reader: Reader, threshold: float = NEAR) -> Leaks:
    """Find clips that look alike and are in different splits; unused clips are in none.

    Args:
        reader: The cache, or several.
        threshold: Largest distance that counts.
    """
    return leaks_between(reader.columns, reader.columns["split"], threshold)


def leaks_between(columns: Any, splits: npt.NDArray[np.uint8], threshold: float = NEAR) -> Leaks:
    """Find clips that look alike and would be in different splits.

    Args:
        columns: As for `near_groups`; where the groups are known, only those in several splits are compared.
        splits: (N,) values of `Split`.
        threshold: Largest distance that counts.
    """
    group = _stored(columns) if threshold <= NEAR else None
    rows = np.flatnonzero(columns["status"] != Status.FAILED)
    if group is not None:
        is_in = np.zeros((len(group), Split.UNUSED + 1), bool)
        is_in[group[rows], splits[rows]] = True
        rows = rows[is_in[group[rows], : Split.UNUSED].sum(axis=1) > 1]
    return leaks_among(_search(columns, rows, threshold, splits), splits)


def leaks_among(found: NearPairs, splits: npt.NDArray[np.uint8]) -> Leaks:
    """Choose the pairs that are in different splits.

    Every clip is paired with one of each look-alike in each other split: of clips that are the same, with the first.

    Args:
        found: Pairs of rows.
        splits: (N,) values of `Split`.
    """
    num_splits = Split.UNUSED  # the others
    used = np.flatnonzero(splits < num_splits)
    first_in = np.full((len(splits), num_splits), -1)
    first_in[found.same[used][::-1], splits[used][::-1]] = used[::-1]  # the last one written is the first row
    itself = np.unique(found.same[used])
    near = np.concatenate([found.rows, found.rows[:, ::-1], np.stack([itself, itself], axis=1)])
    distances = np.concatenate([found.distances, found.distances, np.zeros(len(itself), np.float32)])
    # Every used clip of the first of a pair, with the second.
    by_first = used[np.argsort(found.same[used], kind="stable")]
    starts, ends = (np.searchsorted(found.same[by_first], near[:, 0], side) for side in ("left", "right"))
    counts = ends - starts
    places = np.arange(counts.sum()) - np.repeat(counts.cumsum() - counts, counts) + np.repeat(starts, counts)
    one, look_alike, distances = by_first[places], np.repeat(near[:, 1], counts), np.repeat(distances, counts)
    pairs, kept = [np.zeros((0, 2), np.int64)], [np.zeros(0, np.float32)]
    for part in range(num_splits):
        other = first_in[look_alike, part]
        across = (other >= 0) & (splits[one] != part)
        pairs.append(np.sort(np.stack([one[across], other[across]], axis=1), axis=1))
        kept.append(distances[across])
    rows, places = np.unique(np.concatenate(pairs), axis=0, return_index=True)
    distances = np.concatenate(kept)[places]
    order = np.argsort(distances, kind="stable")
    return Leaks(rows[order], distances[order], splits)


def draw_leaks(reader: Reader, leaks: Leaks, path: Path, num_pairs: int, num_frames: int = 8) -> None:
    """Write the nearest pairs as a PNG, the frames of one clip above those of the other.

    Args:
        reader: The cache that they were found in.
        leaks: At least one pair.
        path: PNG to write.
        num_pairs: At most so many.
        num_frames: Of each clip.
    """
    from vidcache.plotting import Filmstrip, draw_filmstrips  # matplotlib: not for `vidcache info`

    frames = sample_indices(reader.spec.num_frames, num_frames)
    strips = []
    for rows, distance in zip(leaks.pairs[:num_pairs].tolist(), leaks.distances, strict=False):
        names = [Split(leaks.splits[row]).name.lower() for row in rows]
        title = "   |   ".join(
            f"{name}: {printable(reader.path_of(row))}" for name, row in zip(names, rows, strict=True)
        )
        clips = reader.read(rows, frames)
        strips.append(Filmstrip(f"{distance:.6f}   {title}", tuple(zip(names, clips, strict=True))))
    draw_filmstrips(strips, path)
