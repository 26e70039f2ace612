"""What a command may replace: a file of the kind that it writes, and never one that it reads.

Every output passes `claim`, or `claim_folder`, before the work begins.
"""

import dataclasses
import mmap
import os
import re
import struct
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import BinaryIO

from vidcache.errors import CacheError, InputError, MismatchError, VidcacheError
from vidcache.files import follow, open_regular
from vidcache.text import printable

_HEAD_BYTES = 4096
_PICKLE_BYTES = 8 << 20  # the pickle of the largest checkpoint that vidtrain writes has 0.2 MB
# Names of files by how they begin.
_NAMES = (
    (re.compile(rb"vidcache"), "a cache"),
    (re.compile(rb"vidfeats"), "a file of features"),
    (re.compile(rb"PK\x03\x04.{26}[^/]{1,200}/data\.pkl", re.DOTALL), "a checkpoint"),
)


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of file: its name with an article, a test of an open file, the error if another file is there."""

    name: str
    matches: Callable[[BinaryIO], bool]
    error: type[VidcacheError] = InputError

    def is_at(self, path: Path) -> bool:
        """Whether a regular file of this kind is there."""
        try:
            with open_regular(path) as file:
                return self.matches(file)
        except (OSError, ValueError):
            return False


def begins(name: str, *starts: bytes, error: type[VidcacheError] = InputError) -> Kind:
    """Return the kind of file that begins with one of some bytes."""
    return Kind(name, lambda file: file.read(max(map(len, starts))).startswith(starts), error)


def _is_checkpoint(file: BinaryIO) -> bool:
    """Whether it begins as a checkpoint that `torch.save` made, which may be cut off."""
    head = file.read(30)
    if not head.startswith(b"PK\x03\x04") or len(head) < 30:
        return False
    (name_bytes,) = struct.unpack_from("<H", head, 26)
    return file.read(name_bytes).endswith(b"/data.pkl") and b"vidcache-checkpoint" in file.read(_PICKLE_BYTES)


def _is_export(file: BinaryIO) -> bool:
    if not file.read(1):
        return False
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return data.find(b"vidcache-export") >= 0


def _is_picture(file: BinaryIO) -> bool:
    head = file.read(_HEAD_BYTES)
    return head.startswith(b"\x89PNG\r\n\x1a\n") and b"tEXtSoftware\0vidcache" in head


def _is_page(file: BinaryIO) -> bool:
    return b'<meta name="generator" content="vidcache">' in file.read(_HEAD_BYTES)


CACHE = begins("a cache", b"vidcache", error=CacheError)
FEATURES = begins("a file of features", b"vidfeats")
CHECKPOINT = Kind("a checkpoint", _is_checkpoint, MismatchError)
EXPORT = Kind("an exported checkpoint", _is_export)
PICTURE = Kind("a picture that vidcache drew", _is_picture)
PAGE = Kind("a page that vidcache wrote", _is_page)


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
    return next((name for pattern, name in _NAMES if pattern.match(head)), "")


def _refuse_inputs(place: Path, where: str, inputs: Iterable[Path]) -> None:
    for source in inputs:
        real, real_source = os.path.realpath(place), os.path.realpath(source)
        same = os.path.exists(place) and os.path.exists(source) and os.path.samefile(place, source)
        if same or real == real_source:
            raise InputError(f"{where}: is read by this command ({printable(source)}). Choose another name")
        if os.path.isdir(source) and Path(real).is_relative_to(real_source):
            raise InputError(f"{where}: lies in {printable(source)}, which is only read. Choose a place outside of it")
