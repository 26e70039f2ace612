"""Which clip is for training, which for validation, which for the test. Pure arithmetic.

Stratified: every class is divided by itself. Seeded, and stable: a video keeps its place in the
order of its class when others come or go.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import xxhash

from vidcache.cache.layout import Split

NUM_SPLITS = len(Split)
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
    counts = [0] * NUM_SPLITS
    if num_clips < len(wanted):
        for index in [Split.TRAIN, Split.TEST, Split.VAL] if num_clips > 1 else [Split.TRAIN]:
            if index in wanted and sum(counts) < num_clips:
                counts[index] = 1
        return counts[0], counts[1], counts[2]
    exact = [num_clips * fraction for fraction in fractions]
    counts = [max(int(share + 1e-9), int(index in wanted)) for index, share in enumerate(exact)]
    while sum(counts) < num_clips:
        counts[max(wanted, key=lambda index: exact[index] - counts[index])] += 1
    while sum(counts) > num_clips:  # the minimum of one has taken too many
        counts[max(range(NUM_SPLITS), key=lambda index: (counts[index] > 1, counts[index] - exact[index]))] -= 1
    return counts[0], counts[1], counts[2]


def assign_splits(
    paths: Sequence[bytes], labels: npt.ArrayLike, good: npt.ArrayLike, fractions: Sequence[float], seed: int
) -> npt.NDArray[np.uint8]:
    """Assign every video to a split.

    Args:
        paths: (N,) relative paths.
        labels: (N,) class of each.
        good: (N,) whether it has a clip; the others do not count and get `Split.TRAIN`.
        fractions: Of train, val and test; sum 1.
        seed: Another seed gives another assignment.

    Returns:
        (N,) values of `Split`.
    """
    label_array, good_array = np.asarray(labels), np.asarray(good, bool)
    split = np.full(len(paths), Split.TRAIN, np.uint8)
    for label in np.unique(label_array[good_array]).tolist():
        rows = np.flatnonzero((label_array == label) & good_array).tolist()
        # By a hash of the path, not by a shuffled list: adding a video moves few of the others.
        rows.sort(key=lambda row: (xxhash.xxh3_64_intdigest(paths[row], seed=seed), paths[row]))
        num_train, num_val, _ = split_counts(len(rows), fractions)
        split[rows[num_train : num_train + num_val]] = Split.VAL
        split[rows[num_train + num_val :]] = Split.TEST
    return split
