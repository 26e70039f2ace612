"""What an analysis leaves behind: pictures, summary.json, videos.csv and the page."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vidcache.cache.format import Split, Status
from vidcache.files import write_atomically, write_text_atomically
from vidcache.html import data_uri, render_page
from vidcache.preprocess.analysis.charts import Chart
from vidcache.preprocess.analysis.checks import Finding
from vidcache.preprocess.analysis.facts import Facts
from vidcache.preprocess.analysis.shortcuts import MetadataLeakReport, Shortcut
from vidcache.text import printable, to_csv, to_json


def render(summary: dict[str, Any], charts: Sequence[Chart]) -> str:
    """Render the page.

    Args:
        summary: What `vidcache.preprocess.analysis.report.summarise` gave; nothing else is said.
        charts: The pictures that it names, in its order.

    Returns:
        HTML that loads nothing from anywhere.
    """
    pictures = [data_uri(chart.png) for chart in charts]
    return render_page("vidcache.preprocess.analysis", "report.html", s=summary, pictures=pictures)


# A cell that begins with one of these is computed by spreadsheets (OWASP, "CSV Injection").
_FORMULA = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")


def summarise(
    facts: Facts, study: MetadataLeakReport, findings: Sequence[Finding], charts: Sequence[Chart]
) -> dict[str, Any]:
    """Return everything that the page says as JSON-ready values; names are printable."""
    failures = {
        status.name.lower(): _count_reasons(facts, np.flatnonzero(facts.status == status).tolist())
        for status in (Status.FAILED, Status.DAMAGED)
    }
    return {
        "path": facts.name,
        "kind": "cache" if facts.fingerprint else "folder",
        "fingerprint": facts.fingerprint or None,
        "num_frames_per_clip": facts.num_frames_per_clip,
        "num_videos": len(facts),
        "num_clips": int(facts.good.sum()),
        "num_failed": int((facts.status == Status.FAILED).sum()),
        "num_damaged": int((facts.status == Status.DAMAGED).sum()),
        "num_padded": int(facts.padded.sum()),
        "skipped": facts.skipped,
        "findings": [
            {
                "severity": finding.severity.value,
                "title": finding.title,
                "detail": finding.detail,
                "advice": finding.advice,
            }
            for finding in findings
        ],
        "failures": failures,
        "shortcuts": {
            "num_videos": study.num_videos,
            "num_classes": study.num_classes,
            "num_classes_left_out": study.num_classes_left_out,
            "results": [
                _shortcut_json(facts, s) for s in (*([study.together] if study.together else []), *study.alone)
            ],
        },
        "classes": _class_table(facts),
        "charts": [{"file": f"{chart.name}.png", "title": chart.title, "sentence": chart.sentence} for chart in charts],
    }


def write_analysis(folder: Path, facts: Facts, summary: dict[str, Any], charts: Sequence[Chart]) -> None:
    """Write the pictures, summary.json, videos.csv and analysis.html.

    Args:
        folder: Made where it is not there.
        facts: The videos.
        summary: Of the same videos.
        charts: Of the same videos.

    Raises:
        OSError: The disk is full, or the folder not writable.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for chart in charts:
        write_atomically(folder / f"{chart.name}.png", lambda file, png=chart.png: file.write(png))  # type: ignore[misc]
    write_text_atomically(folder / "summary.json", to_json(summary, indent=2) + "\n")
    write_text_atomically(folder / "videos.csv", videos_csv(facts))
    write_text_atomically(folder / "analysis.html", render(summary, charts))


def videos_csv(facts: Facts) -> str:
    """Return one line per video; a path or class that a spreadsheet would compute begins with an apostrophe."""
    classes = [_cell(name) for name in facts.classes]
    columns: dict[str, list[Any]] = {
        "path": [_cell(bytes(path)) for path in facts.path],
        "class": [classes[label] for label in facts.label.tolist()],
        "status": [Status(value).name.lower() for value in facts.status.tolist()],
        "error": [_cell(bytes(error)) for error in facts.error],
    }
    if facts.split is not None:
        good = facts.good.tolist()
        names = [Split(value).name.lower() for value in facts.split.tolist()]
        columns["split"] = [name if usable else "" for name, usable in zip(names, good, strict=True)]
    for name in ("duration_seconds", "fps", "width", "height", "num_frames", "num_real", "source_bytes"):
        columns[name] = getattr(facts, name).tolist()
    columns["effective_fps"] = [round(rate, 3) if rate == rate else "" for rate in facts.effective_fps.tolist()]
    for name in ("codec", "pixel_format"):
        columns[name] = [_cell(bytes(value)) for value in getattr(facts, name)]
    for name in ("black", "still"):
        values = getattr(facts, name)
        if values is not None:
            columns[name] = values.astype(int).tolist()
    return to_csv(list(columns), zip(*columns.values(), strict=True))


def _cell(name: str | bytes) -> str:
    text = printable(name)
    return f"'{text}" if text.startswith(_FORMULA) else text


def _count_reasons(facts: Facts, rows: list[int]) -> dict[str, int]:
    reasons = [facts.reason_of(row) for row in rows]
    return {reason: reasons.count(reason) for reason in sorted(set(reasons))}


def _shortcut_json(facts: Facts, shortcut: Shortcut) -> dict[str, Any]:
    return {
        "feature": shortcut.feature,
        "accuracy": shortcut.accuracy,
        "chance": shortcut.chance,
        "p_value": shortcut.p_value,
        "is_significant": shortcut.is_significant,
        "classes": [
            {
                "class": printable(facts.classes[found.label]),
                "num_videos": found.num_videos,
                "num_found": found.num_found,
                "num_others": found.num_others,
                "num_mistaken": found.num_mistaken,
            }
            for found in shortcut.classes
        ],
    }


def _class_table(facts: Facts) -> list[dict[str, Any]]:
    good, every = facts.good, np.ones(len(facts), bool)
    counts = {
        "num_videos": facts.counts(every),
        "num_clips": facts.counts(good),
        "num_failed": facts.counts(~good),
        "num_damaged": facts.counts(facts.status == Status.DAMAGED),
        "num_padded": facts.counts(facts.padded),
    }
    if facts.split is not None:
        counts |= {split.name.lower(): facts.counts(facts.in_split(split)) for split in Split}
        if not counts["unused"].any():
            del counts["unused"]
    known = good & (facts.duration_seconds > 0)
    table = []
    for label, name in enumerate(facts.classes):
        seconds = facts.duration_seconds[known & (facts.label == label)]
        row = {column: int(values[label]) for column, values in counts.items()}
        median = round(float(np.median(seconds)), 3) if len(seconds) else None
        table.append({"class": printable(name), **row, "median_duration_seconds": median})
    return table
