"""The files of an evaluation, best.eval/, and those of the run beside its checkpoint, best.run/."""

import csv
import dataclasses
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vidcache import plotting
from vidcache.cache.reader import Reader
from vidcache.checkpoint import Checkpoint
from vidcache.eval.evaluate import Evaluation
from vidcache.eval.inference import Predictions
from vidcache.eval.metrics import TOP
from vidcache.eval.report.plots import DPI, confusion_figure, per_class_figure
from vidcache.files import follow, read_json, read_small, write_atomically
from vidcache.outputs import PICTURE
from vidcache.text import printable, to_csv, to_json

CHANGES = ("worse", "better", "other mistake")
CHANGED = ["path", "true", "first", "second", "change"]
PER_CLASS = ["class", "num_clips", "num_correct", "accuracy", "low", "high", "too_few_to_claim"]
_MAX_TEXT = 10_000  # characters of a command
_MAX_PNG = 1 << 20


def result_files(
    reader: Reader, evaluation: Evaluation, summary: dict[str, Any], changed: list[dict[str, str]]
) -> dict[str, bytes]:
    """Return metrics.json, the tables and the pictures of an evaluation, by their names.

    Args:
        reader: The cache.
        evaluation: The result.
        summary: Goes to metrics.json, with the confusion matrix; with a "comparison" there is a changed.csv.
        changed: Its lines, as of `changed_clips`.
    """
    metrics = evaluation.metrics
    title = (
        f"{summary['split']}: {metrics.num_correct} of {metrics.num_clips} correct = {metrics.accuracy:.1%} "
        f"({metrics.accuracy_low:.1%} to {metrics.accuracy_high:.1%})"
    )
    texts = {
        "metrics.json": to_json({**summary, "confusion": metrics.confusion.tolist()}, indent=2) + "\n",
        "per_class.csv": to_csv(PER_CLASS, [[row[name] for name in PER_CLASS] for row in summary["per_class"]]),
        "predictions.csv": _predictions_csv(reader, evaluation.predictions),
    }
    if "comparison" in summary:
        texts["changed.csv"] = to_csv(CHANGED, [list(row.values()) for row in changed])
    return {
        **{name: text.encode() for name, text in texts.items()},
        "confusion.png": plotting.to_png(confusion_figure(metrics, title), DPI),
        "per_class.png": plotting.to_png(per_class_figure(metrics.per_class, title), DPI),
    }


def write_results(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write the files of an evaluation; after an OSError, each older file is untouched until its turn came."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        write_atomically(folder / name, lambda file, data=data: file.write(data))  # type: ignore[misc]
    if "changed.csv" not in files:  # of an earlier comparison
        (folder / "changed.csv").unlink(missing_ok=True)


def changed_clips(reader: Reader, first: Predictions, second: Predictions) -> list[dict[str, str]]:
    """List the clips whose predicted class differs between two models: worse, better, then other mistakes."""
    before, after = (predictions.probabilities.argmax(axis=1) for predictions in (first, second))
    names = [printable(name) for name in reader.classes]
    rows = []
    for n in np.flatnonzero(before != after).tolist():
        change = CHANGES[0] if first.correct[n] else CHANGES[1] if second.correct[n] else CHANGES[2]
        classes = [names[labels[n]] for labels in (first.labels, before, after)]
        path = printable(reader.path_of(int(first.rows[n])))
        rows.append(dict(zip(CHANGED, (path, *classes, change), strict=True)))
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
    """The run of a checkpoint, as far as it is known."""

    num_epochs: int = 0  # so far; 0 where its folder is missing or of another run
    curves_png: bytes = b""
    command: str = ""  # that began it
    stopped_because: str = ""


def read_run_log(ckpt: Path, checkpoint: Checkpoint) -> RunLog:
    """Read what lies beside a checkpoint. An evaluation does not need it, so nothing about it is an error.

    The folder of another run is not believed: its row of the checkpoint's epoch has to have the checkpoint's metrics.
    """
    folder = follow(ckpt).with_suffix(".run")
    try:
        lines = io.StringIO(read_small(folder / "metrics.csv").decode(), newline="")
        epochs = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(lines)]
        best = next(row for row in epochs if row["epoch"] == checkpoint.epoch)
        if not checkpoint.metrics or any(best[name] != value for name, value in checkpoint.metrics.items()):
            return RunLog()
        best_epoch = min(epochs, key=lambda row: row["val_loss"])["epoch"]
        curves = folder / "curves.png"
        curves_png = read_small(curves, _MAX_PNG) if PICTURE.is_at(curves) else b""
    except (OSError, ValueError, KeyError, TypeError, StopIteration, csv.Error):
        return RunLog()
    config, result = read_json(folder / "config.json"), read_json(folder / "result.json")
    is_config = (config.get("fingerprint"), config.get("split_hash")) == (checkpoint.fingerprint, checkpoint.split_hash)
    has_ended = result.get("best_epoch") == best_epoch
    command, reason = config.get("command") if is_config else "", result.get("stopped_because") if has_ended else ""
    texts = (text if isinstance(text, str) and len(text) <= _MAX_TEXT else "" for text in (command, reason))
    return RunLog(len(epochs), curves_png, *texts)
