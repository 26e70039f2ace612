"""Checks of a checkpoint file before torch reads it: nothing in it can run, inflate or explode.

A hostile pickle of a few bytes can build objects that take forever to compare or print. Ours are shallow trees.
"""

import dataclasses
import math
import pickletools
import re
import sys
import types
import typing
import zipfile
import zlib
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO, NamedTuple, TypeVar

from vidcache.outputs import name_of
from vidcache.text import brief

MAX_BYTES = 8 << 30
_MAX_PICKLE_BYTES = 16 << 20
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
    """Raise ValueError for an archive that is damaged (torch checks no checksums) or not written by vidcache."""
    try:
        with zipfile.ZipFile(file) as archive:
            data = _check_members(archive, file.seek(0, 2))
    except (zipfile.BadZipFile, EOFError, RuntimeError, UnicodeDecodeError, zlib.error) as error:
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
    """Simulate the pickle machine without making objects: of each only its depth and text."""
    stack: list[tuple[int, str]] = []  # a mark has depth -1
    memo: dict[Any, str | None] = {}
    text, num_letters = None, 0  # text: of the last object, if it is a text or a global: only these may be used again
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
        if name.endswith("BINPUT"):
            memo[argument] = text
            continue
        if name.endswith("BINGET"):
            text = memo.get(argument)
            if text is None:
                raise ValueError("an object that is in two places")
        else:
            text = str(argument) if name in ("BINUNICODE", "GLOBAL") else None
        num_letters += len(text or "")
        if num_letters > _MAX_PICKLE_BYTES:
            raise ValueError("texts that are used again and again")
        if name == "MARK":
            stack.append((-1, ""))
        elif name != "PROTO":
            _move(stack, name, text or "")
        if stack and stack[-1][0] > _MAX_DEPTH:
            raise ValueError("objects in objects in objects")


def _move(stack: list[tuple[int, str]], name: str, text: str) -> None:
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
    text = f"({taken[0][1]}" if name == "TUPLE2" else text
    grown = taken.pop()[0] if name.startswith(("APPEND", "SETITEM")) else 0
    stack += [(max(grown, 1 + max((depth for depth, _ in taken), default=0)), text)] * num_after


T = TypeVar("T")
MAX_INT = 2**63 - 1


class Rule(NamedTuple):
    """What a value has to be: a test, and the same in words."""

    holds: Callable[[Any], bool]
    words: str


def whole(low: int, high: int = MAX_INT) -> Rule:
    """Return the rule of an int."""
    words = f"a whole number from {low}" + (f" to {high}" if high < MAX_INT else "")
    return Rule(lambda value: type(value) is int and low <= value <= high, words)


def text(max_length: int) -> Rule:
    """Return the rule of a str."""
    return Rule(lambda value: type(value) is str and len(value) <= max_length, f"text of at most {max_length} letters")


def numbers(count: int) -> Rule:
    """Return the rule of a list or tuple of finite numbers."""
    return Rule(
        lambda value: type(value) in (list, tuple) and len(value) == count and all(map(_is_number, value)),
        f"{count} numbers",
    )


def table(rule: Rule, max_entries: int) -> Rule:
    """Return the rule of a dict from str to what another rule says."""
    return Rule(
        lambda value: (
            type(value) is dict
            and len(value) <= max_entries
            and all(type(key) is str and len(key) <= 200 and rule.holds(item) for key, item in value.items())
        ),
        f"names with {rule.words} each, at most {max_entries}",
    )


NUMBER = Rule(lambda value: _is_number(value), "a finite number")
PRIMITIVE = Rule(
    lambda value: value is None or type(value) is bool or _is_number(value) or text(4096).holds(value),
    "a number, a short text or nothing",
)


def check(fields: Mapping[Any, Any], rules: Mapping[str, Rule], optional: frozenset[str] = frozenset()) -> None:
    """Compare the fields of a file with what they have to be; raises ValueError."""
    for name, rule in rules.items():
        if name not in fields:
            if name not in optional:
                raise ValueError(f"{name} is missing")
        elif not rule.holds(fields[name]):
            raise ValueError(f"{name} is {brief(fields[name])}, expected {rule.words}")
    for name in fields:
        if name not in rules:
            raise ValueError(f"{brief(name)} is not known")


def build(cls: type[T], fields: Any, *, finite: bool = True) -> T:
    """Make a dataclass of what `dataclasses.asdict` gave; raises ValueError where a field is not of its type.

    NaN is no number, and infinity only where not `finite`.
    """
    if type(fields) is not dict:
        raise ValueError(f"{cls.__name__} is {brief(fields)}, expected its fields")
    hints = typing.get_type_hints(cls)
    rules = {
        field.name: _rule_of(hints[field.name], finite=finite)
        for field in dataclasses.fields(cls)  # type: ignore[arg-type]  # T is a dataclass
    }
    check(fields, rules)
    values = {
        name: build(hints[name], value, finite=finite) if dataclasses.is_dataclass(hints[name]) else value
        for name, value in fields.items()
    }
    return cls(**values)


def _rule_of(hint: Any, *, finite: bool) -> Rule:
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is dict:
        return table(_rule_of(arguments[1], finite=finite), 1000)
    if isinstance(hint, types.UnionType):  # X | None
        rule = _rule_of(arguments[0], finite=finite)
        return Rule(lambda value: value is None or rule.holds(value), f"{rule.words}, or nothing")
    if dataclasses.is_dataclass(hint):
        return Rule(lambda value: type(value) is dict, "fields")
    if hint is float:
        return NUMBER if finite else Rule(lambda value: _is_number(value, math.inf), "a number")
    return {bool: Rule(lambda value: type(value) is bool, "True or False"), int: whole(-MAX_INT), str: text(4096)}[hint]


def _is_number(value: Any, highest: float = sys.float_info.max) -> bool:
    return (type(value) is int and abs(value) <= MAX_INT) or (type(value) is float and abs(value) <= highest)
