"""Assigns groups of clips to train, val and test: stratified by class, seeded, no group parted.

Integers only: the same result on every machine.
"""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import xxhash

from vidcache.cache.format import Split
from vidcache.cache.leakage import connected
from vidcache.text import plural, printable

NUM_SPLITS = 3  # train, val and test; `Split.UNUSED` is none
MIN_CLASS_CLIPS = 3

Ints = npt.NDArray[np.int64]

_PARTS = 1_000_000  # fractions are rounded to multiples of 1 / _PARTS
_MAX_GROUPS = 9  # up to here all ways to divide the groups are compared
_MAX_STARTS, _MAX_PASSES = 20, 50
_MAX_CELLS = 20_000_000  # of the tables compared in one pass; about a second
_MAX_NAMES = 5


def parse_fractions(text: str) -> tuple[float, float, float]:
    """Read "70/15/15" or "0.7/0.15/0.15" as fractions of train, val and test. Raises ValueError."""
    try:
        train, val, test = map(float, text.split("/"))
    except ValueError:
        train = val = test = 0.0
    total = train + val + test
    if not (min(val, test) >= 0 < train and (abs(total - 100) < 1e-6 or abs(total - 1) < 1e-6)):
        raise ValueError(f"split {text!r}: not train/val/test percentages that sum to 100, like 70/15/15")
    return train / total, val / total, test / total


def required_splits(num_groups: int, fractions: Sequence[float]) -> tuple[Split, ...]:
    """Return the splits that a class with this number of groups must be in: train first, then test, then val."""
    return tuple(split for split in (Split.TRAIN, Split.TEST, Split.VAL) if fractions[split] > 0)[:num_groups]


def split_counts(num_clips: int, fractions: Sequence[float]) -> tuple[int, int, int]:
    """Divide the clips of a class into train, val and test, as near to the fractions as whole clips allow.

    Each split with a fraction above 0 gets at least one clip, if the class has enough clips for all of them. Two clips
    go to train and test, a single one to train.
    """
    required = required_splits(NUM_SPLITS, fractions)
    if num_clips < len(required):
        required = required[:num_clips]
        return int(Split.TRAIN in required), int(Split.VAL in required), int(Split.TEST in required)
    exact = [num_clips * fraction for fraction in fractions]
    counts = [max(int(share + 1e-9), int(index in required)) for index, share in enumerate(exact)]
    while sum(counts) < num_clips:
        counts[max(sorted(required), key=lambda index: exact[index] - counts[index])] += 1
    while sum(counts) > num_clips:  # the minimum of one has taken too many
        counts[max(range(NUM_SPLITS), key=lambda index: (counts[index] > 1, counts[index] - exact[index]))] -= 1
    return counts[0], counts[1], counts[2]


def assign_splits(
    paths: Sequence[bytes],
    labels: npt.ArrayLike,
    good: npt.ArrayLike,
    fractions: Sequence[float],
    seed: int,
    groups: npt.ArrayLike | None = None,
) -> npt.NDArray[np.uint8]:
    """Assign every video to a split, every group as a whole.

    A class is in every wanted split if it has three groups; with two it is in train and test, with one in train. Where
    groups span classes that may be impossible for some, and as many as possible have it. After that, the clips of each
    class are as near to the fractions as `divide_groups` can make them.

    Args:
        paths: (N,) relative paths.
        labels: (N,) class of each.
        good: (N,) whether it has a clip; the others do not count and go with their group, or else to train.
        fractions: Of train, val and test; sum 1.
        seed: Decides which of the groups that are alike go where.
        groups: (N,) group of each. None: every video is one.

    Returns:
        (N,) values of `Split`, never `Split.UNUSED`.
    """
    ids = np.arange(len(paths)) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    split_of_group = np.full(len(paths), Split.TRAIN, np.uint8)
    for signatures in _components(paths, np.asarray(labels), np.flatnonzero(good), ids, seed):
        num_groups = [len(members) for members in signatures.values()]
        if len(signatures) == 1:
            placed = [split_counts(num_groups[0], fractions)]
        else:
            classes = sorted({label for signature in signatures for label in signature})
            table = [[signature.count(label) for label in classes] for signature in signatures]
            placed = divide_groups(table, num_groups, fractions).tolist()
        for members, (num_train, num_val, _) in zip(signatures.values(), placed, strict=True):
            split_of_group[members[num_train : num_train + num_val]] = Split.VAL
            split_of_group[members[num_train + num_val :]] = Split.TEST
    return split_of_group[ids]


# The labels of the good clips of a group (its signature), and the groups that have just these, in order of hashes.
_Signatures = dict[tuple[int, ...], list[int]]


def _components(paths: Sequence[bytes], labels: Ints, rows: Ints, ids: Ints, seed: int) -> list[_Signatures]:
    """Sort the groups into sets that have no class in common, which can be divided independently."""
    members: dict[int, list[int]] = {}
    for row, group in zip(rows.tolist(), ids[rows].tolist(), strict=True):
        members.setdefault(group, []).append(row)
    first_path = {group: min(paths[row] for row in some) for group, some in members.items()}
    # By a hash of the path, not by a shuffled list: adding a video moves few of the others.
    order = sorted(members, key=lambda group: (xxhash.xxh3_64_intdigest(first_path[group], seed), first_path[group]))
    signature_of = {group: tuple(sorted(labels[members[group]].tolist())) for group in order}
    together = {(signature[0], label) for signature in signature_of.values() for label in signature}
    component_of = connected(labels.max(initial=-1) + 1, np.array(sorted(together), np.int64).reshape(-1, 2)).tolist()
    components: dict[int, _Signatures] = {}
    for group, signature in signature_of.items():
        components.setdefault(component_of[signature[0]], {}).setdefault(signature, []).append(group)
    return list(components.values())


def divide_groups(table: npt.ArrayLike, num_groups: npt.ArrayLike, fractions: Sequence[float]) -> Ints:
    """Decide how many groups of each signature go to each split, (P, 3).

    First as few classes as possible miss a split that they must be in; then the sum over classes and splits of
    (count - fraction * clips of the class)^2 / (clips of the class) is small: the least possible for nine groups or
    fewer, else one that no move of a group and no swap of two makes smaller. By hand, since scikit-learn's
    StratifiedGroupKFold leaves ten times as many clips in another split than wanted (277 clips of 21 recordings: 12.6
    % against 1.7 %), and classes without a test clip.

    Args:
        table: (P, C) clips of each class in a group of each signature; no class empty.
        num_groups: (P,) groups of each signature, 1 or more.
        fractions: (3,) sum 1. A split with 0 gets nothing.
    """
    signatures, repeats = np.asarray(table, np.int64), np.asarray(num_groups, np.int64)
    cost = _Cost(signatures, repeats, fractions)
    if repeats.sum() <= _MAX_GROUPS:
        return _compare_all(signatures, repeats, cost)
    largest_first = np.argsort(-signatures.sum(axis=1), kind="stable")
    num_starts = max(1, min(_MAX_STARTS, len(signatures), _MAX_CELLS // (len(signatures) * signatures.size)))
    results = [_search(signatures, repeats, cost, np.roll(largest_first, start)) for start in range(num_starts)]
    return min(results, key=lambda result: result[0])[1]


class _Cost:
    """Cost of the clips in a split, in whole numbers: the same on every machine.

    The sum of (count - fraction * clips)^2 / clips is, but for a constant, that of count^2 / clips - 2 * fraction *
    count. Times a scale that all class sizes divide these are integers, and no sum is above 2^63; where such a scale
    is too large, weights are rounded.
    """

    def __init__(self, signatures: Ints, num_groups: Ints, fractions: Sequence[float]) -> None:
        clips, num_groups_of_class = num_groups @ signatures, (num_groups @ (signatures > 0)).tolist()
        self.splits = [split for split in range(NUM_SPLITS) if fractions[split] > 0]
        self.parts = np.rint(np.array(fractions) * _PARTS).astype(np.int64)
        self.parts[self.splits] = np.maximum(self.parts[self.splits], 1)
        self.parts[self.parts.argmax()] += _PARTS - self.parts.sum()
        scale = _PARTS * min(math.lcm(*clips.tolist()), 2**59 // (_PARTS * int(clips.sum()) * len(clips)))
        self._weights, self._prices = scale // clips, 2 * (scale // _PARTS) * self.parts
        required = [
            [split in required_splits(n, fractions) for n in num_groups_of_class] for split in range(NUM_SPLITS)
        ]
        # More than all clips in the wrong splits can cost.
        self._penalties = np.array(required) * (2 * scale * int(clips.sum()) + 1)

    def __call__(self, counts: Ints, split: int) -> Ints:
        """Return the cost of (..., C) clips in a split."""
        costs = (self._weights * counts - self._prices[split]) * counts + self._penalties[split] * (counts == 0)
        total: Ints = costs.sum(axis=-1)
        return total


def _compare_all(signatures: Ints, num_groups: Ints, cost: _Cost) -> Ints:
    """Return the best of all ways; of equally good ones that with the first signatures in the first splits."""
    signature_of = np.repeat(np.arange(len(signatures)), num_groups)
    num_groups_in_all = len(signature_of)
    ways = np.array(cost.splits)[np.indices((len(cost.splits),) * num_groups_in_all).reshape(num_groups_in_all, -1)]
    costs = sum(cost((ways == split).T @ signatures[signature_of], split) for split in cost.splits)
    placed = np.zeros((len(signatures), NUM_SPLITS), np.int64)
    np.add.at(placed, (signature_of, ways[:, np.argmin(costs)]), 1)
    return placed


def _search(signatures: Ints, num_groups: Ints, cost: _Cost, order: Ints) -> tuple[int, Ints]:
    """Place groups one after the other where they cost least, then move and swap until nothing is better."""
    # Of many groups that are alike most go where they must, at once; the odd ones follow in the order given.
    placed = num_groups[:, None] * cost.parts // _PARTS
    counts = placed.T @ signatures  # (S, C)
    for index in np.repeat(order, (num_groups - placed.sum(axis=1))[order]).tolist():
        split = min(cost.splits, key=lambda s: cost(counts[s] + signatures[index], s) - cost(counts[s], s))
        placed[index, split] += 1
        counts[split] += signatures[index]
    # A move is a swap with the last signature, an empty group that every split has.
    signatures = np.concatenate([signatures, np.zeros_like(signatures[:1])])
    placed = np.concatenate([placed, np.full_like(placed[:1], np.iinfo(np.int32).max)])
    num_partners = max(1, min(len(signatures), _MAX_CELLS // signatures.size))
    partners = np.linspace(len(signatures) - 1, 0, num_partners, dtype=np.int64)
    for _ in range(_MAX_PASSES):
        before = placed.copy()
        for index, source in np.argwhere(placed[:-1]).tolist():
            if not placed[index, source]:
                continue
            gains = signatures[index] - signatures[partners]  # (Q, C) clips that go from source to target
            given = cost(counts[source] - gains, source) - cost(counts[source], source)
            changes = np.zeros((NUM_SPLITS, len(partners)), np.int64)
            for target in cost.splits:
                taken = cost(counts[target] + gains, target) - cost(counts[target], target)
                changes[target] = np.where((target != source) & (placed[partners, target] > 0), given + taken, 0)
            target, best = divmod(int(changes.argmin()), len(partners))
            if changes[target, best] < 0:
                for which, sign in ((index, 1), (partners[best], -1)):
                    placed[which, source] -= sign
                    placed[which, target] += sign
                counts[source] -= gains[best]
                counts[target] += gains[best]
        if (placed == before).all():
            break
    return int(sum(cost(counts[split], split) for split in cost.splits)), placed[:-1]


def describe_misfits(
    classes: Sequence[str | bytes], labels: Ints, split: npt.NDArray[np.uint8], fractions: Sequence[float]
) -> list[str]:
    """Name the classes of the clips (N,) that are not near the fractions, worst first: one sentence, or none.

    Near is within one clip, or 5 % of the class, and with a clip in every split that can have one.
    """
    misfits, names = [], np.unique(labels).tolist()
    for label in names:
        counts = np.bincount(split[labels == label], minlength=NUM_SPLITS)
        wanted = np.array(split_counts(int(counts.sum()), fractions))
        differences = abs(counts - wanted)
        if ((counts == 0) & (wanted > 0)).any() or differences.max() > max(1, 0.05 * counts.sum()):
            text = f"{printable(classes[label])} {'/'.join(map(str, counts))} (wanted {'/'.join(map(str, wanted))})"
            misfits.append((-differences.sum() / counts.sum(), text))
    if not misfits:
        return []
    texts = [text for _, text in sorted(misfits, key=lambda misfit: misfit[0])]
    if len(texts) > _MAX_NAMES:
        texts[_MAX_NAMES:] = [f"and {len(texts) - _MAX_NAMES:,} more"]
    target = "/".join(f"{100 * fraction:.4g}" for fraction in fractions)
    return [
        f"{len(misfits):,} of {plural(len(names), 'class', 'classes')} cannot be near {target}, because groups stay "
        f"together: {', '.join(texts)}"
    ]
