"""How a cache is split: which videos stay together and what decides where they go. Stored as attributes of the cache.

Names and lists are checked before anything is decoded; near-duplicates are known afterwards.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self, TypedDict

import numpy as np
import numpy.typing as npt
import xxhash

from vidcache.cache.format import Split
from vidcache.cache.leakage import leaks_between
from vidcache.errors import CacheError, InputError
from vidcache.preprocess.split.assign import MIN_CLASS_CLIPS, assign_splits, describe_misfits
from vidcache.preprocess.split.groups import GroupBy, group_videos, merge_groups, parse_group_by
from vidcache.preprocess.split.predefined import expand, folder_splits, read_split_files
from vidcache.preprocess.video.classes import check_list
from vidcache.text import plural, printable

SOURCES = ("fractions", "folders", "files")
NEAR_DUPLICATES = ("group", "report", "off")

Fractions = tuple[float, float, float]


class SplitOverrides(TypedDict, total=False):
    """Fields of `SplitConfig` to change; the others stay as they are in the cache, or the default."""

    group_by: GroupBy
    source: str
    fractions: Fractions
    seed: int
    near_duplicates: str
    files: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class SplitConfig:
    """How to split.

    Attributes:
        group_by: Which videos are never parted.
        source: What decides where a video goes: "fractions" (and the seed), "folders" (RAW/{train,val,test}/<class>/)
            or "files" (lists).
        fractions: Of train, val and test; sum 1. With folders or files: for the splits that they lack.
        seed: Another seed gives another split.
        near_duplicates: "group": clips that look alike are not parted; "report": they are counted; "off".
        files: Paths or glob patterns of lists.
        files_hash: Hash of the contents of all files, lists and groups; "" without any.
        has_files: Whether the files can be read: a cache stores only their hash.
    """

    group_by: GroupBy = GroupBy("video")
    source: str = "fractions"
    fractions: Fractions = (0.70, 0.15, 0.15)
    seed: int = 0
    near_duplicates: str = "group"
    files: tuple[str, ...] = ()
    files_hash: str = ""
    has_files: bool = True

    def attributes(self) -> dict[str, Any]:
        """Return the root attributes that a cache stores."""
        return {
            "split_by": str(self.group_by),
            "split_source": self.source,
            "split_fractions": [round(fraction, 9) for fraction in self.fractions],
            "split_seed": self.seed,
            "split_near_duplicates": self.near_duplicates,
            "split_files_hash": self.files_hash,
        }

    @classmethod
    def from_attributes(cls, attributes: dict[str, Any]) -> Self:
        """Read the attributes of a cache; of its files only the hash is known.

        Raises:
            CacheError: One is missing or invalid.
        """
        try:
            train, val, test = map(float, attributes["split_fractions"])
            source, near_duplicates = attributes["split_source"], attributes["split_near_duplicates"]
            if source not in SOURCES or near_duplicates not in NEAR_DUPLICATES:
                raise ValueError(f"{source!r} and {near_duplicates!r}")
            group_by, files_hash = parse_group_by(attributes["split_by"]), str(attributes["split_files_hash"])
            if ("file" in (group_by.by, source.removesuffix("s"))) != bool(files_hash):
                raise ValueError("a file without its hash, or a hash without its file")  # its name is never opened
            seed, has_files = int(attributes["split_seed"]), not files_hash
        except (KeyError, TypeError, ValueError) as error:
            raise CacheError(
                f"the cache has no valid split settings ({printable(str(error))}). Build it again with --overwrite"
            ) from None
        return cls(group_by, source, (train, val, test), seed, near_duplicates, (), files_hash, has_files)

    def override(self, overrides: SplitOverrides) -> "SplitConfig":
        """Return the configuration with some fields changed, and the hash of the files that it then needs.

        Raises:
            InputError: A file cannot be read.
        """
        config = dataclasses.replace(self, **overrides)
        needs_groups, needs_lists = config.group_by.by == "file", config.source == "files"
        if not (needs_groups or needs_lists):
            return dataclasses.replace(config, files=(), files_hash="", has_files=True)
        if not (self.has_files or "group_by" in overrides or "files" in overrides):
            return config
        has_groups = not needs_groups or self.has_files or "group_by" in overrides
        if not has_groups or (needs_lists and not config.files):
            return dataclasses.replace(config, files_hash="", has_files=False)
        files = [config.group_by.argument] * needs_groups + (expand(config.files) if needs_lists else [])
        return dataclasses.replace(config, files_hash=_hash_files(files), has_files=True)


def _hash_files(files: Sequence[str]) -> str:
    digest = xxhash.xxh3_128()
    for name in files:
        try:
            check_list(Path(name))
            content = Path(name).read_bytes()
        except OSError as error:
            raise InputError(f"{printable(name)}: {error.strerror}. Check the path of the list") from None
        digest.update(len(content).to_bytes(8, "little") + content)
    return digest.hexdigest()


class Assignment(NamedTuple):
    """A split: (N,) groups, (N,) values of `Split`, and what the user should know, a sentence each."""

    group: npt.NDArray[np.int32]
    split: npt.NDArray[np.uint8]
    notes: tuple[str, ...]


class Splitter:
    """A configuration applied to the names of all videos; `assign` follows when they are decoded.

    Raises InputError where a pattern or a list matches no video, a list cannot be read or contradicts itself, or the
    configuration comes from a cache and needs files.

    Args:
        config: How to split.
        paths: (N,) sorted.
        labels: (N,) class of each.
        classes: Names, by label.
        class_depth: Which part of a path is the class.
    """

    def __init__(
        self,
        config: SplitConfig,
        paths: Sequence[bytes],
        labels: Sequence[int],
        classes: Sequence[bytes],
        class_depth: int,
    ) -> None:
        self._config, self._paths, self._labels, self._classes = config, paths, np.asarray(labels), classes
        if not config.has_files:
            raise InputError(
                f"split: by {printable(str(config.group_by))} and {config.source}, but the cache does not store the "
                "lists. Pass them again with --split-file or --group-by file:GROUPS.csv, or choose another split: "
                "--group-by video --split 70/15/15"
            )
        self._groups, self._notes = group_videos(paths, config.group_by, class_depth)
        self._predefined = None
        if config.source == "files":
            self._predefined, where = read_split_files(config.files, paths), ", ".join(map(printable, config.files))
            advice = "Give the list of the training videos too"
        elif config.source == "folders":
            self._predefined, where = folder_splits(paths, class_depth), "split"
            layout = "<class>/{train,val,test}/" if class_depth == 0 else "{train,val,test}/<class>/"
            advice = f"The folders must be RAW/{layout}; or choose fractions: --split 70/15/15"
        if self._predefined:
            if not (self._predefined.split == Split.TRAIN).any():
                raise InputError(f"{where}: no video is for training (for example {printable(paths[0])}). {advice}")
            self._notes += self._predefined.notes

    def assign(self, facts: Any, good: npt.NDArray[np.bool_]) -> Assignment:
        """Split the videos.

        Args:
            facts: Columns "status", "perceptual_hash" and "near_group".
            good: (N,) which have a clip.
        """
        config, groups, notes = self._config, self._groups, list(self._notes)
        listed = np.minimum(self._predefined.split, Split.UNUSED) if self._predefined else None
        if config.near_duplicates == "group":
            first = facts["near_group"]
            alike = np.flatnonzero((first >= 0) & (first != np.arange(len(first))))
            if len(alike):
                groups = merge_groups(groups, np.stack([first[alike], alike], axis=1))
                notes += [] if self._predefined else [_describe_groups(np.union1d(first[alike], alike), groups)]
        if listed is None:
            split = assign_splits(self._paths, self._labels, good, config.fractions, config.seed, groups)
            notes += describe_misfits(self._classes, self._labels[good], split[good], config.fractions)
        else:
            split = self._fill(listed, good, groups)
            filled = [part.name.lower() for part in Split if part in split and part not in listed]
            if filled:
                notes.append(f"the given split has no {' and no '.join(filled)}: taken out of train, in whole groups")
        notes += _describe_empty(split[good], config, len(np.unique(groups[good])))
        leaks = 0 if config.near_duplicates == "off" else len(leaks_between(facts, split).pairs)
        if leaks:
            notes.append(
                f"{plural(leaks, 'pair')} of clips that look alike {'is' if leaks == 1 else 'are'} in different "
                "splits: see vidcache leaks, and --near-duplicates"
            )
        return Assignment(groups, split, tuple(notes))

    def _fill(
        self, listed: npt.NDArray[np.uint8], good: npt.NDArray[np.bool_], groups: npt.NDArray[np.int32]
    ) -> npt.NDArray[np.uint8]:
        """Take the splits that the lists lack out of train: of 70/15/15, 15/85 of train becomes a missing val."""
        parts = [
            0 if part != Split.TRAIN and part in listed else fraction
            for part, fraction in enumerate(self._config.fractions)
        ]
        fractions = [part / sum(parts) for part in parts]
        rows, split = np.flatnonzero(listed == Split.TRAIN), listed.copy()
        paths = [self._paths[row] for row in rows.tolist()]
        split[rows] = assign_splits(paths, self._labels[rows], good[rows], fractions, self._config.seed, groups[rows])
        return split


def _describe_empty(split: npt.NDArray[np.uint8], config: SplitConfig, num_groups: int) -> list[str]:
    empty = [part.name.lower() for part in (Split.VAL, Split.TEST) if config.fractions[part] and part not in split]
    if not empty or len(split) < MIN_CLASS_CLIPS:
        return []
    return [
        f"no clip is in {' and '.join(empty)}: {plural(num_groups, 'group')} of {plural(len(split), 'clip')} are too "
        "few. Use a finer --group-by, or --near-duplicates report"
    ]


def _describe_groups(clips: npt.NDArray[np.int64], groups: npt.NDArray[np.int32]) -> str:
    sizes = np.bincount(groups)[np.unique(groups[clips])]
    return (
        f"{plural(len(clips), 'clip')} look alike (copies, or cuts of one still scene) and stay together in "
        f"{plural(len(sizes), 'group')}, the largest of {sizes.max():,}"
    )
