"""What a file says, checked before it is believed: each value is of its type and in its range, or the file is refused.

Types are compared exactly and nothing is walked through before its type is known, so that no value, however it is
nested, costs more than a look.
"""

import dataclasses
import math
import sys
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

from vidcache.text import brief

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

    def holds(value: Any) -> bool:
        return type(value) in (list, tuple) and len(value) == count and all(map(_is_number, value))

    return Rule(holds, f"{count} numbers")


def table(rule: Rule, max_entries: int) -> Rule:
    """Return the rule of a dict from str to what another rule says."""

    def holds(value: Any) -> bool:
        return (
            type(value) is dict
            and len(value) <= max_entries
            and all(type(key) is str and len(key) <= 200 and rule.holds(item) for key, item in value.items())
        )

    return Rule(holds, f"names with {rule.words} each, at most {max_entries}")


NUMBER = Rule(lambda value: _is_number(value), "a finite number")
PRIMITIVE = Rule(
    lambda value: value is None or type(value) is bool or _is_number(value) or text(4096).holds(value),
    "a number, a short text or nothing",
)


def check(fields: Mapping[Any, Any], rules: Mapping[str, Rule], optional: frozenset[str] = frozenset()) -> None:
    """Compare the fields of a file with what they have to be.

    Raises:
        ValueError: Names a field that is missing, unknown, or not what it has to be.
    """
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
    """Make a dataclass whose fields are numbers, text or other such dataclasses, of what `dataclasses.asdict` gave.

    Args:
        cls: The dataclass.
        fields: Whatever it is.
        finite: Infinity is no number either; NaN never is.

    Raises:
        ValueError: It is no dict of exactly these fields, each of its type.
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
    if typing.get_origin(hint) is dict:
        return table(_rule_of(typing.get_args(hint)[1], finite=finite), 1000)
    if isinstance(hint, types.UnionType):  # X | None
        rule = _rule_of(typing.get_args(hint)[0], finite=finite)
        return Rule(lambda value: value is None or rule.holds(value), f"{rule.words}, or nothing")
    if dataclasses.is_dataclass(hint):
        return Rule(lambda value: type(value) is dict, "fields")
    if hint is float:
        return NUMBER if finite else Rule(lambda value: _is_number(value, math.inf), "a number")
    return {bool: Rule(lambda value: type(value) is bool, "True or False"), int: whole(-MAX_INT), str: text(4096)}[hint]


def _is_number(value: Any, highest: float = sys.float_info.max) -> bool:
    return (type(value) is int and abs(value) <= MAX_INT) or (type(value) is float and abs(value) <= highest)
