"""How far a number may be from what more clips would show: intervals of 95 %."""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

# Fewer clips than this say next to nothing of a class: 4 of 4 right is 51 % to 100 %.
FEW_CLIPS = 5
RESAMPLES = 2000
_ENDS = (2.5, 97.5)

Counts = npt.NDArray[np.int64]


def wilson_interval(num_correct: int, num_clips: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """Return the 95 % score interval of a proportion; (NaN, NaN) for 0 clips.

    Wilson, "Probable Inference, the Law of Succession, and Statistical Inference", JASA 1927.

    >>> [round(end, 3) for end in wilson_interval(93, 98)]
    [0.886, 0.978]
    """
    if num_clips == 0:
        return math.nan, math.nan
    p, n = num_correct / num_clips, num_clips
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(centre - half, 0.0), min(centre + half, 1.0)


def bootstrap_intervals(
    confusion: Counts, *, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return the 95 % intervals of balanced accuracy and of macro F1, over the classes that occur.

    Stratified percentile bootstrap (Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13): of
    each class as many clips are drawn with replacement as there are. Both numbers depend on the counts of the
    confusion matrix alone, and drawing clips of a class is drawing its row from a multinomial distribution.

    It cannot draw an error that was never made: where a class has no errors, or all, its share of the interval is 0.

    Args:
        confusion: (K, K) counts; row = true class, column = predicted class.
        resamples: How many sets of clips are drawn.
        seed: Of the draw; the same seed gives the same intervals.
    """
    rng = np.random.default_rng(seed)
    num_clips = confusion.sum(axis=1)
    present = np.flatnonzero(num_clips)
    right = np.zeros((resamples, len(confusion)))
    predicted = np.zeros((resamples, len(confusion)))
    for k in present.tolist():
        said = np.flatnonzero(confusion[k])
        drawn = rng.multinomial(num_clips[k], confusion[k, said] / num_clips[k], resamples)
        predicted[:, said] += drawn
        right[:, k] = drawn[:, said == k].sum(axis=1)
    right, predicted, num_present = right[:, present], predicted[:, present], num_clips[present]
    balanced = (right / num_present).mean(axis=1)
    macro_f1 = (2 * right / (num_present + predicted)).mean(axis=1)
    return _ends(balanced), _ends(macro_f1)


def bootstrap_difference(
    gains: Sequence[tuple[int, int, int]], *, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """Return the 95 % interval of the difference of two accuracies on the same clips, paired and stratified.

    Args:
        gains: Of each class: clips that only the second one has right, that only the first one has right, the others.
        resamples: How many sets of clips are drawn.
        seed: Of the draw.
    """
    rng = np.random.default_rng(seed)
    difference = np.zeros(resamples)
    total = sum(sum(counts) for counts in gains)
    for counts in gains:
        num_clips = sum(counts)
        if num_clips:
            drawn = rng.multinomial(num_clips, np.array(counts) / num_clips, resamples)
            difference += drawn[:, 0] - drawn[:, 1]
    return _ends(difference / total)


def _ends(values: npt.NDArray[np.float64]) -> tuple[float, float]:
    low, high = np.percentile(values, _ENDS)
    return float(low), float(high)
