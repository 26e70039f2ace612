"""A picture of a run: loss and accuracy by epoch."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from vidcache.figures import write_png


def draw_curves(epochs: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write the curves as PNG, the epoch with the lowest validation loss marked; see `curves_figure`."""
    best = min(epochs, key=lambda row: row["val_loss"])["epoch"]
    figure = curves_figure(epochs, best)
    write_png(figure, path, 120)


def curves_figure(epochs: Sequence[Mapping[str, Any]], chosen: int, size: tuple[float, float] = (9, 3.6)) -> Figure:
    """Draw training and validation, loss beside accuracy, or above it where the figure is higher than wide.

    Args:
        epochs: Rows of metrics.csv, at least one.
        chosen: The epoch to mark.
        size: Width and height in inches.
    """
    figure = Figure(figsize=size, layout="constrained")
    loss, accuracy = figure.subplots(1, 2) if size[0] > size[1] else figure.subplots(2, 1)
    numbers = [int(row["epoch"]) for row in epochs]
    for axes, name, label in (
        (loss, "train_loss", "train (as minimised)"),
        (loss, "val_loss", "validation"),
        (accuracy, "train_accuracy", "train (augmented)"),
        (accuracy, "val_accuracy", "validation"),
        (accuracy, "val_balanced_accuracy", "validation, balanced"),
    ):
        style = "o--" if "balanced" in name else "o-"
        axes.plot(numbers, [row[name] for row in epochs], style, markersize=3, label=label)
    # An early epoch can be off by a factor of 20 (BatchNorm has seen little): it must not flatten the rest.
    usual = max(max(row["train_loss"] for row in epochs), statistics.median(row["val_loss"] for row in epochs))
    loss.set(title="cross-entropy per clip", ylim=(0, 1.5 * usual))
    accuracy.set(title="accuracy", ylim=(0, 1.02))
    for axes in (loss, accuracy):
        axes.axvline(chosen, color="0.6", linewidth=1, zorder=0)
        side = "right" if chosen > (numbers[0] + numbers[-1]) / 2 else "left"
        axes.annotate(f" epoch {chosen} ", (chosen, 0.02), xycoords=("data", "axes fraction"), ha=side, fontsize=8)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.25)
        axes.legend(fontsize=8)
    return figure
