"""The archive that torch writes, looked at before torch reads it: what is in it can run nothing, inflate or explode.

A pickle builds its objects with a small machine, and one that an attacker wrote can make, of a few bytes, objects that
take forever to compare or to print: lists that hold each other. Ours are trees, and not deep.
"""

import pickletools
import re
import zipfile
import zlib
from typing import BinaryIO

from vidcache.outputs import name_of

MAX_BYTES = 8 << 30
_MAX_PICKLE_BYTES = 16 << 20
_MAX_TEXT = 1 << 16
_MAX_DEPTH = 16  # ours have 6
_MAX_OPERATIONS = 2_000_000  # ours have some thousands, and 8 for each class
_GLOBALS = re.compile(r"torch\._utils _rebuild_tensor_v2|torch \w+Storage|collections OrderedDict|_codecs encode")
# What pickle's protocol 2 writes for numbers, text, tuples, lists, dicts and tensors.
_OPERATIONS = set(
    "PROTO STOP MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE EMPTY_TUPLE TUPLE TUPLE1 "
    "TUPLE2 TUPLE3 EMPTY_LIST APPEND APPENDS EMPTY_DICT SETITEM SETITEMS GLOBAL REDUCE BINPERSID BINPUT LONG_BINPUT "
    "BINGET LONG_BINGET".split()
)
# What each takes from the stack, and how much it leaves there.
_EFFECTS = {
    code.name: ([kind.name for kind in code.stack_before], len(code.stack_after)) for code in pickletools.opcodes
}


def check_archive(file: BinaryIO) -> None:
    """Refuse an archive that no vidcache has written; looks at all of it, and at its checksums, which torch does not.

    Raises:
        ValueError: It is damaged, or none of ours. Says why.
        OSError: It cannot be read.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            data = _check_members(archive, file.seek(0, 2))
    except (zipfile.BadZipFile, EOFError, RuntimeError, NotImplementedError, zlib.error) as error:
        file.seek(0)
        known = name_of(file.read(64))
        if known in ("a cache", "a file of features"):
            raise ValueError(f"is {known}, not a checkpoint") from None
        raise ValueError(f"{error}: damaged, or no vidcache checkpoint") from None
    try:
        _check_pickle(data)
    except ValueError as error:
        raise ValueError(f"cannot be read safely ({error}), expected a vidcache checkpoint") from None


def _check_members(archive: zipfile.ZipFile, num_bytes: int) -> bytes:
    """Return the pickle."""
    members = archive.infolist()
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise ValueError("has compressed members, expected none: not written by vidtrain")
    if num_bytes > MAX_BYTES:
        raise ValueError(f"more than {MAX_BYTES:,} bytes, expected a checkpoint of R3D-18")
    names = [member.orig_filename for member in members]
    folder = names[0].split("/")[0] if names else ""
    if (
        len({name.lower() for name in names}) < len(names)  # torch's reader ignores case
        or not all(re.fullmatch(r"[\w.-]+(/[\w.-]+)+/?", name, re.ASCII) for name in names)
        or not all(name.startswith(f"{folder}/") for name in names)
        or f"{folder}/data.pkl" not in names
        or any(member.flag_bits & 1 or member.file_size != member.compress_size for member in members)
        or sum(member.file_size for member in members) > num_bytes
        or min(member.header_offset for member in members) != 0  # behind another archive, which torch would read
    ):
        raise ValueError("an archive with other members than torch writes: not written by vidtrain")
    if bad := archive.testzip():
        raise ValueError(f"{bad} is damaged (its CRC differs)")
    if archive.getinfo(f"{folder}/data.pkl").file_size > _MAX_PICKLE_BYTES:
        raise ValueError(f"describes itself with more than {_MAX_PICKLE_BYTES:,} bytes: not written by vidtrain")
    return archive.read(f"{folder}/data.pkl")


def _check_pickle(data: bytes) -> None:
    """Follow the machine of pickle without making anything: of each object only how deep it is, and its text."""
    stack: list[tuple[int, str]] = []  # a mark has depth -1
    memo: dict[int, str] = {}  # texts and globals: only these may be used again
    leaf, is_leaf, num_letters = "", False, 0
    for number, (operation, argument, _) in enumerate(pickletools.genops(data)):
        name = operation.name
        if name not in _OPERATIONS:
            raise ValueError(f"unsupported {name}")
        if number > _MAX_OPERATIONS:
            raise ValueError(f"more than {_MAX_OPERATIONS:,} operations")
        if name == "GLOBAL" and not _GLOBALS.fullmatch(str(argument)):
            raise ValueError(f"unsupported GLOBAL {str(argument).replace(' ', '.')}")
        if name == "LONG1" and not -(2**63) <= int(argument or 0) < 2**63:  # such keys of a dict can collide
            raise ValueError("a number of more than 64 bits")
        if name == "BINUNICODE" and len(str(argument)) > _MAX_TEXT:
            raise ValueError(f"text of {len(str(argument)):,} letters")
        if name.endswith("BINPUT"):
            memo.pop(int(argument or 0), None)
            if is_leaf:
                memo[int(argument or 0)] = leaf
            continue
        if name.endswith("BINGET") and int(argument or 0) not in memo:
            raise ValueError("an object that is in two places")
        is_leaf = name in ("BINUNICODE", "GLOBAL") or name.endswith("BINGET")
        leaf = (memo[int(argument or 0)] if name.endswith("BINGET") else str(argument)) if is_leaf else ""
        num_letters += len(leaf)
        if num_letters > _MAX_PICKLE_BYTES:
            raise ValueError("texts that are used again and again")
        if name == "MARK":
            stack.append((-1, ""))
        elif name != "PROTO":
            _move(stack, name, leaf)
        if stack and stack[-1][0] > _MAX_DEPTH:
            raise ValueError("objects in objects in objects")


def _move(stack: list[tuple[int, str]], name: str, leaf: str) -> None:
    """Do to depths and texts what an operation does to the objects."""
    (before, num_after), taken = _EFFECTS[name], []
    try:
        if "mark" in before:
            while (item := stack.pop())[0] != -1:
                taken.append(item)
            before = before[: before.index("mark")]
        taken += [stack.pop() for _ in before]
    except IndexError:
        raise ValueError(f"{name} without what it needs") from None
    # A pair is known by its second text: that of bytes, which are made of text, is their encoding.
    if name == "REDUCE" and taken[1][1] == "_codecs encode" and taken[0][1] != "(latin1":
        raise ValueError("text in another encoding than latin1")
    text = f"({taken[0][1]}" if name == "TUPLE2" else leaf
    grown = taken.pop()[0] if name.startswith(("APPEND", "SETITEM")) else 0
    stack += [(max(grown, 1 + max((depth for depth, _ in taken), default=0)), text)] * num_after
