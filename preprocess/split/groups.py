r"""Which videos belong together: cuts of one recording, takes of one person. Never parted by the split.

Reads names, and the user's list of groups; never a video.
"""

import dataclasses
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from vidcache.errors import InputError
from vidcache.preprocess.video.lists import VideoIndex, path_names, read_table
from vidcache.text import plural, printable

By = Literal["video", "folder", "regex", "file"]


@dataclasses.dataclass(frozen=True)
class GroupBy:
    """The rule that says which videos belong together.

    Attributes:
        by: "video" (each alone), "folder" (below the class folder), "regex" or "file".
        argument: The pattern, or the path of the file; "" for the others.
    """

    by: By
    argument: str = ""


@dataclasses.dataclass(frozen=True)
class Groups:
    """Videos with their groups.

    Attributes:
        ids: (N,) int32 group of each video, numbered by first appearance.
        num_alone: Videos that the rule says nothing about: each is its own group.
        unknown: Paths in the file of groups that are no video.
    """

    ids: npt.NDArray[np.int32]
    num_alone: int
    unknown: tuple[bytes, ...] = ()


def parse_grouping(text: str) -> GroupBy:
    r"""Read "video", "folder", "regex PATTERN" or "file GROUPS.csv".

    Raises:
        ValueError: Anything else, an invalid pattern, or one without a capture group.

    >>> parse_grouping(r"regex _g(\d+)_")
    Grouping(by='regex', argument='_g(\\d+)_')
    """
    word, _, argument = text.strip().partition(" ")
    argument = argument.strip()
    match word, argument:
        case ("video" | "folder") as by, "":
            return GroupBy(by)
        case "file", path if path:
            return GroupBy("file", path)
        case "regex", pattern if pattern:
            _compile(pattern)
            return GroupBy("regex", pattern)
    raise ValueError(f"group by {text!r}, expected video, folder, 'regex PATTERN' or 'file GROUPS.csv'")


_MAX_PATTERN = 4000  # a cache keeps it


def _compile(pattern: str) -> re.Pattern[str]:
    if len(pattern) > _MAX_PATTERN:
        raise ValueError(
            f"group by regex {pattern[:40]!r}...: {len(pattern):,} letters, expected at most {_MAX_PATTERN:,}. "
            "Group by 'file GROUPS.csv'"
        )
    try:
        compiled = re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"group by regex {pattern!r}: {error}, expected a regular expression of Python") from None
    if not compiled.groups:
        raise ValueError(
            f"group by regex {pattern!r}: no capture group, expected one. Put what names the group in "
            r"parentheses, like '_g(\d+)_'"
        )
    return compiled


def group_videos(paths: Sequence[bytes], grouping: GroupBy, class_depth: int = 0) -> Groups:
    """Find the group of every video.

    A folder is a group of its own class: two classes may both have a folder "take1". What a
    pattern or a file names is one group in all classes.

    Args:
        paths: (N,) paths below the raw folder, "/" between the parts.
        grouping: The rule.
        class_depth: Which part of a path is the class: 0 in raw/<class>/, 1 in raw/<split>/<class>/; -1: none,
            the whole folder of a video is its group. Folders of one name in one class are one group, also when they
            lie in two splits.

    Raises:
        InputError: The pattern or the file fits no video, or the file cannot be read or contradicts itself.
        ValueError: The pattern is none.
    """
    unknown: tuple[bytes, ...] = ()
    keys: Sequence[object]  # what names the group; None: nothing does
    match grouping.by:
        case "video":
            return Groups(np.arange(len(paths), dtype=np.int32), 0)
        case "folder":
            keys = [_folder_of(path, class_depth) for path in paths]
        case "regex":
            keys = _matches(paths, grouping.argument)
        case "file":
            groups, unknown = _read_groups(grouping.argument, paths)
            if not groups:
                raise InputError(
                    f"{printable(grouping.argument)}: none of its {plural(len(unknown), 'path')} is one of the "
                    f"{plural(len(paths), 'video')}{_example(unknown)}, expected paths below the raw folder"
                    f"{_example(paths)}. Correct the column 'path'"
                )
            keys = [groups.get(row) for row in range(len(paths))]
    ids = _numbered([row if key is None else (key,) for row, key in enumerate(keys)])
    return Groups(ids, sum(key is None for key in keys), unknown)


def _example(paths: Sequence[bytes]) -> str:
    return f" (for example {printable(paths[0])})" if paths else ""


def _folder_of(path: bytes, class_depth: int) -> tuple[bytes, bytes] | None:
    if class_depth < 0:
        folder = os.path.dirname(path)
        return (b"", folder) if folder else None
    parts = path.split(b"/")[class_depth:]
    return (parts[0], parts[1]) if len(parts) > 2 else None


def _matches(paths: Sequence[bytes], pattern: str) -> list[str | None]:
    compiled = _compile(pattern)
    found = [compiled.search(os.fsdecode(path)) for path in paths]
    if not any(found):
        raise InputError(
            f"group by regex {pattern!r}: matches none of {plural(len(paths), 'path')}{_example(paths)}, expected a "
            "pattern that finds the group somewhere in the path. Try it on one path, or group by folder or file"
        )
    return [match[1] or None if match else None for match in found]


def _read_groups(file: str, paths: Sequence[bytes]) -> tuple[dict[int, str | None], tuple[bytes, ...]]:
    """Read row -> group, None where the file leaves the group empty; and the paths that are no video."""
    groups: dict[int | bytes, str | None] = {}
    index = VideoIndex(paths)
    for line, entry in read_table(Path(file), ("path", "group")):
        where, names, group = f"{printable(file)}, line {line}", path_names(entry["path"]), entry["group"] or None
        row = index.find(names, where)
        video = names[-1] if row is None else row
        if groups.setdefault(video, group) != group:
            name = printable(names[-1] if row is None else paths[row])
            raise InputError(
                f"{where}: {name} is in group {printable(group or '')!r} and in "
                f"{printable(groups[video] or '')!r}, expected one group for a video. Remove one of the lines"
            )
    return (
        {row: group for row, group in groups.items() if isinstance(row, int)},
        tuple(sorted(name for name in groups if isinstance(name, bytes))),
    )


def merge_groups(ids: npt.ArrayLike, pairs: npt.ArrayLike) -> npt.NDArray[np.int32]:
    """Join the groups of videos that belong together after all: near-duplicates, for example.

    Args:
        ids: (N,) group of each video.
        pairs: (P, 2) rows.

    Returns:
        (N,) groups, numbered by first appearance.
    """
    groups = np.unique(np.asarray(ids), return_inverse=True)[1].reshape(-1)
    parents = list(range(len(groups)))

    def root(group: int) -> int:
        while parents[group] != group:
            parents[group] = group = parents[parents[group]]
        return group

    for first, second in groups[np.asarray(pairs, np.int64).reshape(-1, 2)].tolist():
        parents[root(first)] = root(second)
    return _numbered([root(group) for group in groups.tolist()])


def _numbered(keys: Sequence[object]) -> npt.NDArray[np.int32]:
    numbers: dict[object, int] = {}
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], np.int32)
