"""Draw the pictures of README and site from what `make demo` leaves: overview.png, report.png, analysis.png.

    python docs/pictures.py demo docs

Screenshots are taken with Debian's chromium. All videos in them are rendered ones.
"""

import csv
import json
import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch
from PIL import Image
from playwright.sync_api import sync_playwright

from vidcache.cache.reader import CacheReader

COMMANDS = ("vidcache build", "vidtrain", "videval")
NUM_VIDEOS, NUM_FRAMES = 4, 6
FLAGS = "--no-sandbox --disable-gpu --disable-background-networking --disable-component-update --disable-sync".split()


def overview(demo: Path, path: Path) -> None:
    """Draw videos, the cache, the curve of the run and the confusion matrix, with the commands between them."""
    figure = Figure(figsize=(12, 3.1), dpi=150)
    lefts, widths, names = (
        (0.01, 0.315, 0.55, 0.80),
        (0.2, 0.13, 0.165, 0.19),
        ("raw/", "cache.h5", "best.pt", "best.eval/"),
    )
    with CacheReader(demo / "cache.h5") as reader:
        labels = reader.labels[reader.rows("train")]
        rows = [int(reader.rows("train")[np.flatnonzero(labels == k)[2]]) for k in range(2, 2 + NUM_VIDEOS)]
        clips = reader.read(rows)
        said = f"{len(reader):,} clips\n{reader.spec.num_frames} x {reader.spec.height} x {reader.spec.width}\none file"
        classes = [reader.classes[reader.labels[row]] for row in rows]
    frames = np.linspace(0, clips.shape[1] - 1, NUM_FRAMES).astype(int)
    for n, clip in enumerate(clips):
        axes = figure.add_axes((lefts[0] + 0.05, 0.66 - 0.19 * n, widths[0] - 0.05, 0.16))
        axes.imshow(np.concatenate(list(clip[frames]), axis=1))
        axes.axis("off")
        figure.text(
            lefts[0] + 0.045,
            0.74 - 0.19 * n,
            classes[n].replace("lights_", "lights\n"),
            fontsize=8,
            ha="right",
            va="center",
        )
    stack = figure.add_axes((lefts[1], 0.1, widths[1], 0.72))
    for n in range(6, -1, -1):
        tile = clips[n % NUM_VIDEOS][frames[n % NUM_FRAMES]]
        stack.imshow(tile, extent=(n * 4, n * 4 + 28, n * 4 + 14, n * 4 + 42), zorder=10 - n)
    stack.set(xlim=(-1, 54), ylim=(-4, 70))
    stack.axis("off")
    stack.text(26, 8, said, fontsize=8, ha="center", va="top")
    with (demo / "best.run" / "metrics.csv").open(newline="") as file:
        epochs = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    curve = figure.add_axes((lefts[2] + 0.02, 0.2, widths[2] - 0.02, 0.6))
    for name, label in (("train_accuracy", "train"), ("val_accuracy", "validation")):
        curve.plot(
            [row["epoch"] for row in epochs], [100 * row[name] for row in epochs], "o-", markersize=3, label=label
        )
    curve.set_title("accuracy, %", fontsize=8)
    curve.set_xlabel("epoch", fontsize=8)
    curve.tick_params(labelsize=7)
    curve.set_ylim(0, 102)
    curve.legend(fontsize=7, loc="lower right")
    curve.grid(alpha=0.25)
    metrics = json.loads((demo / "best.eval" / "metrics.json").read_text())
    confusion = np.array(metrics["confusion"])
    matrix = figure.add_axes((lefts[3], 0.2, widths[3], 0.6))
    matrix.imshow(confusion / confusion.sum(axis=1, keepdims=True), cmap="Blues", vmin=0, vmax=1)
    matrix.set(xticks=[], yticks=[])
    matrix.set_title("true class by predicted class", fontsize=8)
    figure.text(
        lefts[3] + widths[3] / 2,
        0.06,
        f"{metrics['num_correct']} of {metrics['num_clips']} right: {metrics['accuracy']:.1%}\n"
        f"({metrics['accuracy_low']:.1%} to {metrics['accuracy_high']:.1%})",
        fontsize=8,
        ha="center",
    )
    for left, width, name in zip(lefts, widths, names, strict=True):
        figure.text(left + width / 2, 0.93, name, fontsize=11, ha="center", family="monospace", weight="bold")
    for n, command in enumerate(COMMANDS):
        start, end = lefts[n] + widths[n] + 0.012, lefts[n + 1] - 0.006
        figure.add_artist(FancyArrowPatch((start, 0.48), (end, 0.48), arrowstyle="-|>", mutation_scale=14, color="0.3"))
        figure.text((start + end) / 2, 0.52, command.replace(" ", "\n"), fontsize=8, ha="center", family="monospace")
    figure.savefig(path, facecolor="white")


def screenshots(demo: Path, folder: Path) -> None:
    """Take pictures of the two pages, as they look in a window."""
    pages = {"report.png": "best.eval/report.html", "analysis.png": "cache.analysis/analysis.html"}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=FLAGS)
        for name, page in pages.items():
            window = browser.new_page(viewport={"width": 1000, "height": 1400})
            window.goto((demo / page).resolve().as_uri())
            window.screenshot(path=folder / name)
            shrink(folder / name)
        browser.close()


def shrink(path: Path) -> None:
    """Keep 64 colours: a third of the bytes, and nothing that can be seen."""
    Image.open(path).convert("RGB").quantize(64).save(path, optimize=True)


if __name__ == "__main__":
    demo, folder = map(Path, sys.argv[1:3])
    overview(demo, folder / "overview.png")
    shrink(folder / "overview.png")
    screenshots(demo, folder)
