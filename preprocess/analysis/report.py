"""The results of an analysis: one summary for the terminal, JSON and the page, and the files of a folder."""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vidcache.cache.format import Split, Status
from vidcache.files import write_atomically, write_text_atomically
from vidcache.html import data_uri, render_page
from vidcache.preprocess.analysis.charts import Chart
from vidcache.preprocess.analysis.checks import Finding
from vidcache.preprocess.analysis.facts import Facts
from vidcache.text import printable, to_csv, to_json

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
