"""Numbers from predictions: pure functions of true classes and probabilities."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from vidcache.eval.intervals import FEW_CLIPS, wilson_interval
from vidcache.text import plural, printable

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

    @property
    def is_too_few(self) -> bool:
        """Whether there are clips, but too few to claim anything of the class."""
        return 0 < self.num_clips < FEW_CLIPS


@dataclasses.dataclass(frozen=True)
class Mistake:
    """A class that is taken for another one.

    Attributes:
        true: Label of the clips.
        predicted: Label that the model gives them.
        num_clips: How many.
        num_of_class: Of how many clips of the class.
    """

    true: int
    predicted: int
    num_clips: int
    num_of_class: int

    def in_words(self, classes: Sequence[str]) -> str:
        """One line, printable."""
        true, predicted = printable(classes[self.true]), printable(classes[self.predicted])
        verb = "is" if self.num_clips == 1 else "are"
        return f"{self.num_clips:,} of {plural(self.num_of_class, 'clip')} of {true} {verb} taken for {predicted}"


@dataclasses.dataclass(frozen=True)
class Metrics:
    """What predictions are worth.

    Attributes:
        num_clips: Evaluated clips (n).
        num_correct: Clips whose most probable class is the true one.
        accuracy: Their ratio.
        accuracy_low: Lower end of its 95 % Wilson interval.
        accuracy_high: Upper end.
        num_top5: Clips whose true class is among the 5 (or all, if fewer) most probable.
        top5_accuracy: Their ratio.
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
    num_top5: int
    top5_accuracy: float
    balanced_accuracy: float
    macro_f1: float
    majority_fraction: float
    per_class: tuple[ClassResult, ...]
    confusion: npt.NDArray[np.int64]

    def mistakes(self, limit: int) -> list[Mistake]:
        """Return what is most often taken for what: by clips, then by their share of the class."""
        counts = self.confusion.sum(axis=1)
        wrong = self.confusion - np.diag(self.confusion.diagonal())
        found = [
            Mistake(int(true), int(predicted), int(wrong[true, predicted]), int(counts[true]))
            for true, predicted in np.argwhere(wrong)
        ]
        return sorted(found, key=lambda m: (-m.num_clips, m.num_of_class, m.true, m.predicted))[:limit]


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
    k = len(classes)
    confusion = np.bincount(labels * k + predicted, minlength=k * k).reshape(k, k)
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
    num_top5 = int((top == labels[:, None]).any(axis=1).sum())
    return Metrics(
        num_clips=len(labels),
        num_correct=int(correct.sum()),
        accuracy=float(correct.sum() / len(labels)),
        accuracy_low=low,
        accuracy_high=high,
        num_top5=num_top5,
        top5_accuracy=num_top5 / len(labels),
        balanced_accuracy=float((correct[present] / counts[present]).mean()),
        macro_f1=float((2 * correct / np.maximum(counts + confusion.sum(axis=0), 1))[present].mean()),
        majority_fraction=float(counts.max() / len(labels)),
        per_class=per_class,
        confusion=confusion,
    )


NUM_BINS = 10
_SIMULATIONS = 1000


@dataclasses.dataclass(frozen=True)
class Bin:
    """Clips whose most probable class has a probability in (low, high].

    Attributes:
        low: Lower end, exclusive (0 is inclusive).
        high: Upper end.
        num_clips: How many clips.
        confidence: Their mean probability; NaN without clips.
        accuracy: How many of them are right; NaN without clips.
        accuracy_low: Lower end of its 95 % Wilson interval.
        accuracy_high: Upper end.
    """

    low: float
    high: float
    num_clips: int
    confidence: float
    accuracy: float
    accuracy_low: float
    accuracy_high: float


@dataclasses.dataclass(frozen=True)
class Calibration:
    """What probabilities are worth.

    Attributes:
        bins: 10 of equal width, from 0 to 1.
        confidence: Mean probability of the most probable class.
        accuracy: How often it is right.
        error: Expected calibration error: |accuracy - confidence| of the bins, averaged over clips.
        error_by_chance: What a model that is exactly as often right as it says stays below in 95 % of cases, with as
            many clips and these probabilities: few clips make a large error without meaning anything.
    """

    bins: tuple[Bin, ...]
    confidence: float
    accuracy: float
    error: float
    error_by_chance: float

    @property
    def in_words(self) -> str:
        """One line."""
        said = (
            f"{self.confidence:.1%} sure on average, {self.accuracy:.1%} right; expected calibration error "
            f"{self.error:.3f}"
        )
        num_clips = plural(sum(b.num_clips for b in self.bins), "clip")
        if self.error <= self.error_by_chance:
            return f"{said}, as a calibrated model may have with {num_clips} (up to {self.error_by_chance:.3f})"
        direction = "too sure" if self.confidence > self.accuracy else "not sure enough"
        if abs(self.confidence - self.accuracy) < self.error / 2:
            direction = "too sure of some clips, not sure enough of others"
        return f"{said}, more than chance explains ({self.error_by_chance:.3f}): {direction}"


def calibrate(labels: npt.NDArray[np.int64], probabilities: npt.NDArray[np.float32], *, seed: int = 0) -> Calibration:
    """Compare what a model says with how often it is right.

    Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, with 10 bins.

    Args:
        labels: (n,) true classes. n >= 1.
        probabilities: (n, K).
        seed: Of the simulation behind `error_by_chance`.
    """
    confidence = probabilities.max(axis=1).astype(np.float64)
    right = (probabilities.argmax(axis=1) == labels).astype(np.float64)
    edges = np.linspace(0, 1, NUM_BINS + 1)
    index = np.searchsorted(edges[1:-1], confidence)
    rng = np.random.default_rng(seed)
    by_chance = [_error(index, confidence, rng.random(len(labels)) < confidence) for _ in range(_SIMULATIONS)]
    return Calibration(
        bins=tuple(_bin(edges[b], edges[b + 1], confidence[index == b], right[index == b]) for b in range(NUM_BINS)),
        confidence=float(confidence.mean()),
        accuracy=float(right.mean()),
        error=_error(index, confidence, right),
        error_by_chance=float(np.quantile(by_chance, 0.95)),
    )


def _error(index: npt.NDArray[Any], confidence: npt.NDArray[np.float64], right: npt.NDArray[Any]) -> float:
    surplus = np.bincount(index, weights=right - confidence, minlength=NUM_BINS)
    return float(np.abs(surplus).sum() / len(index))


def _bin(low: float, high: float, confidence: npt.NDArray[np.float64], right: npt.NDArray[np.float64]) -> Bin:
    n = len(right)
    means = (float(confidence.mean()), float(right.mean())) if n else (float("nan"), float("nan"))
    return Bin(float(low), float(high), n, *means, *wilson_interval(int(right.sum()), n))
