"""Could that be chance? What counts of yes and no are worth. Pure arithmetic."""

import math

import numpy as np
import numpy.typing as npt
from scipy.stats import chi2_contingency
from scipy.stats.contingency import association

Counts = npt.NDArray[np.int64]


def dependence(counts: Counts, totals: Counts) -> float:
    """Return how strongly a yes or no depends on the class: Cramer's V, 0 (not at all) to 1.

    0 unless chi squared is 5 standard deviations above its mean for unrelated ones.

    Args:
        counts: (K,) how many of each class are a yes.
        totals: (K,) of how many. >= 1.
    """
    if len(totals) < 2 or not 0 < counts.sum() < totals.sum():
        return 0.0
    table = np.stack([counts, totals - counts])
    found = chi2_contingency(table, correction=False)
    is_clear = found.statistic > found.dof + 5 * math.sqrt(2 * found.dof)
    return float(association(table, method="cramer")) if is_clear else 0.0
