"""What a cache file claims, checked before anything uses it.

A file is trusted only after its header and metadata hashes are right; libhdf5 parses it then, and only to compare the
structure. No HDF5 object is open afterwards.
"""

import contextlib
import dataclasses
import math
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
from h5py._objects import phil  # the lock of libhdf5, which is not made for threads

from vidcache.cache import format as layout
from vidcache.cache.format import COLUMNS, NEAR_GROUP, USER_BLOCK_BYTES, Column, Header, Split, Status
from vidcache.errors import CacheError
from vidcache.spec import Spec
from vidcache.text import brief, one_line
from vidcache.untrusted import PRIMITIVE, Rule, check, numbers, text, whole

_FRACTIONS = Rule(
    lambda value: numbers(3).holds(value) and min(value) >= 0 and abs(sum(value) - 1) < 1e-6, "3 fractions of sum 1"
)
_ATTRIBUTES = {
    **{name: text(100) for name in ("format", "split_source", "split_near_duplicates", "split_files_hash")},
    **{name: text(200) for name in ("sampling", "scaling", "vidcache_version")},
    **{name: text(4096) for name in ("split_by", "ffmpeg_version")},
    **{name: whole(1) for name in ("format_version", "decoded_format")},
    "class_depth": whole(-1, 100),
    "split_fractions": _FRACTIONS,
    "split_seed": whole(0),
}
_OPTIONAL = frozenset({"decoded_format"})
_MAX_LIST = 16  # numbers of an attribute that a newer vidcache may add
_SMALLEST = 1e-9  # of a number that something is divided by, unless it is 0
# What a video or its header can claim: `bounded` keeps a build within what `check_columns` accepts.
_BOUNDS: dict[str, tuple[float, float]] = {
    "source_bytes": (0, 2**63 - 1),
    **dict.fromkeys(("width", "height"), (0, 2**24)),
    "rotation": (0, 359),
    **dict.fromkeys(("fps", "duration_seconds"), (0, 1e12)),
    "num_frames": (0, 2**48),
    "num_frames_from_header": (-1, 2**48),
}
_REBUILD = "Build it again with --overwrite"
_RESTORE = "Restore a copy, or build it again with --overwrite"


@dataclasses.dataclass(frozen=True)
class Metadata:
    """Everything in a cache but its clips.

    Columns that the format version of the file lacks are zeros or empty texts; `near_group` is missing then.
    """

    header: Header
    attributes: dict[str, Any]
    spec: Spec
    classes: tuple[str, ...]
    columns: dict[str, npt.NDArray[Any]]


def read_metadata(descriptor: int, where: str) -> Metadata:
    """Read and check everything in an open cache but its clips; `where` names it in messages. Raises CacheError."""
    header = _read_header(descriptor, where)
    try:
        # The same descriptor, so that the file that is parsed is the file that was hashed.
        with _no_plugins(), os.fdopen(os.dup(descriptor), "rb") as raw, h5py.File(raw, "r") as file:
            present = _check_structure(file, header)
            attributes = {name: _read_attribute(file, name) for name in file.attrs}
            check_attributes(attributes)
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
        raise CacheError(f"{where}: no valid cache structure ({reason}). {_REBUILD}") from error
    for name, value, expected in (
        ("fingerprint", layout.fingerprint_of(spec, names, columns), header.fingerprint),
        ("split_hash", layout.split_hash_of(columns), header.split_hash),
    ):
        if value != expected:
            raise CacheError(f"{where}: {name} is {value}, expected {expected}. {_REBUILD}")
    try:
        check_names(names, columns["path"])
        check_columns(spec, len(names), columns)
    except ValueError as error:
        raise CacheError(f"{where}: {error}. {_REBUILD}") from None
    return Metadata(header, attributes, spec, tuple(map(os.fsdecode, names)), columns)


def check_attributes(attributes: dict[str, Any]) -> None:
    """Raise ValueError if a root attribute is missing, or not what it has to be."""
    check({name: value for name, value in attributes.items() if name in _ATTRIBUTES}, _ATTRIBUTES, _OPTIONAL)
    for name, value in attributes.items():
        is_list = type(value) is list and len(value) <= _MAX_LIST and numbers(len(value)).holds(value)
        if not is_list and not PRIMITIVE.holds(value):
            raise ValueError(f"attribute {brief(name)} is {brief(value)}, expected {PRIMITIVE.words}")


def check_names(classes: Sequence[bytes], paths: npt.NDArray[np.bytes_]) -> None:
    """Raise ValueError if a class or a video has no name, or two have the same."""
    for noun, names in (("class", list(classes)), ("path", paths.tolist())):
        if not all(names):
            raise ValueError(f"{noun} {names.index(b'')} has no name")
        ((name, count),) = Counter(names).most_common(1)
        if count > 1:
            raise ValueError(f"{noun} {brief(name)} is there twice")


def check_columns(spec: Spec, num_classes: int, columns: dict[str, npt.NDArray[Any]]) -> None:
    """Raise ValueError for a number that would be used as an index or in arithmetic, and cannot be meant."""
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
            wrong = values[row].tolist()
            raise ValueError(
                f"{name} of row {row} is {wrong[0] if len(wrong) == 1 else wrong}, expected {lowest} to {highest}"
            )
    if NEAR_GROUP in columns:  # each is named by its first row, which belongs to itself; a failed row to none
        first, rows = columns[NEAR_GROUP], np.arange(len(columns[NEAR_GROUP]))
        failed = columns["status"] == Status.FAILED
        bad = np.where(failed, first != -1, (first < 0) | (first > rows))
        bad |= ~failed & (first[np.where(bad | failed, 0, first)] != first)
        if bad.any():
            row = int(bad.argmax())
            raise ValueError(f"{NEAR_GROUP} of row {row} is {first[row]}, which is not the first row of a group")


def bounded(name: str, value: Any) -> Any:
    """Return what a column keeps of a claim: the nearest value that it can have; 0 for no number, or next to none."""
    if name not in _BOUNDS:
        return value
    lowest, highest = _BOUNDS[name]
    if isinstance(value, float) and not _SMALLEST <= value < math.inf:  # as NaN is not
        return 0.0
    return max(lowest, min(value, highest))


def _read_attribute(file: Any, name: str) -> Any:
    """Look at its type and size first: a reference, or text of any length, is not even read."""
    kind = file.attrs.get_id(name)
    if kind.shape is None or kind.dtype.kind not in "Sbiuf" or kind.dtype.itemsize * np.prod(kind.shape) > 1 << 14:
        raise ValueError(f"attribute {brief(name)} is no short text, number or list of numbers")
    value = file.attrs[name]
    if isinstance(value, bytes):
        return os.fsdecode(value)
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def _read_header(descriptor: int, where: str) -> Header:
    try:
        block = os.pread(descriptor, USER_BLOCK_BYTES, 0)
    except OSError as error:
        raise CacheError(f"{where}: {error.strerror}. Name a cache file") from None
    header = Header.from_bytes(block, where)
    facts, clips_bytes = os.fstat(descriptor), header.num_clips * header.clip_bytes
    size, expected = facts.st_size, max(header.file_bytes, header.clips_offset + clips_bytes)
    if size != expected:
        raise CacheError(f"{where}: {size:,} bytes long, expected {expected:,}. {_RESTORE}")
    # A hole of terabytes would be hashed for hours; the columns of a build are written (64: a disk may compress them).
    if size - clips_bytes > max(1 << 30, 64 * 512 * facts.st_blocks) or not header.num_clips:
        raise CacheError(f"{where}: no columns that a build writes. {_REBUILD}")
    metadata_hash = layout.metadata_hash_of(descriptor, header.clips_offset, clips_bytes, size)
    if metadata_hash != header.metadata_hash:
        raise CacheError(f"{where}: the columns are damaged (wrong hash). {_RESTORE}")
    return header


def _check_structure(file: Any, header: Header) -> tuple[Column, ...]:
    """Refuse everything that could make libhdf5 read other files or run filters; return the columns that are there."""
    clips, count = _dataset(file, "clips", header), header.num_clips
    expected = (count, header.num_frames, header.height, header.width, 3)
    if clips.shape != expected or clips.dtype != np.uint8 or clips.id.get_offset() != header.clips_offset:
        raise ValueError(f"/clips is not uint8 {expected} at byte {header.clips_offset}")
    names = _dataset(file, "classes", header)
    if names.dtype.kind != "S" or names.ndim != 1 or not names.size:
        raise ValueError(f"/classes is {names.dtype} of shape {names.shape}, expected names")
    present = []
    for column in layout.columns_of(header.format_version):
        if column.name == NEAR_GROUP and NEAR_GROUP not in file["videos"]:  # a group, by now
            continue
        dataset, shape = _dataset(file, f"videos/{column.name}", header), (count, *column.shape)
        kind = np.dtype(f"S{dataset.dtype.itemsize}") if column.name == "path" else np.dtype(column.dtype)
        if dataset.shape != shape or dataset.dtype != kind:
            raise ValueError(f"{dataset.name} is {dataset.dtype} {dataset.shape}, expected {kind} {shape}")
        present.append(column)
    return tuple(present)


def _dataset(file: Any, name: str, header: Header) -> Any:
    """Return a contiguous, unfiltered, internal dataset; each part of its name is looked at before it is followed."""
    holder, place = file, ""
    for part in name.split("/"):
        place += f"/{part}"
        if part not in holder:
            raise ValueError(f"{place} is missing")
        if not isinstance(holder.get(part, getlink=True), h5py.HardLink):  # a link opens other files
            raise ValueError(f"{place} is a link")
        holder = holder[part]
    properties = holder.id.get_create_plist() if isinstance(holder, h5py.Dataset) else None
    if (
        properties is None
        or properties.get_layout() != h5py.h5d.CONTIGUOUS
        or properties.get_external_count()
        or properties.get_nfilters()
    ):
        raise ValueError(f"/{name} is no contiguous, unfiltered, internal dataset")
    start = holder.id.get_offset() or 0  # inside the user block: it has no storage
    end, clips_end = start + holder.nbytes, header.clips_offset + header.num_clips * header.clip_bytes
    if start < USER_BLOCK_BYTES or end > header.file_bytes:
        raise ValueError(f"/{name} lies at {start}, outside the file")
    if name != "clips" and start < clips_end and end > header.clips_offset:  # where no hash was compared
        raise ValueError(f"/{name} lies at {start}, among the clips")
    return holder


@contextlib.contextmanager
def _no_plugins() -> Iterator[None]:
    """Keep libhdf5 from loading code for a filter that a file names, from `HDF5_PLUGIN_PATH` or elsewhere.

    The functions of `h5py.h5pl` do not take h5py's lock: without it, other threads' HDF5 calls fail or crash.
    """
    with phil:
        folders = [h5py.h5pl.get(index) for index in range(h5py.h5pl.size())]
        for _ in folders:
            h5py.h5pl.remove(0)
        try:
            yield
        finally:
            for folder in folders:
                h5py.h5pl.append(folder)
