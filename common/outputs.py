"""What a command may replace: a file of the kind that it writes, and never one that it reads.

Every output passes `claim`, or `claim_folder`, before the work begins.
"""

import dataclasses
import mmap
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import BinaryIO

from vidcache.errors import CacheError, InputError, MismatchError, VidcacheError
from vidcache.files import follow, open_regular
from vidcache.text import printable

_HEAD_BYTES = 4096


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes:
        name: With its article.
        start: Regular expression of its first bytes.
        marker: Bytes that are somewhere in it.
        error: What is raised if another file is there.
    """

    name: str
    start: bytes
    marker: bytes = b""
    error: type[VidcacheError] = InputError

    def matches(self, file: BinaryIO) -> bool:
        """Whether an open file is of this kind; one that is cut off is, too."""
        if not re.match(self.start, file.read(_HEAD_BYTES), re.DOTALL):
            return False
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return data.find(self.marker) >= 0

    def is_at(self, path: Path) -> bool:
        """Whether a regular file of this kind is there."""
        try:
            with open_regular(path) as file:
                return self.matches(file)
        except OSError:
            return False


def begins(name: str, start: bytes) -> Kind:
    """Return the kind of file that begins with some bytes."""
    return Kind(name, re.escape(start))


CACHE = Kind("a cache", b"vidcache", error=CacheError)
FEATURES = Kind("a file of features", b"vidfeats")
# An archive of `torch.save`: the name of its first member ends with /data.pkl.
CHECKPOINT = Kind("a checkpoint", rb"PK\x03\x04.{26}[^/]{1,200}/data\.pkl", b"vidcache-checkpoint", MismatchError)
EXPORT = Kind("an exported checkpoint", b".", b"vidcache-export")
PICTURE = Kind("a picture that vidcache drew", rb"\x89PNG\r\n\x1a\n", b"tEXtSoftware\0vidcache")
PAGE = Kind("a page that vidcache wrote", rb"\s*<", b'<meta name="generator" content="vidcache">')


def claim(path: Path, kind: Kind, inputs: Iterable[Path] = ()) -> Path:
    """Return where to write a file, the target of a link: nothing is there yet, or a file of the same kind.

    Raises:
        InputError: It is one of the `inputs`, lies in a folder of them, or must not be replaced.
        VidcacheError: `kind.error`, where another file is there.
    """
    place, where = follow(path), printable(path)
    _refuse_inputs(place, where, inputs)
    try:
        with open_regular(place) as file:
            if kind.matches(file):
                return place
            file.seek(0)
            head = file.read(_HEAD_BYTES)
    except FileNotFoundError:
        return place
    except OSError as error:
        raise InputError(f"{where}: {error.strerror}, and is not replaced. Choose another name") from None
    known = name_of(head)
    what = f"is {known}" if known and known != kind.name else f"begins with {head[:8]!r}"
    raise kind.error(f"{where}: {what}, not {kind.name}, and is not replaced. Choose another name")


def claim_folder(folder: Path, files: Mapping[str, Kind], inputs: Iterable[Path] = (), neutral: str = "") -> Path:
    """Return where to write a folder of files, by name: it is new, empty, or has such files already.

    An entry called `neutral` says nothing about whose folder it is.

    Raises:
        InputError: It is no folder, one of other things, lies in an input, or a file in it must not be replaced.
        VidcacheError: As for `claim`, for one of the files.
    """
    place, where = follow(folder), printable(folder)
    _refuse_inputs(place, where, inputs)
    if os.path.lexists(place) and not place.is_dir():
        raise InputError(f"{where}: is no folder, and is not replaced. Choose another name")
    entries = sorted(entry.name for entry in place.iterdir()) if place.is_dir() else []
    others = [name for name in entries if not name.startswith(".") and name != neutral]
    if others and not any(kind.is_at(place / name) for name, kind in files.items()):
        examples = ", ".join(map(printable, others[:3]))
        raise InputError(f"{where}: is a folder of other things ({examples}). Choose another, or a new one")
    for name, kind in files.items():
        claim(place / name, kind, inputs)
    return place


def name_of(head: bytes) -> str:
    """Name the kind of a file by its first bytes, with its article; "" if unknown."""
    kinds = (CACHE, FEATURES, CHECKPOINT)
    return next((kind.name for kind in kinds if re.match(kind.start, head, re.DOTALL)), "")


def _refuse_inputs(place: Path, where: str, inputs: Iterable[Path]) -> None:
    for source in inputs:
        real, real_source = os.path.realpath(place), os.path.realpath(source)
        same = os.path.exists(place) and os.path.exists(source) and os.path.samefile(place, source)
        if same or real == real_source:
            raise InputError(f"{where}: is read by this command ({printable(source)}). Choose another name")
        if os.path.isdir(source) and Path(real).is_relative_to(real_source):
            raise InputError(f"{where}: lies in {printable(source)}, which is only read. Choose a place outside of it")
