"""The charts of an analysis: clips per class, lengths, frames per second that the model sees, failures."""

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator

from vidcache import plotting
from vidcache.cache.format import Split, Status
from vidcache.preprocess.analysis.checks import COARSE_FPS, PRETRAINED_FPS, amount
from vidcache.preprocess.analysis.facts import Facts
from vidcache.text import plural, printable

MAX_BARS, ENDS = 40, 15  # of more bars than can be read, the longest and the shortest are drawn
# Okabe and Ito, "Color Universal Design", 2008: told apart with any colour vision.
BLUE, ORANGE, GREEN, VERMILION, GREY = "#0072b2", "#e69f00", "#009e73", "#d55e00", "#999999"

Values = npt.NDArray[Any]


class Chart(NamedTuple):
    """A PNG, the name of its file without the ending, and what it shows in words."""

    name: str
    title: str
    sentence: str
    png: bytes


def draw_bars(names: Sequence[str], parts: dict[str, Values], xlabel: str, colours: Sequence[str] = (BLUE,)) -> bytes:
    """Draw a bar for each of n names, of parts with lengths (n,); of more than 40, the 15 longest and 15 shortest."""
    totals: Values = np.sum(list(parts.values()), axis=0)
    order = np.argsort(totals, kind="stable")
    if len(order) > MAX_BARS:
        order = np.concatenate([order[:ENDS], order[-ENDS:]])
    figure, axes = _figure(1.1 + 0.26 * len(order), xlabel)
    left, lines = np.zeros(len(order)), np.arange(len(order))
    for (part, values), colour in zip(parts.items(), colours, strict=False):
        bars = axes.barh(lines, values[order], 0.75, left, color=colour, label=part)
        left += values[order]
    axes.bar_label(bars, [f"{total:,.0f}" for total in left], padding=3, fontsize=9)
    labels = [name if len(name) <= 24 else f"{name[:23]}…" for name in (printable(names[k]) for k in order)]
    axes.set_yticks(lines, labels, fontsize=10, **plotting.name_style())
    axes.set(ylim=(-0.6, len(order) - 0.4), xlim=(0, 1.12 * max(left.max(), 1)))
    if len(order) < len(names):
        axes.axhline(ENDS - 0.5, color=VERMILION, linestyle="--", label=f"{len(names) - len(order):,} between")
    return _png(figure, axes.xaxis)


def draw_histogram(values: Values, xlabel: str, marks: dict[str, tuple[float, str]]) -> bytes:
    """Draw how many videos have which value, on a log scale where it helps; marks: lines at (place, colour)."""
    figure, axes = _figure(3.3, xlabel)
    ends = [values.min(), values.max(), *(place for place, _ in marks.values())]
    low, high = float(min(ends)), float(max(ends))
    bins = np.linspace(low, high, 41) if low < high else np.array([low - 0.5, low + 0.5])
    if low > 0 and high / low > 20:
        bins = np.geomspace(low, high, 41)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=15))
        axes.xaxis.set_major_formatter("{x:,.12g}")
        axes.minorticks_off()
    axes.hist(values, bins=bins.tolist(), color=BLUE)
    for name, (place, colour) in marks.items():
        axes.axvline(place, color=colour, linewidth=2, label=name)
    axes.set_ylabel("videos")
    return _png(figure, axes.yaxis)


def _figure(height_inches: float, xlabel: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(5.2, height_inches), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    axes.grid(alpha=0.3)
    axes.set_xlabel(xlabel)
    return figure, axes


def _png(figure: Figure, counts: Any) -> bytes:
    counts.set_major_locator(MaxNLocator(5, integer=True))
    counts.set_major_formatter("{x:,.0f}")
    figure.legend(loc="outside upper center", ncols=4, frameon=False, fontsize=10)
    return plotting.to_png(figure, 144)


def draw_all(facts: Facts) -> list[Chart]:
    """Draw every chart for which there is something to show."""
    charts, rates, bad = [], facts.effective_fps, np.flatnonzero(facts.status != Status.OK)
    known = ~np.isnan(rates)
    if facts.good.any():
        counts, noun = facts.counts(facts.good), "videos" if facts.split is None else "clips"
        parts = {split.name.lower(): facts.counts(facts.in_split(split)) for split in Split}
        parts = {name: part for name, part in parts.items() if part.any()} or {noun: counts}
        png = draw_bars(facts.classes, parts, noun, (BLUE, ORANGE, GREEN, GREY))
        sentence = f"{_range(counts)}; failed videos are left out."
        charts.append(Chart("videos_per_class", f"{noun.capitalize()} per class", sentence, png))
    if known.any():
        seconds, rates = facts.duration_seconds[known], rates[known]
        png = draw_histogram(seconds, "seconds", {"median": (float(np.median(seconds)), VERMILION)})
        charts.append(Chart("durations", "Lengths in seconds", f"{_range(seconds)}.", png))
        marks = {f"coarse: below {COARSE_FPS}": (float(COARSE_FPS), VERMILION)}
        marks[f"pretrained weights: {PRETRAINED_FPS}"] = float(PRETRAINED_FPS), GREEN
        png = draw_histogram(rates, "frames of the clip per second of video", marks)
        charts.append(Chart("effective_fps", "Frames per second that the model sees", f"{_range(rates)}.", png))
    if len(bad):
        reasons = Counter(facts.reasons(bad))
        png = draw_bars([*reasons], {"videos": np.array([*reasons.values()])}, "videos", (VERMILION,))
        sentence = f"{plural(len(bad), 'video')} of {len(facts):,}."
        charts.append(Chart("failures", "Failed and damaged videos, by reason", sentence, png))
    return charts


def _range(values: Values) -> str:
    return f"{amount(values.min())} to {amount(values.max())}, median {amount(float(np.median(values)))}"
