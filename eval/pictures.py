"""Pictures of an evaluation: confusion matrix and per-class accuracy."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from vidcache.eval.metrics import ClassResult, Metrics
from vidcache.files import write_atomically
from vidcache.text import printable

MAX_LABELLED = 60  # more class names than this cannot be read at any size


def draw_confusion(metrics: Metrics, title: str, path: Path) -> None:
    """Write the confusion matrix as PNG."""
    figure = confusion_figure(metrics, title)
    write_atomically(path, lambda file: figure.savefig(file, dpi=110, format="png"))


def confusion_figure(metrics: Metrics, title: str) -> Figure:
    """Draw the confusion matrix: rows are true classes and sum to 1, numbers are clips."""
    names = [_short(result.class_name) for result in metrics.per_class]
    counts = metrics.confusion
    totals = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, totals, out=np.zeros(counts.shape), where=totals > 0)
    side = min(3.5 + 0.32 * len(names), 24)
    figure = Figure(figsize=(side + 1.2, side), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, fraction=0.04, label="share of the true class")
    if len(names) <= MAX_LABELLED:
        ticks = range(len(names))
        axes.set_xticks(ticks, names, rotation=90, fontsize=8, parse_math=False)
        axes.set_yticks(ticks, names, fontsize=8, parse_math=False)
        for row, column in np.argwhere(counts):
            colour = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, str(counts[row, column]), ha="center", va="center", fontsize=7, color=colour)
    axes.set(xlabel="predicted", ylabel="true")
    axes.set_title(title, fontsize=10, parse_math=False)
    return figure


def draw_per_class(per_class: Sequence[ClassResult], title: str, path: Path) -> None:
    """Write accuracy with its 95 % Wilson interval for every class that has clips, worst first."""
    results = sorted((r for r in per_class if r.num_clips), key=lambda r: (-r.accuracy, r.class_name))
    figure = Figure(figsize=(7, min(1.2 + 0.26 * len(results), 60)), layout="constrained")
    axes = figure.subplots()
    values = np.array([r.accuracy for r in results])
    spans = np.abs(np.array([[r.accuracy - r.low, r.high - r.accuracy] for r in results]).T)
    axes.errorbar(values, range(len(results)), xerr=spans, fmt="o", markersize=4, capsize=2, linewidth=1)
    labels = [f"{_short(r.class_name)}  ({r.num_correct}/{r.num_clips})" for r in results]
    axes.set_yticks(range(len(results)), labels, fontsize=8, parse_math=False)
    axes.set(xlim=(-0.02, 1.02), xlabel="accuracy, 95 % Wilson interval", ylim=(-0.7, len(results) - 0.3))
    axes.set_title(title, fontsize=10, parse_math=False)
    axes.grid(axis="x", alpha=0.3)
    write_atomically(path, lambda file: figure.savefig(file, dpi=110, format="png"))


def _short(name: str) -> str:
    text = printable(name)
    return text if len(text) <= 28 else f"{text[:27]}…"
