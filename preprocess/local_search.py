"""Divides groups among splits where there are too many ways to look at all of them.

Integers only, and a random generator of its own: the same on every machine.
"""

import dataclasses

import numpy as np
import numpy.typing as npt

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
