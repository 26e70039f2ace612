"""Near-duplicate clips: scaled, brighter, cropped, mirrored or stamped copies, or shifted in time.

Pure arithmetic on the perceptual hashes of a cache. Two steps: candidates, all pairs whose clip vectors are near; then
each candidate pair frame by frame. Time grows as N ** 2, memory as N.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import xxhash

from vidcache.spec import sample_indices

NUM_HASHED_FRAMES = 16
SIDE = 12
_LUMA = np.array([77, 150, 29], np.float64)  # BT.601, in 1/256
_BAR_SPREAD = 12  # of 255, in a bar: what compression leaves of one colour
_BAR_EDGE = 24  # how far the picture beside a bar differs from it, somewhere in time
_BLUR = 28  # within which part of height or width it does, along at least 3/5 of the edge: corners may lie in bars
_LONGEST_BAR = 45  # % of height or width: an upright film in a 16:9 frame has bars of 34 %


def perceptual_hash(clip: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Shrink evenly spaced frames of a clip to grey thumbnails.

    Bars are cut off first, up to 45 % at each side: with them unrelated films look alike, and a film unlike its copy
    without them.

    Args:
        clip: (T, H, W, 3) uint8, RGB, without padding: repeated frames would outvote the others.

    Returns:
        (16, 12, 12) uint8, the mean brightness of each cell, rounded; the same on every machine.
    """
    count = len(clip)
    spread = np.arange(NUM_HASHED_FRAMES) * count // NUM_HASHED_FRAMES
    frames = clip[sample_indices(count, NUM_HASHED_FRAMES) if count >= NUM_HASHED_FRAMES else spread]
    frames = frames[:, *_without_bars(frames)]
    # All numbers are integers below 2**53: sums in float64 are exact in any order.
    grey = frames.astype(np.float64) @ _LUMA
    height, width = grey.shape[1:]
    sums = _cells(height) @ grey @ _cells(width).T
    scale = 256 * height * width
    return np.asarray((sums.astype(np.int64) + scale // 2) // scale, np.uint8)


def _without_bars(frames: npt.NDArray[np.uint8]) -> tuple[slice, slice]:
    """Return the rows and columns inside of the bars, black ones or borders of any colour."""
    # Colours first: along a last axis of 3, numpy is 30 times as slow.
    pixels = np.ascontiguousarray(np.moveaxis(np.stack([frames.min(axis=0), frames.max(axis=0)]), -1, 0), np.int16)
    rows, columns = (slice(0, size) for size in frames.shape[1:3])
    for _ in range(2):  # again, since what lies in a bar at a side tells nothing of those above and below
        columns = _inside(pixels[:, :, rows].swapaxes(2, 3), columns)
        rows = _inside(pixels[..., columns], rows)
    return rows, columns


def _inside(pixels: npt.NDArray[np.int16], kept: slice) -> slice:
    """Cut off the bars at both ends of the third axis."""
    size = pixels.shape[2]
    start = kept.start or _bar(pixels)
    end = size - kept.stop or _bar(pixels[:, :, ::-1])
    return slice(start, size - end)


def _bar(pixels: npt.NDArray[np.int16]) -> int:
    """Count the rows from the first on that are one colour all the time and end in a straight edge; 0: none do.

    A dark corner ends gradually, and an empty background where something comes near: neither is a bar.
    """
    lowest, highest = pixels[:, 0].min(axis=2), pixels[:, 1].max(axis=2)
    size = lowest.shape[1]
    spread = np.maximum.accumulate(highest, axis=1) - np.minimum.accumulate(lowest, axis=1)
    length = int((spread <= _BAR_SPREAD).all(axis=0).sum())
    if not 0 < length < size:
        return 0
    low, high = lowest[:, :length].min(axis=1, keepdims=True), highest[:, :length].max(axis=1, keepdims=True)
    beyond = pixels[:, :, length : length + 1 + size // _BLUR]
    differs = (beyond[:, 1] >= low[..., None] + _BAR_EDGE) | (beyond[:, 0] <= high[..., None] - _BAR_EDGE)
    differs = differs.any(axis=0)
    is_picture = differs.sum(axis=1) * 5 >= 3 * differs.shape[1]
    length += int(is_picture.argmax())
    # Below the letters of a subtitle its box goes on.
    goes_on = ((highest - low <= _BAR_SPREAD) & (high - lowest <= _BAR_SPREAD)).all(axis=0)
    is_bar = is_picture.any() and not goes_on[length:][: size // 6].any()
    return length if is_bar and length * 100 <= _LONGEST_BAR * size else 0


@functools.cache
def _cells(size: int) -> npt.NDArray[np.float64]:
    """(12, size) how much of each pixel lies in each cell, in twelfths of a pixel: rows sum to `size`."""
    edges = np.arange(size + 1) * SIDE
    starts = np.arange(SIDE)[:, None] * size
    overlap = np.minimum(edges[1:], starts + size) - np.maximum(edges[:-1], starts)
    cells: npt.NDArray[np.float64] = np.maximum(overlap, 0).astype(np.float64)
    return cells


# On 277 clips of one room, the hardest case at hand, this finds 95 to 100 % of the copies of
# tests/benchmarks/bench_near.py; of pairs of different recordings 0.27 % are nearer. Of 340 rendered clips none are.
NEAR = 0.008

_CORE = 8  # side of the pictures that are compared
_FLAT = 1.5  # standard deviation, of 255, below which a picture shows nothing
_BLANK = 2  # difference, of 255, between the darkest and the brightest cell of a clip that shows nothing at all
_CANDIDATE = 0.06  # distance of clip vectors: 0.01 for most copies, 0.06 for a moving scene 0.4 s later
_NUM_AXES = 24  # of 128: with these alone few pairs look nearer than they are
_ENOUGH = 32  # times that a clip is found near to others before a pair is left out that tells nothing new
_PAIRS_AT_ONCE = 2048
_SCORES_AT_ONCE = 2**22

Hashes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]
Window = tuple[float, float, float, float]  # top, height, left, width, as parts of the picture

_WHOLE: Window = (0, 1, 0, 1)


class _Way(NamedTuple):
    """How two clips can show the same: one of some windows of the first shows what one of the second does."""

    firsts: tuple[Window, ...]  # candidates are found by the first of them
    second: Window = _WHOLE
    num_frames: int = 8  # of 16, that must have a frame of the other that is near
    strictness: float = 1.0  # how many times nearer

    @property
    def symmetric(self) -> bool:
        return self.firsts == (self.second,)


def _crops(kept: float) -> tuple[Window, ...]:
    """Return the nine crops to a part of height and width, the one in the middle first."""
    starts = ((1 - kept) / 2, 0, 1 - kept)
    return tuple((top, kept, left, kept) for top, left in itertools.product(starts, starts))


# A stamp or a subtitle lies above or below: the rest must be nearer, for longer (adds 0.006 % of unrelated pairs).
_UPPER: Window = (0, 0.71, 0, 1)  # nothing of the lower 3 of 12 cells, though pixels are interpolated
_LOWER: Window = (0.29, 0.71, 0, 1)
_WAYS = (
    _Way((_WHOLE,)),
    _Way(_crops(0.95)),
    _Way(_crops(0.9)),
    _Way((_UPPER,), _UPPER, num_frames=12, strictness=3),
    _Way((_LOWER,), _LOWER, num_frames=12, strictness=3),
)


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


def find_near_pairs(hashes: Hashes, threshold: float = NEAR, splits: npt.ArrayLike | None = None) -> NearPairs:
    """Find pairs of clips that show the same.

    The distance of two pictures is 1 minus their correlation. That of two clips is the smallest d such that half of
    the frames of each have a frame of the other within d, for the best of 19 crops and the mirrored clip; without the
    upper or lower quarter, 12 of 16 frames within d / 3. Clips that are flat (one colour) in more than half of their
    frames are near to none, but can be the same as others unless they are blank.

    Once a clip is near to very many, pairs are left out that change neither the connected groups nor to which splits
    a clip is near. Sums in float32 depend on the CPU in the last digit: a pair on the very limit may differ.

    Args:
        hashes: (N, 16, 12, 12) uint8, of `vidcache.near_duplicates.perceptual_hash`.
        threshold: Largest distance that counts.
        splits: (N,) values of `Split`: every clip that is near to one of a split is paired with one.
    """
    same = _same(hashes)
    num_flat = np.array([(clip.std(axis=(1, 2), dtype=np.float32) < _FLAT).sum() for clip in hashes], np.int64)
    unique = np.flatnonzero((num_flat * 2 <= hashes.shape[1]) & (same == np.arange(len(hashes))))
    rows, distances = [np.zeros((0, 2), np.int64)], [np.zeros(0, np.float32)]
    bits = np.zeros(len(same), np.int64)  # the splits of all clips that are the same
    np.bitwise_or.at(bits, same, 1 if splits is None else 1 << np.asarray(splits, np.int64))
    known = _Known(bits[unique])
    clips = _Clips(hashes[unique])
    for way, mirrored in itertools.product(_WAYS, (False, True)) if len(unique) else ():
        for pairs in clips.candidates(way, mirrored):
            part = pairs[known.lacks(pairs)]
            if not len(part):
                continue
            found = _clip_distances(hashes, unique[part], way, mirrored)
            near = found <= threshold
            known.add(part[near])
            rows.append(np.sort(unique[part[near]], axis=1))
            distances.append(found[near])
    return NearPairs(*_nearest(np.concatenate(rows), np.concatenate(distances)), same)


def _same(hashes: Hashes) -> Rows:
    """(N,) for every clip, the first with the same hash; blank ones only equal themselves."""
    digests = np.array([xxhash.xxh3_64_intdigest(clip.tobytes()) for clip in hashes], np.uint64)
    _, first, same = np.unique(digests, return_index=True, return_inverse=True)
    blank = np.array([int(clip.max()) - int(clip.min()) <= _BLANK for clip in hashes], bool)
    return np.where(blank, np.arange(len(hashes)), first[same].astype(np.int64))


def clip_distance(first: Hashes, second: Hashes) -> float:
    """Return the distance of two clips, as `find_near_pairs` defines it: (16, 12, 12) each."""
    both, rows = np.stack([first, second]), np.array([[0, 1], [1, 0]])
    ways = itertools.product(_WAYS, (False, True))
    return min(float(_clip_distances(both, rows, way, mirrored).min()) for way, mirrored in ways)


def _nearest(rows: Rows, distances: Floats) -> tuple[Rows, Floats]:
    """Sort pairs; of one that was found in several ways, keep the smallest distance."""
    order = np.argsort(distances, kind="stable")
    rows, first = np.unique(rows[order], axis=0, return_index=True)
    return rows, distances[order][first]


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


def _cut(pictures: Floats, window: Window) -> Floats:
    """Cut (..., 12, 12) to a window, (..., 8, 8)."""
    top, height, left, width = window
    return np.asarray(_window(top, height) @ pictures @ _window(left, width).T, np.float32)


def _unit(vectors: Floats) -> Floats:
    """Scale the last dimension to length 1; what is zero stays zero."""
    lengths = np.sqrt((vectors * vectors).sum(axis=-1, keepdims=True))
    return np.asarray(vectors / np.maximum(lengths, 1e-12), np.float32)


def _frame_vectors(hashes: Hashes, window: Window, mirrored: bool) -> Floats:
    """(n, 16, 64) unit vectors of the frames; zero for what is flat."""
    pictures = hashes[..., ::-1] if mirrored else hashes
    cut = _cut(pictures.astype(np.float32), window).reshape(*hashes.shape[:2], -1)
    cut -= cut.mean(axis=-1, keepdims=True)
    cut[np.sqrt((cut * cut).mean(axis=-1)) < _FLAT] = 0
    return _unit(cut)


def _clip_distances(hashes: Hashes, pairs: Rows, way: _Way, mirrored: bool) -> Floats:
    """(n,) distances of pairs, (n, 2), for the best window of the first, perhaps mirrored."""
    firsts, place = np.unique(pairs[:, 0], return_inverse=True)
    second = _frame_vectors(hashes[pairs[:, 1]], way.second, False).transpose(0, 2, 1)
    limit = hashes.shape[1] - way.num_frames
    best: Floats = np.full(len(pairs), np.inf, np.float32)
    for window in way.firsts:
        similarity = _frame_vectors(hashes[firsts], window, mirrored)[place.reshape(-1)] @ second
        sides = [np.partition(similarity.max(axis=axis), limit, axis=1)[:, limit] for axis in (1, 2)]
        best = np.minimum(best, (1 - np.minimum(*sides)) * way.strictness, dtype=np.float32)
    return np.maximum(best, 0).round(5)  # what is beyond differs from CPU to CPU


class _Clips:
    """One vector per clip: its mean picture, and where in it something moves."""

    def __init__(self, hashes: Hashes) -> None:
        parts = [hashes[start : start + 2048].astype(np.float32) for start in range(0, len(hashes), 2048)]
        none = np.zeros((0, SIDE, SIDE), np.float32)
        self._means = np.concatenate([none, *(part.mean(axis=1) for part in parts)])
        self._motion = np.concatenate([none, *(part.std(axis=1) for part in parts)])

    def vectors(self, window: Window, mirrored: bool) -> Floats:
        """(N, 128) unit vectors."""
        still, moving = (
            _cut(pictures[..., ::-1] if mirrored else pictures, window).reshape(len(pictures), -1)
            for pictures in (self._means, self._motion)
        )
        still = still - still.mean(axis=1, keepdims=True)
        return _unit(np.concatenate([still, moving], axis=1))

    def candidates(self, way: _Way, mirrored: bool) -> Iterator[Rows]:
        """Yield (n, 2) all pairs whose vectors are near enough, in parts of bounded size."""
        vectors = self.vectors(way.second, False)
        queries = self.vectors(way.firsts[0], mirrored)
        axes = np.linalg.eigh(vectors.T @ vectors)[1][:, -_NUM_AXES:]
        ours, others = _bounding(queries, axes), _bounding(vectors, axes)
        rows_at_once = max(1, _SCORES_AT_ONCE // len(vectors))
        waiting = [np.zeros((0, 2), np.int64)]
        for start in range(0, len(vectors), rows_at_once):
            # A mirrored pair, and one of pictures that are cut alike, is the same both ways round.
            first = start + 1 if way.symmetric else 0
            similar = ours[start : start + rows_at_once] @ others[first:].T >= 1 - _CANDIDATE - 1e-5
            rows, found = np.divmod(np.flatnonzero(similar), max(similar.shape[1], 1))
            pairs = np.stack([rows + start, found + first], axis=1)
            waiting.append(pairs[pairs[:, 0] < pairs[:, 1] if way.symmetric else pairs[:, 0] != pairs[:, 1]])
            if sum(map(len, waiting)) >= _PAIRS_AT_ONCE or start + rows_at_once >= len(vectors):
                pairs = np.concatenate(waiting)
                for part in np.split(pairs, range(_PAIRS_AT_ONCE, len(pairs), _PAIRS_AT_ONCE)):
                    scores = np.einsum("nd,nd->n", queries[part[:, 0]], vectors[part[:, 1]])
                    yield part[1 - scores <= _CANDIDATE]
                waiting = [pairs[:0]]


def _bounding(vectors: Floats, axes: Floats) -> Floats:
    """Shorten unit vectors so that their products are never below those of the whole ones (Cauchy and Schwarz)."""
    head = vectors @ axes
    rest = 1 - (head * head).sum(axis=1, keepdims=True)
    return np.concatenate([head, np.sqrt(np.maximum(rest, 0))], axis=1)


class _Known:
    """Which clips are connected, and how often each is near to those of a kind; alike clips have millions of pairs."""

    def __init__(self, kinds: Rows) -> None:
        self._kinds = kinds
        self._groups = np.arange(len(kinds))
        self._counts = np.zeros((len(kinds), kinds.max(initial=0) + 1), np.int64)

    def lacks(self, pairs: Rows) -> npt.NDArray[np.bool_]:
        """(n,) which pairs may connect clips, or are one of the first of a clip with clips of a kind."""
        first, second = pairs.T
        counts = np.minimum(self._counts[first, self._kinds[second]], self._counts[second, self._kinds[first]])
        tells: npt.NDArray[np.bool_] = (counts < _ENOUGH) | (self._groups[first] != self._groups[second])
        return tells

    def add(self, pairs: Rows) -> None:
        """Connect pairs."""
        first, second = pairs.T
        np.add.at(self._counts, (first, self._kinds[second]), 1)
        np.add.at(self._counts, (second, self._kinds[first]), 1)
        for pair in pairs[self._groups[first] != self._groups[second]]:
            low, high = np.sort(self._groups[pair])
            self._groups[self._groups == high] = low
