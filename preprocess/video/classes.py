"""Which folders are the classes: RAW/<class>/ or RAW/{train,val,test}/<class>/; and class names that look alike.

Reads paths only. Where the names of folders allow both layouts, the user decides.
"""

import os
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from vidcache.cache.format import Split
from vidcache.errors import InputError
from vidcache.preprocess.video.lists import split_of_folder
from vidcache.text import plural, printable

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


def layout_notes(folders: Folders, class_depth: int) -> list[str]:
    """Name what the layout leaves out, joins or ignores, a sentence each."""
    if class_depth == 0:
        ignored = _inner(folders)
        for name in [name for name in ignored if split_of_folder(name) is None]:
            del ignored[name]
        if not ignored:
            return []
        return [
            f"{plural(ignored.total(), 'video')} in folders named like splits below the class folders "
            f"({_with_counts(ignored)}): the names mean something only with --split folders"
        ]
    synonyms: dict[Split, list[bytes]] = defaultdict(list)
    left_out = Counter[bytes]()
    for name, counts in sorted(folders.items()):
        split = split_of_folder(name)
        left_out[name] = counts.total() if split is None else counts[b""]
        if split is not None:
            synonyms[split].append(name)
    named = [
        (split.name.lower(), " and ".join(map(printable, names))) for split, names in synonyms.items() if names[1:]
    ]
    notes = [f"{names} mean {split}: joined" for split, names in named]
    if +left_out:
        notes.append(f"in no class of a split, left out: {_with_counts(+left_out)}. Move them to RAW/<split>/<class>/")
    return notes


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
