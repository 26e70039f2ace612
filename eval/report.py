"""The report: one page with everything that is known of an evaluation, and what is not."""

import dataclasses
import importlib.metadata
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from markupsafe import Markup

from vidcache.cache.layout import Status
from vidcache.cache.reader import Reader
from vidcache.checkpoint import Checkpoint
from vidcache.eval.curves import curves_figure
from vidcache.eval.data_facts import class_counts, split_facts
from vidcache.eval.evaluation import Evaluation
from vidcache.eval.examples import Explain, mistakes_and_hits
from vidcache.eval.history import History
from vidcache.eval.limits import limits_of
from vidcache.eval.pictures import matrix_png, reliability_figure
from vidcache.eval.svg import to_svg
from vidcache.eval.uncertainty import wilson_interval
from vidcache.page import data_uri, render_page
from vidcache.text import plural, printable

_UNKNOWN_END = "Why it ended is not recorded, or it has not ended."
_OTHER_CACHE = "The checkpoint was trained on another cache or split, of which nothing is known here."
MAX_NAMED = 40  # classes whose names still fit beside a matrix
MAX_CHANGED = 200
_CURVES_INCHES, _RELIABILITY_INCHES = (5.2, 5.6), (5.2, 4.4)  # a phone shows them nearly as large


@dataclasses.dataclass(frozen=True)
class Subject:
    """What a report is about.

    Attributes:
        reader: The cache.
        checkpoint: What was evaluated.
        where: Its file, printable.
        history: Of its run.
        commands: What was typed to get here, oldest first.
        mismatch: It was trained on another cache or split, and that was accepted.
    """

    reader: Reader
    checkpoint: Checkpoint
    where: str
    history: History
    commands: tuple[str, ...]
    mismatch: bool = False


def render_report(
    subject: Subject,
    found: Evaluation,
    summary: dict[str, Any],
    *,
    explain: Explain | None = None,
    comparison: dict[str, Any] | None = None,
    changed: list[dict[str, str]] | None = None,
) -> str:
    """Render report.html.

    Args:
        subject: What was evaluated.
        found: What came out.
        summary: The same as plain values, of `vidcache.eval.summary.summarise`.
        explain: Draws what speaks for a class, for the mistakes.
        comparison: With another checkpoint, of `vidcache.eval.summary.summarise_comparison`.
        changed: The clips of which the two say something else.

    Returns:
        HTML that loads nothing from anywhere, below 5 MB.
    """
    reader, checkpoint, history = subject.reader, subject.checkpoint, subject.history
    mistakes, hits = mistakes_and_hits(reader, found.predictions, explain)
    counts = class_counts(reader)
    confusion = found.metrics.confusion
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    per_class = [
        {**row, "num_trained": "" if subject.mismatch else count["train"]}
        for row, count in zip(summary["per_class"], counts, strict=True)
    ]
    worst_first = sorted(per_class, key=lambda row: (not row["num_clips"], row["accuracy"] or 0, -row["num_clips"]))
    return render_page(
        "vidcache.eval",
        "report.html",
        facts={"checkpoint": subject.where, "epoch": checkpoint.epoch},
        s=summary,
        evaluated=_evaluated(subject, found),
        commands=subject.commands,
        comparison=comparison,
        changed=(changed or [])[:MAX_CHANGED],
        splits=split_facts(reader),
        num_failed=plural(int((reader.columns["status"] == Status.FAILED).sum()), "video"),
        counts=counts,
        clean=_clean(found, mismatch=subject.mismatch),
        curves=_curves(history, checkpoint.epoch),
        num_epochs=len(history.epochs),
        ended=f"It ended because {history.stopped_because}." if history.stopped_because else _UNKNOWN_END,
        per_class=worst_first,
        too_few=plural(sum(row["too_few_to_claim"] for row in per_class), "class", "classes")
        if any(row["too_few_to_claim"] for row in per_class)
        else "",
        names=[printable(name) for name in reader.classes],
        confusion=[[count or "" for count in row] for row in confusion.tolist()],
        shares=shares.tolist(),
        shown_shares=[[f"{100 * share:.0f}" if share else "" for share in row] for row in shares.tolist()],
        matrices=_matrices(confusion, shares) if len(reader.classes) > MAX_NAMED else [],
        calibrated=_capital(found.calibration.in_words),
        reliability=Markup(to_svg(lambda: reliability_figure(found.calibration, _RELIABILITY_INCHES))),
        mistakes=mistakes,
        hits=hits,
        imbalance=[_OTHER_CACHE] if subject.mismatch else _imbalance(per_class, checkpoint),
        plain_explained=found.options.num_views > 1 or found.options.flip,
        speed=_speed(found, history),
        limits=limits_of(reader, checkpoint, found, mismatch=subject.mismatch),
        data_uri=data_uri,
    )


def _evaluated(subject: Subject, found: Evaluation) -> dict[str, str]:
    reader, checkpoint, options = subject.reader, subject.checkpoint, found.options
    used, there = checkpoint.num_frames_used, checkpoint.spec.num_frames
    frames = f"all {there} frames" if used == there else f"{used} of {there} frames"
    views = plural(options.num_views, "view") + (", each with its mirror image" if options.flip else "")
    made = getattr(reader, "attributes", {})
    tools = {
        "evaluated with": _versions({"vidcache": importlib.metadata.version("vidcache"), "torch": torch.__version__}),
        "trained with": _versions(checkpoint.versions),
        "built with": _versions({tool: made.get(f"{tool}_version") for tool in ("vidcache", "ffmpeg")}),
    }
    said = {
        "checkpoint": f"{subject.where}, epoch {checkpoint.epoch}",
        "cache": reader.name,
        "fingerprint": reader.fingerprint,
        "split": f"{options.split}, of the split {reader.split_hash}",
        "divided": _division(made),
        "clips": f"{checkpoint.spec}; the model is shown {frames}; {views}",
        **tools,
    }
    return {name: printable(value) for name, value in said.items() if value}


def _versions(versions: Mapping[str, object]) -> str:
    return ", ".join(f"{tool} {version}" for tool, version in versions.items() if version)


def _division(made: dict[str, Any]) -> str:
    """Say how the split was made; nothing where several caches are used as one."""
    if "split_source" not in made:
        return ""
    if made["split_source"] != "fractions":
        return f"given ({made['split_source']})"
    parts = "/".join(f"{100 * part:g}" for part in made["split_fractions"])
    kept = "kept together" if made["split_near_duplicates"] == "group" else "not kept together"
    return f"{parts}, seed {made['split_seed']}, by {made['split_by']}; clips that look alike {kept}"


def _curves(history: History, chosen: int) -> Markup | None:
    if not history.epochs:
        return None
    return Markup(to_svg(lambda: curves_figure(history.epochs, chosen, _CURVES_INCHES)))


def _matrices(confusion: np.ndarray[Any, Any], shares: np.ndarray[Any, Any]) -> list[tuple[str, bytes]]:
    most = max(int(confusion.max()), 1)
    return [
        (f"Clips: white is none, dark is {most:,} (logarithmic)", matrix_png(np.log1p(confusion) / np.log1p(most))),
        ("Share of the true class: white is none, dark is all", matrix_png(shares)),
    ]


def _imbalance(per_class: list[dict[str, Any]], checkpoint: Checkpoint) -> list[str]:
    trained = np.array([row["num_trained"] for row in per_class])
    most, least = per_class[int(trained.argmax())], per_class[int(trained.argmin())]
    ways = {
        "both": "a sampler and a weighted loss, which makes up for it twice",
        "sampler": "a sampler that draws every class as often",
        "loss": "a loss in which every class has the same weight",
        "none": "nothing",
    }
    said = [
        f"Training had from {least['num_trained']:,} clips of {least['class']} to {most['num_trained']:,} of "
        f"{most['class']}.",
        f"To make up for it, it used {ways.get(str(checkpoint.config.get('balance')), 'what is not known')}.",
    ]
    median = np.median(trained)
    halves = []
    for name, rows in (
        ("fewer", [row for row in per_class if row["num_trained"] < median]),
        ("as many or more", [row for row in per_class if row["num_trained"] >= median]),
    ):
        right, clips = sum(row["num_correct"] for row in rows), sum(row["num_clips"] for row in rows)
        if clips:
            low, high = wilson_interval(right, clips)
            halves.append(f"with {name}, {right:,} of {clips:,} right, {right / clips:.1%} ({low:.1%} to {high:.1%})")
    told = "; of classes ".join(halves)
    said.append(f"The median class has {median:g} training clips. Of the clips of classes {told}.")
    return said


def _speed(found: Evaluation, history: History) -> list[str]:
    n, device = found.metrics.num_clips, found.options.device
    said = [
        f"This evaluation read and predicted {plural(n, 'clip')} in {found.seconds:.1f} s, {n / found.seconds:.1f} a "
        f"second, on {device}."
    ]
    if history.epochs:
        seconds = np.median([row["seconds"] for row in history.epochs])
        rate = np.median([row["clips_per_second"] for row in history.epochs])
        waited = np.median([row["data_wait_fraction"] for row in history.epochs])
        said.append(
            f"Training took {seconds:.1f} s for an epoch (median), {rate:.1f} clips a second, and waited for clips "
            f"{waited:.1%} of the time."
        )
    return said


def _clean(found: Evaluation, *, mismatch: bool) -> str:
    said = _capital(found.cleanliness.in_words.removeprefix("none: ")) + "."
    return f"{_OTHER_CACHE} Within this cache: {said}" if mismatch else said


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
