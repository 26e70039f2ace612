"""Numbers from predictions: pure functions of true classes and probabilities."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from sklearn.metrics import confusion_matrix, f1_score

TOP = 5


@dataclasses.dataclass(frozen=True)
class ClassResult:
    """One class.

    Attributes:
        class_name: The class.
        num_clips: Evaluated clips that are of it.
        num_correct: Of these, how many were recognised.
        accuracy: Their ratio; NaN without clips.
        low: Lower end of its 95 % Wilson interval; NaN without clips.
        high: Upper end.
    """

    class_name: str
    num_clips: int
    num_correct: int
    accuracy: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class Metrics:
    """What predictions are worth.

    Attributes:
        num_clips: Evaluated clips (n).
        num_correct: Clips whose most probable class is the true one.
        accuracy: Their ratio.
        accuracy_low: Lower end of its 95 % Wilson interval.
        accuracy_high: Upper end.
        top5_accuracy: The true class is among the 5 (or all, if fewer) most probable.
        balanced_accuracy: Mean accuracy over the classes that occur.
        macro_f1: Mean F1 over the classes that occur.
        majority_fraction: Accuracy of always saying the most frequent class of these clips.
        per_class: In label order.
        confusion: (K, K) counts; row = true class, column = predicted class.
    """

    num_clips: int
    num_correct: int
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    top5_accuracy: float
    balanced_accuracy: float
    macro_f1: float
    majority_fraction: float
    per_class: tuple[ClassResult, ...]
    confusion: npt.NDArray[np.int64]


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


def compute_metrics(
    labels: npt.NDArray[np.int64], probabilities: npt.NDArray[np.float32], classes: Sequence[str]
) -> Metrics:
    """Compare predictions with the truth.

    Args:
        labels: (n,) true classes. n >= 1.
        probabilities: (n, K).
        classes: Names (K).

    Raises:
        ValueError: No clips, shapes that do not fit, or a probability that is not finite: argmax
            would call it class 0.
    """
    if not len(labels) or probabilities.shape != (len(labels), len(classes)):
        raise ValueError(
            f"{len(labels)} labels and probabilities {probabilities.shape}, expected (n, {len(classes)}), n >= 1"
        )
    if not np.isfinite(probabilities).all():
        bad = int((~np.isfinite(probabilities)).any(axis=1).sum())
        raise ValueError(f"{bad} of {len(labels)} predictions are not finite, expected all")
    predicted = probabilities.argmax(axis=1)
    confusion = confusion_matrix(labels, predicted, labels=range(len(classes)))
    counts, correct = confusion.sum(axis=1), confusion.diagonal()
    present = np.flatnonzero(counts)
    per_class = tuple(
        ClassResult(
            name,
            int(counts[k]),
            int(correct[k]),
            float(correct[k] / counts[k]) if counts[k] else math.nan,
            *wilson_interval(int(correct[k]), int(counts[k])),
        )
        for k, name in enumerate(classes)
    )
    low, high = wilson_interval(int(correct.sum()), len(labels))
    top = np.argsort(-probabilities, axis=1, kind="stable")[:, :TOP]
    return Metrics(
        num_clips=len(labels),
        num_correct=int(correct.sum()),
        accuracy=float(correct.sum() / len(labels)),
        accuracy_low=low,
        accuracy_high=high,
        top5_accuracy=float((top == labels[:, None]).any(axis=1).mean()),
        balanced_accuracy=float((correct[present] / counts[present]).mean()),
        macro_f1=float(f1_score(labels, predicted, labels=present, average="macro", zero_division=0)),
        majority_fraction=float(counts.max() / len(labels)),
        per_class=per_class,
        confusion=confusion,
    )
