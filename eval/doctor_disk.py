"""How fast a disk writes and reads, as the page cache lets one see it. Knows open files, not folders or caches."""

import os
import sys
import time
from collections.abc import Sequence

from vidcache.files import pread_all, pwrite_all, sync_file
from vidcache.spec import Spec

MAX_SECONDS = 1.0
PIECE_BYTES = 4 << 20
_SYNC_PIECES = 4


def write(descriptor: int, num_bytes: int) -> tuple[int, float]:
    """Write pieces of 4 MiB and sync every fourth; return bytes and bytes a second."""
    data = memoryview(os.urandom(PIECE_BYTES))  # some disks compress
    written, start = 0, time.perf_counter()
    while written < num_bytes and time.perf_counter() - start < MAX_SECONDS:
        for _ in range(_SYNC_PIECES):
            piece = data[: num_bytes - written]
            pwrite_all(descriptor, piece, written)
            written += len(piece)
        sync_file(descriptor)
    return written, written / (time.perf_counter() - start)


def forget(descriptor: int, num_bytes: int) -> str:
    """Take a file out of the page cache; return what to say where that is not sure to have happened."""
    if sys.platform != "linux":
        return "partly from memory perhaps: this system cannot be told to forget a file"
    for _ in range(3):  # a page that a CPU has just had in its hands is kept at first
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        there = [in_memory(descriptor, offset) for offset in range(0, num_bytes, max(num_bytes // 16, 1))]
        if True not in there:
            break
    if True in there:
        return "from memory: it could not be emptied"
    return "from memory perhaps: this file system does not say" if None in there else ""


def in_memory(descriptor: int, offset: int) -> bool | None:
    """Return whether a byte of a file can be read without the disk; None: the file system does not say."""
    if sys.platform != "linux":
        return None
    try:
        return os.preadv(descriptor, [bytearray(1)], offset, os.RWF_NOWAIT) == 1
    except BlockingIOError:
        return False
    except OSError:
        return None


def timed_reads(descriptor: int, offsets: Sequence[int], num_bytes: int) -> tuple[int, float]:
    """Read `num_bytes` at each offset, for a second at most; return how many it came to, and bytes a second."""
    buffer, total, num_read, start = memoryview(bytearray(num_bytes)), 0, 0, time.perf_counter()
    for num_read, offset in enumerate(offsets, 1):  # noqa: B007 -- the last one counts
        count = min(num_bytes, os.fstat(descriptor).st_size - offset)
        pread_all(descriptor, buffer[:count], offset)
        total += count
        if time.perf_counter() - start > MAX_SECONDS:
            break
    return num_read, total / (time.perf_counter() - start)


def size(num_bytes: float) -> str:
    """Return a number of bytes for people.

    >>> size(2_408_448), size(80 << 30), size(1000)
    ('2.30 MiB', '80.0 GiB', '0.98 KiB')
    """
    value, unit = num_bytes / 1024, "KiB"
    for larger in ("MiB", "GiB", "TiB"):
        if value < 1000:
            break
        value, unit = value / 1024, larger
    return f"{value:,.{0 if value >= 100 else 1 if value >= 10 else 2}f} {unit}"


def speed(bytes_per_second: float, spec: Spec) -> str:
    """Return a speed in bytes and in clips.

    >>> speed(1e9, Spec()), speed(1e7, Spec())
    ('954 MiB/s = 415 clips/s', '9.54 MiB/s = 4.2 clips/s')
    """
    clips = bytes_per_second / spec.clip_bytes
    return f"{size(bytes_per_second)}/s = {clips:,.{0 if clips >= 10 else 1}f} clips/s"
