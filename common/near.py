"""Finding clips that show the same: re-encoded, scaled, brighter, cropped, mirrored copies, or shifted in time.

Pure arithmetic on the perceptual hashes of a cache. Two steps: candidates, the nearest by one vector per
clip, searched cell by cell; then every candidate pair frame by frame. Time grows as N ** 1.5, memory as N.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import xxhash

from vidcache.perceptual import SIDE

# On 277 clips of one room under one camera, the hardest case at hand, this finds 95 to 100 % of the copies made in
# nine ways; of pairs from different recordings 0.24 % are nearer (walks that leave the same empty room in half of
# their frames). Elsewhere there is more room: of 340 rendered clips no two are. See tests/benchmarks/bench_near.py.
NEAR = 0.008

_CORE = 8  # side of the pictures that are compared
_FLAT = 1.5  # standard deviation, of 255, below which a picture shows nothing
_BLANK = 2  # difference, of 255, between the darkest and the brightest cell of a clip that shows nothing at all
# What a crop leaves of height and width, and the parts of what it takes that are cut off above and at the left.
_SCALES = (1.0, 0.95, 0.9)
_CENTRE = (0.5, 0.5)
_ANYWHERE = tuple((top, left) for top in (0.0, 0.5, 1.0) for left in (0.0, 0.5, 1.0))
_OFFSETS = ((_CENTRE,), _ANYWHERE, _ANYWHERE)
_CANDIDATE = 0.06  # distance of clip vectors: 0.01 for most copies, 0.06 for a moving scene 0.4 s later
_NUM_NEIGHBOURS = 16
_NUM_PROBES = 8
_PAIRS_AT_ONCE = 2048

Hashes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class NearPairs:
    """Clips that look alike. Clips that are the same count once: as the first of them.

    Attributes:
        rows: (P, 2) pairs of firsts, first < second, sorted.
        distances: (P,) float32, 0 to `NEAR`, in steps of 0.00001.
        same: (N,) for every clip, the first one that is the same: often itself.
    """

    rows: Rows
    distances: Floats
    same: Rows

    @property
    def edges(self) -> Rows:
        """(E, 2) pairs that connect everything that looks alike; few, however many clips are the same."""
        copies = np.flatnonzero(self.same != np.arange(len(self.same)))
        return np.concatenate([np.stack([self.same[copies], copies], axis=1), self.rows])


def find_near_pairs(hashes: Hashes, threshold: float = NEAR) -> NearPairs:
    """Find pairs of clips that show the same.

    The distance of two pictures is 1 minus their correlation, so brightness and contrast do not count;
    of two clips it is the smallest d such that half of the frames of each have a frame of the other within
    d, for the best of 19 crops of either and for the mirrored clip. Clips that are flat (black, one
    colour) in more than half of their frames show nothing and are near to none; if they are not quite
    blank they can still be the same as others.

    At most the 16 nearest of a clip are looked at for each of 3 crops, mirrored or not. Sums in float32
    depend on the kind of CPU in the last digit: where more than 16 are as near, so can which are looked at.

    Args:
        hashes: (N, 16, 12, 12) uint8, of `vidcache.perceptual.perceptual_hash`.
        threshold: Largest distance that counts.
    """
    same = _same(hashes)
    shows = _num_flat(hashes) * 2 <= hashes.shape[1]
    unique = np.flatnonzero(shows & (same == np.arange(len(hashes))))
    rows, distances = [np.zeros((0, 2), np.int64)], [np.zeros(0, np.float32)]
    for scale, mirrored, pairs in _candidates(_Clips(hashes[unique])) if len(unique) else ():
        for start in range(0, len(pairs), _PAIRS_AT_ONCE):
            part = unique[pairs[start : start + _PAIRS_AT_ONCE]]
            found = _clip_distances(hashes, part, scale, mirrored)
            near = found <= threshold
            rows.append(np.sort(part[near], axis=1))
            distances.append(found[near])
    return NearPairs(*_nearest(np.concatenate(rows), np.concatenate(distances)), same)


def _same(hashes: Hashes) -> Rows:
    """(N,) for every clip, the first with the same hash; blank ones are only the same as themselves."""
    digests = np.array([xxhash.xxh3_64_intdigest(clip.tobytes()) for clip in hashes], np.uint64)
    _, first, same = np.unique(digests, return_index=True, return_inverse=True)
    blank = np.array([int(clip.max()) - int(clip.min()) <= _BLANK for clip in hashes], bool)
    return np.where(blank, np.arange(len(hashes)), first[same].astype(np.int64))


def clip_distance(first: Hashes, second: Hashes) -> float:
    """Return the distance of two clips, as `find_near_pairs` defines it: (16, 12, 12) each."""
    both, rows = np.stack([first, second]), np.array([[0, 1], [1, 0]])
    ways = itertools.product(range(len(_OFFSETS)), (False, True))
    return min(float(_clip_distances(both, rows, scale, mirrored).min()) for scale, mirrored in ways)


def _nearest(rows: Rows, distances: Floats) -> tuple[Rows, Floats]:
    """Sort pairs; of one that was found in several ways, keep the smallest distance."""
    order = np.lexsort((distances, rows[:, 1], rows[:, 0]))
    rows, distances = rows[order], distances[order]
    is_first = np.ones(len(rows), bool)
    is_first[1:] = (rows[1:] != rows[:-1]).any(axis=1)
    return rows[is_first], distances[is_first]


# --- pictures ----------------------------------------------------------------------------------


@functools.cache
def _window(start: float, scale: float) -> Floats:
    """(8, 12) linear map from cells to 8 equal parts of the window that begins at `start`, of length `scale`."""
    fine = (start + scale * (np.arange(_CORE * 4) + 0.5) / (_CORE * 4)) * SIDE - 0.5
    left = np.clip(np.floor(fine).astype(int), 0, SIDE - 2)
    weight = np.clip(fine - left, 0, 1)
    weights = np.zeros((_CORE * 4, SIDE), np.float32)
    weights[np.arange(_CORE * 4), left] += 1 - weight
    weights[np.arange(_CORE * 4), left + 1] += weight
    means: Floats = weights.reshape(_CORE, 4, SIDE).mean(axis=1)
    return means


def _crop(pictures: Floats, scale: int, offset: tuple[float, float]) -> Floats:
    """Cut (..., 12, 12) to a part of their height and width, (..., 8, 8)."""
    kept = _SCALES[scale]
    top, left = ((1 - kept) * part for part in offset)
    return np.asarray(_window(top, kept) @ pictures @ _window(left, kept).T, np.float32)


def _unit(vectors: Floats) -> Floats:
    """Scale the last dimension to length 1; what is zero stays zero."""
    lengths = np.sqrt((vectors * vectors).sum(axis=-1, keepdims=True))
    return np.asarray(vectors / np.maximum(lengths, 1e-12), np.float32)


def _num_flat(hashes: Hashes) -> Rows:
    """(N,) how many frames of each clip show nothing."""
    parts = [hashes[start : start + 8192] for start in range(0, len(hashes), 8192)]
    counts = [(part.std(axis=(2, 3), dtype=np.float32) < _FLAT).sum(axis=1) for part in parts]
    return np.concatenate([np.zeros(0, np.int64), *counts])


def _frame_vectors(hashes: Hashes, scale: int, offset: tuple[float, float], mirrored: bool) -> Floats:
    """(n, 16, 64) unit vectors of the frames; zero for what is flat."""
    pictures = hashes[..., ::-1] if mirrored else hashes
    cut = _crop(pictures.astype(np.float32), scale, offset).reshape(*hashes.shape[:2], -1)
    cut -= cut.mean(axis=-1, keepdims=True)
    cut[np.sqrt((cut * cut).mean(axis=-1)) < _FLAT] = 0
    return _unit(cut)


def _clip_distances(hashes: Hashes, pairs: Rows, scale: int, mirrored: bool) -> Floats:
    """(n,) distances of pairs, (n, 2), for the best crop of one size of the first, perhaps mirrored."""
    firsts, place = np.unique(pairs[:, 0], return_inverse=True)
    second = _frame_vectors(hashes[pairs[:, 1]], 0, _CENTRE, False).transpose(0, 2, 1)
    half = hashes.shape[1] // 2 - 1
    best: Floats = np.full(len(pairs), np.inf, np.float32)
    for offset in _OFFSETS[scale]:
        similarity = _frame_vectors(hashes[firsts], scale, offset, mirrored)[place.reshape(-1)] @ second
        sides = [np.partition(similarity.max(axis=axis), -half - 1, axis=1)[:, -half - 1] for axis in (1, 2)]
        best = np.minimum(best, 1 - np.minimum(*sides), dtype=np.float32)
    return np.maximum(best, 0).round(5)  # what is beyond differs from CPU to CPU


# --- candidates ----------------------------------------------------------------------------------


class _Clips:
    """One vector for each clip: its mean picture, and where in it something moves."""

    def __init__(self, hashes: Hashes) -> None:
        parts = [hashes[start : start + 2048].astype(np.float32) for start in range(0, len(hashes), 2048)]
        shape = (0, SIDE, SIDE)
        self._means = np.concatenate([np.zeros(shape, np.float32), *(part.mean(axis=1) for part in parts)])
        self._motion = np.concatenate([np.zeros(shape, np.float32), *(part.std(axis=1) for part in parts)])

    def __len__(self) -> int:
        return len(self._means)

    def vectors(self, scale: int, mirrored: bool) -> Floats:
        """(N, 128) unit vectors."""
        still, moving = (
            _crop(pictures[..., ::-1] if mirrored else pictures, scale, _CENTRE).reshape(len(self), -1)
            for pictures in (self._means, self._motion)
        )
        still = still - still.mean(axis=1, keepdims=True)
        return _unit(np.concatenate([still, moving], axis=1))


def _candidates(clips: _Clips) -> Iterator[tuple[int, bool, Rows]]:
    """Yield scale, mirrored, and (P, 2) pairs that may be near when the first is cropped and mirrored so."""
    index = _Index(clips.vectors(0, False))
    for scale, mirrored in itertools.product(range(len(_SCALES)), (False, True)):
        for pairs in index.neighbours(clips.vectors(scale, mirrored)):
            yield scale, mirrored, pairs


class _Index:
    """Vectors in cells around some of them, so that a search looks at a few cells only.

    The centres are drawn from the vectors themselves: where there are many, cells are small.
    """

    def __init__(self, vectors: Floats) -> None:
        self._vectors = vectors
        num_cells = math.isqrt(len(vectors))
        self._part = 4 * num_cells + 64
        chosen = np.random.default_rng(0).permutation(len(vectors))[:num_cells]
        self._centres = vectors[np.sort(chosen)]
        cells = np.concatenate([np.zeros(0, np.int64), *(nearest[:, 0] for nearest in self._nearest(vectors, 1))])
        self._order = np.argsort(cells, kind="stable")
        self._starts = np.searchsorted(cells[self._order], np.arange(num_cells + 1))

    def _nearest(self, vectors: Floats, count: int) -> Iterator[Rows]:
        """The nearest cells, (n, count), for parts of the vectors."""
        for start in range(0, len(vectors), _PAIRS_AT_ONCE):
            yield _largest(vectors[start : start + _PAIRS_AT_ONCE] @ self._centres.T, count)

    def neighbours(self, queries: Floats) -> Iterator[Rows]:
        """Yield (n, 2) pairs of a query and one of its nearest vectors other than itself, for parts of the queries."""
        probes = min(_NUM_PROBES, len(self._centres))
        for number, cells in enumerate(self._nearest(queries, probes)):
            first = number * _PAIRS_AT_ONCE
            rows, found, scores = self._look(queries[first : first + len(cells)], cells, first)
            keep = (rows + first != found) & (1 - scores <= _CANDIDATE)
            rows, found, scores = rows[keep], found[keep], scores[keep]
            order = np.lexsort((-scores, rows))
            rows, found = rows[order], found[order]
            rank = np.arange(len(rows)) - np.searchsorted(rows, rows)
            best = rank < _NUM_NEIGHBOURS
            yield np.stack([rows[best] + first, found[best]], axis=1)

    def _look(self, queries: Floats, cells: Rows, first: int) -> tuple[Rows, Rows, Floats]:
        """Compare each query with what is in its cells: (m,) query, vector, similarity; the best of each cell."""
        asked = np.argsort(cells, axis=None, kind="stable")
        edges = np.searchsorted(cells.reshape(-1)[asked], np.arange(len(self._centres) + 1))
        out: list[tuple[Rows, Rows, Floats]] = []
        for cell in np.unique(cells).tolist():
            rows = asked[edges[cell] : edges[cell + 1]] // cells.shape[1]
            members = self._order[self._starts[cell] : self._starts[cell + 1]]
            # Where very many are the same but for rounding, a cell is large: each query then looks at a part.
            ranks = np.maximum(np.searchsorted(members, rows + first, "right") - 1, 0)
            parts = ranks // self._part if len(members) > self._part else None
            for part in (0,) if parts is None else np.unique(parts).tolist():
                asking = rows if parts is None else rows[parts == part]
                there = members[part * self._part :][: self._part] if parts is not None else members
                similarity = queries[asking] @ self._vectors[there].T
                best = _largest(similarity, _NUM_NEIGHBOURS + 1)  # one is the query itself
                scores = np.take_along_axis(similarity, best, axis=1)
                out.append((np.repeat(asking, best.shape[1]), there[best].reshape(-1), scores.reshape(-1)))
        joined = [np.concatenate(column) for column in zip(*out, strict=True)]
        return joined[0], joined[1], joined[2]


def _largest(values: Floats, count: int) -> Rows:
    """(n, count) places of the largest values of each row, or of all if there are fewer."""
    if values.shape[1] <= count:
        return np.broadcast_to(np.arange(values.shape[1]), values.shape)
    return np.argpartition(-values, count - 1, axis=1)[:, :count]
