"""Pictures of an evaluation: confusion matrix, accuracy by class, reliability, strips of frames."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from matplotlib.figure import Figure
from PIL import Image

from vidcache.eval.calibration import Calibration
from vidcache.eval.metrics import ClassResult, Metrics
from vidcache.figures import name_style, write_png
from vidcache.text import printable

MAX_LABELLED = 60  # more class names than this cannot be read at any size


def draw_confusion(metrics: Metrics, title: str, path: Path) -> None:
    """Write the confusion matrix as PNG."""
    figure = confusion_figure(metrics, title)
    write_png(figure, path, 110)


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
        axes.set_xticks(ticks, names, rotation=90, fontsize=8, **name_style())
        axes.set_yticks(ticks, names, fontsize=8, **name_style())
        for row, column in np.argwhere(counts):
            colour = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, str(counts[row, column]), ha="center", va="center", fontsize=7, color=colour)
    axes.set(xlabel="predicted", ylabel="true")
    axes.set_title(title, fontsize=10, **name_style())
    return figure


def draw_per_class(per_class: Sequence[ClassResult], title: str, path: Path) -> None:
    """Write accuracy with its 95 % Wilson interval for every class that has clips, worst first."""
    results = sorted((r for r in per_class if r.num_clips), key=lambda r: (-r.accuracy, r.class_name))
    figure = Figure(figsize=(7, min(1.2 + 0.26 * len(results), 60)), layout="constrained")
    axes = figure.subplots()
    values = np.array([r.accuracy for r in results])
    spans = np.abs(np.array([[r.accuracy - r.low, r.high - r.accuracy] for r in results]).T)
    axes.errorbar(values, range(len(results)), xerr=spans, fmt="o", markersize=4, capsize=2, linewidth=1)
    labels = [
        f"{_short(r.class_name)}  ({r.num_correct}/{r.num_clips}{', too few' if r.is_too_few else ''})" for r in results
    ]
    axes.set_yticks(range(len(results)), labels, fontsize=8, **name_style())
    axes.set(xlim=(-0.02, 1.02), xlabel="accuracy, 95 % Wilson interval", ylim=(-0.7, len(results) - 0.3))
    axes.set_title(title, fontsize=10, **name_style())
    axes.grid(axis="x", alpha=0.3)
    write_png(figure, path, 110)


def _short(name: str) -> str:
    text = printable(name)
    return text if len(text) <= 28 else f"{text[:27]}…"


def reliability_figure(calibration: Calibration, size: tuple[float, float] = (5.2, 4.4)) -> Figure:
    """Draw how often the model is right against how sure it is; the area of a point is its clips."""
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    bins = [b for b in calibration.bins if b.num_clips]
    sure, right = np.array([b.confidence for b in bins]), np.array([b.accuracy for b in bins])
    spans = np.array([[b.accuracy - b.accuracy_low, b.accuracy_high - b.accuracy] for b in bins]).T.clip(0)
    axes.plot([0, 1], [0, 1], "--", color="0.6", linewidth=1)
    axes.errorbar(sure, right, yerr=spans, fmt="none", ecolor="0.6", elinewidth=1, capsize=2)
    most = max(b.num_clips for b in bins)
    axes.scatter(sure, right, s=[20 + 130 * b.num_clips / most for b in bins], zorder=3)
    for b in bins:
        axes.annotate(str(b.num_clips), (b.confidence, b.accuracy), (7, -11), textcoords="offset points", fontsize=8)
    axes.set(xlim=(0, 1.03), ylim=(-0.03, 1.03), xlabel="probability that it gives", ylabel="how often it is right")
    axes.grid(alpha=0.25)
    return figure


def matrix_png(values: npt.NDArray[np.float64]) -> bytes:
    """Draw a matrix of values from 0 to 1 as a PNG with one pixel per cell, or several where it is small."""
    shades = colormaps["Blues"](values, bytes=True)[..., :3]
    scale = max(1, 400 // len(values))
    return png_of(shades.repeat(scale, 0).repeat(scale, 1))


def strip_png(frames: npt.NDArray[np.uint8], side: int) -> bytes:
    """Draw frames (F, H, W, 3) side by side, the longer side of each at most `side` pixels."""
    _, height, width, _ = frames.shape
    scale = min(1.0, side / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    shown = [np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.LANCZOS)) for frame in frames]
    return png_of(np.concatenate(shown, axis=1))


def png_of(pixels: npt.NDArray[np.uint8]) -> bytes:
    """Encode (H, W, 3) RGB as PNG."""
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, "PNG", optimize=True)
    return file.getvalue()
