"""The report: one page with the results of an evaluation and their limitations."""

import dataclasses
import importlib.metadata
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from markupsafe import Markup

from vidcache.cache.format import Status
from vidcache.cache.reader import Reader
from vidcache.checkpoint import Checkpoint
from vidcache.eval.evaluate import Evaluation, describe_leaks
from vidcache.eval.intervals import FEW_CLIPS, wilson_interval
from vidcache.eval.metrics import describe_calibration
from vidcache.eval.report.files import RunLog
from vidcache.eval.report.plots import (
    Explain,
    curves_figure,
    matrix_png,
    mistakes_and_correct,
    reliability_figure,
    to_svg,
)
from vidcache.html import data_uri, render_page
from vidcache.text import plural, printable

MAX_NAMED = 40  # classes whose names still fit beside a matrix
MAX_CHANGED = 200
_MAX_VALUES = 3  # frame rates and sizes that are listed
_CURVES_INCHES, _RELIABILITY_INCHES = (5.2, 5.6), (5.2, 4.4)  # a phone shows them nearly as large
_OTHER_CACHE = "The checkpoint was trained on another cache or split, about which nothing is known here."


@dataclasses.dataclass(frozen=True)
class Subject:
    """What a report is about.

    Attributes:
        reader: The cache.
        checkpoint: The evaluated checkpoint.
        where: Its file, printable.
        log: The log of its run.
        commands: The commands that lead to the report, oldest first.
        mismatch: It was trained on another cache or split, and that was accepted.
    """

    reader: Reader
    checkpoint: Checkpoint
    where: str
    log: RunLog
    commands: tuple[str, ...]
    mismatch: bool = False


def render_report(
    subject: Subject,
    evaluation: Evaluation,
    *,
    explain: Explain | None = None,
    comparison: dict[str, Any] | None = None,
    changed: list[dict[str, str]] | None = None,
) -> str:
    """Render report.html.

    Args:
        subject: What was evaluated.
        evaluation: The result.
        explain: Draws the evidence for the predicted class, for the mistakes.
        comparison: With another checkpoint, as `vidcache.eval.intervals.compare` returns it.
        changed: The clips whose predicted class differs.

    Returns:
        HTML that loads nothing from anywhere, below 5 MB.
    """
    reader, checkpoint, log, summary = subject.reader, subject.checkpoint, subject.log, evaluation.summary
    mistakes, correct = mistakes_and_correct(reader, evaluation.predictions, explain)
    trained = np.bincount(reader.labels[reader.rows("train")], minlength=len(reader.classes)).tolist()
    confusion = evaluation.metrics.confusion
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    per_class = [
        {**row, "num_trained": "" if subject.mismatch else count}
        for row, count in zip(summary["per_class"], trained, strict=True)
    ]
    curves = to_svg(lambda: curves_figure(log.epochs, checkpoint.epoch, _CURVES_INCHES)) if log.epochs else ""
    leaks = describe_leaks(summary).removeprefix("none: ")
    return render_page(
        "vidcache.eval.report",
        "report.html",
        facts={"checkpoint": subject.where, "epoch": checkpoint.epoch},
        s=summary,
        evaluated=_describe(subject, evaluation),
        commands=subject.commands,
        comparison=comparison,
        changed=[list(row.values()) for row in (changed or [])[:MAX_CHANGED]],
        splits=[_split_row(reader, split) for split in ("train", "val", "test")],
        num_failed=plural(int((reader.columns["status"] == Status.FAILED).sum()), "video"),
        leaks=f"{_OTHER_CACHE + ' Within this cache: ' if subject.mismatch else ''}{leaks[:1].upper()}{leaks[1:]}.",
        curves=Markup(curves),
        num_epochs=len(log.epochs),
        stopped_because=log.stopped_because,
        per_class=sorted(per_class, key=lambda row: (not row["num_clips"], row["accuracy"] or 0, -row["num_clips"])),
        num_few=sum(row["too_few_to_claim"] for row in per_class),
        names=[printable(name) for name in reader.classes],
        confusion=confusion.tolist(),
        shares=shares.tolist(),
        matrix_png=matrix_png(shares) if len(reader.classes) > MAX_NAMED else b"",
        calibration=describe_calibration(summary["calibration"]),
        reliability=Markup(to_svg(lambda: reliability_figure(summary["calibration"], _RELIABILITY_INCHES))),
        mistakes=mistakes,
        correct=correct,
        imbalance=[_OTHER_CACHE] if subject.mismatch else _imbalance(per_class, checkpoint),
        has_views=evaluation.options.num_views > 1 or evaluation.options.flip,
        speed=_speed(evaluation, log),
        limitations=_limitations(subject, evaluation),
        data_uri=data_uri,
    )


def _split_row(reader: Reader, split: str) -> list[str]:
    """Return the table's row of a split: its clips, groups, padded and damaged clips, durations, rates and sizes."""
    rows, columns = reader.rows(split), reader.columns
    seconds = columns["duration_seconds"][rows]
    seconds = seconds[seconds > 0]
    low, median, high = np.percentile(seconds, [0, 50, 100]) if len(seconds) else (0, 0, 0)
    num_padded = (columns["num_real"][rows] < reader.spec.num_frames).sum()
    num_damaged = (columns["status"][rows] == Status.DAMAGED).sum()
    sizes = zip(columns["width"][rows].tolist(), columns["height"][rows].tolist(), strict=True)
    return [
        split,
        *(f"{count:,}" for count in (len(rows), len(np.unique(columns["group"][rows])), num_padded, num_damaged)),
        f"{low:.3g} to {high:.3g} s, median {median:.3g} s" if len(seconds) else "unknown",
        _most_frequent([f"{rate:.4g} fps" for rate in columns["fps"][rows].round(1).tolist()]),
        _most_frequent([f"{width} x {height}" for width, height in sizes]),
    ]


def _most_frequent(names: list[str]) -> str:
    values, counts = np.unique(np.array(names, dtype=str), return_counts=True)
    order = np.argsort(-counts, kind="stable")
    text = ", ".join(f"{values[k]} ({counts[k]:,})" for k in order[:_MAX_VALUES])
    num_more = len(values) - _MAX_VALUES
    return f"{text} and {plural(num_more, 'other')}" if num_more > 0 else text


def _describe(subject: Subject, evaluation: Evaluation) -> dict[str, str]:
    """Return name and value of everything that identifies the evaluation; printable."""
    reader, checkpoint, options = subject.reader, subject.checkpoint, evaluation.options
    used, available = checkpoint.num_frames_used, checkpoint.spec.num_frames
    frames = f"all {available} frames" if used == available else f"{used} of {available} frames"
    views = plural(options.num_views, "view") + (", each with its mirror image" if options.flip else "")
    attributes: dict[str, Any] = getattr(reader, "attributes", {})  # several caches used as one have none
    versions: dict[str, Any] = {
        "evaluated with": {"vidcache": importlib.metadata.version("vidcache"), "torch": torch.__version__},
        "trained with": checkpoint.versions,
        "built with": {tool: attributes.get(f"{tool}_version") for tool in ("vidcache", "ffmpeg")},
    }
    values = {
        "checkpoint": f"{subject.where}, epoch {checkpoint.epoch}",
        "cache": reader.name,
        "fingerprint": reader.fingerprint,
        "split": f"{options.split}, split hash {reader.split_hash}",
        "split by": _split_rule(attributes),
        "clips": f"{checkpoint.spec}; the model sees {frames}; {views}",
        **{
            name: ", ".join(f"{tool} {version}" for tool, version in tools.items() if version)
            for name, tools in versions.items()
        },
    }
    return {name: printable(value) for name, value in values.items() if value}


def _split_rule(attributes: dict[str, Any]) -> str:
    if "split_source" not in attributes:
        return ""
    if attributes["split_source"] != "fractions":
        return f"predefined ({attributes['split_source']})"
    parts = "/".join(f"{100 * part:g}" for part in attributes["split_fractions"])
    together = "kept" if attributes["split_near_duplicates"] == "group" else "not kept"
    return (
        f"{parts}, seed {attributes['split_seed']}, grouped by {attributes['split_by']}; near-duplicates {together} "
        "together"
    )


def _imbalance(per_class: list[dict[str, Any]], checkpoint: Checkpoint) -> list[str]:
    trained: npt.NDArray[np.int64] = np.array([row["num_trained"] for row in per_class])
    most, least = per_class[int(trained.argmax())], per_class[int(trained.argmin())]
    ways = {
        "both": "a sampler and a weighted loss, which corrects it twice",
        "sampler": "a sampler that draws every class equally often",
        "loss": "a loss in which every class has the same weight",
        "none": "no correction",
    }
    median = np.median(trained)
    halves = []
    for name, rows in (
        ("fewer", [row for row in per_class if row["num_trained"] < median]),
        ("as many or more", [row for row in per_class if row["num_trained"] >= median]),
    ):
        correct, clips = sum(row["num_correct"] for row in rows), sum(row["num_clips"] for row in rows)
        if clips:
            low, high = wilson_interval(correct, clips)
            halves.append(
                f"classes with {name}: {correct:,} of {clips:,} right, {correct / clips:.1%} ({low:.0%} to {high:.0%})"
            )
    return [
        f"Training clips per class: from {least['num_trained']:,} ({least['class']}) to {most['num_trained']:,} "
        f"({most['class']}), corrected by {ways.get(str(checkpoint.config.get('balance')), 'an unknown method')}.",
        f"The median class has {median:g} training clips; {'; '.join(halves)}.",
    ]


def _speed(evaluation: Evaluation, log: RunLog) -> list[str]:
    num_clips, device = evaluation.metrics.num_clips, evaluation.options.device
    text = [
        f"Evaluation: {plural(num_clips, 'clip')} in {evaluation.seconds:.1f} s, "
        f"{num_clips / evaluation.seconds:.1f} clips/s, on {device}."
    ]
    if log.epochs:
        seconds, rate, waited = (
            np.median([row[name] for row in log.epochs])
            for name in ("seconds", "clips_per_second", "data_wait_fraction")
        )
        text.append(f"Training: {seconds:.1f} s per epoch (median), {rate:.1f} clips/s, data wait {waited:.1%}.")
    return text


def _limitations(subject: Subject, evaluation: Evaluation) -> list[str]:
    """List what a reader of the numbers has to know, the most important first."""
    metrics, summary, split = evaluation.metrics, evaluation.summary, evaluation.options.split
    num_groups = len(np.unique(subject.reader.columns["group"][evaluation.predictions.rows]))
    num_few = sum(result["too_few_to_claim"] for result in metrics.per_class)
    num_empty = sum(not result["num_clips"] for result in metrics.per_class)
    width = 100 * (metrics.accuracy_high - metrics.accuracy_low)
    return [
        text
        for applies, text in (
            (split == "train", "The model was trained on these clips: the numbers show memory, not generalisation."),
            (split == "val", "The best epoch was chosen on these clips: the numbers are slightly optimistic."),
            (
                subject.mismatch,
                "The checkpoint was trained on another cache or split (--allow-mismatch), so these clips may have been "
                f"trained on. Its cache: {subject.checkpoint.fingerprint}, its split: {subject.checkpoint.split_hash}.",
            ),
            (summary["num_leaked"], f"Some clips are not new to the model: {describe_leaks(summary)}."),
            (
                True,
                f"With {plural(metrics.num_clips, 'clip')} the interval of the accuracy is {width:.0f} points wide; "
                "half of that takes four times as many clips.",
            ),
            (
                num_few,
                f"{num_few} of {plural(len(metrics.per_class), 'class', 'classes')} have fewer than {FEW_CLIPS} clips "
                "here: too few to claim anything about them, and the intervals of balanced accuracy and macro F1 hold "
                "less often than 19 times in 20.",
            ),
            (num_empty, f"Classes without a clip here, which take no part in any mean: {num_empty}."),
            (
                num_groups < metrics.num_clips,
                f"The {plural(metrics.num_clips, 'clip')} come from {plural(num_groups, 'group')}. Intervals "
                "and p-values assume independent clips, which clips of one group are not: the true value lies outside "
                "more often than 1 time in 20.",
            ),
            (
                True,
                "The bootstrap of balanced accuracy and macro F1 assumes that a class of few clips is a little like "
                "the average class: it cannot know errors that were never made.",
            ),
            (
                True,
                "The duplicate check finds clips that look alike. It does not know which clips show one person, place "
                "or camera unless the split was grouped (vidcache split --group-by).",
            ),
            (
                split == "test",
                "Test clips stay unbiased as long as nothing is chosen by them: the best of ten models on them is "
                "reported too high.",
            ),
            (True, "Other cameras, people and places than those of this cache can be harder."),
        )
        if applies
    ]
