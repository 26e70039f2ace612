"""Can the class be told by a side effect alone: length, padding, size, rate, encoding?

A model takes such a shortcut before it learns what happens in the pictures, and a test split that
was collected in the same way rewards it. Knows columns; looks at no picture.
"""

import dataclasses

import numpy as np
import numpy.typing as npt
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import StratifiedKFold

from vidcache.preprocess.analysis import Facts
from vidcache.preprocess.chance import p_value_of_accuracy, p_values_of_classes

MIN_CLASS_VIDEOS = 8
MAX_VIDEOS = 5000
MAX_CLASSES = 400  # every node of a tree holds a number per class
NUM_TREES = 16
# Of all tests of a study together: random labels are called a shortcut once in a hundred data sets.
SIGNIFICANCE = 0.01
# What is significant in 5,000 videos can still be nothing to worry about. Share of the way from chance to
# always right (Cohen's kappa for equally frequent classes), and advantage in recognising one class.
MIN_SKILL = 0.1
MIN_ADVANTAGE = 0.5

Labels = npt.NDArray[np.int64]


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
        p_value: Of an accuracy like this by chance, corrected for the number of tests in the study.
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
class Study:
    """Every kind of side effect, each alone, and all together.

    Attributes:
        num_videos: That were studied.
        num_classes: That were studied.
        num_classes_left_out: With fewer than `MIN_CLASS_VIDEOS` videos, or beyond the `MAX_CLASSES` largest.
        together: All side effects at once; None when none varies, or fewer than two classes are left.
        alone: One each of those that vary, the strongest first.
    """

    num_videos: int
    num_classes: int
    num_classes_left_out: int
    together: Shortcut | None
    alone: tuple[Shortcut, ...]


def study_shortcuts(facts: Facts, seed: int = 0) -> Study:
    """Predict the class from side effects.

    A random forest learns on one half of the videos and is asked about the other, both ways. Given the
    forest, and were the labels unrelated to the features, the labels of the asked half would be in
    random order: what can be found by chance follows from that (`chance`). The halves depend on each
    other; twice the mean of their p-values is valid nevertheless (Rueschendorf 1982; Vovk and Wang,
    "Combining p-values via averaging", 2020). Bonferroni's correction for all tests.

    Args:
        facts: The videos.
        seed: Of halves, forests, and of the choice among more than `MAX_VIDEOS` videos.
    """
    rng = np.random.default_rng(seed)
    counts = facts.counts(facts.good)
    chosen = [label for label in np.argsort(-counts, kind="stable").tolist() if counts[label] >= MIN_CLASS_VIDEOS]
    chosen = sorted(chosen[:MAX_CLASSES])
    left_out = int((counts > 0).sum()) - len(chosen)
    quota = max(MAX_VIDEOS // max(len(chosen), 1), MIN_CLASS_VIDEOS)
    rows = np.array(
        sorted(
            row for label in chosen for row in _some(np.flatnonzero(facts.good & (facts.label == label)), quota, rng)
        ),
        np.int64,
    )
    groups = {name: columns[rows] for name, columns in _features(facts).items()}
    groups = {name: values for name, values in groups.items() if len(rows) and (values != values[0]).any()}
    if len(chosen) < 2 or not groups:
        return Study(len(rows), len(chosen), left_out, None, ())
    labels, num_studies = facts.label[rows].astype(np.int64), len(groups) + 1
    together = _study("everything together", np.concatenate([*groups.values()], axis=1), labels, num_studies, seed)
    alone = [_study(name, values, labels, num_studies, seed) for name, values in groups.items()]
    return Study(
        len(rows), len(chosen), left_out, together, tuple(sorted(alone, key=lambda shortcut: -shortcut.accuracy))
    )


def _some(rows: Labels, most: int, rng: np.random.Generator) -> list[int]:
    chosen: list[int] = (rows if len(rows) <= most else rng.choice(rows, most, replace=False)).tolist()
    return chosen


def _features(facts: Facts) -> dict[str, npt.NDArray[np.float64]]:
    """(N, F) numbers per kind of side effect. Rounded: noise in the last digits is no feature."""
    seconds, height = facts.duration_seconds, np.maximum(facts.height, 1)
    columns = {
        "length": (seconds.round(2), facts.num_frames),
        "padding": (np.minimum(facts.num_real, facts.num_frames_per_clip),),
        "frame size": (facts.width, facts.height, (facts.width / height).round(3)),
        "frame rate": (facts.fps.round(1),),
        "codec and pixel format": [np.unique(c, return_inverse=True)[1] for c in (facts.codec, facts.pixel_format)],
        "file size per second": ((facts.source_bytes / np.where(seconds > 0, seconds, np.inf)).round(-2),),
    }
    return {name: np.stack([np.asarray(c, np.float64) for c in values], 1) for name, values in columns.items()}


def _study(feature: str, values: npt.NDArray[np.float64], labels: Labels, num_studies: int, seed: int) -> Shortcut:
    """Train on each half, ask about the other."""
    classes, labels = np.unique(labels, return_inverse=True)
    predicted, halves = np.empty_like(labels), []
    splitter = StratifiedKFold(2, shuffle=True, random_state=seed)
    for learnt, asked in splitter.split(values, labels):
        forest = RandomForestClassifier(
            NUM_TREES, min_samples_leaf=2, class_weight="balanced", random_state=seed, n_jobs=1
        )
        predicted[asked] = forest.fit(values[learnt], labels[learnt]).predict(values[asked])
        halves.append(asked)
    confusions = [np.zeros((len(classes), len(classes)), np.int64) for _ in halves]
    for confusion, asked in zip(confusions, halves, strict=True):
        np.add.at(confusion, (labels[asked], predicted[asked]), 1)
    confusion = confusions[0] + confusions[1]
    found, of_class, taken = confusion.diagonal(), confusion.sum(axis=1), confusion.sum(axis=0)
    p_values = (
        2 * num_studies * len(classes) * (p_values_of_classes(confusions[0]) + p_values_of_classes(confusions[1]))
    )
    shortcuts = [
        ClassShortcut(label, size, hits, len(labels) - size, said - hits)
        for label, size, hits, said, p in zip(
            classes.tolist(), of_class.tolist(), found.tolist(), taken.tolist(), p_values.tolist(), strict=True
        )
        if p < SIGNIFICANCE
    ]
    return Shortcut(
        feature,
        float((found / of_class).mean()),
        1 / len(classes),
        min(2 * num_studies * sum(p_value_of_accuracy(confusion) for confusion in confusions), 1.0),
        tuple(sorted((c for c in shortcuts if c.advantage >= MIN_ADVANTAGE), key=lambda c: -c.advantage)),
    )
