"""The files of an evaluation, best.eval/, and those of the run beside its checkpoint, best.run/."""

import csv
import dataclasses
import io
from pathlib import Path
from typing import Any

import numpy as np

from vidcache.cache.reader import Reader
from vidcache.checkpoint import Checkpoint
from vidcache.eval.inference import Predictions
from vidcache.eval.metrics import TOP, Metrics
from vidcache.eval.report.plots import draw_confusion, draw_per_class
from vidcache.files import follow, read_json, read_small, write_text_atomically
from vidcache.text import printable, to_csv, to_json

CHANGES = ("worse", "better", "other mistake")
PER_CLASS = ["class", "num_clips", "num_correct", "accuracy", "low", "high", "too_few_to_claim"]
# Columns of metrics.csv that the report uses.
USED = (
    "epoch train_loss train_accuracy val_loss val_accuracy val_balanced_accuracy seconds clips_per_second "
    "data_wait_fraction"
).split()
_MAX_TEXT = 10_000  # characters of a command
_MAX_EPOCHS, _LARGEST = 10_000, 1e15  # beyond it nothing can be drawn


def write_results(
    folder: Path, summary: dict[str, Any], reader: Reader, predictions: Predictions, metrics: Metrics
) -> None:
    """Write metrics.json, per_class.csv, predictions.csv, confusion.png and per_class.png.

    Args:
        folder: Made if it does not exist.
        summary: Goes to metrics.json, with the confusion matrix; its `per_class` to per_class.csv.
        reader: The cache.
        predictions: Predictions of its clips.
        metrics: Computed from them.

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
        f"{summary['split']}: {metrics.num_correct} of {metrics.num_clips} correct = {metrics.accuracy:.1%} "
        f"({metrics.accuracy_low:.1%} to {metrics.accuracy_high:.1%})"
    )
    draw_confusion(metrics, title, folder / "confusion.png")
    draw_per_class(metrics.per_class, title, folder / "per_class.png")


def changed_clips(reader: Reader, first: Predictions, second: Predictions) -> list[dict[str, str]]:
    """List the clips whose predicted class differs: what became worse, what better, then other mistakes.

    Args:
        reader: The cache.
        first: Predictions of one model.
        second: Predictions of the other, of the same clips in the same order.
    """
    before, after = (predictions.probabilities.argmax(axis=1) for predictions in (first, second))
    names = [printable(name) for name in reader.classes]
    rows = []
    for n in np.flatnonzero(before != after).tolist():
        change = CHANGES[0] if first.correct[n] else CHANGES[1] if second.correct[n] else CHANGES[2]
        classes = [names[labels[n]] for labels in (first.labels, before, after)]
        path = printable(reader.path_of(int(first.rows[n])))
        rows.append(dict(zip(("path", "true", "first", "second", "change"), (path, *classes, change), strict=True)))
    return sorted(rows, key=lambda row: (CHANGES.index(row["change"]), row["path"]))


def _predictions_csv(reader: Reader, predictions: Predictions) -> str:
    names = [printable(name) for name in reader.classes]
    top = min(TOP, len(names))
    header = ["path", "true", *(f"{what}{k}" for k in range(1, top + 1) for what in ("class", "probability"))]
    table = []
    for n, row in enumerate(predictions.rows.tolist()):
        probabilities = predictions.probabilities[n]
        best = (-probabilities).argsort(kind="stable")[:top].tolist()
        cells = [value for k in best for value in (names[k], f"{probabilities[k]:.6f}")]
        table.append([printable(reader.path_of(row)), names[predictions.labels[n]], *cells])
    return to_csv(header, table)


@dataclasses.dataclass(frozen=True)
class RunLog:
    """The run of a checkpoint.

    Attributes:
        epochs: Rows of metrics.csv, as numbers; empty where they are missing or of another run.
        command: The command that began the run; empty if unknown.
        stopped_because: Why it ended; empty if it has not, or that is unknown.
    """

    epochs: tuple[dict[str, float], ...] = ()
    command: str = ""
    stopped_because: str = ""


def read_run_log(ckpt: Path, checkpoint: Checkpoint) -> RunLog:
    """Read what lies beside a checkpoint. An evaluation does not need it, so nothing about it is an error.

    The folder of another run is not believed: its row of the checkpoint's epoch has to have the checkpoint's metrics.
    """
    folder = follow(ckpt).with_suffix(".run")
    try:
        lines = io.StringIO(read_small(folder / "metrics.csv").decode(), newline="")
        epochs = tuple({name: float(value) for name, value in row.items()} for row in csv.DictReader(lines))
        if len(epochs) > _MAX_EPOCHS or not all(abs(row[name]) <= _LARGEST for row in epochs for name in USED):
            return RunLog()
        best = next(row for row in epochs if row["epoch"] == checkpoint.epoch)
        if not checkpoint.metrics or any(best[name] != value for name, value in checkpoint.metrics.items()):
            return RunLog()
    except (OSError, ValueError, KeyError, TypeError, StopIteration, csv.Error):
        return RunLog()
    config, result = read_json(folder / "config.json"), read_json(folder / "result.json")
    is_config = (config.get("fingerprint"), config.get("split_hash")) == (checkpoint.fingerprint, checkpoint.split_hash)
    has_ended = result.get("best_epoch") == min(epochs, key=lambda row: row["val_loss"])["epoch"]
    return RunLog(
        epochs=epochs,
        command=_text(config, "command") if is_config else "",
        stopped_because=_text(result, "stopped_because") if has_ended else "",
    )


def _text(values: dict[str, Any], name: str) -> str:
    value = values.get(name)
    return value if type(value) is str and len(value) <= _MAX_TEXT else ""
