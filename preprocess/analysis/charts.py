"""How every chart of an analysis is drawn: bars, histograms, scatter. Knows numbers and names, not videos."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from vidcache.cache.format import Split, Status
from vidcache.plotting import name_style, to_png
from vidcache.preprocess.analysis.checks import COARSE_FPS, PRETRAINED_FPS, amount, share
from vidcache.preprocess.analysis.facts import Facts
from vidcache.text import plural, printable

MAX_BARS = 40  # more than these cannot be read: both ends are shown
ENDS = 15
# Okabe and Ito, "Color Universal Design", 2008: told apart with any colour vision.
BLUE, ORANGE, GREEN, VERMILION, PURPLE, GREY = "#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#999999"
COLOURS = (BLUE, ORANGE, GREEN, PURPLE, VERMILION)
# A page 390 pixels wide shows a chart at 0.48 of its size: 10 points are 10 pixels then.
WIDTH_INCHES, DPI = 5.2, 144

Values = npt.NDArray[Any]


def draw_bars(
    names: Sequence[str],
    parts: dict[str, Values],
    xlabel: str,
    *,
    text: Callable[[float], str] = "{:,.0f}".format,
    colours: Sequence[str] = COLOURS,
    sort: bool = True,
    most: float | None = None,
) -> bytes:
    """Draw one horizontal bar per name, the longest on top; of more than 40, the 15 longest and 15 shortest.

    Args:
        names: Of the bars (n).
        parts: Name of each part of a bar to its lengths, (n,); with one part there is no legend.
        xlabel: What the lengths are.
        text: Turns a length into what stands beside the bar.
        colours: Of the parts.
        sort: Longest on top; else the last one on top.
        most: End of the axis; None is the longest bar.

    Returns:
        A PNG.
    """
    totals = np.sum(list(parts.values()), axis=0)
    order = np.argsort(totals, kind="stable") if sort else np.arange(len(totals))
    if len(order) > MAX_BARS:
        order = np.concatenate([order[:ENDS], order[-ENDS:]])
    figure, axes = _empty(0.8 + 0.26 * len(order) + 0.3 * (len(parts) > 1))
    left, lines = np.zeros(len(order)), np.arange(len(order))
    for (part, values), colour in zip(parts.items(), colours, strict=False):
        axes.barh(lines, values[order], 0.75, left, color=colour, label=part)
        left = left + values[order]
    for line, total in zip(lines.tolist(), left.tolist(), strict=True):
        axes.annotate(text(total), (total, line), (3, 0), textcoords="offset points", va="center", fontsize=9)
    # A name like $x^2$ is a name.
    labels = [_short(names[k]) for k in order.tolist()]
    axes.set_yticks(lines, labels, fontsize=10, **name_style())
    axes.set(ylim=(-0.6, len(order) - 0.4), xlim=(0, 1.12 * (most or max(left.max(initial=0), 1))), xlabel=xlabel)
    if len(order) < len(names):
        axes.axhline(ENDS - 0.5, color=VERMILION, linestyle="--", linewidth=1)
        axes.annotate(
            f"{len(names) - len(order):,} between",
            (1, ENDS - 0.5),
            xycoords=("axes fraction", "data"),
            ha="right",
            va="center",
            fontsize=9,
            color=VERMILION,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
        )
    if len(parts) > 1:
        figure.legend(loc="outside upper center", ncols=len(parts), frameon=False, fontsize=10)
    _count(axes.xaxis)
    axes.grid(axis="x", alpha=0.3)
    return to_png(figure, DPI)


def draw_histogram(values: Values, xlabel: str, marks: Sequence[tuple[float, str, str]] = ()) -> bytes:
    """Draw a histogram of videos; its axis is logarithmic when the values are far apart.

    Args:
        values: One per video, finite. Not empty.
        xlabel: What they are.
        marks: (where, label, colour) of vertical lines; the axis reaches them.

    Returns:
        A PNG.
    """
    figure, axes = _empty(3.3)
    ends = [float(values.min()), float(values.max()), *(mark for mark, _, _ in marks)]
    low, high = min(ends), max(ends)
    if low > 0 and high / low > 20:
        bins = np.geomspace(low, high, 41)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=15))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.12g}"))
        axes.tick_params(axis="x", labelsize=9)
    elif np.issubdtype(values.dtype, np.integer):  # the same number of whole numbers in each, or the bars are a comb
        step = math.ceil((high - low + 1) / 40)
        bins = np.arange(low, high + step + 1, step) - 0.5
    else:
        room = 0.5 if high == low else 0.0
        bins = np.linspace(low - room, high + room, 41)
    axes.hist(values, bins=bins.tolist(), color=BLUE)
    for where, label, colour in marks:
        axes.axvline(where, color=colour, linewidth=2, label=label)
    if marks:
        figure.legend(loc="outside upper center", ncols=len(marks), frameon=False, fontsize=10)
    axes.set(xlabel=xlabel, ylabel="videos")
    _count(axes.yaxis)
    axes.grid(axis="y", alpha=0.3)
    return to_png(figure, DPI)


def draw_sizes(sizes: Values, counts: Values) -> bytes:
    """Draw frame sizes; the area of a point is how many videos have it, and the five most frequent are named.

    Args:
        sizes: (n, 2) width and height. n >= 1.
        counts: (n,) videos.

    Returns:
        A PNG.
    """
    figure, axes = _empty(4.2)
    area = 30 + 600 * counts / counts.max()  # the smallest can still be seen
    order = np.argsort(-counts, kind="stable")
    rest = order[len(COLOURS) :]
    for index, colour in zip(order.tolist(), COLOURS, strict=False):
        label = f"{sizes[index, 0]} x {sizes[index, 1]}: {counts[index]:,}"
        axes.scatter(sizes[index, 0], sizes[index, 1], area[index], color=colour, alpha=0.7, label=label, zorder=2)
    if len(rest):
        label = f"{len(rest):,} other: {counts[rest].sum():,}"
        axes.scatter(sizes[rest, 0], sizes[rest, 1], area[rest], color=GREY, alpha=0.6, label=label, zorder=1)
    end = 1.1 * sizes.max()
    axes.plot([0, end], [0, end], color=GREY, linestyle="--", linewidth=1, label="square", zorder=0)
    legend = figure.legend(loc="outside right upper", frameon=False, fontsize=10)
    for handle in legend.legend_handles:
        if isinstance(handle, PathCollection):
            handle.set_sizes([60])
    axes.set(xlim=(-0.04 * end, end), ylim=(-0.04 * end, end), xlabel="width in pixels", ylabel="height in pixels")
    axes.grid(alpha=0.3)
    return to_png(figure, DPI)


def _empty(height_inches: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH_INCHES, height_inches), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    return figure, axes


def _count(axis: Any) -> None:
    """Whole numbers at the ticks of an axis."""
    axis.set_major_locator(MaxNLocator(5, integer=True))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def _short(name: str) -> str:
    text = printable(name)
    return text if len(text) <= 24 else f"{text[:23]}…"


MAX_RATES = 12


@dataclasses.dataclass(frozen=True)
class Chart:
    """One picture.

    Attributes:
        name: Of the file, without ".png".
        title: What it shows.
        sentence: The same in numbers, for those who do not see it.
        png: The file.
    """

    name: str
    title: str
    sentence: str
    png: bytes


def draw_all(facts: Facts) -> tuple[Chart, ...]:
    """Draw every chart for which there is something to show."""
    good = facts.good
    charts = []
    if good.any():
        charts += [_videos_per_class(facts), _frames_available(facts), _padding(facts)]
        if (facts.duration_seconds[good] > 0).any():
            charts += [_durations(facts), _effective_fps(facts)]
            charts += [_frame_rates(facts)] if len(_known(facts, facts.fps)) else []
        if (good & (facts.width > 0) & (facts.height > 0)).any():
            charts.append(_frame_sizes(facts))
    if not (facts.status == Status.OK).all():
        charts.append(_failures(facts))
    return tuple(charts)


def _videos_per_class(facts: Facts) -> Chart:
    counts = facts.counts(facts.good)
    parts = {split.name.lower(): facts.counts(facts.in_split(split)) for split in Split}
    parts = {name: part for name, part in parts.items() if part.any()} or {"": counts}
    noun = "clip" if facts.split is not None else "video"
    png = draw_bars(facts.classes, parts, f"{noun}s", colours=(*COLOURS[:3], GREY))
    most, least = int(counts.argmax()), int(counts.argmin())
    sentence = (
        f"{plural(int(counts.sum()), noun)} of {plural(len(counts), 'class', 'classes')}, from {counts[least]:,} "
        f"({printable(facts.classes[least])}) to {counts[most]:,} ({printable(facts.classes[most])}); failed videos "
        f"are left out.{_left_out(len(counts))}"
    )
    return Chart("videos_per_class", f"{noun.capitalize()}s per class", sentence, png)


def _padding(facts: Facts) -> Chart:
    clips, padded = facts.counts(facts.good), facts.counts(facts.padded)
    label = f"% of the clips with fewer than {facts.num_frames_per_clip} frames"
    shares = 100 * padded / np.maximum(clips, 1)
    png = draw_bars(facts.classes, {"": shares}, label, text="{:.0f}%".format, most=100)
    said = f"Clips that repeat their last frame: {share(int(padded.sum()), int(clips.sum()))}.{_left_out(len(clips))}"
    return Chart("padding", "Padded clips per class", said, png)


def _failures(facts: Facts) -> Chart:
    rows = np.flatnonzero(facts.status != Status.OK).tolist()
    kinds = [f"{facts.reason_of(row)} ({Status(facts.status[row]).name.lower()})" for row in rows]
    names, counts = np.unique(kinds, return_counts=True)
    png = draw_bars(names.tolist(), {"": counts}, "videos", colours=(VERMILION,))
    failed, damaged = (int((facts.status == status).sum()) for status in (Status.FAILED, Status.DAMAGED))
    said = f"Of {plural(len(facts), 'video')}, {failed:,} failed and have no clip, {damaged:,} are damaged."
    return Chart("failures", "What is wrong with videos", said, png)


def _durations(facts: Facts) -> Chart:
    values = _known(facts, facts.duration_seconds)
    median = float(np.median(values))
    png = draw_histogram(values, "seconds", [(median, f"median {amount(median)} s", VERMILION)])
    return Chart("durations", "Lengths", f"{_quantiles(values)} seconds.", png)


def _frame_rates(facts: Facts) -> Chart:
    values = _known(facts, facts.fps)
    rates, counts = np.unique(values.round(1), return_counts=True)
    if len(rates) > MAX_RATES:
        png = draw_histogram(values, "frames per second of the source")
    else:
        png = draw_bars([f"{rate:g} fps" for rate in rates], {"": counts}, "videos", sort=False)
    common = int(counts.argmax())
    said = f"{plural(len(rates), 'rate')}; the most frequent is {rates[common]:g} per second ({counts[common]:,} of "
    return Chart("frame_rates", "Frame rates", f"{said}{plural(len(values), 'video')}).", png)


def _frame_sizes(facts: Facts) -> Chart:
    known = facts.good & (facts.width > 0) & (facts.height > 0)
    sizes, counts = np.unique(np.stack([facts.width[known], facts.height[known]], 1), axis=0, return_counts=True)
    width, height = sizes[counts.argmax()]
    said = (
        f"{plural(len(sizes), 'size')}; the most frequent is {width} x {height} ({counts.max():,} of "
        f"{plural(int(counts.sum()), 'video')}). The area of a point is how many videos have the size."
    )
    return Chart("frame_sizes", "Frame sizes, as displayed", said, draw_sizes(sizes, counts))


def _frames_available(facts: Facts) -> Chart:
    values, num_frames = facts.num_frames[facts.good], facts.num_frames_per_clip
    png = draw_histogram(values, "frames in the video", [(num_frames, f"frames of a clip: {num_frames}", VERMILION)])
    fewer = share(int((values < num_frames).sum()), len(values))
    said = f"{_quantiles(values)} frames; {fewer} have fewer than the {num_frames} of a clip."
    return Chart("frames_available", "Frames available", said, png)


def _effective_fps(facts: Facts) -> Chart:
    rates = facts.effective_fps
    values = rates[np.isfinite(rates)]
    marks = [
        (float(COARSE_FPS), f"coarse: below {COARSE_FPS:g}", VERMILION),
        (float(PRETRAINED_FPS), f"pretrained weights: {PRETRAINED_FPS}", GREEN),
    ]
    png = draw_histogram(values, "frames of the clip per second of video", marks)
    said = f"{_quantiles(values)} per second; padding does not count."
    return Chart("effective_fps", "Frames per second that the model gets", said, png)


def _known(facts: Facts, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return np.asarray(values[facts.good & (values > 0)])


def _quantiles(values: npt.NDArray[Any]) -> str:
    low, median, high = np.percentile(values, [0, 50, 100])
    return f"{amount(low)} to {amount(high)}, median {amount(median)}" if low < high else f"All {amount(high)}"


def _left_out(num_classes: int) -> str:
    if num_classes <= MAX_BARS:
        return ""
    between = plural(num_classes - 2 * ENDS, "class", "classes")
    return f" Drawn are the {ENDS} longest bars and the {ENDS} shortest; {between} lie between."
