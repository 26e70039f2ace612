"""Labels by a list, as most public data sets come: a CSV with the columns path,label[,split][,group]."""

import dataclasses
import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from vidcache.errors import InputError
from vidcache.preprocess.split_files import path_names, split_of_word
from vidcache.preprocess.table import read_table
from vidcache.preprocess.video_index import VideoIndex
from vidcache.text import plural, printable


@dataclasses.dataclass(frozen=True)
class Labels:
    """What a list says about the videos of a folder.

    Attributes:
        file: The list.
        classes: (N,) class of each video; None for those that it does not name.
        has_split: Whether it has a column "split".
        has_group: Whether it has a column "group".
    """

    file: str
    classes: tuple[bytes | None, ...]
    has_split: bool = False
    has_group: bool = False


def read_labels(file: Path, paths: Sequence[bytes], unfollowed: Sequence[bytes] = ()) -> Labels:
    """Read a list and find the videos that it names.

    Args:
        file: CSV; commas, semicolons or tabulators.
        paths: (N,) of the videos, below the raw folder.
        unfollowed: Paths of links that were not followed, for messages.

    Raises:
        InputError: It cannot be read, or a line names no video or one of several, has no label, an unknown split, or
            another label than an earlier line has for this video, or a label with control characters.
    """
    index, name_of_list = VideoIndex(paths), printable(file)
    classes: list[bytes | None] = [None] * len(paths)
    lines: dict[int, int] = {}
    missing: list[tuple[str, bytes]] = []
    entries = read_table(file, ("path", "label"))
    for line, entry in entries:
        where, names, label = f"{name_of_list}, line {line}", path_names(entry["path"]), os.fsencode(entry["label"])
        if not label:
            raise InputError(f"{where}: no label for {printable(names[-1])}. Write one, or remove the line")
        if any(unicodedata.category(letter) == "Cc" for letter in entry["label"]):
            raise InputError(
                f"{where}: label {printable(label)} has control characters, which no class name can have. Remove them"
            )
        if "split" in entry:
            split_of_word(entry["split"], where)
        row = index.find(names, where)
        if row is None:
            missing.append((where, names[-1]))
        elif classes[row] not in (None, label):
            raise InputError(
                f"{where}: {printable(paths[row])} has label {printable(label)!r}, and "
                f"{printable(classes[row] or b'')!r} in line {lines[row]}. Remove one of the "
                "lines"
            )
        else:
            classes[row], lines[row] = label, line
    if missing:
        raise InputError(_describe_missing(missing, paths, unfollowed))
    if not lines:
        raise InputError(f"{printable(file)}: names no video. Write a line path,label for each")
    header = entries[0][1]
    return Labels(os.fspath(file), tuple(classes), "split" in header, "group" in header)


def _describe_missing(missing: Sequence[tuple[str, bytes]], paths: Sequence[bytes], unfollowed: Sequence[bytes]) -> str:
    where, name = missing[0]
    more = f"; {plural(len(missing), 'line')} in all" if len(missing) > 1 else ""
    behind = [link for link in unfollowed if name.startswith(link + b"/")]
    if behind:
        return (
            f"{where}: {printable(name)} lies behind the link {printable(behind[0])}, which is not followed{more}. "
            "Follow links with --follow-links"
        )
    example = f" (like {printable(paths[0])})" if paths else ""
    return (
        f"{where}: {printable(name)} names no video{more}. Write paths below the raw folder{example}, or remove the "
        "lines of videos that are not there"
    )
