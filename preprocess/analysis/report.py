"""What an analysis writes: four charts, one page, summary.json and videos.csv."""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from vidcache import plotting
from vidcache.cache.format import Split, Status
from vidcache.files import write_atomically, write_text_atomically
from vidcache.html import data_uri, render_page
from vidcache.preprocess.analysis.checks import COARSE_FPS, PRETRAINED_FPS, Finding, amount
from vidcache.preprocess.analysis.facts import Facts
from vidcache.text import plural, printable, to_csv, to_json

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
        axes.xaxis.set_major_formatter("{x:,.12g}")
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


# A spreadsheet computes a cell that begins with one of these (OWASP, "CSV Injection").
_FORMULA = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")


def summarise(
    facts: Facts, study: dict[str, Any], findings: Sequence[Finding], charts: Sequence[Chart]
) -> dict[str, Any]:
    """Return everything that is shown, as JSON-ready values; names are printable."""
    groups = {"videos": facts.status >= 0, "clips": facts.good, "failed": ~facts.good}
    groups |= {"damaged": facts.status == Status.DAMAGED, "padded": facts.padded}
    reasons = {name: Counter(facts.reasons(groups[name])) for name in ("failed", "damaged")}
    return {
        "path": facts.name,
        "kind": "cache" if facts.fingerprint else "folder",
        "fingerprint": facts.fingerprint or None,
        "num_frames_per_clip": facts.num_frames_per_clip,
        **{f"num_{name}": int(chosen.sum()) for name, chosen in groups.items()},
        "skipped": facts.skipped,
        "findings": [dataclasses.asdict(finding) for finding in findings],
        "failures": {name: dict(sorted(counts.items())) for name, counts in reasons.items()},
        "shortcuts": study,
        "classes": _class_table(facts, {f"num_{name}": facts.counts(chosen) for name, chosen in groups.items()}),
        "charts": [{"file": f"{chart.name}.png", "title": chart.title, "sentence": chart.sentence} for chart in charts],
    }


def _class_table(facts: Facts, counts: dict[str, npt.NDArray[np.int64]]) -> list[dict[str, Any]]:
    by_split = {split.name.lower(): facts.counts(facts.in_split(split)) for split in Split}
    if facts.split is not None:
        counts |= {name: clips for name, clips in by_split.items() if name != "unused" or clips.any()}
    known, table = facts.good & (facts.duration_seconds > 0), []
    for label, name in enumerate(facts.classes):
        seconds = facts.duration_seconds[known & (facts.label == label)]
        row = {"class": printable(name), **{column: int(values[label]) for column, values in counts.items()}}
        table.append({**row, "median_duration_seconds": round(float(np.median(seconds)), 3) if len(seconds) else None})
    return table


def write_analysis(folder: Path, facts: Facts, summary: dict[str, Any], charts: Sequence[Chart]) -> None:
    """Write charts, tables and the page into a new folder, or one of an earlier analysis."""
    folder.mkdir(parents=True, exist_ok=True)
    for chart in charts:
        write_atomically(folder / f"{chart.name}.png", lambda file, png=chart.png: file.write(png))  # type: ignore[misc]
    write_text_atomically(folder / "summary.json", to_json(summary, indent=2) + "\n")
    write_text_atomically(folder / "videos.csv", videos_csv(facts))
    write_text_atomically(folder / "analysis.html", render(summary, charts))


def render(summary: dict[str, Any], charts: Sequence[Chart]) -> str:
    """Return the page: HTML that loads nothing from anywhere, and shows what the summary says."""
    columns = [name.replace("num_", "").replace("_duration", "").replace("_", " ") for name in summary["classes"][0]]
    metadata = []
    for result in summary["shortcuts"]["results"]:
        recall, chance, p_value = f"{result['accuracy']:.1%}", f"{result['chance']:.1%}", f"{result['p_value']:.3f}"
        matters = "yes" if result["is_significant"] else "no"
        metadata.append([result["feature"], recall, chance, p_value, matters, len(result["classes"])])
    tables = {"columns": columns, "classes": [row.values() for row in summary["classes"]], "metadata": metadata}
    pictures = [data_uri(chart.png) for chart in charts]
    return render_page("vidcache.preprocess.analysis", "report.html", s=summary, pictures=pictures, **tables)


def videos_csv(facts: Facts) -> str:
    """Return one line per video; a text that a spreadsheet would compute begins with an apostrophe."""
    columns: dict[str, Any] = {
        "path": facts.path,
        "class": [facts.classes[label] for label in facts.label],
        "status": [Status(value).name.lower() for value in facts.status],
        "error": facts.error,
    }
    if facts.split is not None:
        columns["split"] = np.where(facts.good, facts.split_names(facts.good | True), "").tolist()
    names = "duration_seconds fps width height num_frames num_real source_bytes effective_fps codec pixel_format"
    columns |= {name: getattr(facts, name).tolist() for name in names.split()}
    columns["effective_fps"] = ["" if np.isnan(rate) else round(rate, 3) for rate in columns["effective_fps"]]
    if facts.black is not None and facts.still is not None:
        columns |= {"black": facts.black.astype(int), "still": facts.still.astype(int)}
    return to_csv(list(columns), (map(_cell, row) for row in zip(*columns.values(), strict=True)))


def _cell(value: Any) -> Any:
    if not isinstance(value, str | bytes):
        return value
    text = printable(value)
    return f"'{text}" if text.startswith(_FORMULA) else text
