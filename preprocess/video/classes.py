"""Which folders are the classes: RAW/<class>/ or RAW/{train,val,test}/<class>/. Where names allow both, the user says.

Reads paths only.
"""

import dataclasses
import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from vidcache.cache.format import Split
from vidcache.errors import InputError
from vidcache.preprocess.video.lists import VideoIndex, path_names, read_table, split_of_folder, split_of_word
from vidcache.text import plural, printable


@dataclasses.dataclass(frozen=True)
class Labels:
    """What a list says about the videos of a folder.

    Attributes:
        file: The list.
        classes: (N,) class of each video; None for those that it does not name.
        has_split: Whether it has a column "split".
        has_group: Whether it has a column "group".
    """

    file: str
    classes: tuple[bytes | None, ...]
    has_split: bool = False
    has_group: bool = False


def read_labels(file: Path, paths: Sequence[bytes], unfollowed: Sequence[bytes] = ()) -> Labels:
    """Read a list and find the videos that it names.

    Args:
        file: CSV; commas, semicolons or tabulators.
        paths: (N,) of the videos, below the raw folder.
        unfollowed: Paths of links that were not followed, for messages.

    Raises:
        InputError: It cannot be read, or a line names no video or one of several, has no label, an unknown split, or
            another label than an earlier line has for this video, or a label with control characters.
    """
    index, name_of_list = VideoIndex(paths), printable(file)
    classes: list[bytes | None] = [None] * len(paths)
    lines: dict[int, int] = {}
    missing: list[tuple[str, bytes]] = []
    entries = read_table(file, ("path", "label"))
    for line, entry in entries:
        where, names, label = f"{name_of_list}, line {line}", path_names(entry["path"]), os.fsencode(entry["label"])
        if not label:
            raise InputError(f"{where}: no label for {printable(names[-1])}. Write one, or remove the line")
        if any(unicodedata.category(letter) == "Cc" for letter in entry["label"]):
            raise InputError(
                f"{where}: label {printable(label)} has control characters, which no class name can have. Remove them"
            )
        if "split" in entry:
            split_of_word(entry["split"], where)
        row = index.find(names, where)
        if row is None:
            missing.append((where, names[-1]))
        elif classes[row] not in (None, label):
            raise InputError(
                f"{where}: {printable(paths[row])} has label {printable(label)!r}, and "
                f"{printable(classes[row] or b'')!r} in line {lines[row]}. Remove one of the "
                "lines"
            )
        else:
            classes[row], lines[row] = label, line
    if missing:
        raise InputError(_describe_missing(missing, paths, unfollowed))
    if not lines:
        raise InputError(f"{printable(file)}: names no video. Write a line path,label for each")
    header = entries[0][1]
    return Labels(os.fspath(file), tuple(classes), "split" in header, "group" in header)


def _describe_missing(missing: Sequence[tuple[str, bytes]], paths: Sequence[bytes], unfollowed: Sequence[bytes]) -> str:
    where, name = missing[0]
    more = f"; {plural(len(missing), 'line')} in all" if len(missing) > 1 else ""
    behind = [link for link in unfollowed if name.startswith(link + b"/")]
    if behind:
        return (
            f"{where}: {printable(name)} lies behind the link {printable(behind[0])}, which is not followed{more}. "
            "Follow links with --follow-links"
        )
    example = f" (like {printable(paths[0])})" if paths else ""
    return (
        f"{where}: {printable(name)} names no video{more}. Write paths below the raw folder{example}, or remove the "
        "lines of videos that are not there"
    )


LAYOUTS = ("auto", "classes", "splits")
MAX_SHOWN = 10
LISTED = -1  # class depth where a list of labels says the class, and folders mean nothing


@dataclasses.dataclass
class Top:
    """One folder of the raw folder.

    Attributes:
        loose: Candidates directly in it.
        inside: Candidates by the folder in it that they are in or below.
    """

    loose: int = 0
    inside: Counter[bytes] = dataclasses.field(default_factory=Counter)

    @property
    def total(self) -> int:
        """Candidates in it."""
        return self.loose + self.inside.total()


def shown(names: Sequence[object]) -> str:
    """Join texts, at most ten of them."""
    more = f" and {len(names) - MAX_SHOWN:,} more" if len(names) > MAX_SHOWN else ""
    return ", ".join(map(str, names[:MAX_SHOWN])) + more


def top_folders(paths: Iterable[bytes]) -> dict[bytes, Top]:
    """Sum up the candidates by the folders they are in; those directly in the raw folder are in none."""
    tops: dict[bytes, Top] = {}
    for path in paths:
        match path.split(b"/", 2):
            case [first, _]:
                tops.setdefault(first, Top()).loose += 1
            case [first, second, _]:
                tops.setdefault(first, Top()).inside[second] += 1
    return tops


def find_class_depth(raw: str, tops: dict[bytes, Top], layout: str) -> int:
    """Return which part of a path is the class: 0 in RAW/<class>/, 1 in RAW/<split>/<class>/.

    Args:
        raw: Name of the raw folder, for messages.
        tops: Its folders.
        layout: "classes", "splits", or "auto": the names decide.

    Raises:
        InputError: The names allow both.
    """
    if layout != "auto" or not tops:
        return int(layout == "splits")
    splits = {name: split_of_folder(name) for name in tops}
    given = {split for split in splits.values() if split is not None}
    if given:
        clean = None not in splits.values() and all(top.inside for top in tops.values())
        if clean and Split.TRAIN in given and len(given) > 1:
            return 1
        raise InputError(
            f"{raw}: its folders can be read in two ways. As splits: {_splits_reading(tops)}. As classes: "
            f"{_classes_reading(tops)}. Choose one with --layout splits or --layout classes, or give the labels by a "
            "CSV with the columns path,label: --labels"
        )
    _check_inside(raw, tops)
    return 0


def _check_inside(raw: str, tops: dict[bytes, Top]) -> None:
    """Refuse folders that hold the same folders: those may be the classes, or the splits.

    Raises:
        InputError: They do.
    """
    names = set().union(*(top.inside for top in tops.values()))
    loose = sum(top.loose for top in tops.values())
    nested = names and 2 * loose < sum(top.total for top in tops.values())
    inside = Counter[bytes]()
    for top in tops.values():
        inside.update(top.inside)
    folders, classes = shown(_counts(inside)), _classes_reading(tops)
    if nested and all(split_of_folder(name) is not None for name in names):
        raise InputError(
            f"{raw}: the folders in its classes have names of splits ({folders}). With --layout classes --split "
            f"folders they are the splits of {classes}; with --layout classes alone they mean nothing, and the "
            "videos are divided anew"
        )
    if not nested or len(names) < 2 or any(set(top.inside) != names for top in tops.values()):
        return
    if len(tops) == 1:
        only = printable(next(iter(tops)))
        raise InputError(
            f"{raw}: holds one folder, {only}, with {len(names):,} folders ({folders}). If these are the classes, "
            f"give {raw}/{only} instead of {raw}; if {only} is the only class, say so with --layout classes"
        )
    raise InputError(
        f"{raw}: its folders can be read in two ways, since the same {len(names):,} folders are in each of them. As "
        f"classes: {classes}. As parts of a data set, with the classes inside: {folders}. For the first, say --layout "
        "classes; for the second, give the labels by a CSV with the columns path,label: --labels, or rename the parts "
        "to train, val and test"
    )


def _classes_reading(tops: dict[bytes, Top]) -> str:
    counts = Counter({name: top.total for name, top in tops.items()})
    return f"{plural(len(tops), 'class', 'classes')}, {shown(_counts(counts))}"


def _splits_reading(tops: dict[bytes, Top]) -> str:
    splits = {name: top for name, top in tops.items() if split_of_folder(name) is not None}
    parts = Counter({name: top.inside.total() for name, top in splits.items()})
    classes = Counter[bytes]()
    for top in splits.values():
        classes.update(top.inside)
    out = Counter({name: top.total - parts[name] for name, top in tops.items()})
    left_out = f"; left out: {shown(_counts(+out))}" if +out else ""
    inside = f", {shown(_counts(classes))}" if classes else ""
    return f"{shown(_counts(parts))} of {plural(len(classes), 'class', 'classes')}{inside}{left_out}"


def _counts(counts: Counter[bytes]) -> list[str]:
    """Names with their counts, the largest first."""
    return [f"{printable(name)} ({count:,})" for name, count in sorted(counts.items(), key=lambda item: -item[1])]


def layout_notes(tops: dict[bytes, Top], class_depth: int) -> list[str]:
    """Say what the layout leaves out, joins or ignores, a sentence each."""
    notes = []
    if class_depth == 0:
        ignored = Counter[bytes]()
        for top in tops.values():
            ignored.update({name: n for name, n in top.inside.items() if split_of_folder(name) is not None})
        if ignored:
            notes.append(
                f"{plural(ignored.total(), 'video')} in folders named like splits below the class folders "
                f"({shown(_counts(ignored))}): the names mean something only with --split folders"
            )
        return notes
    folders: dict[Split, list[bytes]] = {}
    others, loose = Counter[bytes](), Counter[bytes]()
    for name, top in sorted(tops.items()):
        split = split_of_folder(name)
        if split is None:
            others[name] = top.total
        else:
            folders.setdefault(split, []).append(name)
            loose.update({name: top.loose} if top.loose else {})
    notes += [
        f"{' and '.join(map(printable, names))} mean {split.name.lower()}: joined"
        for split, names in folders.items()
        if len(names) > 1
    ]
    if others:
        notes.append(f"no splits, left out: {shown(_counts(others))}")
    if loose:
        notes.append(
            f"videos directly in a split folder, in no class, left out: {shown(_counts(loose))}. "
            "Move them into the folder of their class"
        )
    return notes


def find_twins(classes: Iterable[bytes]) -> list[list[bytes]]:
    """Return the names that differ only by case, blanks, Unicode form or invisible characters, in groups."""
    groups: dict[str, list[bytes]] = {}
    for name in classes:
        groups.setdefault(_plain(os.fsdecode(name)), []).append(name)
    return [group for group in groups.values() if len(group) > 1]


def _plain(name: str) -> str:
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
    return " ".join("".join(char for char in text if unicodedata.category(char) != "Cf").split())


def describe_twins(twins: list[list[bytes]]) -> str:
    r"""Write names so that one can tell them apart.

    >>> describe_twins([[b"walk", b"walk "]])
    "'walk' and 'walk '"
    """
    shown = [" and ".join(ascii(os.fsdecode(name)) for name in group) for group in twins[:3]]
    return "; ".join(shown) + (f"; and {plural(len(twins) - 3, 'more group')}" if len(twins) > 3 else "")


def twin_notes(classes: Iterable[bytes]) -> tuple[str, ...]:
    """Say in a sentence which classes have names that look alike."""
    twins = find_twins(classes)
    if not twins:
        return ()
    return (f"names of different classes look alike: {describe_twins(twins)}. If they are one class, give it one name",)
