"""Can the class be predicted from metadata alone, without a look at the pictures? A model learns that first."""

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import hypergeom, permutation_test, rankdata
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import confusion_matrix
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.preprocessing import scale

from vidcache.preprocess.analysis.facts import Facts
from vidcache.text import printable

MIN_CLASS_VIDEOS, MAX_VIDEOS, MAX_CLASSES = 8, 5000, 400  # every node of a tree holds a number per class
SIGNIFICANCE = 0.01
# In 5,000 videos a negligible shortcut is significant too: least Cohen's kappa of all classes, Youden's J of one.
MIN_KAPPA, MIN_YOUDEN = 0.05, 0.5

Values = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]


def find_shortcuts(facts: Facts, seed: int = 0) -> dict[str, Any]:
    """Predict the class from metadata: from all features together and, if a permutation test finds that, from each.

    The test needs exchangeable videos, which cuts of one recording are not: one of each group and class is used.
    (Permuting within groups, as scikit-learn does, changes nothing where a group has one class.)

    Returns:
        JSON-ready. "num_videos", "num_classes", "num_classes_left_out" (too small, or beyond `MAX_CLASSES`), and
        "results", all features together first, then the most accurate: "feature", "accuracy" (mean recall of a forest
        on held-out videos), "chance", "p_value", "is_significant", "classes" that it gives away, the clearest first.
    """
    rows = _choose_rows(facts, seed)
    labels, names = facts.label[rows], [printable(facts.classes[label]) for label in np.unique(facts.label[rows])]
    features = {name: values for name, values in _features(facts, rows).items() if (values != values[:1]).any()}
    results = []
    if len(names) > 1 and features:
        results = [_test("everything together", np.hstack([*features.values()]), labels, names, seed)]
        if results[0]["p_value"] < SIGNIFICANCE:
            alone = [_test(name, values, labels, names, seed) for name, values in features.items()]
            results += sorted(alone, key=lambda result: -result["accuracy"])
    left_out = len(np.unique(facts.label[facts.good])) - len(names)
    return {"num_videos": len(rows), "num_classes": len(names), "num_classes_left_out": left_out, "results": results}


def _choose_rows(facts: Facts, seed: int) -> Rows:
    rows = np.random.default_rng(seed).permutation(np.flatnonzero(facts.good))
    if facts.group is not None:
        pairs = np.stack([facts.group[rows], facts.label[rows]])
        rows = rows[np.sort(np.unique(pairs, axis=1, return_index=True)[1])]
    counts = np.bincount(facts.label[rows], minlength=len(facts.classes))
    classes = [label for label in np.argsort(-counts, kind="stable")[:MAX_CLASSES] if counts[label] >= MIN_CLASS_VIDEOS]
    quota = max(MAX_VIDEOS // max(len(classes), 1), MIN_CLASS_VIDEOS)
    return np.sort(np.concatenate([rows[:0], *(rows[facts.label[rows] == label][:quota] for label in classes)]))


def _features(facts: Facts, rows: Rows) -> dict[str, Values]:
    """(n, F) numbers per feature, rounded (noise in the last digits means nothing); names by their frequency."""
    seconds, columns = facts.duration_seconds, []
    for names in (facts.codec, facts.pixel_format):  # a rare encoding is far from a usual one
        _, codes, counts = np.unique(names, return_inverse=True, return_counts=True)
        columns.append(rankdata(-counts, "ordinal")[codes])
    features = {
        "length": (seconds.round(2), facts.num_frames),
        "padding": (np.minimum(facts.num_real, facts.num_frames_per_clip),),
        "frame size": (facts.width, facts.height, (facts.width / np.maximum(facts.height, 1)).round(3)),
        "frame rate": (facts.fps.round(1),),
        "codec and pixel format": columns,
        "file size per second": ((facts.source_bytes / np.where(seconds > 0, seconds, np.inf)).round(-2),),
    }
    return {name: np.stack(values, axis=1)[rows].astype(np.float64) for name, values in features.items()}


def _test(feature: str, values: Values, labels: Rows, names: list[str], seed: int) -> dict[str, Any]:
    forest = RandomForestClassifier(16, min_samples_leaf=4, class_weight="balanced", random_state=seed, n_jobs=1)
    folds = StratifiedKFold(4, shuffle=True, random_state=seed)
    confusion = confusion_matrix(labels, cross_val_predict(forest, values, labels, cv=folds))
    found, sizes, predicted = confusion.diagonal(), confusion.sum(axis=1), confusion.sum(axis=0)
    others, mistaken, num_classes = len(labels) - sizes, predicted - found, len(sizes)
    youden = found / sizes - mistaken / others
    fisher = hypergeom.sf(found - 1, len(labels), sizes, predicted) * num_classes  # exact test, Bonferroni
    told = [k for k in np.argsort(-youden, kind="stable") if fisher[k] < SIGNIFICANCE and youden[k] >= MIN_YOUDEN]
    columns = {"num_videos": sizes, "num_found": found, "num_others": others, "num_mistaken": mistaken}
    accuracy, chance, p_value = float((found / sizes).mean()), 1 / num_classes, _p_value(values, labels, seed)
    matters = accuracy - chance >= MIN_KAPPA * (1 - chance) or accuracy >= 2 * chance
    classes = [{"class": names[k], **{name: int(n[k]) for name, n in columns.items()}} for k in told]
    numbers = {"accuracy": accuracy, "chance": chance, "p_value": p_value}
    return {"feature": feature, **numbers, "is_significant": p_value < SIGNIFICANCE and matters, "classes": classes}


def _p_value(values: Values, labels: Rows, seed: int) -> float:
    """Test by permutations whether classes differ in ranks, or in how far these are from the middle.

    The statistic is Pillai's trace, shrunk. Uses all videos: the folds of `permutation_test_score` halve the power.
    """
    ranks = rankdata(values, axis=0) - (len(values) + 1) / 2
    columns = scale(np.hstack([ranks, np.abs(ranks)])) / np.repeat([1, 2], values.shape[1])
    spread, axes = np.linalg.eigh(columns.T @ columns / len(columns))
    columns = columns @ axes / np.sqrt(spread + spread.mean())
    sizes, order = np.unique(labels, return_counts=True)[1], np.argsort(labels, kind="stable")

    def distance(order: Rows) -> float:
        sums = np.add.reduceat(columns[order], np.cumsum(sizes) - sizes, axis=0)
        return float(((sums * sums).sum(axis=1) / sizes).sum())

    settings: dict[str, Any] = {"permutation_type": "pairings", "alternative": "greater", "random_state": seed}
    return float(permutation_test((order,), distance, n_resamples=999, **settings).pvalue)
