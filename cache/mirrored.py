"""Classes that are told apart by left and right: a mirrored clip of one is a clip of the other.

Their names are a hint, the perceptual hashes of a cache are the proof. Reads columns only, never clips.
"""

import dataclasses
import itertools
import re

import numpy as np
import numpy.typing as npt

from vidcache.cache.reader import Reader
from vidcache.text import printable

MAX_CLIPS = 4000
MIN_CLASS_CLIPS = 5  # all of 5 and all of 5: 1 in 252 by chance
# Of all pairs of classes together.
SIGNIFICANCE = 0.01
# Clips of both classes whose mirror image is nearer to the other class; half is what says nothing.
MIN_SHARE = 0.6
MAX_NAMED = 3
# Of what a clip looks like, how much changes where, which way it moves, and where edges are. Of 277 real clips with a
# rendered object that moves to one side, and of rendered clips with an object at one side, most are seen with these.
_WEIGHTS = (1.0, 1.0, 2.0, 1.5)
_PARTS = 3  # of height and of width, in which motion is added up
_EDGE = r"(?<![^\W_]){}(?![^\W_])"  # short words count only where they stand alone
_SIDES = (
    (_EDGE.format("left(?:wards?)?"), _EDGE.format("right(?:wards?)?")),
    (_EDGE.format("links"), _EDGE.format("rechts")),
    ("gauche", "droite"),
    ("izquierda", "derecha"),
    ("sinistra", "destra"),
    (_EDGE.format("west"), _EDGE.format("east")),
    (r"(?:counter|anti)[\W_]*clockwise", "clockwise"),
    (_EDGE.format("(?:ccw|acw)"), _EDGE.format("cw")),
    (_EDGE.format("l"), _EDGE.format("r")),
    (_EDGE.format("lhs"), _EDGE.format("rhs")),
)
_SIDE = re.compile("|".join(f"({pattern})" for pattern in itertools.chain(*_SIDES)))

Hashes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class MirrorPair:
    """Two classes of which each is the mirror image of the other.

    Attributes:
        first: Label of one.
        second: Label of the other.
        share: Of their training clips, how many have a mirror image that is nearer to the other class; None when
            only the names say so.
    """

    first: int
    second: int
    share: float | None


def find_mirror_pairs(reader: Reader) -> tuple[MirrorPair, ...]:
    """Find classes that mirroring confuses, among the training clips; proven ones first, the clearest first.

    Args:
        reader: The cache, or several.
    """
    rows = reader.rows("train")
    labels = reader.labels[rows]
    chosen = _some_of_each(labels)
    proven = proven_pairs(reader.columns["perceptual_hash"][rows[chosen]], labels[chosen])
    known = {(pair.first, pair.second) for pair in proven}
    present = set(labels.tolist())
    named = [pair for pair in named_pairs(reader.classes) if set(pair) <= present and pair not in known]
    return (*proven, *(MirrorPair(first, second, None) for first, second in named))


def named_pairs(classes: tuple[str, ...]) -> list[tuple[int, int]]:
    """Return pairs of labels whose names become each other when left and right change places.

    >>> named_pairs(("turn_left", "turn_right", "left", "Spin CW", "spin ccw", "bright"))
    [(0, 1), (3, 4)]
    """
    found: dict[tuple[str, tuple[int, ...]], int] = {}
    pairs = []
    for label, name in enumerate(classes):
        plain = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).casefold()
        sides = [match.lastindex - 1 for match in _SIDE.finditer(plain) if match.lastindex]
        if sides and len(plain.strip()) > 1:  # no letter of an alphabet
            rest = re.sub(r"[\W_]+", " ", _SIDE.sub("<>", plain))
            other = found.get((rest, tuple(side ^ 1 for side in sides)))
            if other is not None:
                pairs.append((other, label))
            found[rest, tuple(sides)] = label
    return pairs


def proven_pairs(hashes: Hashes, labels: Labels) -> tuple[MirrorPair, ...]:
    """Find pairs of classes of which mirror images are nearer to the other one.

    Every clip and its mirror image are compared with all other clips, by mean picture, by how much changes where, by
    which way it moves, and by where edges are. A pair counts when clips as they are go to their own class and
    mirrored clips to the other one, both beyond chance: Fisher's exact test, the larger of the two p-values,
    Bonferroni's correction for pairs. (Either alone calls 2 to 7 % of random labels a pair, because nearest
    neighbours depend on each other; both together 0 of 1,200.)

    Args:
        hashes: (n, 16, 12, 12) uint8, of `vidcache.near_duplicates.perceptual_hash`.
        labels: (n,) their classes.
    """
    from scipy.stats import hypergeom  # takes 1 s to import

    classes, counts = np.unique(labels, return_counts=True)
    classes = classes[counts >= MIN_CLASS_CLIPS]
    if len(classes) < 2:
        return ()
    kept = np.flatnonzero(np.isin(labels, classes))
    kept = kept[np.argsort(labels[kept], kind="stable")]
    sizes = np.unique(labels[kept], return_counts=True)[1]
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    vectors = _vectors(hashes[kept])
    # (K, K): of each class, how many are nearer to each other class than to their own; as they are, and mirrored.
    plain = _strays(vectors, vectors, starts, sizes)
    mirrored = _strays(_vectors(hashes[kept][..., ::-1]), vectors, starts, sizes)
    a, b = np.triu_indices(len(classes), 1)
    both = sizes[a] + sizes[b]
    own, mistaken = sizes[a] - plain[a, b], plain[b, a]
    swapped, stayed = mirrored[a, b], sizes[b] - mirrored[b, a]
    p_values = np.maximum(
        hypergeom.sf(own - 1, both, own + mistaken, sizes[a]),
        hypergeom.sf(swapped - 1, both, swapped + stayed, sizes[a]),
    )
    shares = (mirrored[a, b] / sizes[a] + mirrored[b, a] / sizes[b]) / 2
    found = np.flatnonzero((p_values * len(a) < SIGNIFICANCE) & (shares >= MIN_SHARE))
    return tuple(
        MirrorPair(int(classes[a[pair]]), int(classes[b[pair]]), float(shares[pair]))
        for pair in sorted(found.tolist(), key=lambda pair: (-shares[pair], pair))
    )


def in_words(pairs: tuple[MirrorPair, ...], classes: tuple[str, ...]) -> str:
    """Say which classes mirroring confuses, and by what that is known.

    Args:
        pairs: At least one.
        classes: Names (K).
    """
    parts = []
    for pair in pairs[:MAX_NAMED]:
        names = f"{printable(classes[pair.first])} and {printable(classes[pair.second])}"
        why = (
            "by their names"
            if pair.share is None
            else f"{pair.share:.0%} of their mirrored clips are nearer to the other class"
        )
        parts.append(f"{names} ({why})")
    more = f", and {len(pairs) - MAX_NAMED:,} more pairs" if len(pairs) > MAX_NAMED else ""
    turns = "may turn" if all(pair.share is None for pair in pairs) else "turns"
    return f"Mirroring {turns} one class into another: {'; '.join(parts)}{more}"


def _some_of_each(labels: Labels) -> npt.NDArray[np.int64]:
    """Choose at most `MAX_CLIPS`, evenly spaced, as many of each class, and no class by halves."""
    classes, counts = np.unique(labels, return_counts=True)
    quota = max(MAX_CLIPS // max(len(classes), 1), 2 * MIN_CLASS_CLIPS)
    largest = classes[np.argsort(-counts, kind="stable")][: MAX_CLIPS // quota]
    rows = [np.flatnonzero(labels == label) for label in np.sort(largest)]
    chosen = [row[np.linspace(0, len(row) - 1, min(len(row), quota)).astype(np.int64)] for row in rows]
    return np.concatenate([np.zeros(0, np.int64), *chosen])


def _strays(asked: Floats, vectors: Floats, starts: Labels, sizes: Labels) -> npt.NDArray[np.int64]:
    """(K, K) how many of each class have their nearest clip, other than themselves, rather in each other class."""
    counts = np.zeros((len(sizes), len(sizes)), np.int64)
    for label, (start, size) in enumerate(zip(starts.tolist(), sizes.tolist(), strict=True)):
        similarity = asked[start : start + size] @ vectors.T
        similarity[np.arange(size), start + np.arange(size)] = -np.inf
        nearest = np.maximum.reduceat(similarity, starts, axis=1)
        counts[label] = (nearest > nearest[:, [label]]).sum(axis=0)
    return counts


def _vectors(hashes: Hashes) -> Floats:
    """(n, 450) what a clip looks like: a unit vector times a weight for each of `_WEIGHTS`."""
    parts = [_look(hashes[start : start + 512].astype(np.float32)) for start in range(0, len(hashes), 512)]
    return np.concatenate(parts)


def _look(frames: Floats) -> Floats:
    means = frames.mean(axis=1)
    slopes = np.stack(np.gradient(means, axis=(1, 2)))
    # An object stands out by its edges, darker or brighter than what is behind it.
    edges = np.hypot(*(slopes - slopes.mean(axis=(2, 3), keepdims=True)))
    means -= means.mean(axis=(1, 2), keepdims=True)
    # Brightness moves by v: dI/dt = -v dI/dx (Horn and Schunck, "Determining Optical Flow", 1981); so the sign of
    # dI/dt dI/dx, added up over a clip, is the way things went, wherever they were.
    change, middle = np.diff(frames, axis=1), (frames[:, 1:] + frames[:, :-1]) / 2
    down, across = np.gradient(middle, axis=(2, 3))
    flows = [-(change * slope).sum(axis=1) for slope in (across, down)]
    side = frames.shape[-1] // _PARTS
    motion = [flow.reshape(len(frames), _PARTS, side, _PARTS, side).mean(axis=(2, 4)) for flow in flows]
    looks = (means, frames.std(axis=1), np.stack(motion, axis=1), edges)
    return np.concatenate([weight * _unit(look) for weight, look in zip(_WEIGHTS, looks, strict=True)], axis=1)


def _unit(values: Floats) -> Floats:
    flat = values.reshape(len(values), -1)
    return np.asarray(flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6), np.float32)
