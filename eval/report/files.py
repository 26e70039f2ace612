"""The files of an evaluation: best.eval/."""

from pathlib import Path
from typing import Any

import numpy as np

from vidcache.cache.reader import Reader
from vidcache.eval.inference import Predictions
from vidcache.eval.metrics import TOP, Metrics
from vidcache.eval.report.plots import draw_confusion, draw_per_class
from vidcache.files import write_text_atomically
from vidcache.text import printable, to_csv, to_json

CHANGES = ("worse", "better", "other mistake")
PER_CLASS = ["class", "num_clips", "num_correct", "accuracy", "low", "high", "too_few_to_claim"]


def write_results(
    folder: Path, summary: dict[str, Any], reader: Reader, predictions: Predictions, metrics: Metrics
) -> None:
    """Write metrics.json, per_class.csv, predictions.csv, confusion.png and per_class.png.

    Args:
        folder: Made if it is not there.
        summary: Goes to metrics.json, with the confusion matrix; its `per_class` to per_class.csv.
        reader: The cache.
        predictions: Of its clips.
        metrics: Of them.

    Raises:
        OSError: The disk is full or not writable; each older file is untouched until its turn comes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    values = {**summary, "confusion": metrics.confusion.tolist()}
    write_text_atomically(folder / "metrics.json", to_json(values, indent=2) + "\n")
    per_class = [[row[name] for name in PER_CLASS] for row in summary["per_class"]]
    write_text_atomically(folder / "per_class.csv", to_csv(PER_CLASS, per_class))
    write_text_atomically(folder / "predictions.csv", _predictions_csv(reader, predictions))
    title = (
        f"{summary['split']}: {metrics.num_correct} of {metrics.num_clips} right = {metrics.accuracy:.1%} "
        f"({metrics.accuracy_low:.1%} to {metrics.accuracy_high:.1%})"
    )
    draw_confusion(metrics, title, folder / "confusion.png")
    draw_per_class(metrics.per_class, title, folder / "per_class.png")


def changed_clips(reader: Reader, first: Predictions, second: Predictions) -> list[dict[str, str]]:
    """List the clips of which two models say something else: what became better, what worse, then other mistakes.

    Args:
        reader: The cache.
        first: Predictions of one model.
        second: Of the other, of the same clips in the same order.
    """
    said = [found.probabilities.argmax(axis=1) for found in (first, second)]
    changed = np.flatnonzero(said[0] != said[1]).tolist()
    names = [printable(name) for name in reader.classes]
    rows = []
    for n in changed:
        label, before, after = int(first.labels[n]), int(said[0][n]), int(said[1][n])
        change = CHANGES[0] if before == label else CHANGES[1] if after == label else CHANGES[2]
        path = printable(reader.path_of(int(first.rows[n])))
        rows.append(
            {"path": path, "true": names[label], "first": names[before], "second": names[after], "change": change}
        )
    return sorted(rows, key=lambda row: (CHANGES.index(row["change"]), row["path"]))


def _predictions_csv(reader: Reader, predictions: Predictions) -> str:
    names = [printable(name) for name in reader.classes]
    top = min(TOP, len(names))
    header = ["path", "true", *(f"{what}{k}" for k in range(1, top + 1) for what in ("class", "probability"))]
    table = []
    for row, label, probabilities in zip(
        predictions.rows.tolist(), predictions.labels.tolist(), predictions.probabilities, strict=True
    ):
        best = (-probabilities).argsort(kind="stable")[:top].tolist()
        said = [value for k in best for value in (names[k], f"{probabilities[k]:.6f}")]
        table.append([printable(reader.path_of(row)), names[label], *said])
    return to_csv(header, table)
