"""Text files that users write: lists and tables. Any bytes are read, byte order mark or not."""

import csv
import os
import stat
from collections.abc import Sequence
from pathlib import Path

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
