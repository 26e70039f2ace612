"""The plan of a build: its rows, the rule of its split, the classes that are too small for one."""

import dataclasses
import importlib.metadata
from collections import Counter
from pathlib import Path
from typing import Any

from vidcache.cache.donors import Earlier
from vidcache.cache.plan import Plan
from vidcache.cache.reader import CacheReader
from vidcache.errors import InputError
from vidcache.preprocess.ffmpeg import Tools
from vidcache.preprocess.groups import Grouping
from vidcache.preprocess.layouts import LISTED
from vidcache.preprocess.options import BuildOptions
from vidcache.preprocess.rule import SplitChoice, SplitRule
from vidcache.preprocess.sources import Sources
from vidcache.preprocess.split import MIN_CLASS_CLIPS
from vidcache.spec import Spec
from vidcache.text import printable


def check_class_sizes(counts: Counter[bytes], noun: str) -> None:
    """Refuse classes that cannot be in train, val and test.

    Raises:
        InputError: Names every class with fewer than 3.
    """
    tiny = [f"{printable(name)} ({count})" for name, count in sorted(counts.items()) if count < MIN_CLASS_CLIPS]
    if tiny:
        raise InputError(
            f"classes with fewer than {MIN_CLASS_CLIPS} {noun}: {', '.join(tiny)}; expected at least one each for "
            "train, val and test. Add videos, or accept it with --allow-tiny-classes"
        )


def choose_rule(finished: CacheReader | None, sources: Sources, choice: SplitChoice) -> SplitRule:
    """Return how to split: as chosen; else as in the finished cache; else as lists or folders say, or the default.

    Raises:
        InputError: A list cannot be read.
    """
    rule = SplitRule(source="folders" if sources.class_depth == 1 else "fractions")
    kept = finished is not None and int(finished.attributes["class_depth"]) == sources.class_depth
    if finished and kept:
        rule = SplitRule.from_attributes(finished.attributes)
    labels = sources.labels
    # A cache keeps no lists: what it was divided by is named again with the labels.
    if labels and labels.has_split and not choice.source and (not kept or rule.source == "files"):
        choice = dataclasses.replace(choice, source="files", files=(labels.file,))
    if labels and labels.has_group and not choice.grouping and (not kept or rule.grouping.by == "file"):
        choice = dataclasses.replace(choice, grouping=Grouping("file", labels.file))
    return choice.applied_to(rule)


def unused_columns(rule: SplitRule, sources: Sources, choice: SplitChoice) -> tuple[str, ...]:
    """Say which columns of the list of labels do not divide the cache, though nobody chose so in this command.

    The cache was divided before the list had them, or by `vidcache split` since: its attributes do not say which.
    """
    labels = sources.labels
    if labels is None:
        return ()
    file, notes = printable(labels.file), []
    if labels.has_split and not choice.source and rule.source != "files":
        notes.append(
            f"the column split of {file} is not used: the cache is split by {rule.source}. Use it with --split-file"
        )
    if labels.has_group and not choice.grouping and rule.grouping.by != "file":
        notes.append(
            f"the column group of {file} is not used: the cache is grouped by {rule.grouping.by}. Use it with --by file"
        )
    return tuple(f"{note} {file}" for note in notes)


def check_reading(output: Path, attributes: dict[str, Any], sources: Sources, options: BuildOptions) -> None:
    """Refuse to read the folders in another way than the finished cache did, unless that was asked for.

    Raises:
        InputError: The same videos would get other classes, or linked ones would be lost.
    """
    depth = int(attributes["class_depth"])
    if depth != sources.class_depth and options.layout == "auto" and not options.labels:
        way, advice = {
            LISTED: ("a list", "Name the list again with --labels"),
            0: ("RAW/<class>/", "Choose between them with --layout classes or --layout splits"),
        }.get(depth, ("RAW/<split>/<class>/", "Choose between them with --layout splits or --layout classes"))
        raise InputError(
            f"{printable(output)}: has its classes from {way}, but the folders now read in another way. {advice}, or "
            "choose another name for the cache"
        )
    if attributes.get("follow_links") and not options.limits.follow_links:
        raise InputError(
            f"{printable(output)}: was built with --follow-links, and without it linked videos would be lost. Name the "
            "option again, or choose another name for the cache"
        )


def make_plan(
    sources: Sources, spec: Spec, rule: SplitRule, tools: Tools, earlier: list[Earlier], *, follow_links: bool = False
) -> Plan:
    """Write down everything that is known before the first video is opened."""
    # Clips of earlier builds may be taken over, so their ffmpeg counts too.
    versions = {tools.version}.union(*(found.ffmpeg_version.split(", ") for found in earlier))
    classes = sources.classes
    label_of = {name: label for label, name in enumerate(classes)}
    videos = sources.videos
    return Plan(
        spec=spec,
        classes=classes,
        paths=tuple(video.path for video in videos),
        labels=tuple(label_of[video.class_name] for video in videos),
        source_bytes=tuple(video.num_bytes for video in videos),
        source_mtime_ns=tuple(video.mtime_ns for video in videos),
        attributes=plan_attributes(
            spec, sources.class_depth, rule, ", ".join(sorted(versions - {""})), follow_links=follow_links
        ),
    )


def plan_attributes(
    spec: Spec, class_depth: int, rule: SplitRule, ffmpeg_version: str, *, follow_links: bool = False
) -> dict[str, Any]:
    """Return the root attributes of a cache, always in the same order."""
    return {
        "sampling": spec.sampling,
        "scaling": spec.scaling,
        "class_depth": class_depth,
        **({"follow_links": 1} if follow_links else {}),
        **rule.attributes(),
        "vidcache_version": importlib.metadata.version("vidcache"),
        "ffmpeg_version": ffmpeg_version,
    }
