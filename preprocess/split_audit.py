"""How near the split of each class is to what was wanted, in numbers and in words."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from vidcache.cache.layout import Split
from vidcache.preprocess.split import NUM_SPLITS, required_splits, split_counts
from vidcache.text import plural, printable

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
