"""Which clip is for training, which for validation, which for the test. Pure arithmetic.

Stratified: every class is divided by itself, as far as its groups allow. Seeded, and stable: a
video keeps its place in the order of its class when others come or go.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import xxhash

from vidcache.cache.layout import Split
from vidcache.preprocess.apportion import apportion
from vidcache.preprocess.groups import merge_groups

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
