"""What a cache file says of itself, checked before it is believed.

A file is trusted only after its header and metadata hashes are right; libhdf5 parses it then, and
only to compare the structure. Nothing of HDF5 is open afterwards.
"""

import contextlib
import dataclasses
import math
import os
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from vidcache.cache import format as layout
from vidcache.cache.format import COLUMNS, NEAR_GROUP, USER_BLOCK_BYTES, Column, Header, Split, Status, columns_of
from vidcache.errors import CacheError
from vidcache.spec import Spec
from vidcache.text import brief, one_line
from vidcache.untrusted import PRIMITIVE, Rule, check, numbers, text, whole

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
    if NEAR_GROUP in columns:
        _check_near_groups(columns)
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


def _check_near_groups(columns: dict[str, npt.NDArray[Any]]) -> None:
    """Refuse groups that are not named by their first row, or of failed videos."""
    first, rows = columns[NEAR_GROUP], np.arange(len(columns[NEAR_GROUP]))
    expected = np.where(columns["status"] == Status.FAILED, -1, first)
    bad = (first != expected) | (first < -1) | (first > rows)
    bad |= ~bad & (first >= 0) & (first[np.where(bad, 0, first)] != first)
    if bad.any():
        row = int(bad.argmax())
        raise ValueError(f"{NEAR_GROUP} of row {row} is {int(first[row])}, not the first row of a group")


def bounded(name: str, value: Any) -> Any:
    """Return what a column keeps of a claim: the nearest value that it can have; 0 for no number, or next to none."""
    if name not in _BOUNDS:
        return value
    lowest, highest = _BOUNDS[name]
    if isinstance(value, float) and not _SMALLEST <= value < math.inf:  # as NaN is not
        return 0.0
    return max(lowest, min(value, highest))


_PLUGINS = threading.Lock()


@dataclasses.dataclass(frozen=True)
class Metadata:
    """Everything of a cache but its clips.

    Attributes:
        header: The user block.
        attributes: Root attributes of the file: how it was made.
        spec: Shape of the clips.
        classes: Class names; a label is an index into them.
        columns: One (N, ...) array per column of `vidcache.cache.format.COLUMNS`; zeros (empty text) where the
            format version of the file lacks it. Without `near_group` where the file has none.
    """

    header: Header
    attributes: dict[str, Any]
    spec: Spec
    classes: tuple[str, ...]
    columns: dict[str, npt.NDArray[Any]]


def read_metadata(descriptor: int, where: str) -> Metadata:
    """Read and check everything of a cache but its clips.

    Args:
        descriptor: The file, open for reading; stays the caller's.
        where: The file, for messages.

    Raises:
        CacheError: The file is unfinished, damaged, foreign or of another version.
    """
    header = _read_header(descriptor, where)
    try:
        # The same descriptor, so that the file that is parsed is the file that was hashed.
        with _no_plugins(), os.fdopen(os.dup(descriptor), "rb") as raw, h5py.File(raw, "r") as file:
            present = _check_structure(file, header)
            attributes = read_attributes(file)
            spec = Spec(header.num_frames, header.height, header.width, attributes["sampling"], attributes["scaling"])
            names = [bytes(name) for name in file["classes"][:]]
            columns = {
                column.name: file["videos"][column.name][:]
                if column in present
                else np.zeros((header.num_clips, *column.shape), column.dtype)
                for column in COLUMNS
                if column in present or column.name != NEAR_GROUP
            }
    except Exception as error:  # h5py raises as many kinds of it as there are ways to write a file wrongly
        reason = one_line(str(error), 300)
        raise CacheError(f"{where}: no valid cache structure ({reason}). Build it again with --overwrite") from error
    for name, found, expected in (
        ("fingerprint", layout.fingerprint_of(spec, names, columns), header.fingerprint),
        ("split_hash", layout.split_hash_of(columns), header.split_hash),
    ):
        if found != expected:
            raise CacheError(f"{where}: {name} is {found}, expected {expected}. Build it again with --overwrite")
    try:
        check_names(names, columns["path"])
        check_columns(spec, len(names), columns)
    except ValueError as error:
        raise CacheError(f"{where}: {error}. Build it again with --overwrite") from None
    return Metadata(header, attributes, spec, tuple(os.fsdecode(name) for name in names), columns)


def _read_header(descriptor: int, where: str) -> Header:
    try:
        block = os.pread(descriptor, USER_BLOCK_BYTES, 0)
    except OSError as error:
        raise CacheError(f"{where}: {error.strerror}. Expected a cache file") from None
    header = Header.from_bytes(block, where)
    size, clips_bytes = os.fstat(descriptor).st_size, header.num_clips * header.clip_bytes
    expected = max(header.file_bytes, header.clips_offset + clips_bytes)
    if size != expected:
        raise CacheError(
            f"{where}: {size:,} bytes long, expected {expected:,}. Restore a copy, or build it again with --overwrite"
        )
    # A hole of terabytes would be hashed for hours; the columns of a build are written (64: a disk may compress them).
    if size - clips_bytes > max(1 << 30, 64 * 512 * os.fstat(descriptor).st_blocks) or not header.num_clips:
        raise CacheError(f"{where}: no columns that a build writes. Build it again with --overwrite")
    found = layout.metadata_hash_of(descriptor, header.clips_offset, clips_bytes, size)
    if found != header.metadata_hash:
        raise CacheError(
            f"{where}: the columns are damaged (hash {found}, expected {header.metadata_hash}). "
            "Restore a copy, or build it again with --overwrite"
        )
    return header


def _check_structure(file: Any, header: Header) -> tuple[Column, ...]:
    """Refuse everything that could make libhdf5 read other files or run filters; return the columns that are there."""
    present = columns_of(header.format_version)
    expected = {f"videos/{column.name}": (header.num_clips, *column.shape) for column in present}
    expected["clips"] = (header.num_clips, header.num_frames, header.height, header.width, 3)
    for name, shape in {**expected, "classes": None}.items():
        if name == f"videos/{NEAR_GROUP}" and NEAR_GROUP not in file["videos"]:  # whose other columns have been checked
            del expected[name]
            present = present[:-1]
            continue
        holder, place = file, ""
        for part in name.split("/"):  # each looked at before it is followed: a link opens other files
            place += f"/{part}"
            if part not in holder:
                raise ValueError(f"{place} is missing")
            if not isinstance(holder.get(part, getlink=True), h5py.HardLink):
                raise ValueError(f"{place} is a link")
            holder = holder[part]
        dataset = holder
        properties = dataset.id.get_create_plist() if isinstance(dataset, h5py.Dataset) else None
        if (
            properties is None
            or properties.get_layout() != h5py.h5d.CONTIGUOUS
            or properties.get_external_count()
            or properties.get_nfilters()
        ):
            raise ValueError(f"/{name} is no contiguous, unfiltered, internal dataset")
        if shape is not None and dataset.shape != shape:
            raise ValueError(f"/{name} has shape {dataset.shape}, expected {shape}")
    for column in present:
        found, wanted = file["videos"][column.name].dtype, layout.column_dtype(column, 0)
        if found.kind != wanted.kind or (wanted.itemsize and found != wanted):
            raise ValueError(f"/videos/{column.name} is {found}, expected {wanted}")
    if file["clips"].dtype != np.uint8 or file["clips"].id.get_offset() != header.clips_offset:
        raise ValueError(f"/clips is not uint8 at byte {header.clips_offset}")
    names = file["classes"]
    if names.dtype.kind != "S" or names.ndim != 1 or not names.size:
        raise ValueError(f"/classes is {names.dtype} of shape {names.shape}, expected names")
    clips_end = header.clips_offset + header.num_clips * header.clip_bytes
    for name in (*expected, "classes"):
        start = file[name].id.get_offset() or 0  # inside the user block: it has no storage
        end = start + file[name].nbytes
        if start < USER_BLOCK_BYTES or end > header.file_bytes:
            raise ValueError(f"/{name} lies at {start}, outside the file")
        if name != "clips" and start < clips_end and end > header.clips_offset:  # where no hash was compared
            raise ValueError(f"/{name} lies at {start}, among the clips")
    return present


@contextlib.contextmanager
def _no_plugins() -> Iterator[None]:
    """Keep libhdf5 from loading code for a filter that a file names, from `HDF5_PLUGIN_PATH` or elsewhere."""
    with _PLUGINS:
        folders = [h5py.h5pl.get(index) for index in range(h5py.h5pl.size())]
        for _ in folders:
            h5py.h5pl.remove(0)
        try:
            yield
        finally:
            for folder in folders:
                h5py.h5pl.append(folder)
