"""The files of an evaluation, best.eval/, report.html among them, and those of the run beside its checkpoint."""

import csv
import dataclasses
import importlib.metadata
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vidcache import plotting
from vidcache.cache.format import Status
from vidcache.cache.reader import Reader
from vidcache.checkpoint import Checkpoint
from vidcache.eval.evaluate import Evaluation, describe_leaks
from vidcache.eval.inference import Predictions
from vidcache.eval.metrics import TOP, describe_calibration
from vidcache.eval.report import plots
from vidcache.files import follow, read_json, read_small, write_atomically
from vidcache.html import data_uri, render_page
from vidcache.outputs import PICTURE
from vidcache.text import plural, printable, to_csv, to_json

CHANGES = ("worse", "better", "other mistake")
CHANGED = ["path", "true", "first", "second", "change"]
PER_CLASS = ["class", "num_clips", "num_correct", "accuracy", "low", "high", "too_few_to_claim"]
MAX_CHANGED = 200  # lines in the page
_MAX_TEXT = 10_000  # characters of a command
_MAX_PNG = 1 << 20


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


@dataclasses.dataclass(frozen=True)
class Subject:
    """What was evaluated."""

    reader: Reader
    checkpoint: Checkpoint
    where: str  # its file, printable
    log: RunLog
    commands: tuple[str, ...]  # that lead to the report, oldest first
    mismatch: bool = False  # trained on another cache or split, and that was accepted


def result_files(
    subject: Subject,
    evaluation: Evaluation,
    summary: dict[str, Any],
    changed: Sequence[dict[str, str]] = (),
    explain: plots.Explain | None = None,
) -> dict[str, bytes]:
    """Return metrics.json, the tables, the pictures and report.html, by their names.

    Args:
        subject: What was evaluated.
        evaluation: The result.
        summary: Goes to metrics.json, with the confusion matrix; with a "comparison" there is a changed.csv.
        changed: Its lines, as of `changed_clips`.
        explain: Draws the evidence for the predicted class, for the mistakes in the page.
    """
    reader, metrics = subject.reader, evaluation.metrics
    title = (
        f"{summary['split']}: {metrics.num_correct} of {metrics.num_clips} correct = {metrics.accuracy:.1%} "
        f"({metrics.accuracy_low:.1%} to {metrics.accuracy_high:.1%})"
    )
    confusion = plotting.to_png(plots.confusion_figure(metrics, title), plots.DPI)
    texts = {
        "metrics.json": to_json({**summary, "confusion": metrics.confusion.tolist()}, indent=2) + "\n",
        "per_class.csv": to_csv(PER_CLASS, [[row[name] for name in PER_CLASS] for row in summary["per_class"]]),
        "predictions.csv": _predictions_csv(reader, evaluation.predictions),
        "report.html": _render(subject, evaluation, summary, changed, confusion, explain),
    }
    if "comparison" in summary:
        texts["changed.csv"] = to_csv(CHANGED, [list(row.values()) for row in changed])
    return {
        **{name: text.encode() for name, text in texts.items()},
        "confusion.png": confusion,
        "per_class.png": plotting.to_png(plots.per_class_figure(metrics.per_class, title), plots.DPI),
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


def _render(
    subject: Subject,
    evaluation: Evaluation,
    summary: dict[str, Any],
    changed: Sequence[dict[str, str]],
    confusion: bytes,
    explain: plots.Explain | None,
) -> str:
    """Return a page that loads nothing from anywhere, below 5 MB."""
    reader, checkpoint = subject.reader, subject.checkpoint
    mistakes, correct = plots.mistakes_and_correct(reader, evaluation.predictions, explain)
    trained = np.bincount(reader.labels[reader.rows("train")], minlength=len(reader.classes)).tolist()
    per_class = [{**row, "num_trained": count} for row, count in zip(summary["per_class"], trained, strict=True)]
    return render_page(
        "vidcache.eval.report",
        "report.html",
        s=summary,
        where=subject.where,
        epoch=checkpoint.epoch,
        balance=checkpoint.config.get("balance"),
        log=subject.log,
        mismatch=subject.mismatch,
        evaluated=_describe(subject, evaluation),
        commands=subject.commands,
        comparison=summary.get("comparison"),
        changed_columns=CHANGED,
        changed=[list(row.values()) for row in changed[:MAX_CHANGED]],
        splits=[_split_row(reader, split) for split in ("train", "val", "test")],
        num_failed=plural(int((reader.columns["status"] == Status.FAILED).sum()), "video"),
        num_groups=len(np.unique(reader.columns["group"][evaluation.predictions.rows])),
        leaks=describe_leaks(summary).removeprefix("none: "),
        per_class=sorted(per_class, key=lambda row: (not row["num_clips"], row["accuracy"] or 0, -row["num_clips"])),
        confusion=confusion,
        calibration=describe_calibration(summary["calibration"]),
        reliability=plotting.to_png(plots.reliability_figure(summary["calibration"]), plots.DPI),
        mistakes=mistakes,
        correct=correct,
        data_uri=data_uri,
        plural=plural,
    )


def _split_row(reader: Reader, split: str) -> list[str]:
    """Return the table's row of a split: its clips, groups, padded and damaged clips."""
    rows, columns = reader.rows(split), reader.columns
    num_padded = (columns["num_real"][rows] < reader.spec.num_frames).sum()
    num_damaged = (columns["status"][rows] == Status.DAMAGED).sum()
    counts = len(rows), len(np.unique(columns["group"][rows])), num_padded, num_damaged
    return [split, *(f"{count:,}" for count in counts)]


def _describe(subject: Subject, evaluation: Evaluation) -> dict[str, str]:
    """Return name and value of everything that identifies the evaluation; printable."""
    reader, checkpoint, options = subject.reader, subject.checkpoint, evaluation.options
    used, available = checkpoint.num_frames_used, checkpoint.spec.num_frames
    frames = f"all {available} frames" if used == available else f"{used} of {available} frames"
    views = plural(options.num_views, "view") + (", each with its mirror image" if options.flip else "")
    attributes: dict[str, Any] = getattr(reader, "attributes", {})  # several caches used as one have none
    ours = {"vidcache": importlib.metadata.version("vidcache"), "torch": torch.__version__}
    built = {tool: attributes.get(f"{tool}_version") for tool in ("vidcache", "ffmpeg")}
    rule = {name: attributes.get(f"split_{name}") for name in ("source", "fractions", "seed", "by", "near_duplicates")}
    num_clips, seconds = evaluation.metrics.num_clips, evaluation.seconds
    values = {
        "checkpoint": f"{subject.where}, epoch {checkpoint.epoch}",
        "cache": reader.name,
        "fingerprint": reader.fingerprint,
        "split": f"{options.split}, split hash {reader.split_hash}",
        "split by": _pairs(rule),
        "clips": f"{checkpoint.spec}; the model sees {frames}; {views}",
        "evaluated with": _pairs(ours),
        "trained with": _pairs(checkpoint.versions),
        "built with": _pairs(built),
        "speed": f"{num_clips / seconds:.1f} clips/s on {options.device} ({seconds:.1f} s)",
    }
    return {name: printable(value) for name, value in values.items() if value}


def _pairs(values: dict[str, Any]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in values.items() if value is not None)
