"""Which videos belong together: cuts of one recording, takes of one person. A split never parts them.

Reads names and the user's list of groups, never a video.
"""

import dataclasses
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from vidcache.cache.leakage import connected
from vidcache.errors import InputError
from vidcache.preprocess.video.classes import VideoIndex, path_names, read_table
from vidcache.text import plural, printable

_MAX_PATTERN = 4000  # a cache keeps it


@dataclasses.dataclass(frozen=True)
class GroupBy:
    """The rule that says which videos belong together."""

    by: Literal["video", "folder", "regex", "file"]  # each alone, those in one folder below the class folder, ...
    argument: str = ""  # the pattern, or the path of the file

    def __str__(self) -> str:
        """As a cache stores it: "regex PATTERN", or "file" and the name without its folder."""
        return f"{self.by} {Path(self.argument).name if self.by == 'file' else self.argument}".rstrip()


def parse_group_by(text: str) -> GroupBy:
    r"""Read "video", "folder", "regex:PATTERN" or "file:GROUPS.csv".

    A blank instead of the colon is read too: caches store "regex PATTERN".

    Raises:
        ValueError: Anything else, an invalid pattern, or one without a capture group.

    >>> parse_group_by(r"regex:_g(\d+)_")
    GroupBy(by='regex', argument='_g(\\d+)_')
    """
    match re.split("[: ]", text.strip(), maxsplit=1):
        case ["video" | "folder" as by]:
            return GroupBy(by)
        case ["file", argument] if argument.strip():
            return GroupBy("file", argument.strip())
        case ["regex", argument] if argument.strip():
            _compile(argument.strip())
            return GroupBy("regex", argument.strip())
    raise ValueError(f"group by {text!r}: not video, folder, regex:PATTERN or file:GROUPS.csv")


def _compile(pattern: str) -> re.Pattern[str]:
    if len(pattern) > _MAX_PATTERN:
        raise ValueError(f"group by regex {pattern[:40]!r}...: over {_MAX_PATTERN:,} characters. Use file:GROUPS.csv")
    try:
        compiled = re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"group by regex {pattern!r}: invalid regular expression: {error}") from None
    if not compiled.groups:
        advice = r"Put the part that names the group in parentheses, like '_g(\d+)_'"
        raise ValueError(f"group by regex {pattern!r}: no capture group. {advice}")
    return compiled


def group_videos(
    paths: Sequence[bytes], group_by: GroupBy, class_depth: int = 0
) -> tuple[npt.NDArray[np.int32], list[str]]:
    """Find the group of every video, (N,) numbered by first appearance, and what the user should know.

    A folder is a group of its own class: two classes may both have a folder "take1". A match of a pattern, or a name
    in a file, is one group in all classes. A video without folder, match or line is a group of its own.

    Args:
        paths: (N,) paths below the raw folder, "/" between the parts.
        group_by: The rule.
        class_depth: Which part of a path is the class: 0 in raw/<class>/, 1 in raw/<split>/<class>/ (folders of one
            name are one group, also when they lie in two splits); -1: none, the whole folder of a video is its group.

    Raises:
        InputError: The pattern or the file matches no video, or the file cannot be read or contradicts itself.
        ValueError: The pattern is invalid.
    """
    unknown: list[bytes] = []
    keys: Sequence[object]  # names the group; None: the video is alone
    match group_by.by:
        case "video":
            return np.arange(len(paths), dtype=np.int32), []
        case "folder":
            keys = [_folder_of(path, class_depth) for path in paths]
        case "regex":
            keys = _captures(paths, group_by.argument)
        case "file":
            keys, unknown = _read_groups(group_by.argument, paths)
    notes = []
    if num_alone := sum(key is None for key in keys):
        option = printable(str(group_by)).replace(" ", ":", 1)
        videos = plural(num_alone, "video")
        notes.append(f"--group-by {option} matches no group for {videos}: each is a group of its own")
    if unknown:
        lines = plural(len(unknown), "line")
        notes.append(f"{printable(group_by.argument)}: {lines} without a video{_example(unknown)}")
    return _number([row if key is None else (key,) for row, key in enumerate(keys)]), notes


def _folder_of(path: bytes, class_depth: int) -> tuple[bytes, ...] | None:
    if class_depth < 0:
        return (os.path.dirname(path),) if b"/" in path else None
    parts = path.split(b"/")[class_depth:]
    return (parts[0], parts[1]) if len(parts) > 2 else None


def _captures(paths: Sequence[bytes], pattern: str) -> list[str | None]:
    compiled = _compile(pattern)
    matches = [compiled.search(os.fsdecode(path)) for path in paths]
    if not any(matches):
        raise InputError(
            f"group by regex {pattern!r}: matches none of {plural(len(paths), 'path')}{_example(paths)}. The pattern "
            "must match a part of the path below the raw folder"
        )
    return [match[1] or None if match else None for match in matches]


def _read_groups(file: str, paths: Sequence[bytes]) -> tuple[list[str | None], list[bytes]]:
    """Return the group of each video, None where the file has none, and the paths that match no video."""
    groups: dict[int | bytes, str | None] = {}
    index = VideoIndex(paths)
    for line, entry in read_table(Path(file), ("path", "group")):
        where, names, group = f"{printable(file)}, line {line}", path_names(entry["path"]), entry["group"] or None
        row = index.find(names, where)
        video = names[-1] if row is None else row
        if groups.setdefault(video, group) != group:
            name, first = printable(names[-1] if row is None else paths[row]), printable(groups[video] or "")
            raise InputError(
                f"{where}: {name} is in group {printable(group or '')!r} and in {first!r}. Remove one of the lines"
            )
    unknown = sorted(name for name in groups if isinstance(name, bytes))
    if len(unknown) == len(groups):
        raise InputError(
            f"{printable(file)}: none of its {plural(len(unknown), 'path')}{_example(unknown)} is one of the "
            f"{plural(len(paths), 'video')}{_example(paths)}. The column 'path' must hold paths below the raw folder"
        )
    return [groups.get(row) for row in range(len(paths))], unknown


def _example(paths: Sequence[bytes]) -> str:
    return f" (for example {printable(paths[0])})" if paths else ""


def merge_groups(ids: npt.ArrayLike, pairs: npt.ArrayLike) -> npt.NDArray[np.int32]:
    """Join the groups ids (N,) of videos that belong together after all: pairs (P, 2) of rows, like near-duplicates.

    Returns (N,) groups, numbered by first appearance.
    """
    groups = np.unique(np.asarray(ids), return_inverse=True)[1].reshape(-1)
    edges = groups[np.asarray(pairs, np.int64).reshape(-1, 2)]
    return _number(connected(len(groups), edges)[groups].tolist())


def _number(keys: Sequence[object]) -> npt.NDArray[np.int32]:
    """Number keys by first appearance."""
    numbers: dict[object, int] = {}
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], np.int32)
