"""Splits that come with the data: from lists, or from the folders. Finds the videos that they name."""

import dataclasses
import glob
import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vidcache.cache.format import Split
from vidcache.errors import InputError
from vidcache.preprocess.split.assign import NUM_SPLITS, assign_splits
from vidcache.preprocess.video.lists import (
    SPLIT_WORDS,
    VideoIndex,
    header_of,
    path_names,
    plain_label,
    read_lines,
    read_table,
    split_of_folder,
    split_of_word,
)
from vidcache.text import plural, printable

# What lists and folders call the splits, in any case.
_HMDB_NAME = re.compile(r"(.+)_test_split\d+\.txt")
_HMDB_CODES = {"0": Split.UNUSED, "1": Split.TRAIN, "2": Split.TEST}
_LIST_WORD = re.compile(rf"(?<![a-z])({'|'.join(SPLIT_WORDS)})(?:list)?(?![a-z])")
_EXPECTED = (
    "a CSV with the columns path,split, a Kinetics CSV (youtube_id,split), UCF101 lists (trainlist01.txt) or HMDB51 "
    "lists (<class>_test_split1.txt)"
)


@dataclasses.dataclass(frozen=True)
class Entry:
    """One line of a list.

    Attributes:
        names: What the video may be called, best first: the end of a path, extension or not.
        split: What it is for; `Split.UNUSED` where the list says so.
        where: File and line, for messages.
        label: Kinetics: its class, as `plain_label`; "" for the others.
    """

    names: tuple[bytes, ...]
    split: Split
    where: str
    label: str = ""


def read_entries(file: Path) -> tuple[str, list[Entry]]:
    """Read one list, whatever its format.

    Returns:
        Name of the format, and the lines that name something.

    Raises:
        InputError: It cannot be read, is none of the formats, or a line is wrong.
    """
    lines = read_lines(file)
    header = header_of(lines)
    if "split" in header and "path" in header:
        return "CSV", _read_csv(file)
    if "split" in header and "youtube_id" in header:
        return "Kinetics", _read_kinetics(file)
    if match := _HMDB_NAME.fullmatch(file.name):
        return "HMDB51", _read_hmdb(file, match[1], lines)
    words = set(_LIST_WORD.findall(file.name.lower()))
    if len(words) == 1:
        return "UCF101", _read_list(file, SPLIT_WORDS[words.pop()], lines)
    raise InputError(f"{printable(file)}: unknown format, expected {_EXPECTED}. Rename the list, or name its columns")


def _where(file: Path, line: int) -> str:
    return f"{printable(file)}, line {line}"


def _read_csv(file: Path) -> list[Entry]:
    return [
        Entry(path_names(entry["path"]), split_of_word(entry["split"], _where(file, line)), _where(file, line))
        for line, entry in read_table(file, ("path", "split"))
    ]


def _read_kinetics(file: Path) -> list[Entry]:
    entries = []
    for line, entry in read_table(file, ("youtube_id", "split")):
        name = entry["youtube_id"]
        names = [name]
        try:
            start, end = int(float(entry["time_start"])), int(float(entry["time_end"]))
            names.insert(0, f"{name}_{start:06d}_{end:06d}")
        except (KeyError, ValueError, OverflowError):
            pass  # without times a video has only its name
        split = split_of_word(entry["split"], _where(file, line))
        label = plain_label(entry.get("label", ""))
        entries.append(Entry(tuple(map(os.fsencode, names)), split, _where(file, line), label))
    return entries


def _read_hmdb(file: Path, class_name: str, lines: Sequence[str]) -> list[Entry]:
    entries = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        name, _, code = line.strip().rpartition(" ")
        if not name or code not in _HMDB_CODES:
            raise InputError(
                f"{_where(file, number)}: {printable(line)!r}, expected a video and 0 (unused), 1 (train) or 2 (test). "
                "Correct the line"
            )
        entries.append(Entry((os.fsencode(f"{class_name}/{name.strip()}"),), _HMDB_CODES[code], _where(file, number)))
    return entries


def _read_list(file: Path, split: Split, lines: Sequence[str]) -> list[Entry]:
    entries = []
    for number, line in enumerate(lines, 1):
        name, _, label = line.strip().rpartition(" ")
        if not (name and label.isdecimal()):
            name = line.strip()
        if name:
            entries.append(Entry((os.fsencode(name.strip()),), split, _where(file, number)))
    return entries


UNNAMED = 255


@dataclasses.dataclass(frozen=True)
class PredefinedSplit:
    """What lists or folders say about the videos.

    Attributes:
        split: (N,) uint8 values of `Split`; `UNNAMED` where nothing is said.
        num_unknown: Lines that name no video.
        formats: Of the lists that were read, sorted; or "folders".
    """

    split: npt.NDArray[np.uint8]
    num_unknown: int = 0
    formats: tuple[str, ...] = ()

    @property
    def num_unnamed(self) -> int:
        """Videos about which nothing is said."""
        return int((self.split == UNNAMED).sum())

    @property
    def has_val(self) -> bool:
        """Whether a video is for validation."""
        return bool((self.split == Split.VAL).any())

    @property
    def has_test(self) -> bool:
        """Whether a video is for the test."""
        return bool((self.split == Split.TEST).any())

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know, a sentence each."""
        unknown, unnamed, lists = self.num_unknown, self.num_unnamed, ", ".join(self.formats)
        notes = []
        if unknown:
            notes.append(
                f"{plural(unknown, 'line')} of the lists ({lists}) {'names' if unknown == 1 else 'name'} no video"
            )
        if unnamed:
            where = "folder train, val or test" if lists == "folders" else "list"
            notes.append(f"{plural(unnamed, 'video')} {'is' if unnamed == 1 else 'are'} in no {where}: not used")
        return tuple(notes)


def read_split_files(patterns: Sequence[str], paths: Sequence[bytes]) -> PredefinedSplit:
    """Read lists and find the videos that they name.

    A video is named by its path, or the end of its path after a "/"; if there is none of that
    name, by a name that differs in the extension (data sets get converted).

    Args:
        patterns: Files, or patterns as of the shell.
        paths: (N,) relative paths.

    Raises:
        InputError: A pattern has no file, a file is no list, a name fits two videos, a video has two
            splits, or no name fits any.
    """
    formats, entries = set(), []
    for file in expand(patterns):
        name, found = read_entries(Path(file))
        formats.add(name)
        entries += found
    index = VideoIndex(paths, frozenset(entry.label for entry in entries if entry.label))
    split = np.full(len(paths), UNNAMED, np.uint8)
    first: dict[int, Entry] = {}
    num_unknown = 0
    for entry in entries:
        row = index.find(entry.names, entry.where, entry.label)
        if row is None:
            num_unknown += 1
        elif first.setdefault(row, entry).split != entry.split:
            raise InputError(
                f"{entry.where}: {printable(paths[row])} is {_name(entry.split)}, and {_name(first[row].split)} in "
                f"{first[row].where}, expected one split for a video. Give the lists of one division of the data only"
            )
        else:
            split[row] = entry.split
    if not first:
        raise InputError(
            f"{', '.join(map(printable, patterns))}: none of {plural(len(entries), 'line')}{_example(entries)} names "
            f"one of {plural(len(paths), 'video')}{f' ({printable(paths[0])})' if paths else ''}, expected paths, or "
            "ends of paths, below the raw folder. Check that these lists belong to these videos"
        )
    return PredefinedSplit(split, num_unknown, tuple(sorted(formats)))


def _example(entries: Sequence[Entry]) -> str:
    return f" ({printable(entries[0].names[0])})" if entries else ""


def _name(split: Split) -> str:
    return split.name.lower()


def expand(patterns: Sequence[str]) -> list[str]:
    """Return the files that are meant, each pattern's sorted.

    Raises:
        InputError: A pattern has no file.
    """
    expanded: list[str] = []
    for pattern in patterns:
        # A file that exists is meant literally: names of data sets hold brackets.
        files = [pattern] if os.path.exists(pattern) else sorted(glob.glob(pattern))
        if not files:
            raise InputError(
                f"{printable(pattern)}: no such file, expected a list of videos, or a pattern of lists. Check the path"
            )
        expanded += files
    return expanded


def folder_splits(paths: Sequence[bytes], class_depth: int = 1) -> PredefinedSplit:
    """Return what the folders say: train, val, test or another name of them.

    Args:
        paths: (N,) relative paths.
        class_depth: Which part of a path is the class. 0: the folder in it says the split, RAW/<class>/<split>/;
            else the first one.
    """
    part = 1 if class_depth == 0 else 0
    folders = [path.split(b"/")[:-1][part : part + 1] for path in paths]
    splits = [split_of_folder(*name) if name else None for name in folders]
    return PredefinedSplit(np.array([UNNAMED if s is None else s for s in splits], np.uint8), formats=("folders",))


def fill_missing_splits(
    given: PredefinedSplit,
    paths: Sequence[bytes],
    labels: npt.ArrayLike,
    good: npt.ArrayLike,
    groups: npt.ArrayLike | None,
    fractions: Sequence[float],
    seed: int,
) -> npt.NDArray[np.uint8]:
    """Take out of train what the given splits lack: val, test or both. Nothing else changes.

    In the proportion of the fractions: of 70/15/15, 15/85 of train becomes a missing val. Whole
    groups, as in `assign_splits`.

    Args:
        given: What lists or folders say.
        paths: (N,) relative paths.
        labels: (N,) class of each.
        good: (N,) whether it has a clip.
        groups: (N,) group of each. None: every video is one.
        fractions: Of train, val and test; sum 1.
        seed: As of `assign_splits`.

    Returns:
        (N,) values of `Split`; `Split.UNUSED` for what is not named.

    Raises:
        InputError: No video is for training.
    """
    split = np.where(given.split == UNNAMED, np.uint8(Split.UNUSED), given.split)
    train = np.flatnonzero(split == Split.TRAIN)
    if not len(train):
        counts = np.bincount(split, minlength=NUM_SPLITS + 1).tolist()
        raise InputError(
            f"given splits: 0 train, {counts[1]:,} val, {counts[2]:,} test, {counts[3]:,} unused, expected videos to "
            "train on. Give the list of the training videos too"
        )
    present = (True, given.has_val, given.has_test)
    parts = [fractions[Split.TRAIN], *(0 if present[s] else fractions[s] for s in (Split.VAL, Split.TEST))]
    split[train] = assign_splits(
        [paths[row] for row in train.tolist()],
        np.asarray(labels)[train],
        np.asarray(good)[train],
        [part / sum(parts) for part in parts],
        seed,
        None if groups is None else np.asarray(groups)[train],
    )
    return split
