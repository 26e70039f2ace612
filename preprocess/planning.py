"""The plan of a build: its rows, the rule of its split, the classes that are too small for one."""

import importlib.metadata
from collections import Counter
from typing import Any

from vidcache.cache.donors import Earlier
from vidcache.cache.plan import Plan
from vidcache.cache.reader import CacheReader
from vidcache.errors import InputError
from vidcache.preprocess.ffmpeg import Tools
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


def choose_rule(finished: CacheReader | None, class_depth: int, choice: SplitChoice) -> SplitRule:
    """Return how to split: as chosen; else as in the finished cache; else as the folders say, or the default.

    Raises:
        InputError: A list cannot be read.
    """
    if finished:
        return choice.applied_to(SplitRule.from_attributes(finished.attributes))
    return choice.applied_to(SplitRule(source="folders" if class_depth else "fractions"))


def make_plan(sources: Sources, spec: Spec, rule: SplitRule, tools: Tools, earlier: list[Earlier]) -> Plan:
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
        attributes=plan_attributes(spec, sources.class_depth, rule, ", ".join(sorted(versions - {""}))),
    )


def plan_attributes(spec: Spec, class_depth: int, rule: SplitRule, ffmpeg_version: str) -> dict[str, Any]:
    """Return the root attributes of a cache, always in the same order."""
    return {
        "sampling": spec.sampling,
        "scaling": spec.scaling,
        "class_depth": class_depth,
        **rule.attributes(),
        "vidcache_version": importlib.metadata.version("vidcache"),
        "ffmpeg_version": ffmpeg_version,
    }
