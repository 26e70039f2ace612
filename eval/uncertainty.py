"""How far a number may be from what more clips would show: intervals of 95 %."""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

# Fewer clips than this say next to nothing of a class: 4 of 4 right is 51 % to 100 %.
FEW_CLIPS = 5
RESAMPLES = 2000
_BORROWED = 4  # clips; nearly the square of 1.96, as in the interval of Agresti and Coull
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

    Stratified parametric bootstrap (Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 6): of each
    class as many clips are drawn as there are, and what is drawn is how far from their mean the two numbers fall. A
    class has `_BORROWED` clips more than it has, which fare as the average clip does: without them, a class that has
    all its clips right could draw no error, and many classes of few clips gave intervals that held in 27 % of cases.
    With them, simulated for 3 to 100 classes of 1 to 100 clips, they hold in 89 to 100 %; but that of macro F1 in 76 %
    with a single clip of each of 100 classes.

    Args:
        confusion: (K, K) counts; row = true class, column = predicted class.
        resamples: How many sets of clips are drawn.
        seed: Of the draw; the same seed gives the same intervals.
    """
    rng = np.random.default_rng(seed)
    present = np.flatnonzero(confusion.sum(axis=1))
    num_clips, correct, said = confusion.sum(axis=1), confusion.diagonal(), confusion.sum(axis=0)
    average = (correct.sum() + _BORROWED / 2) / (num_clips.sum() + _BORROWED)
    right = np.zeros((resamples, len(confusion)))
    predicted = np.zeros((resamples, len(confusion)))
    for k in present.tolist():
        borrowed = np.where(np.arange(len(said)) == k, 0.0, said + 1.0)
        borrowed *= (1 - average) / max(borrowed.sum(), 1)
        borrowed[k] = average if len(said) > 1 else 1
        shares = (confusion[k] + _BORROWED * borrowed) / (num_clips[k] + _BORROWED)
        order = np.argsort(-shares, kind="stable")  # the likely ones first: a draw ends with its last clip
        drawn = rng.multinomial(num_clips[k], shares[order] / shares.sum(), resamples)
        predicted[:, order] += drawn
        right[:, k] = drawn[:, order == k][:, 0]
    right, predicted, num_present = right[:, present], predicted[:, present], num_clips[present]
    return (
        _around((correct[present] / num_present).mean(), (right / num_present).mean(axis=1), 0),
        _around(
            (2 * correct[present] / (num_present + said[present])).mean(),
            (2 * right / (num_present + predicted)).mean(axis=1),
            0,
        ),
    )


def bootstrap_difference(
    gains: Sequence[tuple[int, int, int]], *, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """Return the 95 % interval of the difference of two accuracies on the same clips, paired and stratified.

    Drawn as in `bootstrap_intervals`.

    Args:
        gains: Of each class: clips that only the second one has right, that only the first one has right, the others.
        resamples: How many sets of clips are drawn.
        seed: Of the draw.
    """
    rng = np.random.default_rng(seed)
    counts = np.array([row for row in gains if sum(row)])
    total = counts.sum()
    average = (counts.sum(axis=0) + np.array([1, 1, 2])) / (total + 4)
    difference = np.zeros(resamples)
    for row in counts:
        drawn = rng.multinomial(row.sum(), (row + _BORROWED * average) / (row.sum() + _BORROWED), resamples)
        difference += drawn[:, 0] - drawn[:, 1]
    return _around((counts[:, 0].sum() - counts[:, 1].sum()) / total, difference / total, -1)


def _around(value: float, drawn: npt.NDArray[np.float64], lowest: float) -> tuple[float, float]:
    """Put the spread of what was drawn around a value; between `lowest` and 1."""
    low, high = np.percentile(drawn, _ENDS) - drawn.mean()
    return float(np.clip(value + min(low, 0), lowest, 1)), float(np.clip(value + max(high, 0), lowest, 1))
