"""Divides groups among splits where there are too many ways to look at all of them.

Integers only, and a random generator of its own: the same on every machine.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import xxhash

from vidcache.cache.format import Split
from vidcache.preprocess.split.groups import merge_groups
from vidcache.text import plural, printable

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

# Against the best of all ways, 220 made-up tables of 11 and 12 groups: 99 found without a kick, 214
# with 20, all with 100 (and 218 with 100 of two swaps each).
_MAX_KICKS, _KICK_SWAPS = 100, 3
_MAX_CYCLES, _MIN_CYCLES = 50, 3  # at least one for each split that a class can be missing in
_EFFORT = 2_000_000_000  # array elements; about 10 s of kicks
_NEVER = np.iinfo(np.int64).max


@dataclasses.dataclass(frozen=True)
class Task:
    """Groups to divide, and what a division costs.

    The sum of (count - fraction * clips)^2 / clips over classes and splits is, but for a constant,
    that of count^2 / clips - 2 * fraction * count. Times `scale` these are integers.

    Attributes:
        profiles: (P, C) clips of each class in a group of each profile.
        num_groups: (P,) groups of each profile.
        required: (C, S) whether a class must be in a split.
        weights: (C,) scale / clips of the class.
        prices: (S,) scale * fraction.
        bound: What it costs if every clip is its own group; nothing costs less.
    """

    profiles: Ints
    num_groups: Ints
    required: Bools
    weights: Ints
    prices: Ints
    bound: int

    def cost(self, counts: Ints) -> Ints:
        """Return (C,) cost of (C, S) clips."""
        cost: Ints = self.weights * (counts**2).sum(axis=1) - 2 * (counts * self.prices).sum(axis=1)
        return cost


def least(missing: Ints, cost: Ints) -> int:
    """Return the index of the least cost among the fewest missing; the first of several."""
    return int(np.where(missing == missing.min(), cost, _NEVER).argmin())


class _Draw:
    """Numbers as good as random, the same with every version of every library (Knuth's MMIX generator)."""

    def __init__(self) -> None:
        self.state = 0

    def one_of(self, values: Ints) -> int:
        self.state = (self.state * 6364136223846793005 + 1442695040888963407) % 2**64
        return int(values[(self.state >> 33) % len(values)])


class LocalSearch:
    """Largest groups first, then moves and swaps until none helps.

    A move is a swap with nothing: the last profile, an empty group that every split has.

    Attributes:
        placed: (P + 1, S) groups of each profile in each split.
        counts: (C, S) clips.
    """

    def __init__(self, task: Task) -> None:
        self.task = task
        (num_profiles, num_classes), num_splits = task.profiles.shape, len(task.prices)
        self.profiles = np.concatenate([task.profiles, np.zeros((1, num_classes), np.int64)])
        self.squares = (self.profiles**2 * task.weights).sum(axis=1)
        self.sizes = self.profiles.sum(axis=1)
        self.peaks = self.profiles.max(axis=0)
        # Of many groups that are alike most go where they must, at once; the odd ones follow by size.
        self.placed = np.zeros((num_profiles + 1, num_splits), np.int64)
        self.placed[:-1] = task.num_groups[:, None] * task.prices // task.prices.sum()
        self.placed[-1] = np.iinfo(np.int32).max
        self.counts = task.profiles.T @ self.placed[:-1]
        self._refresh()

    def run(self, share: float) -> Ints:
        """Return (P, S) groups, after as many further tries as this share of the effort pays for."""
        num_profiles = len(self.profiles) - 1
        affordable = int(_EFFORT * share) // (num_profiles * (20_000 + self.profiles.size))
        num_cycles = min(_MAX_CYCLES, _MIN_CYCLES + 20 * affordable)
        self._place_largest_first()
        self._settle(num_cycles)
        best, placed, counts = self._score(), self.placed.copy(), self.counts.copy()
        draw = _Draw()
        for _ in range(min(_MAX_KICKS, affordable)):
            if best == (0, self.task.bound):
                break
            for _ in range(_KICK_SWAPS):
                self._kick(draw)
            self._settle(num_cycles)
            if self._score() <= best:
                best, placed, counts = self._score(), self.placed.copy(), self.counts.copy()
            else:
                self.placed, self.counts = placed.copy(), counts.copy()
                self._refresh()
        return placed[:-1]

    def _place_largest_first(self) -> None:
        left = self.task.num_groups - self.placed[:-1].sum(axis=1)
        for profile in np.argsort(-self.sizes[:-1], kind="stable").tolist():
            for _ in range(left[profile]):
                steepness = self.task.weights[:, None] * self.counts
                slopes = self.profiles[profile] @ steepness - self.sizes[profile] * self.task.prices
                self._add(profile, int(slopes.argmin()), 1)
        self._refresh()

    def _settle(self, num_cycles: int) -> None:
        """Move and swap until nothing is better."""
        unchanged, num_profiles = 0, len(self.profiles) - 1
        for step in range(num_cycles * num_profiles):
            profile = step % num_profiles
            changed = [self._improve(profile, source) for source in np.flatnonzero(self.placed[profile]).tolist()]
            unchanged = 0 if any(changed) else unchanged + 1
            if unchanged == num_profiles:
                return

    def _score(self) -> tuple[int, int]:
        """How many requirements are missed, and the cost. Less is better."""
        missing = (self.task.required & (self.counts == 0)).sum()
        return int(missing), int(self.task.cost(self.counts).sum())

    def _kick(self, draw: "_Draw") -> None:
        """Exchange two groups, whatever it costs."""
        profile = draw.one_of(np.arange(len(self.profiles) - 1))
        source = draw.one_of(np.flatnonzero(self.placed[profile]))
        target = draw.one_of(np.setdiff1d(np.arange(len(self.task.prices)), source))
        other = draw.one_of(np.flatnonzero(self.placed[:, target]))
        self._exchange(profile, source, other, target)

    def _exchange(self, profile: int, source: int, other: int, target: int) -> None:
        for what, change in ((profile, 1), (other, -1)):
            self._add(what, source, -change)
            self._add(what, target, change)
        self._refresh()

    def _add(self, profile: int, split: int, num: int) -> None:
        self.placed[profile, split] += num
        self.counts[:, split] += num * self.profiles[profile]

    def _refresh(self) -> None:
        """Compute what follows from the counts; slopes (P + 1, S) is half of how the cost grows with a group."""
        steepness = self.task.weights[:, None] * self.counts
        self.slopes = self.profiles @ steepness - self.sizes[:, None] * self.task.prices
        # Only where a split has few clips of a class can an exchange take the last or bring the first.
        self.tight = np.flatnonzero((self.task.required & (self.counts <= self.peaks[:, None])).any(axis=1))

    def _improve(self, profile: int, source: int) -> bool:
        """Exchange a group of `source` for the best one of another split, if that is better."""
        cross = self.profiles @ (self.profiles[profile] * self.task.weights)
        # Half of the difference in cost; (P + 1, S).
        cost = (self.squares[profile] + self.squares - 2 * cross)[:, None] + (
            self.slopes[profile] - self.slopes[profile, source] - self.slopes + self.slopes[:, [source]]
        )
        missing = self._missing(profile, source)
        forbidden = self.placed == 0
        forbidden[:, source] = True
        missing[forbidden] = _NEVER
        best = least(missing, cost)
        if (missing.flat[best], cost.flat[best]) >= (0, 0):
            return False
        other, target = divmod(best, len(self.task.prices))
        self._exchange(profile, source, other, target)
        return True

    def _missing(self, profile: int, source: int) -> Ints:
        """How many more requirements are missed after an exchange; (P + 1, S)."""
        missing = np.zeros(self.placed.shape, np.int64)
        if len(self.tight):
            required, counts = self.task.required[self.tight], self.counts[self.tight]
            given = (self.profiles[profile] - self.profiles)[:, self.tight, None]  # (P + 1, C, 1)
            missing += (required & (counts + given == 0)).sum(axis=1) - (required & (counts == 0)).sum(axis=0)
            left = required[:, source] & (counts[:, source] - given[:, :, 0] == 0)
            missing += (left.sum(axis=1) - (required[:, source] & (counts[:, source] == 0)).sum())[:, None]
        return missing


_PARTS = 1_000_000  # fractions are rounded to so many parts
_MAX_STATES = 3**10  # looked at one by one: any ten groups, and many more where groups are alike


def apportion(
    profiles: npt.ArrayLike,
    num_groups: npt.ArrayLike,
    fractions: Sequence[float],
    required: npt.ArrayLike,
    share: float = 1.0,
) -> Ints:
    """Decide how many groups of each profile go to each split.

    First as few missing requirements as possible, then the least sum over classes and splits of
    (count - fraction * clips of the class)^2 / (clips of the class). The least of all for ten
    groups or fewer, and of equally good ways the one with the first profiles in the first splits;
    for more groups one that no move of a group and no swap of two makes better.

    Where every group lies within one class, no requirement is missing if the class has as many groups
    as required splits: while a required split has none of them, some other split has two, or is not
    required and has one, and moving one from there is better, whatever it costs.

    Args:
        profiles: (P, C) clips of each class in a group of each profile; different rows, no class empty.
        num_groups: (P,) groups of each profile. >= 1.
        fractions: (S,) sum 1. A split with 0 gets nothing.
        required: (C, S) whether a class must be in a split.
        share: Part of the effort that is this task's, of several; more of it finds a better way.

    Returns:
        (P, S) groups.
    """
    profiles, num_groups = np.asarray(profiles, np.int64), np.asarray(num_groups, np.int64)
    used = np.flatnonzero(np.asarray(fractions) > 0)
    parts = [max(1, round(fractions[split] * _PARTS)) for split in used.tolist()]
    parts[parts.index(max(parts))] += _PARTS - sum(parts)
    clips: list[int] = (profiles * num_groups[:, None]).sum(axis=0).tolist()
    # No sum here is above 8 * scale * clips < 2^63. A scale that all class sizes divide makes the costs
    # exact; where it does not fit, weights are rounded (by 1 in 10^7 for 100,000 clips).
    scale = _PARTS * min(math.lcm(*clips), 2**59 // (_PARTS * sum(clips)))
    weights = np.array([scale // count for count in clips], np.int64)
    prices = np.array([scale // _PARTS * part for part in parts], np.int64)
    bound = _bound(clips, parts, weights, prices)
    task = Task(profiles, num_groups, np.asarray(required, bool)[:, used], weights, prices, bound)
    num_states = math.prod(math.comb(count + len(used) - 1, count) for count in num_groups.tolist())
    placed = np.zeros((len(profiles), len(fractions)), np.int64)
    placed[:, used] = _best_of_all(task) if num_states <= _MAX_STATES else LocalSearch(task).run(share)
    return placed


def _bound(clips: Sequence[int], parts: Sequence[int], weights: Ints, prices: Ints) -> int:
    """What it would cost if every clip were its own group: no division costs less (largest remainder)."""
    exact = np.array(clips, np.int64)[:, None] * np.array(parts, np.int64)
    counts, rest = np.divmod(exact, _PARTS)
    left = np.array(clips) - counts.sum(axis=1)
    counts += np.argsort(np.argsort(-rest, axis=1, kind="stable"), axis=1) < left[:, None]
    return int((weights[:, None] * counts**2 - 2 * counts * prices).sum())


def _divisions(num: int, num_splits: int) -> list[tuple[int, ...]]:
    """All ways to divide a number among splits, those with most in the first split first."""
    if num_splits == 1:
        return [(num,)]
    return [(first, *rest) for first in range(num, -1, -1) for rest in _divisions(num - first, num_splits - 1)]


def _best_of_all(task: Task) -> Ints:
    num_splits = len(task.prices)
    choices = [np.array(_divisions(count, num_splits), np.int64) for count in task.num_groups.tolist()]
    shape = tuple(len(choice) for choice in choices)
    missing, cost = np.zeros(math.prod(shape), np.int64), np.zeros(math.prod(shape), np.int64)
    for label, weight in enumerate(task.weights):
        counts = np.zeros((1, num_splits), np.int64)  # grows to one row for every state
        for choice, num_clips in zip(choices, task.profiles[:, label], strict=True):
            counts = (counts[:, None] + choice * num_clips).reshape(-1, num_splits)
        missing += (task.required[label] & (counts == 0)).sum(axis=1)
        cost += weight * (counts**2).sum(axis=1) - 2 * (counts * task.prices).sum(axis=1)
    state = least(missing, cost)
    return np.array([choice[k] for choice, k in zip(choices, np.unravel_index(state, shape), strict=True)])


NUM_SPLITS = 3  # train, val and test; `Split.UNUSED` is none
MIN_CLASS_CLIPS = 3


def parse_fractions(text: str) -> tuple[float, float, float]:
    """Read "70/15/15" as fractions of train, val and test.

    Raises:
        ValueError: Not three numbers >= 0 that sum to 100 (or 1), or nothing to train on.
    """
    try:
        parts = [float(part) for part in text.split("/")]
    except ValueError:
        parts = []
    total = sum(parts)
    if (
        len(parts) != NUM_SPLITS
        or min(parts) < 0
        or parts[0] == 0
        or not (abs(total - 100) < 1e-6 or abs(total - 1) < 1e-6)
    ):
        raise ValueError(f"split {text!r}, expected train/val/test percentages that sum to 100, like 70/15/15")
    train, val, test = (part / total for part in parts)
    return train, val, test


def required_splits(num_groups: int, fractions: Sequence[float]) -> tuple[Split, ...]:
    """Return the splits that a class of so many groups must be in: train first, then test, then val."""
    return tuple(split for split in (Split.TRAIN, Split.TEST, Split.VAL) if fractions[split] > 0)[:num_groups]


def split_counts(num_clips: int, fractions: Sequence[float]) -> tuple[int, int, int]:
    """Divide a class: as near to the fractions as whole clips allow (largest remainder).

    Each split with a fraction above 0 gets at least one clip, if the class has enough clips for
    all of them. Two clips go to train and test, a single one to train.

    Args:
        num_clips: Clips of the class. >= 0.
        fractions: Of train, val and test; sum 1.

    Returns:
        Clips for train, val and test; sum `num_clips`.
    """
    wanted = [index for index in range(NUM_SPLITS) if fractions[index] > 0]
    if num_clips < len(wanted):
        required = required_splits(num_clips, fractions)
        return int(Split.TRAIN in required), int(Split.VAL in required), int(Split.TEST in required)
    exact = [num_clips * fraction for fraction in fractions]
    counts = [max(int(share + 1e-9), int(index in wanted)) for index, share in enumerate(exact)]
    while sum(counts) < num_clips:
        counts[max(wanted, key=lambda index: exact[index] - counts[index])] += 1
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

    A class is in every wanted split if it has three groups; with two it is in train and test, with
    one in train. Where groups lie across classes that may be impossible for some, and is then met
    by as many as can. After that, the clips of each class are as near to the fractions as groups
    allow: see `apportion`. `audit_splits` says how near.

    Args:
        paths: (N,) relative paths.
        labels: (N,) class of each.
        good: (N,) whether it has a clip; the others do not count and go with their group, or else to train.
        fractions: Of train, val and test; sum 1.
        seed: Which of the groups that are alike go where.
        groups: (N,) group of each. None: every video is one.

    Returns:
        (N,) values of `Split`, never `Split.UNUSED`.

    Raises:
        ValueError: Not as many groups as paths.
    """
    ids = np.arange(len(paths)) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    if ids.shape != (len(paths),):
        raise ValueError(
            f"assign_splits: groups of shape {ids.shape}, expected ({len(paths)},). Give one for each path"
        )
    split_of_group = np.full(len(paths), Split.TRAIN, np.uint8)
    components = _components(paths, np.asarray(labels), np.flatnonzero(good), ids, seed)
    for profiles in components:
        counts = _group_counts(profiles, fractions, 1 / len(components))
        for members, (num_train, num_val, _) in zip(profiles.values(), counts, strict=True):
            split_of_group[members[num_train : num_train + num_val]] = Split.VAL
            split_of_group[members[num_train + num_val :]] = Split.TEST
    return split_of_group[ids]


# The labels of the good clips of a group, and the groups that have just these, in the order of their hashes.
_Profiles = dict[tuple[int, ...], list[int]]


def _components(
    paths: Sequence[bytes],
    labels: npt.NDArray[np.int64],
    rows: npt.NDArray[np.int64],
    ids: npt.NDArray[np.int64],
    seed: int,
) -> list[_Profiles]:
    """Part the groups so far that no two parts have a class in common."""
    rows = rows[np.lexsort((labels[rows], ids[rows]))]
    classes, local = np.unique(labels[rows], return_inverse=True)
    same_group = ids[rows[1:]] == ids[rows[:-1]]
    pairs = np.unique(np.stack([local[1:], local[:-1]], axis=1)[same_group], axis=0)
    component_of = merge_groups(np.arange(len(classes)), pairs).tolist()
    ends = [*(np.flatnonzero(~same_group) + 1).tolist(), len(rows)] if len(rows) else []
    path_of, profile_of = {}, {}
    start = 0
    for end in ends:
        group = int(ids[rows[start]])
        path_of[group] = min(paths[row] for row in rows[start:end].tolist())
        profile_of[group] = tuple(local[start:end].tolist())
        start = end
    # By a hash of the path, not by a shuffled list: adding a video moves few of the others.
    order = sorted(path_of, key=lambda group: (xxhash.xxh3_64_intdigest(path_of[group], seed=seed), path_of[group]))
    components: dict[int, _Profiles] = {}
    for group in order:
        profile = profile_of[group]
        components.setdefault(component_of[profile[0]], {}).setdefault(profile, []).append(group)
    return list(components.values())


def _group_counts(profiles: _Profiles, fractions: Sequence[float], share: float) -> list[tuple[int, int, int]]:
    """Decide how many groups of each profile go to train, val and test."""
    num_groups = [len(members) for members in profiles.values()]
    if len(num_groups) == 1:
        return [split_counts(num_groups[0], fractions)]
    classes, columns = np.unique(np.concatenate([np.array(profile) for profile in profiles]), return_inverse=True)
    table = np.zeros((len(profiles), len(classes)), np.int64)
    np.add.at(table, (np.repeat(np.arange(len(profiles)), [len(profile) for profile in profiles]), columns), 1)
    required = np.zeros((len(classes), NUM_SPLITS), bool)
    for label, count in enumerate(((table > 0) * np.array(num_groups)[:, None]).sum(axis=0).tolist()):
        required[label, list(required_splits(count, fractions))] = True
    return [
        (train, val, test) for train, val, test in apportion(table, num_groups, fractions, required, share).tolist()
    ]


_MAX_NAMES = 5


@dataclasses.dataclass(frozen=True)
class ClassSplit:
    """How one class came out.

    Attributes:
        label: Class.
        counts: Clips in train, val and test.
        wanted: What they would be if every clip were its own group.
        num_groups: Groups that its clips are in.
        missing: Splits that it must be in, and is not.
        fractions: Of train, val and test, as asked for.
    """

    label: int
    counts: tuple[int, int, int]
    wanted: tuple[int, int, int]
    num_groups: int
    missing: tuple[Split, ...]
    fractions: tuple[float, float, float]

    @property
    def off(self) -> bool:
        """Whether a count is not near what was wanted: by more than one clip and 5 %, or none at all."""
        tolerance = max(1.0, 0.05 * sum(self.counts))
        pairs = list(zip(self.counts, self.wanted, strict=True))
        return any(abs(count - wanted) > tolerance or (wanted and not count) for count, wanted in pairs)

    @property
    def misfit(self) -> float:
        """The part of the clips that are in another split than wanted. [0, 1]."""
        differences = [abs(count - wanted) for count, wanted in zip(self.counts, self.wanted, strict=True)]
        return sum(differences) / 2 / max(1, sum(self.counts))


def audit_splits(
    labels: npt.ArrayLike,
    good: npt.ArrayLike,
    split: npt.ArrayLike,
    fractions: Sequence[float],
    groups: npt.ArrayLike | None = None,
) -> tuple[ClassSplit, ...]:
    """Compare each class with what was wanted.

    Args:
        labels: (N,) class of each video.
        good: (N,) whether it has a clip; the others do not count.
        split: (N,) values of `Split`; what is in none of the three does not count.
        fractions: Of train, val and test; sum 1.
        groups: (N,) group of each. None: every video is one.

    Returns:
        One for every class, by label; also for those without a clip.
    """
    label_array, split_array = np.asarray(labels), np.asarray(split)
    ids = np.arange(len(label_array)) if groups is None else np.asarray(groups)
    counted = np.asarray(good, bool) & (split_array < NUM_SPLITS)
    train, val, test = fractions
    audits = []
    for label in np.unique(label_array).tolist():
        rows = np.flatnonzero(counted & (label_array == label))
        counts = np.bincount(split_array[rows], minlength=NUM_SPLITS).tolist()
        num_groups = len(np.unique(ids[rows]))
        missing = tuple(split for split in required_splits(num_groups, fractions) if not counts[split])
        wanted = split_counts(len(rows), fractions)
        audits.append(
            ClassSplit(label, (counts[0], counts[1], counts[2]), wanted, num_groups, missing, (train, val, test))
        )
    return tuple(audits)


def describe_misfits(classes: Sequence[str | bytes], audits: Sequence[ClassSplit]) -> str:
    """Say which classes are not divided as wanted, worst first; "" if all are.

    Args:
        classes: Names, by label.
        audits: Of `audit_splits`.
    """
    misfits = sorted((audit for audit in audits if audit.off), key=lambda audit: -audit.misfit)
    if not misfits:
        return ""
    wanted = "/".join(f"{100 * fraction:.4g}" for fraction in misfits[0].fractions)
    details = [
        f"{printable(classes[audit.label])} {_slashed(audit.counts)} (wanted {_slashed(audit.wanted)})"
        for audit in misfits[:_MAX_NAMES]
    ]
    if len(misfits) > _MAX_NAMES:
        details.append(f"and {len(misfits) - _MAX_NAMES:,} more")
    return (
        f"{len(misfits):,} of {plural(len(audits), 'class', 'classes')} cannot be near {wanted}, because groups "
        f"stay together: {', '.join(details)}"
    )


def _slashed(counts: Sequence[int]) -> str:
    return "/".join(str(count) for count in counts)
