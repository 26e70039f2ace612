"""Text that is safe to show: names of files are bytes that strangers chose."""

import csv
import io
import json
import os
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

# Category C: control, format (bidi overrides), undecodable bytes, unassigned; Zl, Zp: line separators.
_UNSAFE = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
# Format characters that ordinary names contain: joiners of emoji and of Arabic and Indic scripts.
_HARMLESS = {"\u200c", "\u200d"}
_MAX_CHARACTERS = 40  # of a text that nobody has checked


def printable(name: str | bytes | os.PathLike[str]) -> str:
    r"""Return a name with every character escaped that could move a cursor or hide text; undecodable bytes as `\xNN`.

    >>> printable(b"a\x1b[31m\xff.mp4")
    'a\\x1b[31m\\xff.mp4'
    """
    text = os.fsdecode(name)
    return text if text.isprintable() else "".join(_escaped(char) for char in text)


def harmless(text: str) -> str:
    r"""Return text of several lines with every other control character escaped, as `printable` does.

    >>> harmless("a\x1b[31m\nb")
    'a\\x1b[31m\nb'
    """
    return "\n".join(printable(line) for line in text.split("\n"))


def _escaped(char: str) -> str:
    if unicodedata.category(char) not in _UNSAFE or char in _HARMLESS:
        return char
    if "\udc80" <= char <= "\udcff":
        return f"\\x{ord(char) - 0xDC00:02x}"
    return char.encode("unicode_escape").decode("ascii")


def plural(count: int, noun: str, plural_noun: str | None = None) -> str:
    """Return a count with its noun.

    >>> plural(1, "clip"), plural(1200, "clip"), plural(2, "class", "classes")
    ('1 clip', '1,200 clips', '2 classes')
    """
    return f"{count:,} {noun if count == 1 else plural_noun or noun + 's'}"


def difference(found: Sequence[str], expected: Sequence[str]) -> str:
    """Say in what two lists of names differ, with at most five names of each kind.

    >>> difference(["a", "c"], ["a", "b"]), difference(["b", "a"], ["a", "b"])
    ('new: c; missing: b', 'the same names in another order')
    """
    new, gone = sorted(set(found) - set(expected)), sorted(set(expected) - set(found))
    parts = [
        f"{label}: {', '.join(printable(name)[:100] for name in names[:5])}{', ...' if len(names) > 5 else ''}"
        for label, names in (("new", new), ("missing", gone))
        if names
    ]
    return "; ".join(parts) or "the same names in another order"


def one_line(text: str, max_bytes: int) -> str:
    """Squeeze text into one printable line of at most `max_bytes` UTF-8 bytes."""
    line = printable(" ".join(text.split()))
    return line.encode("utf-8", "replace")[:max_bytes].decode("utf-8", "ignore")


def brief(value: object) -> str:
    """Return what a value of a stranger's file is, in one short line: numbers and text, of all else the type.

    >>> brief(7), brief("cat"), brief((1, 2))
    ('7', "'cat'", 'a tuple')
    """
    if isinstance(value, str | bytes):
        text = one_line(os.fsdecode(value[:_MAX_CHARACTERS]), _MAX_CHARACTERS)
        return f"'{text}'" if len(value) <= _MAX_CHARACTERS else f"'{text}...'"
    if value is None or isinstance(value, float) or (isinstance(value, int) and abs(value) < 1 << 64):
        return str(value)
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def to_json(value: dict[str, Any], indent: int | None = None) -> str:
    """Return a JSON object that is safe on a terminal: its strings hold no control characters, but their `\\u001b`.

    Numbers that JSON lacks (NaN, infinity) become null, bytes that are no UTF-8 `\\xff`.

    >>> to_json({"loss": float("nan")})
    '{"loss": null}'
    """
    text = json.dumps(_finite(value), indent=indent, ensure_ascii=False)
    # Apart from line ends, only strings hold such characters.
    return "".join(char if char == "\n" or _escaped(char) == char else json.dumps(char)[1:-1] for char in text)


def to_csv(header: Sequence[str], rows: Iterable[Iterable[Any]]) -> str:
    r"""Return a table as CSV; every cell is printable.

    >>> to_csv(["class"], [["a\x1b[31m"]])
    'class\na\\x1b[31m\n'
    """
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    for row in (header, *rows):
        table.writerow([printable(cell) if isinstance(cell, str) else cell for cell in row])
    return text.getvalue()


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not abs(value) < float("inf"):
        return None
    if isinstance(value, str):
        return value.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return value
