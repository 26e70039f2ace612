"""Class names that look alike: one class under two names, most often, which no table would show."""

import os
import unicodedata
from collections.abc import Iterable

from vidcache.text import plural


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
