"""The report: one page with everything that is known of an evaluation, and what is not."""

import csv
import dataclasses
import importlib.metadata
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from markupsafe import Markup

from vidcache.cache.format import Split, Status
from vidcache.cache.reader import Reader
from vidcache.checkpoint import Checkpoint
from vidcache.eval.evaluate import Evaluation
from vidcache.eval.intervals import FEW_CLIPS, Comparison, wilson_interval
from vidcache.eval.metrics import TOP, ClassResult
from vidcache.eval.report.plots import Explain, curves_figure, matrix_png, mistakes_and_hits, reliability_figure, to_svg
from vidcache.files import follow, read_json, read_small
from vidcache.html import data_uri, render_page
from vidcache.text import plural, printable

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


_SPLITS = (Split.TRAIN, Split.VAL, Split.TEST)
_SHOWN = 3  # frame rates and sizes


@dataclasses.dataclass(frozen=True)
class SplitFacts:
    """The clips of one split.

    Attributes:
        name: "train", "val" or "test".
        num_clips: How many.
        num_groups: Of so many recordings (or whatever keeps clips together).
        num_padded: Clips that repeat their last frame.
        num_damaged: Clips with missing or broken frames.
        durations: Shortest, median and longest, in words.
        rates: The most frequent frame rates, in words.
        sizes: The most frequent frame sizes, in words.
    """

    name: str
    num_clips: int
    num_groups: int
    num_padded: int
    num_damaged: int
    durations: str
    rates: str
    sizes: str


def split_facts(reader: Reader) -> list[SplitFacts]:
    """Describe train, val and test."""
    return [_facts(reader, split) for split in _SPLITS]


def class_counts(reader: Reader) -> list[dict[str, Any]]:
    """Count the clips of each class (its printable name) by split, in label order."""
    columns = reader.columns
    good = columns["status"] != Status.FAILED
    counts = {
        split.name.lower(): np.bincount(
            reader.labels[good & (columns["split"] == split)], minlength=len(reader.classes)
        ).tolist()
        for split in _SPLITS
    }
    return [
        {"class": printable(name), **{split: values[k] for split, values in counts.items()}}
        for k, name in enumerate(reader.classes)
    ]


def _facts(reader: Reader, split: Split) -> SplitFacts:
    rows, columns = reader.rows(split.name.lower()), reader.columns
    sizes = [
        f"{w} x {h}" for w, h in zip(columns["width"][rows].tolist(), columns["height"][rows].tolist(), strict=True)
    ]
    rates = [f"{rate:.4g} fps" for rate in columns["fps"][rows].round(1).tolist()]
    return SplitFacts(
        name=split.name.lower(),
        num_clips=len(rows),
        num_groups=len(np.unique(columns["group"][rows])),
        num_padded=int((columns["num_real"][rows] < reader.spec.num_frames).sum()),
        num_damaged=int((columns["status"][rows] == Status.DAMAGED).sum()),
        durations=_spread(columns["duration_seconds"][rows]),
        rates=_most_frequent(rates),
        sizes=_most_frequent(sizes),
    )


def _spread(seconds: npt.NDArray[np.float64]) -> str:
    known = seconds[seconds > 0]
    if not len(known):
        return "unknown"
    low, median, high = np.percentile(known, [0, 50, 100])
    return f"{low:.3g} to {high:.3g} s, median {median:.3g} s"


def _most_frequent(names: list[str]) -> str:
    if not names:
        return ""
    values, counts = np.unique(names, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    said = ", ".join(f"{values[k]} ({counts[k]:,})" for k in order[:_SHOWN])
    rest = len(values) - _SHOWN
    return f"{said} and {plural(rest, 'other')}" if rest > 0 else said


def limits_of(reader: Reader, checkpoint: Checkpoint, found: Evaluation, *, mismatch: bool) -> list[str]:
    """List what a reader of the numbers has to know, the weightiest first.

    Args:
        reader: The cache.
        checkpoint: What was evaluated.
        found: What came out.
        mismatch: The checkpoint was trained on another cache or split, and that was accepted.
    """
    metrics, split = found.metrics, found.options.split
    facts = next(facts for facts in split_facts(reader) if facts.name == split)
    said = []
    if split == "train":
        said.append("The model was trained on these clips: the numbers say how well it remembers, not how good it is.")
    if split == "val":
        said.append("The epoch was chosen by these clips: the numbers are a little too good.")
    if mismatch:
        said.append(
            "The checkpoint was trained on another cache or another split (--allow-mismatch): clips of this "
            f"evaluation may have been trained on. Trained on cache {checkpoint.fingerprint}, split "
            f"{checkpoint.split_hash}."
        )
    if found.cleanliness.num_leaked:
        said.append(f"Not all clips are new to the model: {found.cleanliness.in_words}.")
    width = metrics.accuracy_high - metrics.accuracy_low
    said.append(
        f"With {plural(metrics.num_clips, 'clip')} the interval of the accuracy is {100 * width:.0f} points wide; half "
        "of that takes four times as many clips."
    )
    few = sum(result.is_too_few for result in metrics.per_class)
    none = sum(not result.num_clips for result in metrics.per_class)
    if few:
        verb = "has" if few == 1 else "have"
        said.append(
            f"{few} of {plural(len(metrics.per_class), 'class', 'classes')} {verb} fewer than {FEW_CLIPS} clips here: "
            "too few to claim anything of them, and the intervals of balanced accuracy and macro F1 hold less often "
            "than 19 times in 20."
        )
    if none:
        verb = "has" if none == 1 else "have"
        said.append(f"{plural(none, 'class', 'classes')} {verb} no clip here and no part in any mean.")
    if facts.num_groups < facts.num_clips:
        said.append(
            f"The {plural(facts.num_clips, 'clip')} come from {plural(facts.num_groups, 'group')}. Intervals and "
            "p-values take clips for independent; clips of one group are not: the truth may lie outside more often "
            "than 1 time in 20."
        )
    said.append(
        "The bootstrap of balanced accuracy and macro F1 takes a class of few clips to be a little like the average "
        "one: it cannot know of errors that were never made."
    )
    said.append(
        "The leak guard sees clips that look alike. It does not know which clips are of one person, place or camera "
        "unless the split was told (vidcache split --by)."
    )
    if split == "test":
        said.append(
            "These clips stay honest as long as nothing is chosen by them: whoever tries ten models and reports the "
            "best one on them reports too much."
        )
    said.append("Other cameras, people and places than those of this cache can be harder.")
    return said


# Columns that the report draws or adds up.
USED = (
    "epoch train_loss train_accuracy val_loss val_accuracy val_balanced_accuracy seconds clips_per_second "
    "data_wait_fraction"
).split()
_MAX_TEXT = 10_000  # letters of a command
_MAX_EPOCHS, _LARGEST = 10_000, 1e15  # what can still be drawn; NaN cannot


@dataclasses.dataclass(frozen=True)
class History:
    """The run of a checkpoint.

    Attributes:
        epochs: Rows of metrics.csv, as numbers; empty where they are not there, or of another run.
        command: What began the run; empty if unknown.
        stopped_because: Why it ended; empty if it has not, or nothing says so.
    """

    epochs: tuple[dict[str, float], ...] = ()
    command: str = ""
    stopped_because: str = ""


def read_history(ckpt: Path, checkpoint: Checkpoint) -> History:
    """Read what lies beside a checkpoint; nothing of it is needed to evaluate, so nothing of it is an error.

    A folder that is of another run is not believed: the row of the checkpoint's epoch has to have its metrics.
    """
    folder = follow(ckpt).with_suffix(".run")
    try:
        lines = io.StringIO(read_small(folder / "metrics.csv").decode(), newline="")
        epochs = tuple({name: float(value) for name, value in row.items()} for row in csv.DictReader(lines))
        if len(epochs) > _MAX_EPOCHS or not all(abs(row[name]) <= _LARGEST for row in epochs for name in USED):
            return History()
        own = next(row for row in epochs if row["epoch"] == checkpoint.epoch)
        if not checkpoint.metrics or any(own[name] != value for name, value in checkpoint.metrics.items()):
            return History()
    except (OSError, ValueError, KeyError, TypeError, StopIteration, csv.Error):
        return History()
    asked, ended = read_json(folder / "config.json"), read_json(folder / "result.json")
    is_asked = (asked.get("fingerprint"), asked.get("split_hash")) == (checkpoint.fingerprint, checkpoint.split_hash)
    has_ended = ended.get("best_epoch") == min(epochs, key=lambda row: row["val_loss"])["epoch"]
    return History(
        epochs=epochs,
        command=_text(asked, "command") if is_asked else "",
        stopped_because=_text(ended, "stopped_because") if has_ended else "",
    )


def _text(values: dict[str, Any], name: str) -> str:
    found = values.get(name)
    return found if type(found) is str and len(found) <= _MAX_TEXT else ""


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
        summary: The same as plain values, of `vidcache.eval.report.build.summarise`.
        explain: Draws what speaks for a class, for the mistakes.
        comparison: With another checkpoint, of `vidcache.eval.report.build.summarise_comparison`.
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
        "vidcache.eval.report",
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
