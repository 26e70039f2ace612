"""Could that be chance? What counts of right and wrong are worth. Pure arithmetic."""

import math

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.int64]


def p_value_of_accuracy(confusion: Counts) -> float:
    """Return how likely a balanced accuracy like this is when predictions and classes are unrelated.

    One-sided normal tail, with mean 1 / K and the exact variance under permutation of the classes
    (Hoeffding, "A Combinatorial Central Limit Theorem", 1951).

    Args:
        confusion: (K, K) counts; row = true class, column = predicted class; no row is empty.
    """
    num, size, said = int(confusion.sum()), confusion.sum(axis=1), confusion.sum(axis=0)
    accuracy, num_classes = float((confusion.diagonal() / size).mean()), len(size)
    variance = float((said * (1 - said / num) / size).sum()) / (num_classes**2 * (num - 1))
    if variance == 0:  # one class is said of everything
        return 1.0
    return math.erfc((accuracy - 1 / num_classes) / math.sqrt(2 * variance)) / 2


def p_values_of_classes(confusion: Counts) -> npt.NDArray[np.float64]:
    """Return for each class how likely it is that at least so many are found by chance.

    Hypergeometric tail, given how many there are and how often the class is predicted: Fisher's exact test.

    Args:
        confusion: (K, K) counts; row = true class, column = predicted class.

    Returns:
        (K,) between 0 and 1.
    """
    num = int(confusion.sum())
    logs = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, num + 1)))])  # of the factorials

    def log_choose(n: int, k: Counts) -> npt.NDArray[np.float64]:
        return np.asarray(logs[n] - logs[k] - logs[n - k])

    tails = np.empty(len(confusion))
    margins = zip(confusion.diagonal().tolist(), confusion.sum(1).tolist(), confusion.sum(0).tolist(), strict=True)
    for row, (found, size, said) in enumerate(margins):
        k = np.arange(max(found, size + said - num), min(size, said) + 1)
        log_share = log_choose(size, k) + log_choose(num - size, said - k) - log_choose(num, np.array(said))
        tails[row] = min(np.exp(log_share).sum(), 1.0)
    return tails


def dependence(counts: Counts, totals: Counts) -> float:
    """Return how strongly a yes or no depends on the class: Cramer's V, 0 (not at all) to 1.

    0 unless chi squared is 5 standard deviations above its mean for unrelated ones.

    Args:
        counts: (K,) how many of each class are a yes.
        totals: (K,) of how many. >= 1.
    """
    part = counts.sum() / max(totals.sum(), 1)
    if len(totals) < 2 or not 0 < part < 1:
        return 0.0
    chi_squared = float(((counts - totals * part) ** 2 / (totals * part * (1 - part))).sum())
    freedom = len(totals) - 1
    return math.sqrt(chi_squared / totals.sum()) if chi_squared > freedom + 5 * math.sqrt(2 * freedom) else 0.0
