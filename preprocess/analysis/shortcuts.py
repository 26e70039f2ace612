"""Can the class be told by a side effect alone: length, padding, size, rate, encoding?

A model takes such a shortcut before it learns what happens in the pictures, and a test split that
was collected in the same way rewards it. Knows columns; looks at no picture.
"""

import dataclasses
import itertools
import math

import numpy as np
import numpy.typing as npt
from scipy.stats import chi2_contingency, hypergeom, permutation_test, rankdata
from scipy.stats.contingency import association
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import confusion_matrix
from sklearn.model_selection import StratifiedKFold, cross_val_predict

from vidcache.preprocess.analysis.facts import Facts

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


MIN_CLASS_VIDEOS = 8
MAX_VIDEOS = 5000
MAX_CLASSES = 400  # every node of a tree holds a number per class
NUM_TREES = 16
NUM_FOLDS = 4
NUM_PERMUTATIONS = 999  # the smallest p-value is 1 / 1,000
# Random labels are called a shortcut once in a hundred data sets.
SIGNIFICANCE = 0.01
# What is significant in 5,000 videos can still be nothing to worry about. Share of the way from chance to
# always right (Cohen's kappa for equally frequent classes), and advantage in recognising one class.
MIN_SKILL = 0.05
MIN_ADVANTAGE = 0.5

Labels = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class ClassShortcut:
    """One class that a side effect gives away.

    Attributes:
        label: Of the class.
        num_videos: Of it, in the study.
        num_found: Of these, how many were recognised.
        num_others: Videos of other classes.
        num_mistaken: Of these, how many were taken for it.
    """

    label: int
    num_videos: int
    num_found: int
    num_others: int
    num_mistaken: int

    @property
    def advantage(self) -> float:
        """Share of the class that is found minus share of the others that is mistaken; 0 is chance."""
        return self.num_found / self.num_videos - self.num_mistaken / self.num_others


@dataclasses.dataclass(frozen=True)
class Shortcut:
    """How well one kind of side effect tells the classes apart.

    Attributes:
        feature: What it is, in words.
        accuracy: Mean over the classes of the share recognised, of videos not trained on.
        chance: The same for guessing: 1 / classes.
        p_value: Share of random orders of the labels that go with the side effect as well as these do; at least
            1 / (`NUM_PERMUTATIONS` + 1).
        classes: Those that are given away beyond chance, the most clearly first.
    """

    feature: str
    accuracy: float
    chance: float
    p_value: float
    classes: tuple[ClassShortcut, ...]

    @property
    def skill(self) -> float:
        """How far from chance (0) to always right (1)."""
        return (self.accuracy - self.chance) / (1 - self.chance)

    @property
    def is_significant(self) -> bool:
        """The accuracy is beyond chance, and enough to matter."""
        return self.p_value < SIGNIFICANCE and (self.skill >= MIN_SKILL or self.accuracy >= 2 * self.chance)


@dataclasses.dataclass(frozen=True)
class MetadataLeakReport:
    """All side effects together, and then each alone.

    Attributes:
        num_videos: That were studied, one of each group and class.
        num_classes: That were studied.
        num_classes_left_out: With fewer than `MIN_CLASS_VIDEOS` such videos, or beyond the `MAX_CLASSES` largest.
        together: All side effects at once; None when none varies, or fewer than two classes are left.
        alone: One each of those that vary, the strongest first; none unless all together tell beyond chance.
    """

    num_videos: int
    num_classes: int
    num_classes_left_out: int
    together: Shortcut | None
    alone: tuple[Shortcut, ...]


def study_shortcuts(facts: Facts, seed: int = 0) -> MetadataLeakReport:
    """Predict the class from side effects: from all together, and if that works, from each alone.

    Whether it works is decided by a permutation test, which needs videos whose labels could be exchanged: cuts of one
    recording have one camera and often one class, so one video of each group and class is taken. (Permuting labels
    within groups, as scikit-learn's `permutation_test_score` does, changes nothing where a group has one class.) How
    well it works is measured on videos that were not trained on.

    Args:
        facts: The videos.
        seed: Of folds, forests, permutations, and of the choice among more than `MAX_VIDEOS` videos.
    """
    rng = np.random.default_rng(seed)
    usable = np.flatnonzero(facts.good)
    if facts.group is not None:
        order = rng.permutation(usable)
        _, first = np.unique(np.stack([facts.group[order], facts.label[order]]), axis=1, return_index=True)
        usable = np.sort(order[first])
    counts = np.bincount(facts.label[usable], minlength=len(facts.classes))
    chosen = [label for label in np.argsort(-counts, kind="stable").tolist() if counts[label] >= MIN_CLASS_VIDEOS]
    chosen = sorted(chosen[:MAX_CLASSES])
    left_out = len(np.unique(facts.label[facts.good])) - len(chosen)
    quota = max(MAX_VIDEOS // max(len(chosen), 1), MIN_CLASS_VIDEOS)
    of_class = (usable[facts.label[usable] == label] for label in chosen)
    rows = np.array(sorted(itertools.chain(*(_some(videos, quota, rng) for videos in of_class))), np.int64)
    kinds = {name: columns[rows] for name, columns in _features(facts).items()}
    kinds = {name: values for name, values in kinds.items() if len(rows) and (values != values[0]).any()}
    if len(chosen) < 2 or not kinds:
        return MetadataLeakReport(len(rows), len(chosen), left_out, None, ())
    labels = facts.label[rows].astype(np.int64)
    together = _study("everything together", np.concatenate([*kinds.values()], axis=1), labels, seed)
    is_told = together.p_value < SIGNIFICANCE
    alone = [_study(name, values, labels, seed) for name, values in kinds.items()] if is_told else []
    alone.sort(key=lambda shortcut: -shortcut.accuracy)
    return MetadataLeakReport(len(rows), len(chosen), left_out, together, tuple(alone))


def _some(rows: Labels, most: int, rng: np.random.Generator) -> list[int]:
    chosen: list[int] = (rows if len(rows) <= most else rng.choice(rows, most, replace=False)).tolist()
    return chosen


def _features(facts: Facts) -> dict[str, Floats]:
    """(N, F) numbers per kind of side effect. Rounded: noise in the last digits is no feature."""
    seconds, height = facts.duration_seconds, np.maximum(facts.height, 1)
    columns = {
        "length": (seconds.round(2), facts.num_frames),
        "padding": (np.minimum(facts.num_real, facts.num_frames_per_clip),),
        "frame size": (facts.width, facts.height, (facts.width / height).round(3)),
        "frame rate": (facts.fps.round(1),),
        "codec and pixel format": [_by_frequency(c) for c in (facts.codec, facts.pixel_format)],
        "file size per second": ((facts.source_bytes / np.where(seconds > 0, seconds, np.inf)).round(-2),),
    }
    return {name: np.stack([np.asarray(c, np.float64) for c in values], 1) for name, values in columns.items()}


def _by_frequency(names: npt.NDArray[np.bytes_]) -> Labels:
    """Number names, the most frequent first: a rare encoding is then far from a usual one."""
    _, codes, counts = np.unique(names, return_inverse=True, return_counts=True)
    return np.argsort(np.argsort(-counts, kind="stable"), kind="stable")[codes]


def _study(feature: str, values: Floats, labels: Labels, seed: int) -> Shortcut:
    """Ask a forest about videos that it has not learnt from, and test whether there is anything to learn."""
    forest = RandomForestClassifier(NUM_TREES, min_samples_leaf=4, class_weight="balanced", random_state=seed, n_jobs=1)
    folds = StratifiedKFold(NUM_FOLDS, shuffle=True, random_state=seed)
    confusion = confusion_matrix(labels, cross_val_predict(forest, values, labels, cv=folds))
    classes, found = np.unique(labels), confusion.diagonal()
    of_class, taken = confusion.sum(axis=1), confusion.sum(axis=0)
    by_chance = hypergeom.sf(found - 1, len(labels), of_class, taken) * len(classes)  # Fisher's exact test
    shortcuts = [
        ClassShortcut(label, size, hits, len(labels) - size, said - hits)
        for label, size, hits, said, p in zip(
            *(column.tolist() for column in (classes, of_class, found, taken, by_chance)), strict=True
        )
        if p < SIGNIFICANCE
    ]
    return Shortcut(
        feature,
        float((found / of_class).mean()),
        1 / len(classes),
        _p_value(values, labels, seed),
        tuple(sorted((c for c in shortcuts if c.advantage >= MIN_ADVANTAGE), key=lambda c: -c.advantage)),
    )


def _p_value(values: Floats, labels: Labels, seed: int) -> float:
    """Test whether classes differ in ranks, or in how far these are from the middle: a permutation test.

    Of how far apart the class means are, where columns that go together count once (as Pillai's trace, shrunk). It is
    taken of all videos, for the labels and for permuted ones alike: folds would cost half of the power.
    """
    ranks = rankdata(values, axis=0) / len(values) - (len(values) + 1) / len(values) / 2
    columns = np.concatenate([ranks, np.abs(ranks)], axis=1)
    columns -= columns.mean(axis=0)
    columns /= np.maximum(columns.std(axis=0), 1e-9) * np.repeat([1, 2], values.shape[1])
    spread, axes = np.linalg.eigh(columns.T @ columns / len(columns))
    columns = columns @ axes / np.sqrt(spread + spread.mean())
    sizes = np.unique(labels, return_counts=True)[1]
    starts = np.cumsum(sizes) - sizes

    def distance(order: Labels) -> float:
        sums = np.add.reduceat(columns[order], starts, axis=0)
        return float(((sums * sums).sum(axis=1) / sizes).sum())

    order = np.argsort(labels, kind="stable")
    found = permutation_test(
        (order,),
        distance,
        permutation_type="pairings",
        vectorized=False,
        n_resamples=NUM_PERMUTATIONS,
        alternative="greater",
        random_state=seed,
    )
    return float(found.pvalue)
