"""Writing files so that a power cut leaves the old one or the new one, never half of one."""

import errno
import io
import itertools
import json
import os
import shutil
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from vidcache.errors import InputError
from vidcache.text import printable


def sync_file(descriptor: int) -> None:
    """Make what was written to a file survive a power cut.

    Raises:
        OSError: The disk refused. What was written since the last call is then *not* safe, and a
            second call would wrongly succeed (Linux marks the pages clean): never retry.
    """
    if sys.platform == "darwin":
        import fcntl

        fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)  # fsync on macOS stops at the drive's cache
    else:
        os.fdatasync(descriptor)


def sync_folder(folder: Path) -> None:
    """Make creations, renames and removals in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def follow(path: Path) -> Path:
    """Return the file or folder that a link leads to, whether it is there or not; what is no link as it is.

    Raises:
        InputError: The link leads to itself.
    """
    if not path.is_symlink():
        return path
    target = Path(os.path.realpath(path))
    if target.is_symlink():
        raise InputError(f"{printable(path)}: is a link that leads to itself. Choose another name")
    return target


def write_atomically(path: Path, write: Callable[[BinaryIO], object], scratch: Path | None = None) -> None:
    """Create or replace a file in one step.

    Args:
        path: The file. Its folder must exist. A link is written through.
        write: Called with a temporary binary file.
        scratch: Folder of the temporary file, on the same disk; None is the folder of `path`.

    Raises:
        OSError: The disk is full or the folder not writable; the old file is untouched and no
            temporary file is left.
    """
    target = follow(path)
    folder = scratch if scratch and target is path else target.parent
    temporary = _unused_name(folder, target.name)
    try:
        with temporary.open("xb") as file:  # never what a link of that name leads to
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None:
            error.filename = str(path)  # a full disk does not say what it was full for
        raise
    sync_folder(target.parent)


def _unused_name(folder: Path, name: str) -> Path:
    """Return the name of a temporary file; a killed process of the same number may have left one."""
    names = (folder / f".{name}.{os.getpid()}{suffix}.tmp" for suffix in itertools.chain([""], itertools.count(1)))
    return next(path for path in names if not os.path.lexists(path))


def write_text_atomically(path: Path, text: str, scratch: Path | None = None) -> None:
    """Create or replace a text file in one step; undecodable bytes of names are kept as they were."""
    write_atomically(path, lambda file: file.write(text.encode("utf-8", "surrogateescape")), scratch)


def modification_time_ns(facts: os.stat_result) -> int:
    """Return the modification time of a file in nanoseconds, as an int64: from 1677 to 2262, and no further."""
    return max(-(2**63), min(facts.st_mtime_ns, 2**63 - 1))


def open_regular(path: Path) -> io.BufferedReader:
    """Open a file for reading; a pipe or a device of that name is neither waited for nor read.

    Raises:
        OSError: It is not there, not readable, or no regular file.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        code = errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL
        raise OSError(code, os.strerror(code) if stat.S_ISDIR(mode) else "Not a regular file", str(path))
    return os.fdopen(descriptor, "rb")


def read_small(path: Path, max_bytes: int = 1 << 24) -> bytes:
    """Read a file that is small where it is what its name says.

    Raises:
        OSError: It cannot be read, is no regular file, or is larger.
    """
    with open_regular(path) as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), str(path))
    return data


def read_json(path: Path) -> dict[str, Any]:
    """Read a small file with one JSON object; an empty one where it is not there, or something else."""
    try:
        values = json.loads(read_small(path).decode("utf-8", "surrogateescape"))
    except (OSError, ValueError, RecursionError):
        return {}
    return values if type(values) is dict else {}


def free_bytes(folder: Path) -> int:
    """Return how much the disk of a folder has left for us, in bytes."""
    return shutil.disk_usage(folder).free


def pwrite_all(descriptor: int, data: memoryview, offset: int) -> None:
    """Write all of `data` at `offset`; one call may write less than it was given.

    Raises:
        OSError: The disk is full or broken; part of the data may have been written.
    """
    while data:
        written = os.pwrite(descriptor, data, offset)
        data, offset = data[written:], offset + written


def pread_all(descriptor: int, out: memoryview, offset: int) -> None:
    """Fill `out` from `offset`.

    Raises:
        EOFError: The file ends before `out` is full.
    """
    while out:
        count = os.preadv(descriptor, [out], offset)
        if count == 0:
            raise EOFError(f"file ends at byte {offset}, {len(out)} bytes early")
        out, offset = out[count:], offset + count


def copy_range(source: int, source_offset: int, target: int, target_offset: int, num_bytes: int) -> None:
    """Copy bytes from one open file to another; where the file system can, without moving them.

    Raises:
        EOFError: The source ends early.
        OSError: The disk is full or broken; part may have been written.
    """
    if sys.platform == "linux":
        try:
            while num_bytes:
                count = os.copy_file_range(source, target, num_bytes, source_offset, target_offset)
                if count == 0:
                    break  # the source ends here, or this file system says so: reading will tell
                source_offset, target_offset, num_bytes = (
                    source_offset + count,
                    target_offset + count,
                    num_bytes - count,
                )
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL):
                raise
    buffer = memoryview(bytearray(min(num_bytes, 1 << 22)))
    while num_bytes:
        piece = buffer[: min(num_bytes, len(buffer))]
        pread_all(source, piece, source_offset)
        pwrite_all(target, piece, target_offset)
        size = len(piece)
        source_offset, target_offset, num_bytes = source_offset + size, target_offset + size, num_bytes - size
