"""Pictures of an evaluation: confusion matrix, accuracy by class, reliability, training curves, frames of clips."""

import io
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from vidcache.cache.reader import Reader
from vidcache.checkpoint import Checkpoint
from vidcache.eval.gradcam import grad_cam, overlay
from vidcache.eval.inference import Predictions
from vidcache.eval.metrics import Metrics
from vidcache.model import R3D18
from vidcache.pixels import normalize
from vidcache.plotting import name_style, write_png
from vidcache.spec import sample_indices
from vidcache.text import printable

DPI = 110
MAX_LABELLED = 60  # more class names than this cannot be read at any size
NUM_MISTAKES, NUM_CORRECT = 8, 6
# Noise compresses worst: 22 strips of 6 frames of 88 x 88 are 4.1 MB of base64 then, and the report stays below 5 MB.
_FRAMES, _SIDE = 6, 88

# From a clip (T, H, W, 3) and a label to the clip with the evidence for that class made visible.
Explain = Callable[[npt.NDArray[np.uint8], int], npt.NDArray[np.uint8]]


def confusion_figure(metrics: Metrics, title: str) -> Figure:
    """Draw the confusion matrix: rows are true classes and sum to 1, numbers are clips."""
    names = [_short(result["class"]) for result in metrics.per_class]
    counts = metrics.confusion
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = min(3.5 + 0.32 * len(names), 24)
    figure = Figure(figsize=(side + 1.2, side), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, fraction=0.04, label="share of the true class")
    if len(names) <= MAX_LABELLED:
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=8, **name_style())
        axes.set_yticks(range(len(names)), names, fontsize=8, **name_style())
        for row, column in np.argwhere(counts):
            colour = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, str(counts[row, column]), ha="center", va="center", fontsize=7, color=colour)
    axes.set(xlabel="predicted", ylabel="true")
    axes.set_title(title, fontsize=10, **name_style())
    return figure


def per_class_figure(per_class: Sequence[dict[str, Any]], title: str) -> Figure:
    """Draw accuracy with its 95 % Wilson interval for every class that has clips, worst first."""
    results = sorted((r for r in per_class if r["num_clips"]), key=lambda r: (-r["accuracy"], r["class"]))
    figure = Figure(figsize=(7, min(1.2 + 0.26 * len(results), 60)), layout="constrained")
    axes = figure.subplots()
    accuracy, low, high = (np.array([r[name] for r in results]) for name in ("accuracy", "low", "high"))
    spans = np.abs([accuracy - low, high - accuracy])
    axes.errorbar(accuracy, range(len(results)), xerr=spans, fmt="o", markersize=4, capsize=2, linewidth=1)
    counts = [f"{r['num_correct']}/{r['num_clips']}{', too few' * r['too_few_to_claim']}" for r in results]
    labels = [f"{_short(r['class'])}  ({count})" for r, count in zip(results, counts, strict=True)]
    axes.set_yticks(range(len(results)), labels, fontsize=8, **name_style())
    axes.set(xlim=(-0.02, 1.02), xlabel="accuracy, 95 % Wilson interval", ylim=(-0.7, len(results) - 0.3))
    axes.set_title(title, fontsize=10, **name_style())
    axes.grid(axis="x", alpha=0.3)
    return figure


def _short(name: str) -> str:
    return name if len(name) <= 28 else f"{name[:27]}…"


def reliability_figure(calibration: dict[str, Any]) -> Figure:
    """Draw accuracy against confidence, of `vidcache.eval.metrics.calibrate`; the area of a point is its clips."""
    figure = Figure(figsize=(6.8, 5), layout="constrained")
    axes = figure.subplots()
    bins = [b for b in calibration["bins"] if b["num_clips"]]
    names = ("confidence", "accuracy", "accuracy_low", "accuracy_high", "num_clips")
    confidence, accuracy, low, high, counts = (np.array([b[name] for b in bins]) for name in names)
    axes.plot([0, 1], [0, 1], "--", color="0.6", linewidth=1)
    spans = np.array([accuracy - low, high - accuracy]).clip(0)
    axes.errorbar(confidence, accuracy, yerr=spans, fmt="none", ecolor="0.6", elinewidth=1, capsize=2)
    axes.scatter(confidence, accuracy, s=20 + 130 * counts / counts.max(), zorder=3)
    for x, y, count in zip(confidence, accuracy, counts, strict=True):
        axes.annotate(str(count), (x, y), (7, -11), textcoords="offset points", fontsize=8)
    axes.set(xlim=(0, 1.03), ylim=(-0.03, 1.03), xlabel="confidence", ylabel="accuracy")
    axes.grid(alpha=0.25)
    return figure


def draw_curves(epochs: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write loss and accuracy of all epochs as PNG, the one with the lowest validation loss marked."""
    best = min(epochs, key=lambda row: row["val_loss"])["epoch"]
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    loss, accuracy = figure.subplots(1, 2)
    numbers = [int(row["epoch"]) for row in epochs]
    for axes, name, style, label in (
        (loss, "train_loss", "o-", "train (as minimised)"),
        (loss, "val_loss", "o-", "validation"),
        (accuracy, "train_accuracy", "o-", "train (augmented)"),
        (accuracy, "val_accuracy", "o-", "validation"),
        (accuracy, "val_balanced_accuracy", "o--", "validation, balanced"),
    ):
        axes.plot(numbers, [row[name] for row in epochs], style, markersize=3, label=label)
    # An early epoch can be off by a factor of 20 (BatchNorm has seen little): it must not flatten the rest.
    usual = max(max(row["train_loss"] for row in epochs), statistics.median(row["val_loss"] for row in epochs))
    loss.set(title="cross-entropy per clip", ylim=(0, 1.5 * usual))
    accuracy.set(title="accuracy", ylim=(0, 1.02))
    for axes in (loss, accuracy):
        axes.axvline(best, color="0.6", linewidth=1, zorder=0)
        side = "right" if best > (numbers[0] + numbers[-1]) / 2 else "left"
        axes.annotate(f" epoch {best} ", (best, 0.02), xycoords=("data", "axes fraction"), ha=side, fontsize=8)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.25)
        axes.legend(fontsize=8)
    write_png(figure, path, DPI)


def mistakes_and_correct(
    reader: Reader, predictions: Predictions, explain: Explain | None = None
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Choose clips and draw 6 frames of each as PNG.

    Args:
        reader: The cache.
        predictions: Predictions of some of its clips.
        explain: Draws the evidence for the predicted class, for the mistakes; None leaves that out.

    Returns:
        At most 8 mistakes, the most confident first, and at most 6 correct predictions, the least confident first.
        Each has a path and the true and predicted class (printable), their probabilities, `png` and `explained_png`.
    """
    labels, confidence = predictions.probabilities.argmax(axis=1), predictions.probabilities.max(axis=1)
    wrong, right = np.flatnonzero(~predictions.correct), np.flatnonzero(predictions.correct)
    mistakes = wrong[np.argsort(-confidence[wrong], kind="stable")][:NUM_MISTAKES]
    correct = right[np.argsort(confidence[right], kind="stable")][:NUM_CORRECT]

    def example(n: int, explain: Explain | None) -> dict[str, Any]:
        row, true, predicted = int(predictions.rows[n]), int(predictions.labels[n]), int(labels[n])
        clip = reader.read([row])[0]
        frames = sample_indices(max(int(reader.columns["num_real"][row]), 1), _FRAMES)
        return {
            "path": printable(reader.path_of(row)),
            "true": printable(reader.classes[true]),
            "predicted": printable(reader.classes[predicted]),
            "probability": float(confidence[n]),
            "true_probability": float(predictions.probabilities[n, true]),
            "png": _strip_png(clip[frames]),
            "explained_png": _strip_png(explain(clip, predicted)[frames]) if explain else b"",
        }

    return [example(n, explain) for n in mistakes.tolist()], [example(n, None) for n in correct.tolist()]


def explainer(model: R3D18, checkpoint: Checkpoint, device: str) -> Explain:
    """Return a function that draws the evidence for a class into a clip; see `vidcache.eval.gradcam`.

    The model is in evaluation mode, on the device. A frame that it does not see shows the heat of the last one before.
    """
    num_frames = checkpoint.spec.num_frames
    frames = sample_indices(num_frames, checkpoint.num_frames_used)
    shown = np.searchsorted(frames, np.arange(num_frames), side="right") - 1

    def explain(clip: npt.NDArray[np.uint8], label: int) -> npt.NDArray[np.uint8]:
        inputs = normalize(torch.from_numpy(clip[frames])[None].to(device))
        _, heat = grad_cam(model, inputs, torch.tensor([label]))
        return overlay(clip, heat[0].cpu().numpy()[shown])

    return explain


def _strip_png(frames: npt.NDArray[np.uint8]) -> bytes:
    """Draw frames (F, H, W, 3) side by side, the longer side of each at most 88 pixels."""
    strip = Image.fromarray(np.ascontiguousarray(np.concatenate([*frames], axis=1)))
    scale = min(1.0, _SIDE / max(frames.shape[1:3]))
    size = len(frames) * max(1, round(frames.shape[2] * scale)), max(1, round(frames.shape[1] * scale))
    file = io.BytesIO()
    strip.resize(size, Image.Resampling.LANCZOS).save(file, "PNG", optimize=True)
    return file.getvalue()
