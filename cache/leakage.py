"""Near-duplicates in different splits, and classes that mirroring may confuse.

Reads columns only, never clips; how they are compared is in `vidcache.near_duplicates`.
"""

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vidcache.cache.format import NEAR_GROUP, Split, Status
from vidcache.cache.reader import Reader
from vidcache.near_duplicates import NEAR, NearPairs, find_near_pairs
from vidcache.spec import sample_indices
from vidcache.text import plural, printable

Rows = npt.NDArray[np.int64]
Splits = npt.NDArray[np.uint8]
Columns = dict[str, npt.NDArray[Any]]


def near_groups(columns: Columns) -> Rows:
    """Return (N,) the first row of the near-duplicates that each clip belongs to, directly or through others.

    A clip that looks like no other is a group of its own; a failed video has -1. Read from the column "near_group" if
    it is there, else searched for by "status" and "perceptual_hash": the time grows as N ** 2.
    """
    if NEAR_GROUP in columns:
        return np.asarray(columns[NEAR_GROUP])
    has_clip = columns["status"] != Status.FAILED
    edges = _search(columns, np.flatnonzero(has_clip), NEAR, None).edges
    _, first, group = np.unique(connected(len(has_clip), edges), return_index=True, return_inverse=True)
    return np.where(has_clip, first[group], -1).astype(np.int64)


def connected(count: int, edges: Rows) -> Rows:
    """Return (N,) one number for all nodes that edges (E, 2) connect, directly or through others."""
    if not len(edges):
        return np.arange(count)
    from scipy.sparse import coo_array  # 0.3 s
    from scipy.sparse.csgraph import connected_components

    graph = coo_array((np.ones(len(edges), bool), edges.T), shape=(count, count))
    return np.asarray(connected_components(graph, directed=False)[1])


def find_duplicates(columns: Columns, threshold: float = NEAR, splits: Splits | None = None) -> NearPairs:
    """Find pairs of rows whose clips are the same or look it; of known groups (see `near_groups`) only within each.

    With `splits`, (N,) values of `Split`: of a clip with very many look-alikes, one of each split is among the pairs.
    """
    group, rows = columns.get(NEAR_GROUP), np.flatnonzero(columns["status"] != Status.FAILED)
    if group is not None and threshold <= NEAR:
        rows = rows[np.bincount(group[rows], minlength=len(group))[group[rows]] > 1]
    return _search(columns, rows, threshold, splits)


@dataclasses.dataclass(frozen=True)
class Leaks:
    """Near-duplicates in different splits.

    Attributes:
        pairs: (P, 2) rows that look alike and are in different splits, nearest first.
        distances: (P,) float32.
        splits: (N,) values of `Split`.
    """

    pairs: Rows
    distances: npt.NDArray[np.float32]
    splits: Splits

    def rows_of(self, split: Split) -> Rows:
        """Clips of a split that look like one of another split, ascending."""
        rows = np.unique(self.pairs)
        leaked: Rows = rows[self.splits[rows] == split]
        return leaked

    @property
    def in_words(self) -> str:
        """One line."""
        if not len(self.pairs):
            return "no clip looks like one of another split"
        counts = {split: len(self.rows_of(split)) for split in (Split.VAL, Split.TEST)}
        names = " and ".join(plural(count, f"{split.name.lower()} clip") for split, count in counts.items() if count)
        verb = "looks" if sum(counts.values()) == 1 else "look"
        return f"{names} {verb} like clips of another split ({plural(len(self.pairs), 'pair')})"


def find_leaks(reader: Reader, threshold: float = NEAR) -> Leaks:
    """Find clips that look alike and are in different splits; unused clips are in none."""
    return leaks_between(reader.columns, reader.columns["split"], threshold)


def leaks_between(columns: Columns, splits: Splits, threshold: float = NEAR) -> Leaks:
    """Find clips that look alike and would be in different splits; of known groups those in several are searched."""
    group, rows = columns.get(NEAR_GROUP), np.flatnonzero(columns["status"] != Status.FAILED)
    if group is not None and threshold <= NEAR:
        has = np.zeros((len(group), len(Split)), bool)
        has[group[rows], splits[rows]] = True
        rows = rows[has[group[rows], : Split.UNUSED].sum(axis=1) > 1]
    return leaks_among(_search(columns, rows, threshold, splits), splits)


def leaks_among(near: NearPairs, splits: Splits) -> Leaks:
    """Pair every clip with one of each look-alike in each other split: of clips that are the same, with the first."""
    used = np.flatnonzero(splits < Split.UNUSED)
    first_in = np.full((len(splits), Split.UNUSED), -1)
    first_in[near.same[used][::-1], splits[used][::-1]] = used[::-1]  # the last one written is the first row
    itself = np.unique(near.same[used])
    ways = np.concatenate([near.rows, near.rows[:, ::-1], np.stack([itself, itself], axis=1)])
    distances = np.concatenate([near.distances, near.distances, np.zeros(len(itself), np.float32)])
    # Every used clip that is the same as the first of a pair, with the second.
    by_first = used[np.argsort(near.same[used], kind="stable")]
    starts, ends = (np.searchsorted(near.same[by_first], ways[:, 0], side) for side in ("left", "right"))
    counts = ends - starts
    clips = by_first[np.arange(counts.sum()) - np.repeat(counts.cumsum() - counts - starts, counts)]
    look_alikes, distances = np.repeat(ways[:, 1], counts), np.repeat(distances, counts)
    others = first_in[look_alikes]  # (n, 3), one of each split or -1
    which, split = np.nonzero((others >= 0) & (splits[clips, None] != np.arange(Split.UNUSED)))
    pairs = np.sort(np.stack([clips[which], others[which, split]], axis=1), axis=1)
    pairs, places = np.unique(pairs, axis=0, return_index=True)
    order = np.argsort(distances[which][places], kind="stable")
    return Leaks(pairs[order], distances[which][places][order], splits)


def draw_leaks(reader: Reader, leaks: Leaks, path: Path, num_pairs: int, num_frames: int = 8) -> None:
    """Write at most `num_pairs` of the nearest pairs as a PNG, frames of one clip above those of the other."""
    from vidcache.plotting import Filmstrip, draw_filmstrips  # matplotlib: not for `vidcache info`

    frames = sample_indices(reader.spec.num_frames, num_frames)
    strips = []
    for rows, distance in zip(leaks.pairs[:num_pairs].tolist(), leaks.distances, strict=False):
        names = [Split(leaks.splits[row]).name.lower() for row in rows]
        paths = [printable(reader.path_of(row)) for row in rows]
        title = "   |   ".join(f"{name}: {path_}" for name, path_ in zip(names, paths, strict=True))
        strips.append(Filmstrip(f"{distance:.6f}   {title}", tuple(zip(names, reader.read(rows, frames), strict=True))))
    draw_filmstrips(strips, path)


def _search(columns: Columns, rows: Rows, threshold: float, splits: Splits | None) -> NearPairs:
    """Compare the clips of some rows."""
    near = find_near_pairs(columns["perceptual_hash"][rows], threshold, None if splits is None else splits[rows])
    same = np.arange(len(columns["status"]))
    same[rows] = rows[near.same]
    return NearPairs(rows[near.rows], near.distances, same)


_WORDS = "left(?:wards?)? right(?:wards?)? links rechts west east ccw|acw cw l r lhs rhs".split()  # as whole words
_SIDE = re.compile(
    "|".join(f"((?<![^\\W_])(?:{word})(?![^\\W_]))" for word in _WORDS)
    + r"|(gauche)|(droite)|(izquierda)|(derecha)|(sinistra)|(destra)|((?:counter|anti)[\W_]*clockwise)|(clockwise)"
)
_MAX_NAMED = 3


def mirrored_classes(reader: Reader) -> str:
    """Say which classes of the training clips mirroring may confuse, to judge by their names; "" if none."""
    present, classes = set(reader.labels[reader.rows("train")].tolist()), reader.classes
    pairs = [pair for pair in mirrored_names(classes) if present.issuperset(pair)]
    if not pairs:
        return ""
    parts = [f"{printable(classes[first])} and {printable(classes[second])}" for first, second in pairs[:_MAX_NAMED]]
    more = f", and {len(pairs) - _MAX_NAMED:,} more pairs" if len(pairs) > _MAX_NAMED else ""
    return f"Mirroring may turn one class into another: {'; '.join(parts)}{more}"


def mirrored_names(classes: tuple[str, ...]) -> list[tuple[int, int]]:
    """Return pairs of labels whose names become each other when left and right change places.

    >>> mirrored_names(("turn_left", "turn_right", "left", "Spin CW", "spin ccw", "bright"))
    [(0, 1), (3, 4)]
    """
    seen: dict[tuple[str, tuple[int, ...]], int] = {}
    pairs = []
    for label, name in enumerate(classes):
        plain = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).casefold()
        sides = [match.lastindex - 1 for match in _SIDE.finditer(plain) if match.lastindex]
        if sides and len(plain.strip()) > 1:  # no letter of an alphabet
            rest = re.sub(r"[\W_]+", " ", _SIDE.sub("<>", plain))
            other = seen.get((rest, tuple(side ^ 1 for side in sides)))
            pairs += [] if other is None else [(other, label)]
            seen[rest, tuple(sides)] = label
    return pairs
