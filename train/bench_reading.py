"""Measures how fast the clips of a step can be read: from memory, and from the disk.

What a disk, or the host of a virtual machine, keeps in its own memory counts as the disk.
"""

import contextlib
import dataclasses
import math
import os
import time
from collections.abc import Callable
from pathlib import Path

from vidcache.cache.joined import JoinedReader
from vidcache.cache.reader import CacheReader, Reader
from vidcache.cache.stream import Rows, epoch_order, stream_chunks
from vidcache.pixels import Workspace
from vidcache.train.measured import Pair, Times
from vidcache.train.task import Task

MIN_REPEATS = 3
CONTAINER_LIMIT = Path("/sys/fs/cgroup/memory.max")
_FROM_DISK = 0.9  # share of the bytes that has to come from the disk


@dataclasses.dataclass(frozen=True)
class Limit:
    """When something has been measured often enough.

    Attributes:
        repeats: So often at most.
        seconds: And no longer than this, once it was done `MIN_REPEATS` times.
    """

    repeats: int = 7
    seconds: float = 20.0

    def is_over(self, count: int, start: float) -> bool:
        """Whether `count` measurements, begun at `start` of `time.perf_counter`, are enough."""
        late = time.perf_counter() - start >= self.seconds
        return count >= self.repeats or (late and count >= MIN_REPEATS)


class Reading:
    """Reads batches as the loop does, and does nothing with them; in turn with twice as many threads.

    Args:
        task: With at least a batch of training clips.
        limit: Of each measurement.

    Attributes:
        clip_bytes: That are read of a clip.
    """

    def __init__(self, task: Task, limit: Limit) -> None:
        self._reader, self._frames, self._limit = task.reader, task.frames, limit
        config = task.config
        self._threads, self._verify, self._memory = config.reader_threads, config.verify, Workspace()
        self.clip_bytes = math.prod(task.reader.shape_of(self._frames))
        size, order = config.batch_size, epoch_order(task.rows, config.seed, 1)
        # Whole batches of different clips: one that comes twice would come from memory the second time.
        count = min(len(order) // size, limit.repeats)
        self._chunks = [order[start * size : (start + 1) * size] for start in range(count)]

    def warm(self) -> Pair:
        """Read clips that have been read before."""
        self._through(self._threads)
        return self._in_turn()

    def cold(self) -> tuple[Pair, str]:
        """Read clips after their pages were dropped; and say why that was not possible, or is not certain."""
        if not drop_pages(self._reader, self._chunks[0]):
            return Pair(), "the system cannot drop a file's pages from memory"
        before = bytes_from_disk()
        pair = self._in_turn(lambda: [drop_pages(self._reader, chunk) for chunk in self._chunks])
        after = bytes_from_disk()
        if before is None or after is None:
            return pair, "whether the clips had been dropped from memory cannot be seen here"
        share = (after - before) / (2 * pair.now.count * len(self._chunks[0]) * self.clip_bytes)
        if share < _FROM_DISK:
            return Pair(), f"{max(1 - share, 0):.0%} of it still came from memory, after it was asked to drop the clips"
        return pair, ""

    def _in_turn(self, prepare: Callable[[], object] = lambda: None) -> Pair:
        now: list[float] = []
        other: list[float] = []
        start = time.perf_counter()
        while not self._limit.is_over(len(now), start):
            for seconds, num_threads in ((now, self._threads), (other, 2 * self._threads)):
                prepare()
                seconds += self._through(num_threads)
        return Pair(Times(tuple(now)), Times(tuple(other)))

    def _through(self, num_threads: int) -> list[float]:
        """Read all batches once; return the seconds of each."""
        seconds = []
        stream = stream_chunks(
            self._reader,
            self._chunks,
            frames=self._frames,
            num_threads=num_threads,
            verify=self._verify,
            workspace=self._memory,
        )
        asked = time.perf_counter()
        for _ in stream:
            seconds.append(time.perf_counter() - asked)
            asked = time.perf_counter()
        return seconds


def drop_pages(reader: Reader, rows: Rows) -> bool:
    """Ask the system to forget the pages of some clips, so that they come from the disk again.

    What a disk, or the host of a virtual machine, keeps in its own memory stays there.

    Returns:
        Whether the system can be asked.
    """
    if not hasattr(os, "posix_fadvise"):
        return False
    readers = reader.readers if isinstance(reader, JoinedReader) else [reader]
    first = 0
    for one in readers:
        if not isinstance(one, CacheReader):
            return False
        size, page = one.spec.clip_bytes, os.sysconf("SC_PAGE_SIZE")
        for row in (rows[(rows >= first) & (rows < first + len(one))] - first).tolist():
            start = one.header.clips_offset + row * size
            begin, end = start // page * page, -(-(start + size) // page) * page
            os.posix_fadvise(one.fileno(), begin, end - begin, os.POSIX_FADV_DONTNEED)
        first += len(one)
    return True


def memory_bytes() -> int | None:
    """Return the memory that can still be had, or be taken from the page cache; None is not known."""
    try:
        fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        available = int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None
    with contextlib.suppress(OSError, ValueError):  # a container may have less than the machine; "max" is no number
        available = min(available, int(CONTAINER_LIMIT.read_text()))
    return available


def bytes_from_disk() -> int | None:
    """Return what this process has read from disks so far; None is not known."""
    try:
        fields = dict(line.split(": ", 1) for line in Path("/proc/self/io").read_text().splitlines())
        return int(fields["read_bytes"])
    except (OSError, KeyError, ValueError):
        return None
