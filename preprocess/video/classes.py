"""Which class, split and group each video has: by its folders, or by the lists that users and data sets bring."""

import csv
import dataclasses
import functools
import os
import stat
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from vidcache.cache.format import Split
from vidcache.errors import InputError
from vidcache.text import plural, printable

DELIMITERS = ",;\t"
LISTED = -1  # class depth where a list of labels says the class, and folders mean nothing
SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), Split.TRAIN),
    **dict.fromkeys(("val", "valid", "validate", "validation", "dev"), Split.VAL),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), Split.TEST),
}


def check_list(file: Path) -> None:
    """Refuse a pipe or a device in place of a list, which is read several times; raises OSError if it is missing."""
    mode = os.stat(file).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise InputError(
            f"{printable(file)}: is a pipe or a device, but a list is read several times. "
            "Write the list to a file, and name that"
        )


def read_lines(file: Path) -> list[str]:
    """Read the lines of a regular text file; undecodable bytes become surrogates, as in `os.fsdecode`."""
    try:
        check_list(file)
        with open(file, encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
            text = stream.read()
    except OSError as error:
        raise InputError(f"{printable(file)}: {error.strerror}. Check the path of the list") from None
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
    return max(DELIMITERS, key=lines[0].count)


def read_table(file: Path, columns: Sequence[str]) -> list[tuple[int, dict[str, str]]]:
    """Read values separated by commas, semicolons or tabulators: (line, values by column name), "" where missing.

    The first line names the columns. Blanks around values are left out, but for "path": names of files may have them.
    """
    lines = read_lines(file)
    header = header_of(lines)
    for column in columns:
        if column not in header:
            raise InputError(
                f"{printable(file)}: no column {column!r} in its first line {printable(','.join(header)[:100])!r}. "
                f"Add a line {','.join(columns)}"
            )
    entries, missing = [], [""] * len(header)
    reader = csv.reader((line + "\n" for line in lines), delimiter=_delimiter_of(lines), strict=True)
    try:
        for values in reader:
            if any(values) and reader.line_num > 1:
                pairs = zip(header, values + missing, strict=False)
                entry = {name: value if name == "path" else value.strip() for name, value in pairs}
                entries.append((reader.line_num, entry))
    except csv.Error as error:
        line = f"{printable(file)}, line {reader.line_num}"
        raise InputError(f"{line}: {error}. Correct it: a quote that opens a value has to close it") from None
    return entries


class VideoIndex:
    """Videos by the ends of their relative paths; `labels`: classes that the lists name, as `plain_label`."""

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
        """Return the row of a video, None if there is none; raises InputError if there are several.

        `names` is what it may be called, best first: the end of a path, with or without the extension. `where` names
        file and line for messages, `label` its class, as `plain_label` ("" unknown).
        """
        for name in names:
            if (row := self.exact.get(name)) is not None:
                return row
        for name in names:
            rows = [row for row in self._candidates(name) if self._may_be(row, label)]
            if len(rows) > 1:
                first, second = (printable(self.paths[row]) for row in rows[:2])
                raise InputError(
                    f"{where}: {printable(name)} may be {first} or {second}. Write more of the path in the list"
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


def path_names(path: str) -> tuple[bytes, ...]:
    """Return what the file may be called that a table names, best first: as it is; without blanks; of Windows."""
    plain = path.strip()
    return tuple(dict.fromkeys(map(os.fsencode, (path, plain, plain.replace("\\", "/").removeprefix("./")))))


def split_of_word(word: str, where: str) -> Split:
    """Return the split that a list names; raises InputError if there is none of that name."""
    split = SPLIT_WORDS.get(word.lower())
    if split is None:
        raise InputError(
            f"{where}: split {printable(word)!r} is none of train, val and test. Correct or remove the line"
        )
    return split


def split_of_folder(name: bytes) -> Split | None:
    """Return the split that a folder is named after, None if it is named after none."""
    return SPLIT_WORDS.get(os.fsdecode(name).strip().lower())


def plain_label(text: str) -> str:
    """Return a Kinetics class without what varies: "riding_a_bike" is "riding a bike"."""
    return text.replace("_", " ").lower()


@dataclasses.dataclass(frozen=True)
class Labels:
    """What a list says about the videos of a folder."""

    file: str
    classes: tuple[bytes | None, ...]  # (N,) class of each video; None for those that it does not name
    has_split: bool = False  # whether it has a column "split"
    has_group: bool = False


def read_labels(file: Path, paths: Sequence[bytes], *, has_links: bool = False) -> Labels:
    """Read a CSV path,label[,split][,group] and find the videos that it names; raises InputError with the line.

    `has_links`: whether there are links that were not followed, behind which a video may be.
    """
    index, list_name = VideoIndex(paths), printable(file)
    classes: list[bytes | None] = [None] * len(paths)
    lines: dict[int, int] = {}
    missing: list[str] = []
    entries = read_table(file, ("path", "label"))
    for line, entry in entries:
        where, names, label = f"{list_name}, line {line}", path_names(entry["path"]), os.fsencode(entry["label"])
        if not label:
            raise InputError(f"{where}: no label for {printable(names[-1])}. Write one, or remove the line")
        if any(unicodedata.category(letter) == "Cc" for letter in entry["label"]):
            raise InputError(f"{where}: label {printable(label)} has control characters. Remove them")
        if "split" in entry:
            split_of_word(entry["split"], where)
        row = index.find(names, where)
        if row is None:
            missing.append(f"{where}: {printable(names[-1])} names no video")
        elif classes[row] not in (None, label):
            raise InputError(
                f"{where}: {printable(paths[row])} has label {printable(label)!r}, and "
                f"{printable(classes[row] or b'')!r} in line {lines[row]}. Remove one of the lines"
            )
        else:
            classes[row], lines[row] = label, line
    if missing:
        more = f"; {plural(len(missing), 'line')} in all" if missing[1:] else ""
        example = f" (like {printable(paths[0])})" if paths else ""
        links = ", follow links with --follow-links" if has_links else ""
        advice = f"Write paths below the raw folder{example}{links}, or remove the lines of videos that do not exist"
        raise InputError(f"{missing[0]}{more}. {advice}")
    if not lines:
        raise InputError(f"{list_name}: names no video. Write a line path,label for each")
    header = entries[0][1]
    return Labels(os.fspath(file), tuple(classes), "split" in header, "group" in header)


LAYOUTS = ("auto", "classes", "splits")
_MAX_SHOWN = 10
_CHOOSE = "give the labels by a CSV with the columns path,label: --labels"

# Number of candidates by folder of the raw folder, then by the folder in that; b"" for those directly in it.
Folders = dict[bytes, Counter[bytes]]


def join_few(names: Sequence[object]) -> str:
    """Join texts, at most ten of them."""
    more = f" and {len(names) - _MAX_SHOWN:,} more" if len(names) > _MAX_SHOWN else ""
    return ", ".join(map(str, names[:_MAX_SHOWN])) + more


def _with_counts(counts: Counter[bytes]) -> str:
    """Names with their counts, the largest first."""
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    return join_few([f"{printable(name)} ({count:,})" for name, count in ordered])


def count_folders(paths: Iterable[bytes]) -> Folders:
    """Count the candidates by the folders that they are in; those directly in the raw folder are in none."""
    folders: Folders = defaultdict(Counter)
    for path in paths:
        first, *rest = path.split(b"/", 2)
        if rest:
            folders[first][rest[0] if len(rest) > 1 else b""] += 1
    return folders


def _total(folders: Folders) -> Counter[bytes]:
    return Counter({name: counts.total() for name, counts in folders.items()})


def _inner(folders: Folders) -> Counter[bytes]:
    """Sum up the folders in some folders."""
    inner = Counter[bytes]()
    for counts in folders.values():
        inner.update(counts)
    del inner[b""]
    return inner


def find_class_depth(raw: str, folders: Folders, layout: str) -> int:
    """Return 0 for RAW/<class>/, 1 for RAW/<split>/<class>/; raises InputError if names allow both under "auto"."""
    if layout != "auto" or not folders:
        return int(layout == "splits")
    splits = {split_of_folder(name) for name in folders}
    if splits == {None}:
        _check_inner(raw, folders)
        return 0
    have_classes = all(counts.keys() - {b""} for counts in folders.values())
    if have_classes and Split.TRAIN in splits and len(splits) > 1 and None not in splits:
        return 1
    inside = _with_counts(_inner(folders)) or "no folders"
    raise InputError(
        f"{raw}: some of its folders are named like splits: {_with_counts(_total(folders))}. Choose --layout splits "
        f"(they hold {inside}) or --layout classes, or {_CHOOSE}"
    )


def _check_inner(raw: str, folders: Folders) -> None:
    """Refuse folders that hold the same folders: those may be the classes, or the splits."""
    inner, total = _inner(folders), _total(folders)
    if not inner or 2 * inner.total() <= total.total():  # most videos lie beside them
        return
    inside, outside = _with_counts(inner), _with_counts(total)
    if all(split_of_folder(name) is not None for name in inner):
        raise InputError(
            f"{raw}: the folders in its classes have names of splits ({inside}). With --layout classes --split folders "
            f"they are the splits of {outside}; with --layout classes alone they mean nothing"
        )
    if len(inner) > 1 and all(counts.keys() - {b""} == inner.keys() for counts in folders.values()):
        raise InputError(
            f"{raw}: its folders ({outside}) hold the same folders ({inside}), so either may be the classes. Choose "
            f"--layout classes, or name the folder of the classes instead of {raw}, or {_CHOOSE}"
        )


def left_out_note(folders: Folders) -> list[str]:
    """Name the folders of RAW/<split>/<class>/ that are no splits, and the splits with videos in no class."""
    left_out = Counter[bytes]()
    for name, counts in sorted(folders.items()):
        left_out[name] = counts.total() if split_of_folder(name) is None else counts[b""]
    if not +left_out:
        return []
    return [f"in no class of a split, left out: {_with_counts(+left_out)}. Move them to RAW/<split>/<class>/"]


def find_twins(classes: Iterable[bytes]) -> list[list[bytes]]:
    """Return the names that differ only by case, blanks, Unicode form or invisible characters, in groups."""
    groups: dict[str, list[bytes]] = {}
    for name in classes:
        text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", os.fsdecode(name)).casefold())
        plain = " ".join("".join(char for char in text if unicodedata.category(char) != "Cf").split())
        groups.setdefault(plain, []).append(name)
    return [group for group in groups.values() if len(group) > 1]


def describe_twins(twins: list[list[bytes]]) -> str:
    r"""Write names so that one can tell them apart.

    >>> describe_twins([[b"walk", b"walk "]])
    "'walk' and 'walk '"
    """
    groups = [" and ".join(ascii(os.fsdecode(name)) for name in group) for group in twins[:3]]
    return "; ".join(groups) + (f"; and {plural(len(twins) - 3, 'more group')}" if len(twins) > 3 else "")


def twin_notes(classes: Iterable[bytes]) -> tuple[str, ...]:
    """Note class names that look alike."""
    twins = find_twins(classes)
    if not twins:
        return ()
    return (f"names of different classes look alike: {describe_twins(twins)}. If they are one class, give it one name",)
