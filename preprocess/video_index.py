"""Finds the videos that a list names, in time that hardly grows with their number."""

import os
from collections.abc import Sequence

from vidcache.errors import InputError
from vidcache.preprocess.split_files import Entry, plain_label
from vidcache.text import printable


class VideoIndex:
    """Videos by the ends of their paths, with and without the extension.

    Args:
        paths: (N,) relative paths.
        labels: Classes that the lists name, as `plain_label`.
    """

    def __init__(self, paths: Sequence[bytes], labels: frozenset[str]) -> None:
        self.paths, self.labels = paths, labels
        self.exact = {path: row for row, path in enumerate(paths)}
        self.stems: dict[bytes, list[int]] = {}
        for row, path in enumerate(paths):
            stem = os.path.splitext(path)[0]
            self.stems.setdefault(stem, []).append(row)
            slash = stem.find(b"/")
            while slash >= 0:
                self.stems.setdefault(stem[slash + 1 :], []).append(row)
                slash = stem.find(b"/", slash + 1)

    def find(self, entry: Entry) -> int | None:
        """Return the row of a video, None if there is none.

        Raises:
            InputError: There are several.
        """
        for name in entry.names:
            if name in self.exact:
                return self.exact[name]
            rows = [row for row in self._candidates(name) if self._may_be(row, entry.label)]
            if len(rows) > 1:
                first, second = (printable(self.paths[row]) for row in rows[:2])
                raise InputError(
                    f"{entry.where}: {printable(name)} may be {first} or {second}, expected one video. "
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
