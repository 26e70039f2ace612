"""Two models on the same clips: which one is better, and whether these clips can tell."""

import dataclasses

import numpy as np
from scipy.special import bdtr

from vidcache.eval.evaluate import Predictions
from vidcache.eval.uncertainty import bootstrap_difference
from vidcache.text import plural

_SIGNIFICANT = 0.05


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The second model against the first one, clip by clip.

    Attributes:
        num_clips: Clips that both have predicted (n).
        num_both: Clips that both have right.
        num_only_first: Clips that only the first one has right.
        num_only_second: Clips that only the second one has right.
        num_neither: Clips that both have wrong.
        num_changed: Clips whose most probable class is not the same.
        difference: Accuracy of the second minus that of the first.
        difference_low: Lower end of its 95 % interval: paired, stratified, seeded bootstrap.
        difference_high: Upper end.
        p_value: Exact McNemar test; see `mcnemar`.
    """

    num_clips: int
    num_both: int
    num_only_first: int
    num_only_second: int
    num_neither: int
    num_changed: int
    difference: float
    difference_low: float
    difference_high: float
    p_value: float

    @property
    def num_second(self) -> int:
        """Clips that the second one has right."""
        return self.num_both + self.num_only_second

    def conclude(self, first: str, second: str) -> str:
        """Say in one sentence what is known; names are those of the models."""
        clips = plural(self.num_clips, "clip")
        if not self.num_only_first + self.num_only_second:
            return (
                f"{first} and {second} have the same {self.num_both:,} of {clips} right: nothing here tells them apart."
            )
        counts = f"{self.num_only_second} that only {second} has right, {self.num_only_first} that only {first} has"
        interval = f"95 % interval {100 * self.difference_low:+.1f} to {100 * self.difference_high:+.1f}"
        if self.p_value >= _SIGNIFICANT:
            return (
                f"These {clips} do not tell {first} and {second} apart: {counts}, a difference of "
                f"{100 * self.difference:+.1f} points ({interval}) that two equally good models would reach or exceed "
                f"with a probability of {self.p_value:.2g}; that is no proof that they are equally good."
            )
        better = second if self.difference > 0 else first
        return (
            f"{better} is the better of the two on clips like these {self.num_clips:,}: {counts}, a difference of "
            f"{100 * self.difference:+.1f} points ({interval}) that two equally good models would reach or exceed with "
            f"a probability of {self.p_value:.2g}; of other seeds and other data it says nothing."
        )


def compare(first: Predictions, second: Predictions, *, seed: int = 0) -> Comparison:
    """Compare two models on the same clips.

    Args:
        first: Predictions of one.
        second: Predictions of the other, in the same order.
        seed: Of the bootstrap.

    Raises:
        ValueError: They are of different clips or labels.
    """
    if not (np.array_equal(first.rows, second.rows) and np.array_equal(first.labels, second.labels)):
        raise ValueError(f"predictions of {len(first.rows)} and {len(second.rows)} clips, expected of the same ones")
    labels = first.labels
    guesses = [found.probabilities.argmax(axis=1) for found in (first, second)]
    right_first, right_second = (guess == labels for guess in guesses)
    lost, won = right_first & ~right_second, right_second & ~right_first
    gains = []
    for k in np.unique(labels).tolist():
        own = labels == k
        counts = int((won & own).sum()), int((lost & own).sum())
        gains.append((*counts, int(own.sum()) - sum(counts)))
    low, high = bootstrap_difference(gains, seed=seed)
    num_lost, num_won = int(lost.sum()), int(won.sum())
    return Comparison(
        num_clips=len(labels),
        num_both=int((right_first & right_second).sum()),
        num_only_first=num_lost,
        num_only_second=num_won,
        num_neither=int((~right_first & ~right_second).sum()),
        num_changed=int((guesses[0] != guesses[1]).sum()),
        difference=(num_won - num_lost) / len(labels),
        difference_low=low,
        difference_high=high,
        p_value=mcnemar(num_lost, num_won),
    )


def mcnemar(num_only_first: int, num_only_second: int) -> float:
    """Return the two-sided exact p-value that two models are right equally often, given the clips they differ on.

    McNemar, "Note on the sampling error of the difference between correlated proportions", Psychometrika 1947; of the
    n clips that only one of them has right, each is a fair coin under the hypothesis.

    >>> round(mcnemar(1, 9), 4)
    0.0215
    """
    n, fewer = num_only_first + num_only_second, min(num_only_first, num_only_second)
    return min(1.0, 2 * float(bdtr(fewer, n, 0.5))) if n else 1.0
