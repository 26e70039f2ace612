"""How a cache is split: which videos belong together, and who decides where they go. Kept in the cache's attributes.

What needs only names and lists is checked before anything is decoded; near-duplicates are known afterwards.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import xxhash

from vidcache.cache.format import Split
from vidcache.cache.leakage import leaks_between
from vidcache.errors import CacheError, InputError
from vidcache.preprocess.split.assign import MIN_CLASS_CLIPS, assign_splits, audit_splits, describe_misfits
from vidcache.preprocess.split.groups import GroupBy, group_videos, merge_groups, parse_grouping
from vidcache.preprocess.split.predefined import (
    PredefinedSplit,
    expand,
    fill_missing_splits,
    folder_splits,
    read_split_files,
)
from vidcache.preprocess.video.lists import check_list
from vidcache.text import plural, printable

SOURCES = ("fractions", "folders", "files")
NEAR_DUPLICATES = ("group", "report", "off")

Fractions = tuple[float, float, float]


@dataclasses.dataclass(frozen=True)
class SplitConfig:
    """How to split.

    Attributes:
        grouping: Which videos are never parted.
        source: Who says where a video goes: "fractions" (and the seed), "folders" (RAW/{train,val,test}/<class>/)
            or "files" (lists).
        fractions: Of train, val and test; sum 1. With a given split: for the parts that it leaves out.
        seed: Another seed gives another split.
        near_duplicates: "group": clips that look alike are not parted; "report": they are counted; "off".
        files: Paths or glob patterns of lists.
        files_hash: Of what is in all files that the rule refers to; "" without any.
        has_files: Whether they are at hand: a cache keeps only their hash.
    """

    grouping: GroupBy = GroupBy("video")
    source: str = "fractions"
    fractions: Fractions = (0.70, 0.15, 0.15)
    seed: int = 0
    near_duplicates: str = "group"
    files: tuple[str, ...] = ()
    files_hash: str = ""
    has_files: bool = True

    def attributes(self) -> dict[str, Any]:
        """Return what the cache keeps of it: root attributes."""
        by, argument = self.grouping.by, self.grouping.argument
        return {
            "split_by": f"{by} {Path(argument).name if by == 'file' else argument}".rstrip(),
            "split_source": self.source,
            "split_fractions": [round(fraction, 9) for fraction in self.fractions],
            "split_seed": self.seed,
            "split_near_duplicates": self.near_duplicates,
            "split_files_hash": self.files_hash,
        }

    @classmethod
    def from_attributes(cls, attributes: dict[str, Any]) -> Self:
        """Read it back from a cache; the files it refers to are only known by their hash.

        Raises:
            CacheError: Something is missing, or is not what `attributes` gives.
        """
        try:
            train, val, test = map(float, attributes["split_fractions"])
            source, near_duplicates = attributes["split_source"], attributes["split_near_duplicates"]
            if source not in SOURCES or near_duplicates not in NEAR_DUPLICATES:
                raise ValueError(f"{source!r} and {near_duplicates!r}")
            grouping = parse_grouping(attributes["split_by"])
            if ("file" in (grouping.by, source.removesuffix("s"))) != bool(attributes["split_files_hash"]):
                raise ValueError("a file without its hash, or a hash without its file")  # its name is never opened
            return cls(
                grouping,
                source,
                (train, val, test),
                int(attributes["split_seed"]),
                near_duplicates,
                files_hash=str(attributes["split_files_hash"]),
                has_files=not attributes["split_files_hash"],
            )
        except (KeyError, TypeError, ValueError) as error:
            raise CacheError(
                f"the cache does not say how it is split ({printable(str(error))}), expected a rule. Build it again "
                "with --overwrite"
            ) from None


@dataclasses.dataclass(frozen=True)
class SplitOverrides:
    """What a command was told about the split; None: as it is in the cache, or else the default.

    Attributes:
        grouping: Which videos are never parted.
        source: Who says where a video goes: "fractions" (and the seed), "folders" or "files".
        fractions: Of train, val and test; sum 1.
        seed: Another seed gives another split.
        near_duplicates: "group", "report" or "off".
        files: Paths or glob patterns of lists.
    """

    grouping: GroupBy | None = None
    source: str | None = None
    fractions: Fractions | None = None
    seed: int | None = None
    near_duplicates: str | None = None
    files: tuple[str, ...] | None = None

    def applied_to(self, rule: SplitConfig) -> SplitConfig:
        """Return the rule with what was chosen.

        Raises:
            InputError: A file cannot be read.
        """
        chosen = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        changed = dataclasses.replace(rule, **{name: value for name, value in chosen.items() if value is not None})
        by_file, by_lists = changed.grouping.by == "file", changed.source == "files"
        if not (by_file or by_lists):
            return dataclasses.replace(changed, files=(), files_hash="", has_files=True)
        if self.grouping is None and self.files is None and not rule.has_files:
            return changed
        named = [changed.grouping.argument] * by_file + (expand(changed.files) if by_lists else [])
        there = (not by_file or self.grouping is not None or rule.has_files) and (not by_lists or bool(changed.files))
        return dataclasses.replace(changed, files_hash=_hash_of(named) if there else "", has_files=there)


def _hash_of(files: Sequence[str]) -> str:
    digest = xxhash.xxh3_128()
    for name in files:
        try:
            check_list(Path(name))
            content = Path(name).read_bytes()
        except OSError as error:
            raise InputError(f"{printable(name)}: {error.strerror}, expected a list of videos") from None
        digest.update(len(content).to_bytes(8, "little") + content)
    return digest.hexdigest()


@dataclasses.dataclass(frozen=True)
class Assignment:
    """A split.

    Attributes:
        group: (N,) int32.
        split: (N,) uint8, values of `Split`.
        notes: What the user should know, a sentence each.
    """

    group: npt.NDArray[np.int32]
    split: npt.NDArray[np.uint8]
    notes: tuple[str, ...]


class Splitter:
    """A rule applied to the names of the videos; the rest follows when they are decoded.

    Args:
        rule: How to split.
        paths: (N,) of all videos, sorted.
        labels: (N,) class of each.
        classes: Names, by label.
        class_depth: Which part of a path is the class.

    Raises:
        InputError: A pattern or a list fits no video, a list cannot be read or contradicts itself, or the rule
            comes from a cache and needs files.
    """

    def __init__(
        self,
        rule: SplitConfig,
        paths: Sequence[bytes],
        labels: Sequence[int],
        classes: Sequence[bytes],
        class_depth: int,
    ) -> None:
        self._rule, self._paths, self._labels, self._classes = rule, paths, np.asarray(labels), classes
        if not rule.has_files:
            raise InputError(
                f"split: by {printable(rule.attributes()['split_by'])} and {rule.source}, but the cache keeps no "
                "files, expected their names. Name them again with --split-file or --by file GROUPS.csv, or choose "
                "another split: --by video --split 70/15/15"
            )
        grouped = group_videos(paths, rule.grouping, class_depth)
        self._groups, self._notes = grouped.ids, []
        if grouped.num_alone:
            self._notes.append(
                f"--by {printable(rule.attributes()['split_by'])} says nothing about "
                f"{plural(grouped.num_alone, 'video')}: each is a group of its own"
            )
        if grouped.unknown:
            verb = "names" if len(grouped.unknown) == 1 else "name"
            self._notes.append(
                f"{plural(len(grouped.unknown), 'line')} of {printable(rule.grouping.argument)} {verb} no video, for "
                f"example {printable(grouped.unknown[0])}"
            )
        self._given: PredefinedSplit | None = None
        if rule.source == "files":
            self._given = read_split_files(rule.files, paths)
            if not (self._given.split == Split.TRAIN).any():
                raise InputError(
                    f"{', '.join(map(printable, rule.files))}: no video is for training, expected some. Give the list "
                    "of the training videos too"
                )
        elif rule.source == "folders":
            self._given = folder_splits(paths, class_depth)
            if not (self._given.split == Split.TRAIN).any():
                expected = "<class>/{train,val,test}/" if class_depth == 0 else "{train,val,test}/<class>/"
                raise InputError(
                    f"split: no video is in a folder train (for example {printable(paths[0])}), expected "
                    f"RAW/{expected}. Choose fractions: --split 70/15/15"
                )
        if self._given:
            self._notes += self._given.notes

    def assign(self, facts: Any, good: npt.NDArray[np.bool_]) -> Assignment:
        """Split the videos.

        Args:
            facts: Columns "status", "perceptual_hash" and "near_group".
            good: (N,) which have a clip.
        """
        rule, groups, notes = self._rule, self._groups, list(self._notes)
        if rule.near_duplicates == "group":
            first = facts["near_group"]
            alike = np.flatnonzero((first >= 0) & (first != np.arange(len(first))))
            if len(alike):
                groups = merge_groups(groups, np.stack([first[alike], alike], axis=1))
                notes += [] if self._given else [_describe_groups(np.union1d(first[alike], alike), groups)]
        where = (self._paths, self._labels, good, groups, rule.fractions, rule.seed)
        if self._given:
            split = fill_missing_splits(self._given, *where)
            parts = ((Split.VAL, self._given.has_val), (Split.TEST, self._given.has_test))
            taken = [part.name.lower() for part, given in parts if not given and (split == part).any()]
            if taken:
                notes.append(f"the given split has no {' and no '.join(taken)}: taken out of train, in whole groups")
        else:
            split = assign_splits(self._paths, self._labels, good, rule.fractions, rule.seed, groups)
            misfits = describe_misfits(self._classes, audit_splits(self._labels, good, split, rule.fractions, groups))
            notes += [misfits] if misfits else []
        notes += _describe_empty(split[good], rule, len(np.unique(groups[good])))
        leaks = 0 if rule.near_duplicates == "off" else len(leaks_between(facts, split).pairs)
        if leaks:
            notes.append(
                f"{plural(leaks, 'pair')} of clips that look alike {'is' if leaks == 1 else 'are'} in different "
                "splits: see vidcache leaks, and --near-duplicates"
            )
        return Assignment(groups, split, tuple(notes))


def _describe_empty(split: npt.NDArray[np.uint8], rule: SplitConfig, num_groups: int) -> list[str]:
    wanted = [part for part in (Split.VAL, Split.TEST) if rule.fractions[part] and not (split == part).any()]
    if not wanted or len(split) < MIN_CLASS_CLIPS:
        return []
    names = " and ".join(part.name.lower() for part in wanted)
    return [
        f"no clip is in {names}, though it was asked for: {plural(num_groups, 'group')} of "
        f"{plural(len(split), 'clip')} cannot be divided better. Group less: --near-duplicates report, or another --by"
    ]


def _describe_groups(clips: npt.NDArray[np.int64], groups: npt.NDArray[np.int32]) -> str:
    sizes = np.bincount(groups)[np.unique(groups[clips])]
    return (
        f"{plural(len(clips), 'clip')} look alike (copies, or cuts of one still scene) and stay together in "
        f"{plural(len(sizes), 'group')}, the largest of {sizes.max():,}"
    )
