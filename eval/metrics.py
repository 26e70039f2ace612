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
NUM_BINS = 10
_SIMULATIONS = 1000


@dataclasses.dataclass(frozen=True)
class Metrics:
    """The quality of predictions.

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
        majority_fraction: Accuracy of always predicting the most frequent class of these clips.
        per_class: Results in label order, JSON-ready: class (printable), num_clips, num_correct, accuracy, low and high
            (95 % Wilson; all three None without clips), too_few_to_claim (fewer than 5 clips).
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
    per_class: tuple[dict[str, Any], ...]
    confusion: npt.NDArray[np.int64]

    def top_confusions(self, limit: int) -> list[str]:
        """Return the most frequent confusions in words, by clips, then by their share of the class; printable."""
        totals = self.confusion.sum(axis=1)
        wrong = self.confusion - np.diag(self.confusion.diagonal())
        pairs = sorted(np.argwhere(wrong).tolist(), key=lambda pair: (-wrong[*pair], totals[pair[0]], *pair))
        names = [result["class"] for result in self.per_class]
        return [f"{names[a]} -> {names[b]}: {wrong[a, b]:,} of {plural(totals[a], 'clip')}" for a, b in pairs[:limit]]


def compute_metrics(
    labels: npt.NDArray[np.int64], probabilities: npt.NDArray[np.float32], classes: Sequence[str]
) -> Metrics:
    """Compare predictions with the truth.

    Args:
        labels: (n,) true classes. n >= 1.
        probabilities: (n, K).
        classes: Names (K).

    Raises:
        ValueError: No clips, shapes that do not fit, or a probability that is not finite: argmax would call it class 0.
    """
    if not len(labels) or probabilities.shape != (len(labels), len(classes)):
        raise ValueError(
            f"{len(labels)} labels and probabilities {probabilities.shape}, expected (n, {len(classes)}), n >= 1"
        )
    num_bad = int((~np.isfinite(probabilities)).any(axis=1).sum())
    if num_bad:
        raise ValueError(f"{num_bad} of {len(labels)} predictions are not finite")
    predicted, k = probabilities.argmax(axis=1), len(classes)
    confusion = np.bincount(labels * k + predicted, minlength=k * k).reshape(k, k)
    counts, correct = confusion.sum(axis=1), confusion.diagonal()
    present = np.flatnonzero(counts)
    low, high = wilson_interval(int(correct.sum()), len(labels))
    top = np.argsort(-probabilities, axis=1, kind="stable")[:, :TOP]
    num_top5 = int((top == labels[:, None]).any(axis=1).sum())
    f1 = 2 * correct / np.maximum(counts + confusion.sum(axis=0), 1)
    per_class = zip(classes, correct.tolist(), counts.tolist(), strict=True)
    return Metrics(
        num_clips=len(labels),
        num_correct=int(correct.sum()),
        accuracy=float(correct.sum() / len(labels)),
        accuracy_low=low,
        accuracy_high=high,
        num_top5=num_top5,
        top5_accuracy=num_top5 / len(labels),
        balanced_accuracy=float((correct[present] / counts[present]).mean()),
        macro_f1=float(f1[present].mean()),
        majority_fraction=float(counts.max() / len(labels)),
        per_class=tuple(_class_result(*result) for result in per_class),
        confusion=confusion,
    )


def _class_result(name: str, num_correct: int, num_clips: int) -> dict[str, Any]:
    low, high = wilson_interval(num_correct, num_clips) if num_clips else (None, None)
    return {
        "class": printable(name),
        "num_clips": num_clips,
        "num_correct": num_correct,
        "accuracy": num_correct / num_clips if num_clips else None,
        "low": low,
        "high": high,
        "too_few_to_claim": 0 < num_clips < FEW_CLIPS,
    }


def calibrate(
    labels: npt.NDArray[np.int64], probabilities: npt.NDArray[np.float32], *, seed: int = 0
) -> dict[str, Any]:
    """Compare the confidence of a model with its accuracy.

    Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, with 10 bins.

    Args:
        labels: (n,) true classes. n >= 1.
        probabilities: (n, K).
        seed: Seed of the simulation behind `error_by_chance`.

    Returns:
        JSON-ready: mean `confidence` (probability of the predicted class), `accuracy`, `error` (ECE: |accuracy -
        confidence| of the bins, averaged over clips), `error_by_chance` (the ECE that a perfectly calibrated model with
        these confidences stays below in 95 % of cases), and `bins`: low (exclusive, but for 0), high, num_clips,
        confidence, accuracy (both NaN without clips), accuracy_low and accuracy_high (95 % Wilson).
    """
    confidence = probabilities.max(axis=1).astype(np.float64)
    correct = (probabilities.argmax(axis=1) == labels).astype(np.float64)
    edges = np.linspace(0, 1, NUM_BINS + 1)
    index = np.searchsorted(edges[1:-1], confidence)

    def error(correct: npt.NDArray[Any]) -> float:
        surplus = np.bincount(index, weights=correct - confidence, minlength=NUM_BINS)
        return float(np.abs(surplus).sum() / len(labels))

    rng = np.random.default_rng(seed)
    by_chance = [error(rng.random(len(labels)) < confidence) for _ in range(_SIMULATIONS)]
    bins = []
    for k in range(NUM_BINS):
        chosen = index == k
        num_clips, num_correct = int(chosen.sum()), int(correct[chosen].sum())
        low, high = wilson_interval(num_correct, num_clips)
        mean = float(confidence[chosen].mean()) if num_clips else math.nan
        result = {"confidence": mean, "accuracy": num_correct / num_clips if num_clips else math.nan}
        ends = {"low": float(edges[k]), "high": float(edges[k + 1])}
        bins.append({**ends, "num_clips": num_clips, **result, "accuracy_low": low, "accuracy_high": high})
    return {
        "bins": bins,
        "confidence": float(confidence.mean()),
        "accuracy": float(correct.mean()),
        "error": error(correct),
        "error_by_chance": float(np.quantile(by_chance, 0.95)),
    }


def describe_calibration(c: dict[str, Any]) -> str:
    """Return one line about the result of `calibrate`."""
    clips = plural(sum(b["num_clips"] for b in c["bins"]), "clip")
    text = f"mean confidence {c['confidence']:.1%}, accuracy {c['accuracy']:.1%}, ECE {c['error']:.3f}"
    if c["error"] <= c["error_by_chance"]:
        return f"{text} (within chance for {clips}, < {c['error_by_chance']:.3f})"
    gap = c["confidence"] - c["accuracy"]
    kind = "overconfident" if gap > 0 else "underconfident"
    if abs(gap) < c["error"] / 2:
        kind = "overconfident on some clips, underconfident on others"
    return f"{text} (beyond chance for {clips}, {c['error_by_chance']:.3f}): {kind}"
