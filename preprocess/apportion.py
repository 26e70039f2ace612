"""Divides groups of clips among splits: every group whole, and as near to the wanted fractions as that allows.

Pure integer arithmetic: the same numbers give the same answer on every machine. Knows neither
paths nor seeds: groups with the same clips of each class are interchangeable here, and the caller
decides which of them go where.
"""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from vidcache.preprocess.local_search import Ints, LocalSearch, Task, least

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
