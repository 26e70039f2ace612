"""Lists of which video is for what, as data sets come with them: our CSV, UCF101, HMDB51, Kinetics.

Reads the lists; what they name is looked for in `given`.
"""

import dataclasses
import os
import re
from collections.abc import Sequence
from pathlib import Path

from vidcache.cache.layout import Split
from vidcache.errors import InputError
from vidcache.preprocess.table import header_of, read_lines, read_table
from vidcache.text import printable

# What lists and folders call the splits, in any case.
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
_HMDB_NAME = re.compile(r"(.+)_test_split\d+\.txt")
_HMDB_CODES = {"0": Split.UNUSED, "1": Split.TRAIN, "2": Split.TEST}
_LIST_WORD = re.compile(rf"(?<![a-z])({'|'.join(SPLIT_WORDS)})(?:list)?(?![a-z])")
_EXPECTED = (
    "a CSV with the columns path,split, a Kinetics CSV (youtube_id,split), UCF101 lists (trainlist01.txt) or HMDB51 "
    "lists (<class>_test_split1.txt)"
)


@dataclasses.dataclass(frozen=True)
class Entry:
    """One line of a list.

    Attributes:
        names: What the video may be called, best first: the end of a path, extension or not.
        split: What it is for; `Split.UNUSED` where the list says so.
        where: File and line, for messages.
        label: Kinetics: its class, as `plain_label`; "" for the others.
    """

    names: tuple[bytes, ...]
    split: Split
    where: str
    label: str = ""


def read_entries(file: Path) -> tuple[str, list[Entry]]:
    """Read one list, whatever its format.

    Returns:
        Name of the format, and the lines that name something.

    Raises:
        InputError: It cannot be read, is none of the formats, or a line is wrong.
    """
    lines = read_lines(file)
    header = header_of(lines)
    if "split" in header and "path" in header:
        return "CSV", _read_csv(file)
    if "split" in header and "youtube_id" in header:
        return "Kinetics", _read_kinetics(file)
    if match := _HMDB_NAME.fullmatch(file.name):
        return "HMDB51", _read_hmdb(file, match[1], lines)
    words = set(_LIST_WORD.findall(file.name.lower()))
    if len(words) == 1:
        return "UCF101", _read_list(file, SPLIT_WORDS[words.pop()], lines)
    raise InputError(f"{printable(file)}: unknown format, expected {_EXPECTED}. Rename the list, or name its columns")


def split_of_folder(name: bytes) -> Split | None:
    """Return the split that a folder is named after, None if it is named after none."""
    return SPLIT_WORDS.get(os.fsdecode(name).strip().lower())


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


def _where(file: Path, line: int) -> str:
    return f"{printable(file)}, line {line}"


def _read_csv(file: Path) -> list[Entry]:
    return [
        Entry(path_names(entry["path"]), split_of_word(entry["split"], _where(file, line)), _where(file, line))
        for line, entry in read_table(file, ("path", "split"))
    ]


def _read_kinetics(file: Path) -> list[Entry]:
    entries = []
    for line, entry in read_table(file, ("youtube_id", "split")):
        name = entry["youtube_id"]
        names = [name]
        try:
            start, end = int(float(entry["time_start"])), int(float(entry["time_end"]))
            names.insert(0, f"{name}_{start:06d}_{end:06d}")
        except (KeyError, ValueError, OverflowError):
            pass  # without times a video has only its name
        split = split_of_word(entry["split"], _where(file, line))
        label = plain_label(entry.get("label", ""))
        entries.append(Entry(tuple(map(os.fsencode, names)), split, _where(file, line), label))
    return entries


def _read_hmdb(file: Path, class_name: str, lines: Sequence[str]) -> list[Entry]:
    entries = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        name, _, code = line.strip().rpartition(" ")
        if not name or code not in _HMDB_CODES:
            raise InputError(
                f"{_where(file, number)}: {printable(line)!r}, expected a video and 0 (unused), 1 (train) or 2 (test). "
                "Correct the line"
            )
        entries.append(Entry((os.fsencode(f"{class_name}/{name.strip()}"),), _HMDB_CODES[code], _where(file, number)))
    return entries


def _read_list(file: Path, split: Split, lines: Sequence[str]) -> list[Entry]:
    entries = []
    for number, line in enumerate(lines, 1):
        name, _, label = line.strip().rpartition(" ")
        if not (name and label.isdecimal()):
            name = line.strip()
        if name:
            entries.append(Entry((os.fsencode(name.strip()),), split, _where(file, number)))
    return entries
