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

from vidcache.cache.builds import Manifest
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
    """

    def __init__(self, config: SplitConfig, manifest: Manifest) -> None:
        self._config, self._paths, self._classes = config, manifest.paths, manifest.classes
        self._labels, class_depth = np.array(manifest.labels), int(manifest.attributes["class_depth"])
        if not config.has_files:
            raise InputError(
                f"split: by {printable(str(config.group_by))} and {config.source}, but the cache does not store the "
                "lists. Pass them again with --split-file or --group-by file:GROUPS.csv, or choose another split: "
                "--group-by video --split 70/15/15"
            )
        self._groups, self._notes = group_videos(self._paths, config.group_by, class_depth)
        self._listed: npt.NDArray[np.uint8] | None = None
        if config.source == "fractions":
            return
        if config.source == "files":
            listed, notes = read_split_files(config.files, self._paths)
            where, advice = ", ".join(map(printable, config.files)), "Give the list of the training videos too"
        else:
            (listed, notes), where = folder_splits(self._paths, class_depth), "split"
            layout = "<class>/{train,val,test}/" if class_depth == 0 else "{train,val,test}/<class>/"
            advice = f"The folders must be RAW/{layout}; or choose fractions: --split 70/15/15"
        if not (listed == Split.TRAIN).any():
            example = printable(self._paths[0])
            raise InputError(f"{where}: no video is for training (for example {example}). {advice}")
        self._listed = np.minimum(listed, Split.UNUSED)
        self._notes += notes

    def assign(self, facts: Any, good: npt.NDArray[np.bool_]) -> Assignment:
        """Split the videos by columns "status", "perceptual_hash" and "near_group", and (N,) which have a clip."""
        config, groups, notes, listed = self._config, self._groups, list(self._notes), self._listed
        if config.near_duplicates == "group":
            first = facts["near_group"]
            alike = np.flatnonzero((first >= 0) & (first != np.arange(len(first))))
            groups = merge_groups(groups, np.stack([first[alike], alike], axis=1)) if len(alike) else groups
            if len(alike) and listed is None:
                clips = np.union1d(first[alike], alike)
                sizes = np.bincount(groups)[np.unique(groups[clips])]
                notes.append(
                    f"{plural(len(clips), 'clip')} look alike (copies, or cuts of one still scene) and stay together "
                    f"in {plural(len(sizes), 'group')}, the largest of {sizes.max():,}"
                )
        if listed is None:
            split = assign_splits(self._paths, self._labels, good, config.fractions, config.seed, groups)
            notes += describe_misfits(self._classes, self._labels[good], split[good], config.fractions)
        else:
            split = self._fill(listed, good, groups)
            filled = [part.name.lower() for part in Split if part in split and part not in listed]
            if filled:
                notes.append(f"the given split has no {' and no '.join(filled)}: taken out of train, in whole groups")
        empty = [p.name.lower() for p in (Split.VAL, Split.TEST) if config.fractions[p] and p not in split[good]]
        if empty and good.sum() >= MIN_CLASS_CLIPS:
            num_groups = plural(len(np.unique(groups[good])), "group")
            notes.append(
                f"no clip is in {' and '.join(empty)}: {num_groups} of {plural(int(good.sum()), 'clip')} are too few. "
                "Use a finer --group-by, or --near-duplicates report"
            )
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
