"""Classes that differ by left and right: a mirrored clip of one looks like a clip of the other.

Their names are a hint, the perceptual hashes of a cache are the proof. Reads columns only, never clips.
"""

import re
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from vidcache.cache.reader import Reader
from vidcache.text import printable

MAX_CLIPS = 4000
MIN_CLASS_CLIPS = 5  # all of 5 and all of 5: 1 in 252 by chance
SIGNIFICANCE = 0.01  # over all pairs of classes together
MIN_SHARE = 0.6  # of clips whose mirror image is nearer to the other class; half says nothing
MAX_NAMED = 3
_WEIGHTS = (1.0, 1.0, 2.0, 1.5)  # of 277 real clips that move to one side, and rendered ones, these prove most
_WORDS = "left(?:wards?)? right(?:wards?)? links rechts west east ccw|acw cw l r lhs rhs".split()  # as whole words
_SIDE = re.compile(
    "|".join(f"((?<![^\\W_])(?:{word})(?![^\\W_]))" for word in _WORDS)
    + r"|(gauche)|(droite)|(izquierda)|(derecha)|(sinistra)|(destra)|((?:counter|anti)[\W_]*clockwise)|(clockwise)"
)
Labels = npt.NDArray[np.int64]


class MirrorPair(NamedTuple):
    """Two labels, and the share of their clips with a mirror image nearer to the other; None: only the names say so."""

    first: int
    second: int
    share: float | None


def find_mirror_pairs(reader: Reader) -> tuple[MirrorPair, ...]:
    """Find classes that mirroring confuses, among the training clips; proven ones first, the clearest first."""
    rows = reader.rows("train")
    labels = reader.labels[rows]
    some = np.linspace(0, len(rows) - 1, min(len(rows), MAX_CLIPS)).astype(np.int64)
    proven = proven_pairs(reader.columns["perceptual_hash"][rows[some]], labels[some])
    known, present = {pair[:2] for pair in proven}, set(labels.tolist())
    named = [pair for pair in named_pairs(reader.classes) if present.issuperset(pair) and pair not in known]
    return (*proven, *(MirrorPair(*pair, None) for pair in named))


def named_pairs(classes: tuple[str, ...]) -> list[tuple[int, int]]:
    """Return pairs of labels whose names become each other when left and right change places.

    >>> named_pairs(("turn_left", "turn_right", "left", "Spin CW", "spin ccw", "bright"))
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


def proven_pairs(hashes: npt.NDArray[np.uint8], labels: Labels) -> tuple[MirrorPair, ...]:
    """Find pairs of classes whose mirror images are nearer to the other one: (n, 16, 12, 12) hashes, (n,) labels.

    A pair counts when clips as they are go to their own class and mirrored clips to the other one, both beyond chance:
    Fisher's exact test, the larger p-value, Bonferroni's correction for pairs. (Either alone calls 2 to 7 % of random
    labels a pair, because nearest neighbours depend on each other; both together 0 of 1,200.)
    """
    from scipy.stats import hypergeom  # takes 1 s to import

    classes, sizes = np.unique(labels, return_counts=True)
    classes, sizes = classes[sizes >= MIN_CLASS_CLIPS], sizes[sizes >= MIN_CLASS_CLIPS]
    if len(classes) < 2:
        return ()
    order = np.argsort(labels, kind="stable")
    hashes = hashes[order[np.isin(labels[order], classes)]]
    vectors = _vectors(hashes)
    # (K, K): of each class, how many are nearer to each other class than to their own; as they are, and mirrored.
    plain, mirrored = (_count_strays(queries, vectors, sizes) for queries in (vectors, _vectors(hashes[..., ::-1])))
    a, b = np.triu_indices(len(classes), 1)
    kept, swapped, both = sizes[a] - plain[a, b], mirrored[a, b], sizes[a] + sizes[b]
    p_values = np.maximum(
        hypergeom.sf(kept - 1, both, kept + plain[b, a], sizes[a]),
        hypergeom.sf(swapped - 1, both, swapped + sizes[b] - mirrored[b, a], sizes[a]),
    )
    shares = (mirrored[a, b] / sizes[a] + mirrored[b, a] / sizes[b]) / 2
    proven = np.flatnonzero((p_values * len(a) < SIGNIFICANCE) & (shares >= MIN_SHARE))
    proven = proven[np.argsort(-shares[proven], kind="stable")]
    return tuple(MirrorPair(int(classes[a[i]]), int(classes[b[i]]), float(shares[i])) for i in proven)


def in_words(pairs: tuple[MirrorPair, ...], classes: tuple[str, ...]) -> str:
    """Say which classes mirroring confuses, and how that is known."""
    parts = []
    for first, second, share in pairs[:MAX_NAMED]:
        nearer = f"{share or 0:.0%} of their mirrored clips are nearer to the other class"
        why = "by their names" if share is None else nearer
        parts.append(f"{printable(classes[first])} and {printable(classes[second])} ({why})")
    more = f", and {len(pairs) - MAX_NAMED:,} more pairs" if len(pairs) > MAX_NAMED else ""
    turns = "may turn" if all(pair.share is None for pair in pairs) else "turns"
    return f"Mirroring {turns} one class into another: {'; '.join(parts)}{more}"


def _count_strays(queries: npt.NDArray[np.float32], vectors: npt.NDArray[np.float32], sizes: Labels) -> Labels:
    """(K, K) how many of each class have their nearest clip, other than themselves, rather in each other class."""
    counts, starts = np.zeros((len(sizes), len(sizes)), np.int64), np.cumsum(sizes) - sizes
    for label, (start, size) in enumerate(zip(starts.tolist(), sizes.tolist(), strict=True)):
        similarity = queries[start : start + size] @ vectors.T
        similarity[np.arange(size), start + np.arange(size)] = -np.inf
        nearest = np.maximum.reduceat(similarity, starts, axis=1)
        counts[label] = (nearest > nearest[:, [label]]).sum(axis=0)
    return counts


def _vectors(hashes: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """(n, 450) mean picture, how much changes where, which way it moves (in 3 x 3 parts), and edges: weighted units."""
    parts = []
    for start in range(0, len(hashes), 512):
        frames = hashes[start : start + 512].astype(np.float32)
        means, size, side = frames.mean(axis=1), len(frames), frames.shape[-1] // 3
        slopes = np.stack(np.gradient(means, axis=(1, 2)))
        # An object stands out by its edges, darker or brighter than what is behind it.
        edges = np.hypot(*(slopes - slopes.mean(axis=(2, 3), keepdims=True)))
        means -= means.mean(axis=(1, 2), keepdims=True)
        # Brightness moves by v: dI/dt = -v dI/dx (Horn and Schunck, "Determining Optical Flow", 1981); so the sign of
        # dI/dt dI/dx, added up over a clip, is the way things went, wherever they were.
        change, middle = np.diff(frames, axis=1), (frames[:, 1:] + frames[:, :-1]) / 2
        flows = np.stack([-(change * slope).sum(axis=1) for slope in np.gradient(middle, axis=(3, 2))], axis=1)
        motion = flows.reshape(size, 2, 3, side, 3, side).mean(axis=(3, 5))
        looks = [look.reshape(size, -1) for look in (means, frames.std(axis=1), motion, edges)]
        units = [look / np.maximum(np.linalg.norm(look, axis=1, keepdims=True), 1e-6) for look in looks]
        parts.append(np.concatenate([weight * unit for weight, unit in zip(_WEIGHTS, units, strict=True)], axis=1))
    return np.concatenate(parts).astype(np.float32)
