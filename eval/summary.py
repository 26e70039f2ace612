"""The numbers of an evaluation as plain values: what metrics.json holds and the report shows."""

import dataclasses
from typing import Any

from vidcache.cache.reader import Reader
from vidcache.eval.compare import Comparison
from vidcache.eval.evaluation import Evaluation
from vidcache.eval.metrics import TOP, ClassResult
from vidcache.eval.uncertainty import wilson_interval
from vidcache.text import printable

TOP_MISTAKES = 10


def summarise(reader: Reader, found: Evaluation) -> dict[str, Any]:
    """Return the numbers as plain values for `vidcache.text.to_json`; a class without clips has None."""
    metrics, options = found.metrics, found.options
    # Among 5 of 5 classes it is by definition: nothing to be uncertain of.
    many = len(metrics.per_class) > TOP
    top5_low, top5_high = wilson_interval(metrics.num_top5, metrics.num_clips) if many else (None, None)
    return {
        "split": options.split,
        "num_views": options.num_views,
        "flip": options.flip,
        "num_clips": metrics.num_clips,
        "num_correct": metrics.num_correct,
        "accuracy": metrics.accuracy,
        "accuracy_low": metrics.accuracy_low,
        "accuracy_high": metrics.accuracy_high,
        "top5_accuracy": metrics.top5_accuracy,
        "top5_low": top5_low,
        "top5_high": top5_high,
        "balanced_accuracy": metrics.balanced_accuracy,
        "balanced_low": found.balanced_interval[0],
        "balanced_high": found.balanced_interval[1],
        "macro_f1": metrics.macro_f1,
        "macro_f1_low": found.macro_f1_interval[0],
        "macro_f1_high": found.macro_f1_interval[1],
        "majority_fraction": metrics.majority_fraction,
        "mean_loss": found.predictions.mean_loss,
        "calibration": dataclasses.asdict(found.calibration),
        "per_class": [_class_values(result) for result in metrics.per_class],
        "top_mistakes": [mistake.in_words(reader.classes) for mistake in metrics.mistakes(TOP_MISTAKES)],
        **dataclasses.asdict(found.cleanliness),
        "clips_per_second": metrics.num_clips / found.seconds,
    }


def summarise_comparison(found: Comparison, first: str, second: str, warning: str = "") -> dict[str, Any]:
    """Return a comparison as JSON-ready values.

    Args:
        found: What came out.
        first: Name of the checkpoint, printable.
        second: Name of the other one.
        warning: What makes the conclusion doubtful; stands behind it.
    """
    low, high = wilson_interval(found.num_second, found.num_clips)
    return {
        "first": first,
        "second": second,
        **dataclasses.asdict(found),
        "second_accuracy": found.num_second / found.num_clips,
        "second_low": low,
        "second_high": high,
        "conclusion": found.conclude(first, second) + (f" {warning}" if warning else ""),
    }


def _class_values(result: ClassResult) -> dict[str, Any]:
    return {
        "class": printable(result.class_name),
        "num_clips": result.num_clips,
        "num_correct": result.num_correct,
        "accuracy": result.accuracy if result.num_clips else None,
        "low": result.low if result.num_clips else None,
        "high": result.high if result.num_clips else None,
        "too_few_to_claim": result.is_too_few,
    }
