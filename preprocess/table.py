"""Text files that users write: lists and tables. Any bytes are read, byte order mark or not."""

import csv
from collections.abc import Sequence
from pathlib import Path

from vidcache.errors import InputError
from vidcache.text import printable


def read_lines(file: Path) -> list[str]:
    """Read the lines of a text file; undecodable bytes become surrogates, as in `os.fsdecode`.

    Raises:
        InputError: It cannot be read.
    """
    try:
        with open(file, encoding="utf-8-sig", errors="surrogateescape") as stream:
            return stream.read().split("\n")
    except OSError as error:
        raise InputError(f"{printable(file)}: {error.strerror}, expected a text file. Check the path") from None


def header_of(lines: Sequence[str]) -> tuple[str, ...]:
    """Column names of a table: lower case, without blanks around them."""
    try:
        return tuple(name.strip().lower() for name in next(csv.reader(lines[:1]), []))
    except csv.Error:
        return ()


def read_table(file: Path, columns: Sequence[str]) -> list[tuple[int, dict[str, str]]]:
    """Read a table of comma-separated values.

    Args:
        file: Its first line names the columns, in any order; more of them do no harm.
        columns: Names that there must be.

    Returns:
        Line number and values by column name, without blanks around them, of every line that is
        not empty. A missing value is "".

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
    reader = csv.reader(line + "\n" for line in lines)
    entries = []
    try:
        for values in reader:
            if any(values) and reader.line_num > 1:
                filled = [value.strip() for value in values] + [""] * len(header)
                entries.append((reader.line_num, dict(zip(header, filled, strict=False))))
    except csv.Error as error:
        raise InputError(
            f"{printable(file)}, line {reader.line_num}: {error}, expected comma-separated values. Correct the line"
        ) from None
    return entries
