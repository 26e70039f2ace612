"""The report: one page with the results of an evaluation and their limitations."""

import dataclasses
import importlib.metadata
from typing import Any

import numpy as np
import torch

from vidcache import plotting
from vidcache.cache.format import Status
from vidcache.cache.reader import Reader
from vidcache.checkpoint import Checkpoint
from vidcache.eval.evaluate import Evaluation, describe_leaks
from vidcache.eval.metrics import describe_calibration
from vidcache.eval.report.files import CHANGED, RunLog
from vidcache.eval.report.plots import DPI, Explain, mistakes_and_correct, reliability_figure
from vidcache.html import data_uri, render_page
from vidcache.text import plural, printable

MAX_CHANGED = 200


@dataclasses.dataclass(frozen=True)
class Subject:
    """What a report is about."""

    reader: Reader
    checkpoint: Checkpoint
    where: str  # its file, printable
    log: RunLog
    commands: tuple[str, ...]  # that lead to the report, oldest first
    mismatch: bool = False  # trained on another cache or split, and that was accepted


def render_report(
    subject: Subject,
    evaluation: Evaluation,
    confusion_png: bytes,
    *,
    explain: Explain | None = None,
    comparison: dict[str, Any] | None = None,
    changed: list[dict[str, str]] | None = None,
) -> str:
    """Render report.html.

    Args:
        subject: What was evaluated.
        evaluation: The result.
        confusion_png: The picture of its confusion matrix.
        explain: Draws the evidence for the predicted class, for the mistakes.
        comparison: With another checkpoint, as `vidcache.eval.intervals.compare` returns it.
        changed: The clips whose predicted class differs.

    Returns:
        HTML that loads nothing from anywhere, below 5 MB.
    """
    reader, checkpoint, summary = subject.reader, subject.checkpoint, evaluation.summary
    mistakes, correct = mistakes_and_correct(reader, evaluation.predictions, explain)
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
        comparison=comparison,
        changed_columns=CHANGED,
        changed=[list(row.values()) for row in (changed or [])[:MAX_CHANGED]],
        splits=[_split_row(reader, split) for split in ("train", "val", "test")],
        num_failed=plural(int((reader.columns["status"] == Status.FAILED).sum()), "video"),
        num_groups=len(np.unique(reader.columns["group"][evaluation.predictions.rows])),
        leaks=describe_leaks(summary).removeprefix("none: "),
        per_class=sorted(per_class, key=lambda row: (not row["num_clips"], row["accuracy"] or 0, -row["num_clips"])),
        confusion=confusion_png,
        calibration=describe_calibration(summary["calibration"]),
        reliability=plotting.to_png(reliability_figure(summary["calibration"]), DPI),
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
    num_clips, seconds = evaluation.metrics.num_clips, evaluation.seconds
    values = {
        "checkpoint": f"{subject.where}, epoch {checkpoint.epoch}",
        "cache": reader.name,
        "fingerprint": reader.fingerprint,
        "split": f"{options.split}, split hash {reader.split_hash}",
        "split by": _split_rule(attributes),
        "clips": f"{checkpoint.spec}; the model sees {frames}; {views}",
        "evaluated with": _versions(ours),
        "trained with": _versions(checkpoint.versions),
        "built with": _versions(built),
        "speed": f"{num_clips / seconds:.1f} clips/s on {options.device} ({seconds:.1f} s)",
    }
    return {name: printable(value) for name, value in values.items() if value}


def _versions(versions: dict[str, Any]) -> str:
    return ", ".join(f"{tool} {version}" for tool, version in versions.items() if version)


def _split_rule(attributes: dict[str, Any]) -> str:
    if "split_source" not in attributes:
        return ""
    if attributes["split_source"] != "fractions":
        return f"predefined ({attributes['split_source']})"
    parts = "/".join(f"{100 * part:g}" for part in attributes["split_fractions"])
    kept = "kept" if attributes["split_near_duplicates"] == "group" else "not kept"
    seed, by = attributes["split_seed"], attributes["split_by"]
    return f"{parts}, seed {seed}, grouped by {by}; near-duplicates {kept} together"
