"""Whether a model is as often right as it says."""

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

from vidcache.eval.uncertainty import wilson_interval
from vidcache.text import plural

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
