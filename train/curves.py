"""A picture of a run: loss and accuracy by epoch."""

import statistics
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from vidcache.files import write_atomically
from vidcache.train.results import EpochResult


def draw_curves(results: Sequence[EpochResult], path: Path) -> None:
    """Write `curves.png`: training and validation side by side, the best epoch marked.

    Args:
        results: At least one epoch.
        path: PNG to write.
    """
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    loss, accuracy = figure.subplots(1, 2)
    epochs = [result.epoch for result in results]
    best = min(results, key=lambda result: result.val_loss).epoch
    loss.plot(epochs, [r.train_loss for r in results], "o-", markersize=3, label="train (as minimised)")
    loss.plot(epochs, [r.val_loss for r in results], "o-", markersize=3, label="validation")
    # An early epoch can be off by a factor of 20 (BatchNorm has seen little): it must not flatten the rest.
    usual = max(max(r.train_loss for r in results), statistics.median(r.val_loss for r in results))
    loss.set(title="cross-entropy per clip", ylim=(0, 1.5 * usual))
    accuracy.plot(epochs, [r.train_accuracy for r in results], "o-", markersize=3, label="train (augmented)")
    accuracy.plot(epochs, [r.val_accuracy for r in results], "o-", markersize=3, label="validation")
    accuracy.plot(epochs, [r.val_balanced_accuracy for r in results], "o--", markersize=3, label="validation, balanced")
    accuracy.set(title="accuracy", ylim=(0, 1.02))
    for axes in (loss, accuracy):
        axes.axvline(best, color="0.6", linewidth=1, zorder=0)
        side = "right" if best > (epochs[0] + epochs[-1]) / 2 else "left"
        place = {"xycoords": ("data", "axes fraction"), "ha": side, "fontsize": 8, "color": "0.4"}
        axes.annotate(f" best: epoch {best} ", (best, 0.02), **place)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.25)
        axes.legend(fontsize=8)
    write_atomically(path, lambda file: figure.savefig(file, dpi=120, format="png"))
