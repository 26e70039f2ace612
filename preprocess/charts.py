"""Pictures of the facts: one PNG each, legible with 5 classes and with 400, with 1 video and with 100,000."""

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

from vidcache.cache.layout import Split, Status
from vidcache.preprocess.analysis import Facts
from vidcache.preprocess.finding import amount, share
from vidcache.preprocess.plots import (
    COLOURS,
    ENDS,
    GREEN,
    GREY,
    MAX_BARS,
    VERMILION,
    draw_bars,
    draw_histogram,
    draw_sizes,
)
from vidcache.preprocess.shape_findings import COARSE_FPS, PRETRAINED_FPS
from vidcache.text import plural, printable

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
