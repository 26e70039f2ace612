"""Splits that come with the data: from lists, or from the folders."""

import contextlib
import glob
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from vidcache.cache.format import Split
from vidcache.errors import InputError
from vidcache.preprocess.video.classes import (
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

UNLISTED = 255

_HMDB51_NAME = re.compile(r"(.+)_test_split\d+\.txt")
_HMDB51_CODES = {"0": Split.UNUSED, "1": Split.TRAIN, "2": Split.TEST}
_UCF101_NAME = re.compile(rf"(?<![a-z])({'|'.join(SPLIT_WORDS)})(?:list)?(?![a-z])")


class Entry(NamedTuple):
    """One line of a list: possible names of the video, best first, its split, file and line, and its Kinetics class."""

    names: tuple[bytes, ...]
    split: Split
    where: str
    label: str = ""


def read_entries(file: Path) -> list[Entry]:
    """Read one list, whatever its format. Raises InputError."""
    lines = read_lines(file)
    header = header_of(lines)
    if "split" in header and "path" in header:
        return _read_csv(file, "path")
    if "split" in header and "youtube_id" in header:
        return _read_csv(file, "youtube_id")
    if match := _HMDB51_NAME.fullmatch(file.name):
        return _read_text(file, lines, match[1], _HMDB51_CODES)
    words = set(_UCF101_NAME.findall(file.name.lower()))
    if len(words) == 1:
        return _read_text(file, lines, "", {"": SPLIT_WORDS[words.pop()]})
    raise InputError(
        f"{printable(file)}: unknown format, not a CSV with the columns path,split, a Kinetics CSV (youtube_id,split), "
        "a UCF101 list (trainlist01.txt) or an HMDB51 list (<class>_test_split1.txt). Rename the file or its columns"
    )


def _read_csv(file: Path, column: str) -> list[Entry]:
    entries = []
    for line, row in read_table(file, (column, "split")):
        where = f"{printable(file)}, line {line}"
        split = split_of_word(row["split"], where)
        if column == "path":
            entries.append(Entry(path_names(row["path"]), split, where))
            continue
        name = os.fsencode(row["youtube_id"])
        names: tuple[bytes, ...] = (name,)
        with contextlib.suppress(KeyError, ValueError, OverflowError):  # without times a video has only its name
            names = (b"%s_%06d_%06d" % (name, int(float(row["time_start"])), int(float(row["time_end"]))), name)
        entries.append(Entry(names, split, where, plain_label(row.get("label", ""))))
    return entries


def _read_text(file: Path, lines: Sequence[str], class_name: str, codes: dict[str, Split]) -> list[Entry]:
    """Read lines "video code" of HMDB51, or "class/video" of UCF101, which may end in the number of a class."""
    entries = []
    for number, line in enumerate(map(str.strip, lines), 1):
        name, _, code = line.rpartition(" ")
        if not class_name:
            name, code = name if name and code.isdecimal() else line, ""
        if line and (not name or code not in codes):
            where = f"{printable(file)}, line {number}"
            raise InputError(f"{where}: {printable(line)!r} is not a video and 0 (unused), 1 (train) or 2 (test)")
        if line:
            name = os.path.join(class_name, name.strip())
            entries.append(Entry((os.fsencode(name),), codes[code], f"{printable(file)}, line {number}"))
    return entries


class PredefinedSplit(NamedTuple):
    """The split that lists or folders give, and what the user should know, a sentence each."""

    split: npt.NDArray[np.uint8]  # (N,) values of `Split`; `UNLISTED` for videos that they leave out
    notes: tuple[str, ...]


def read_split_files(patterns: Sequence[str], paths: Sequence[bytes]) -> PredefinedSplit:
    """Read lists and find the videos that they name.

    A video is named by its path, or the end of its path after a "/"; if there is none of that name, by a name that
    differs in the extension (data sets get converted).

    Raises:
        InputError: A pattern has no file, a file is no list, a name matches two videos, a video has two splits, or no
            name matches a video.
    """
    entries = [entry for file in expand(patterns) for entry in read_entries(Path(file))]
    index = VideoIndex(paths, frozenset(entry.label for entry in entries if entry.label))
    split = np.full(len(paths), UNLISTED, np.uint8)
    first: dict[int, Entry] = {}
    num_unknown = 0
    for entry in entries:
        row = index.find(entry.names, entry.where, entry.label)
        if row is None:
            num_unknown += 1
        elif first.setdefault(row, entry).split != entry.split:
            raise InputError(
                f"{entry.where}: {printable(paths[row])} is {entry.split.name.lower()}, but "
                f"{first[row].split.name.lower()} in {first[row].where}. Give the lists of one split of the data only"
            )
        else:
            split[row] = entry.split
    if not first:
        example = f" ({printable(entries[0].names[0])})" if entries else ""
        raise InputError(
            f"{', '.join(map(printable, patterns))}: none of {plural(len(entries), 'line')}{example} names one of "
            f"{plural(len(paths), 'video')}{f' ({printable(paths[0])})' if paths else ''}. Lists must hold paths below "
            "the raw folder, or the ends of these paths"
        )
    notes = [f"{plural(num_unknown, 'line')} of the lists without a video"] if num_unknown else []
    return PredefinedSplit(split, (*notes, *_unlisted_note(split, "list")))


def folder_splits(paths: Sequence[bytes], class_depth: int = 1) -> PredefinedSplit:
    """Return the split that the names of folders give: RAW/<class>/<split>/ for class depth 0, else RAW/<split>/."""
    part = 1 if class_depth == 0 else 0
    folders = [path.split(b"/")[:-1][part : part + 1] for path in paths]
    splits = [split_of_folder(*name) if name else None for name in folders]
    split = np.array([UNLISTED if s is None else s for s in splits], np.uint8)
    return PredefinedSplit(split, _unlisted_note(split, "folder train, val or test"))


def _unlisted_note(split: npt.NDArray[np.uint8], where: str) -> tuple[str, ...]:
    count = int((split == UNLISTED).sum())
    return (f"{plural(count, 'video')} {'is' if count == 1 else 'are'} in no {where}: not used",) if count else ()


def expand(patterns: Sequence[str]) -> list[str]:
    """Return the files that match, each pattern's sorted; raises InputError where there is none."""
    expanded: list[str] = []
    for pattern in patterns:
        # A file that exists is meant literally: names of data sets hold brackets.
        files = [pattern] if os.path.exists(pattern) else sorted(glob.glob(pattern))
        if not files:
            raise InputError(f"{printable(pattern)}: no such file. Check the path, or the pattern, of the lists")
        expanded += files
    return expanded
