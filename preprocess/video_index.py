"""Finds the videos that a list names, in time that hardly grows with their number."""

import functools
import os
from collections.abc import Sequence

from vidcache.errors import InputError
from vidcache.preprocess.split_files import plain_label
from vidcache.text import printable


class VideoIndex:
    """Videos by the ends of their paths, with and without the extension.

    Args:
        paths: (N,) relative paths.
        labels: Classes that the lists name, as `plain_label`.
    """

    def __init__(self, paths: Sequence[bytes], labels: frozenset[str] = frozenset()) -> None:
        self.paths, self.labels = paths, labels
        self.exact = {path: row for row, path in enumerate(paths)}

    @functools.cached_property
    def stems(self) -> dict[bytes, list[int]]:
        """Rows by the ends of paths without extension; most lists name whole paths and do not need it."""
        stems: dict[bytes, list[int]] = {}
        for row, path in enumerate(self.paths):
            stem = os.path.splitext(path)[0]
            stems.setdefault(stem, []).append(row)
            slash = stem.find(b"/")
            while slash >= 0:
                stems.setdefault(stem[slash + 1 :], []).append(row)
                slash = stem.find(b"/", slash + 1)
        return stems

    def find(self, names: Sequence[bytes], where: str, label: str = "") -> int | None:
        """Return the row of a video, None if there is none.

        Args:
            names: What it may be called, best first: the end of a path, extension or not.
            where: File and line that name it, for messages.
            label: Its class, as `plain_label`; "" unknown.

        Raises:
            InputError: There are several.
        """
        for name in names:
            if (found := self.exact.get(name)) is not None:
                return found
        for name in names:
            rows = [row for row in self._candidates(name) if self._may_be(row, label)]
            if len(rows) > 1:
                first, second = (printable(self.paths[row]) for row in rows[:2])
                raise InputError(
                    f"{where}: {printable(name)} may be {first} or {second}, expected one video. "
                    "Write more of the path in the list"
                )
            if rows:
                return rows[0]
        return None

    def _candidates(self, name: bytes) -> list[int]:
        alike = self.stems.get(os.path.splitext(name)[0], [])
        return [row for row in alike if self.paths[row].endswith(b"/" + name)] or self.stems.get(name) or alike

    def _may_be(self, row: int, label: str) -> bool:
        """Whether a video lies in the folder of its class, or at least not in that of another one."""
        if not label:
            return True
        folders = {plain_label(os.fsdecode(part)) for part in self.paths[row].split(b"/")[:-1]}
        return label in folders or not folders & self.labels
