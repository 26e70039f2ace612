"""Finds the videos that a list names, in time that hardly grows with their number."""

import csv
import functools
import os
import stat
from collections.abc import Sequence
from pathlib import Path

from vidcache.cache.format import Split
from vidcache.errors import InputError
from vidcache.text import printable

DELIMITERS = ",;\t"


def check_list(file: Path) -> None:
    """Refuse a pipe or a device in place of a list, which is read several times.

    Raises:
        InputError: It is one.
        OSError: It cannot be found.
    """
    mode = os.stat(file).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise InputError(
            f"{printable(file)}: no regular file (a pipe or a device), and a list is read several times. Write the "
            "list to a file, and name that"
        )


def read_lines(file: Path) -> list[str]:
    """Read the lines of a text file; undecodable bytes become surrogates, as in `os.fsdecode`.

    Raises:
        InputError: It cannot be read, or is no regular file.
    """
    try:
        check_list(file)
        with open(file, encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
            text = stream.read()
    except OSError as error:
        raise InputError(f"{printable(file)}: {error.strerror}, expected a text file. Check the path") from None
    # A carriage return ends a line where nothing else does; elsewhere a quoted name may hold one.
    return (text if "\n" in text else text.replace("\r", "\n")).split("\n")


def header_of(lines: Sequence[str]) -> tuple[str, ...]:
    """Column names of a table: lower case, without blanks around them."""
    try:
        names = next(csv.reader(lines[:1], delimiter=_delimiter_of(lines)), [])
    except csv.Error:
        return ()
    return tuple(name.strip().lower() for name in names)


def _delimiter_of(lines: Sequence[str]) -> str:
    """Return what parts the names of the columns: comma, semicolon or tabulator."""
    return max(DELIMITERS, key=lines[0].count)


def read_table(file: Path, columns: Sequence[str]) -> list[tuple[int, dict[str, str]]]:
    """Read a table of values separated by commas, semicolons or tabulators.

    Args:
        file: Its first line names the columns, in any order; more of them do no harm.
        columns: Names that there must be.

    Returns:
        Line number and values by column name of every line that is not empty. A missing value is "". Blanks around
        a value are left out, but for the column "path": names of files may begin and end with them.

    Raises:
        InputError: It cannot be read, or a column is missing.
    """
    lines = read_lines(file)
    header = header_of(lines)
    for column in columns:
        if column not in header:
            raise InputError(
                f"{printable(file)}: no column {column!r} in its first line "
                f"{printable(','.join(header)[:100])!r}, expected {','.join(columns)}. Add that line"
            )
    reader = csv.reader((line + "\n" for line in lines), delimiter=_delimiter_of(lines), strict=True)
    entries: list[tuple[int, dict[str, str]]] = []
    first = 1  # line of the file with which an entry begins: a quoted value may go on in the next ones
    known = {*columns} - {"path"}  # a name of a file may hold a line break
    missing, place = [""] * len(header), header.index("path") if "path" in header else None
    try:
        for values in reader:
            if any(values) and reader.line_num > 1:
                if any("\n" in value for name, value in zip(header, values, strict=False) if name in known):
                    raise csv.Error("a quoted value goes on in the next line")
                values += missing
                entry = dict(zip(header, map(str.strip, values), strict=False))
                if place is not None:
                    entry["path"] = values[place]
                entries.append((reader.line_num, entry))
            first = reader.line_num + 1
    except csv.Error as error:
        raise InputError(
            f"{printable(file)}, line {first}: {error}, expected comma-separated values. Correct the line: "
            "a quote that opens a value has to close it"
        ) from None
    return entries


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


SPLIT_WORDS = {
    "train": Split.TRAIN,
    "training": Split.TRAIN,
    "val": Split.VAL,
    "valid": Split.VAL,
    "validate": Split.VAL,
    "validation": Split.VAL,
    "dev": Split.VAL,
    "test": Split.TEST,
    "testing": Split.TEST,
    "eval": Split.TEST,
    "evaluation": Split.TEST,
}


def path_names(path: str) -> tuple[bytes, ...]:
    """Return what the file may be called that a table names, best first: as it is; without blanks; of Windows."""
    plain = path.strip()
    return tuple(dict.fromkeys(map(os.fsencode, (path, plain, plain.replace("\\", "/").removeprefix("./")))))


def split_of_word(word: str, where: str) -> Split:
    """Return the split that a list names.

    Raises:
        InputError: There is none of that name.
    """
    split = SPLIT_WORDS.get(word.lower())
    if split is None:
        raise InputError(
            f"{where}: split {printable(word)!r}, expected train, val or test. Correct the line, or remove it"
        )
    return split


def plain_label(text: str) -> str:
    """Return a Kinetics class without what varies: "riding_a_bike" is "riding a bike"."""
    return text.replace("_", " ").lower()


def split_of_folder(name: bytes) -> Split | None:
    """Return the split that a folder is named after, None if it is named after none."""
    return SPLIT_WORDS.get(os.fsdecode(name).strip().lower())
