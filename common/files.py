"""Files: written whole or not at all, also in a power cut, and read only where they are regular files."""

import errno
import io
import json
import os
import secrets
import shutil
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from vidcache.errors import InputError
from vidcache.text import printable


def sync_file(descriptor: int) -> None:
    """Make what was written to a file survive a power cut; raises OSError if the disk refused.

    What was written since the last call is then *not* safe, and a second call would wrongly succeed (Linux marks the
    pages clean): never retry.
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
    """Return the target of a link, whether it exists or not; any other path as it is; raises InputError."""
    if not path.is_symlink():
        return path
    target = Path(os.path.realpath(path))
    if target.is_symlink():
        raise InputError(f"{printable(path)}: is a link that leads to itself. Choose another name")
    return target


def write_atomically(path: Path, write: Callable[[BinaryIO], object], scratch: Path | None = None) -> None:
    """Create or replace a file in one step, through a link; after an OSError the old file is untouched.

    The temporary file that `write` gets is in the folder `scratch`, on the same disk, or else beside the file.
    """
    target = follow(path)
    folder = scratch if scratch and target is path else target.parent
    temporary = folder / f".{target.name}.{secrets.randbits(32)}.tmp"
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


def write_text_atomically(path: Path, text: str, scratch: Path | None = None) -> None:
    """Create or replace a text file in one step; undecodable bytes of names are kept as they were."""
    write_atomically(path, lambda file: file.write(text.encode("utf-8", "surrogateescape")), scratch)


def modification_time_ns(facts: os.stat_result) -> int:
    """Return the modification time of a file in nanoseconds, within an int64 (1677 to 2262)."""
    return max(-(2**63), min(facts.st_mtime_ns, 2**63 - 1))


def open_regular(path: Path) -> io.BufferedReader:
    """Open a file for reading; a pipe or a device of that name is neither waited for nor read; raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        if stat.S_ISDIR(mode):
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        raise OSError(errno.EINVAL, "Not a regular file", str(path))
    return os.fdopen(descriptor, "rb")


def read_small(path: Path, max_bytes: int = 1 << 24) -> bytes:
    """Read a file that has no reason to be large; raises OSError."""
    with open_regular(path) as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), str(path))
    return data


def read_json(path: Path) -> dict[str, Any]:
    """Read a small file with one JSON object; {} where it is missing or something else."""
    try:
        values = json.loads(read_small(path).decode("utf-8", "surrogateescape"))
    except (OSError, ValueError, RecursionError):
        return {}
    return values if type(values) is dict else {}


def free_bytes(folder: Path) -> int:
    """Return the free space of a folder's disk, in bytes."""
    return shutil.disk_usage(folder).free


def pwrite_all(descriptor: int, data: memoryview, offset: int) -> None:
    """Write all of `data` at `offset`; a single call may write less; raises OSError."""
    while data:
        written = os.pwrite(descriptor, data, offset)
        data, offset = data[written:], offset + written


def pread_all(descriptor: int, out: memoryview, offset: int) -> None:
    """Fill `out` from `offset`; raises EOFError."""
    while out:
        count = os.preadv(descriptor, [out], offset)
        if count == 0:
            raise EOFError(f"file ends at byte {offset}, {len(out)} bytes early")
        out, offset = out[count:], offset + count


def copy_range(source: int, source_offset: int, target: int, target_offset: int, num_bytes: int) -> None:
    """Copy bytes from one open file to another, cloning them where possible; raises EOFError or OSError."""
    done, end = 0, num_bytes
    if sys.platform == "linux":
        try:
            while done < end:
                count = os.copy_file_range(source, target, end - done, source_offset + done, target_offset + done)
                if count == 0:
                    break  # the source ends here, or this file system says so: reading will tell
                done += count
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL):
                raise
    buffer = memoryview(bytearray(min(end - done, 1 << 22)))
    while done < end:
        piece = buffer[: min(end - done, len(buffer))]
        pread_all(source, piece, source_offset + done)
        pwrite_all(target, piece, target_offset + done)
        done += len(piece)
