"""What the attributes, names and columns of a cache can be, as tables; a file with anything else is refused.

All of it is used later as an index, in arithmetic, as JSON or on a terminal, by code that does not ask again.
"""

import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from vidcache.cache.layout import Split, Status
from vidcache.plain import PRIMITIVE, Rule, check, numbers, text, whole
from vidcache.spec import Spec
from vidcache.text import brief

_FRACTIONS = Rule(
    lambda value: numbers(3).holds(value) and min(value) >= 0 and abs(sum(value) - 1) < 1e-6, "3 fractions of sum 1"
)
_ATTRIBUTES = {
    "format": text(100),
    "format_version": whole(1),
    "sampling": text(200),
    "scaling": text(200),
    "class_depth": whole(-1, 100),
    "split_by": text(4096),
    "split_source": text(100),
    "split_fractions": _FRACTIONS,
    "split_seed": whole(0),
    "split_near_duplicates": text(100),
    "split_files_hash": text(100),
    "vidcache_version": text(200),
    "ffmpeg_version": text(4096),
    "decoded_format": whole(1),
}
_OPTIONAL = frozenset({"decoded_format"})
_MAX_LIST = 16  # numbers of an attribute that a newer vidcache may add
_SMALLEST = 1e-9  # of a number that something is divided by, unless it is 0
# What a video or its header can claim: `bounded` keeps a build within what `check_columns` believes.
_BOUNDS: dict[str, tuple[float, float]] = {
    "source_bytes": (0, 2**63 - 1),
    "width": (0, 2**24),
    "height": (0, 2**24),
    "rotation": (0, 359),
    "fps": (0, 1e12),
    "duration_seconds": (0, 1e12),
    "num_frames": (0, 2**48),
    "num_frames_from_header": (-1, 2**48),
}


def read_attributes(file: Any) -> dict[str, Any]:
    """Read the root attributes of an open HDF5 file: str, int, float, bool, or a list of numbers.

    Raises:
        ValueError: One is missing, or not what it has to be.
    """
    attributes = {name: _read_attribute(file, name) for name in file.attrs}
    check_attributes(attributes)
    return attributes


def check_attributes(attributes: dict[str, Any]) -> None:
    """Refuse root attributes that a cache cannot have.

    Raises:
        ValueError: One is missing, or not what it has to be.
    """
    check({name: value for name, value in attributes.items() if name in _ATTRIBUTES}, _ATTRIBUTES, _OPTIONAL)
    for name, value in attributes.items():
        is_list = type(value) is list and len(value) <= _MAX_LIST and numbers(len(value)).holds(value)
        if not is_list and not PRIMITIVE.holds(value):
            raise ValueError(f"attribute {brief(name)} is {brief(value)}, expected {PRIMITIVE.words}")


def _read_attribute(file: Any, name: str) -> Any:
    """Look at its type and size first: a reference, or text of any length, is not even read."""
    found = file.attrs.get_id(name)
    if found.shape is None or found.dtype.kind not in "Sbiuf" or found.dtype.itemsize * np.prod(found.shape) > 1 << 14:
        raise ValueError(f"attribute {brief(name)} is no short text, number or list of numbers")
    value = file.attrs[name]
    if isinstance(value, bytes):
        return os.fsdecode(value)
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def check_names(classes: Sequence[bytes], paths: npt.NDArray[np.bytes_]) -> None:
    """Refuse classes or videos without a name, or two of one name.

    Raises:
        ValueError: Names one.
    """
    for noun, names in (("class", list(classes)), ("path", paths.tolist())):
        if not all(names):
            raise ValueError(f"{noun} {names.index(b'')} has no name")
        if len(set(names)) < len(names):
            seen: set[bytes] = set()
            twice = next(name for name in names if name in seen or seen.add(name))  # type: ignore[func-returns-value]
            raise ValueError(f"{noun} {brief(twice)} is there twice")


def check_columns(spec: Spec, num_classes: int, columns: dict[str, npt.NDArray[Any]]) -> None:
    """Refuse numbers that would be used as indices or in arithmetic, and cannot be meant.

    Raises:
        ValueError: Names one.
    """
    bounds = {
        "label": (0, num_classes - 1),
        "status": (0, max(Status)),
        "split": (0, max(Split)),
        "num_real": (0, spec.num_frames),
        "mean_rgb": (0, 255),
        **_BOUNDS,
    }
    for name, (lowest, highest) in bounds.items():
        values = columns[name].reshape(len(columns[name]), -1)
        good = (values >= lowest) & (values <= highest)  # NaN is not
        if values.dtype.kind == "f":
            good &= (values == 0) | (values >= _SMALLEST)
        if not good.all():
            row = int(np.flatnonzero(~good.all(axis=1))[0])
            found = values[row].tolist()
            raise ValueError(
                f"{name} of row {row} is {found[0] if len(found) == 1 else found}, expected {lowest} to {highest}"
            )


def bounded(name: str, value: Any) -> Any:
    """Return what a column keeps of a claim: the nearest value that it can have; 0 for no number, or next to none."""
    if name not in _BOUNDS:
        return value
    lowest, highest = _BOUNDS[name]
    if isinstance(value, float) and not _SMALLEST <= value < math.inf:  # as NaN is not
        return 0.0
    return max(lowest, min(value, highest))
