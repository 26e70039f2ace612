"""Checks of a folder or a cache: room, locks, speed of the disk, and what of a cache stays in memory.

Nothing stays behind: what is written has no name, or lies in a folder that is removed, also after Ctrl-C.
"""

import contextlib
import dataclasses
import itertools
import os
import random
import re
import signal
import stat
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from vidcache.cache.place import lock_output
from vidcache.cache.reader import CacheReader
from vidcache.errors import LockedError
from vidcache.eval.doctor import OK, PROBLEM, WARNING, Asked, Check, control_groups, guarded, one
from vidcache.eval.doctor_disk import PIECE_BYTES, forget, in_memory, size, speed, timed_reads, write
from vidcache.files import write_text_atomically
from vidcache.spec import Spec
from vidcache.text import plural, printable

PLANNED_CLIPS = 1_000
# A step of R3D-18 with its first stages frozen is 218 G multiply-adds a clip: 25 clips/s are what a GPU of 11 TFLOP/s
# takes, an old one.
SLOW_CLIPS_PER_SECOND = 25
NETWORK = "9p afs beegfs ceph cifs fuse.s3fs fuse.sshfs gfs2 glusterfs gpfs lustre nfs nfs4 ocfs2 smb3 smbfs".split()
_LEFT_FREE = 2  # of the size of the file that measures


@dataclasses.dataclass(frozen=True)
class Clips:
    """Clips that a cache has or will have.

    Attributes:
        spec: Their shape.
        count: How many.
        planned: They are not there yet.
    """

    spec: Spec
    count: int
    planned: bool

    @property
    def num_bytes(self) -> int:
        """Size of all of them."""
        return self.count * self.spec.clip_bytes

    def __str__(self) -> str:
        each = f"{'planned ' if self.planned else ''}{'clip' if self.count == 1 else 'clips'}"
        return f"{self.count:,} {each} of {size(self.spec.clip_bytes)} ({size(self.num_bytes)})"


def check_place(asked: Asked) -> Iterator[Check]:
    """Check a folder where a cache is to be, or a cache and its folder."""
    path = asked.path
    where = printable(path)
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        yield Check("path", PROBLEM, f"{where}: {error.strerror}", "Name a folder or a cache")
        return
    if stat.S_ISDIR(mode):
        clips = Clips(Spec(), PLANNED_CLIPS if asked.clips is None else asked.clips, planned=True)
        yield from _check_folder(path.absolute(), clips, asked.megabytes)
        yield from one("memory", lambda: judge_memory(clips, memory_room(control_groups("memory"))))
    elif stat.S_ISREG(mode):
        yield from guarded("cache", _check_cache, path, asked)
    else:
        yield Check("path", PROBLEM, f"{where}: neither a folder nor a file", "Name a folder or a cache")


def _check_cache(path: Path, asked: Asked) -> Iterator[Check]:
    with CacheReader(path) as reader:
        rows, spec = reader.rows(), reader.spec
        clips = Clips(spec, len(rows), planned=False)
        found = f"{printable(path)}: {plural(len(reader.classes), 'class', 'classes')}, {clips}, {spec}"
        yield Check("cache", OK, found, f"To check every clip: vidcache verify {printable(path)}")
        if asked.clips is not None:
            clips = Clips(spec, asked.clips, planned=True)
        yield from _check_folder(path.absolute().parent, clips, asked.megabytes)
        yield from one("memory", lambda: judge_memory(clips, memory_room(control_groups("memory")), reader))


def _check_folder(folder: Path, clips: Clips, megabytes: int) -> Iterator[Check]:
    yield from one("space", check_space, folder, clips)
    if sys.platform == "linux":
        yield from one("filesystem", lambda: judge_filesystem(*filesystem_of(folder)))
    try:
        with _uninterrupted(), tempfile.TemporaryDirectory(prefix=".vidcache-doctor-", dir=folder) as scratch:
            (check,) = one("locks", check_locks, Path(scratch))
        yield check
    except OSError as error:
        advice = "Caches here can be read; to build one, choose a folder that is writable"
        yield Check("locks", WARNING, f"cannot write into {printable(folder)} ({error.strerror})", advice)
        return
    yield from one("disk", check_disk, folder, megabytes, clips.spec)


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM wait: one that came while a folder was being removed would leave it behind."""
    if threading.current_thread() is not threading.main_thread():  # these are not interrupted
        yield
        return
    caught: list[int] = []
    before = {
        number: signal.signal(number, lambda number, _: caught.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if caught:
            signal.raise_signal(caught[0])


# --- the folder --------------------------------------------------------------------------------


def check_space(folder: Path, clips: Clips) -> Check:
    """Compare what is free with what the clips need, as a new cache or a second one beside the first."""
    facts = os.statvfs(folder)
    free = facts.f_bavail * facts.f_frsize
    found = f"{printable(folder)}: {size(free)} free, {free // clips.spec.clip_bytes:,} clips; needed: {clips}"
    if free < clips.num_bytes:
        what = "to build them" if clips.planned else "to build or split the cache again, which makes a second file"
        return Check("space", WARNING, found, f"Free some space {what}, or use another disk")
    if facts.f_files and not facts.f_favail:
        return Check("space", WARNING, f"{found}; no more files can be made", "Delete some files")
    return Check("space", OK, found)


def filesystem_of(folder: Path, mounts: Path = Path("/proc/mounts")) -> tuple[str, str]:
    """Return the type of file system that a folder is on, and where that is mounted."""
    place, found = os.fsencode(folder.resolve()), (b"/", "unknown")
    for line in mounts.read_bytes().splitlines():
        _, mounted, kind, *_ = line.split()
        mounted = re.sub(rb"\\([0-7]{3})", lambda code: bytes([int(code[1], 8)]), mounted)  # \040 is a space
        inside = place == mounted or place.startswith(mounted.rstrip(b"/") + b"/")
        if inside and len(mounted) >= len(found[0]):  # of equal ones, the last lies on top
            found = (mounted, kind.decode("ascii", "replace"))
    return found[1], printable(found[0])


def judge_filesystem(kind: str, mounted: str) -> Check:
    """Say what a type of file system means for a cache."""
    found = f"{printable(kind)}, mounted at {mounted}"
    if kind in NETWORK:
        return Check("filesystem", WARNING, f"{found}: over the network", "Build and train from a copy on a local disk")
    if kind == "overlay":
        advice = "Keep caches on a volume: what is written here is gone with the container"
        return Check("filesystem", WARNING, f"{found}: a container's", advice)
    if kind in ("tmpfs", "ramfs"):
        return Check("filesystem", WARNING, f"{found}: in memory", "Keep caches on a disk: this is gone with a reboot")
    return Check("filesystem", OK, found)


def check_locks(scratch: Path) -> Check:
    """Lock a file twice and replace one, as a build does.

    Args:
        scratch: An empty folder.
    """
    output = scratch / "cache.h5"
    lock = lock_output(output)
    try:
        os.close(lock_output(output))
        found = "a lock does not keep a second build out"
        return Check("locks", PROBLEM, found, "Never run two builds of one cache here, or build on a local disk")
    except LockedError:
        pass
    finally:
        os.close(lock)
    for text in ("old", "new"):
        write_text_atomically(output, text)
    return Check("locks", OK, "locking, syncing and replacing a file work")


def check_disk(folder: Path, megabytes: int, spec: Spec) -> Check:
    """Write a file that has no name to the disk, and read it from there.

    Each for a second at most. The file is synced every 16 MiB, and taken out of the page cache before it is read.

    Args:
        folder: Where.
        megabytes: Size of the file (MiB).
        spec: Of the clips that the speed is told in.

    Returns:
        A problem where the disk is full or broken, or files may not be so large.
    """
    if not megabytes:
        return Check("disk", OK, "not measured")
    facts, num_bytes = os.statvfs(folder), megabytes << 20
    if facts.f_bavail * facts.f_frsize < _LEFT_FREE * num_bytes:
        found = f"not measured: a file of {size(num_bytes)} would nearly fill it"
        return Check("disk", WARNING, found, "Free some space, or try --megabytes 16")
    try:
        with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
            descriptor = file.fileno()
            written, write_speed = write(descriptor, num_bytes)
            how = forget(descriptor, written)
            _, read_speed = timed_reads(descriptor, range(0, written, PIECE_BYTES), min(PIECE_BYTES, written))
    except OSError as error:
        found = f"{printable(folder)}: a file of {size(num_bytes)} cannot be written and read: {error.strerror}"
        return Check("disk", PROBLEM, found, "A build would fail too: use another disk, or raise the limit")
    found = (
        f"{size(written)} written at {speed(write_speed, spec)}, read at {speed(read_speed, spec)}"
        f"{f' ({how})' if how else ''}"
    )
    if read_speed < SLOW_CLIPS_PER_SECOND * spec.clip_bytes:
        return Check("disk", WARNING, found, "Slower than an old GPU trains: use a faster disk, or enough memory")
    return Check("disk", OK, found)


# --- memory ------------------------------------------------------------------------------------


def memory_room(groups: Iterable[Path], meminfo: Path = Path("/proc/meminfo")) -> int:
    """Return how many bytes the page cache can have: what is available, within the limits of control groups.

    Args:
        groups: Folders of control groups (a container, a job).
        meminfo: What the kernel tells about memory.
    """
    if sys.platform != "linux":  # macOS does not say what is available
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    facts = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
    room = int(facts["MemAvailable"].split()[0]) * 1024
    names = (("memory.max", "memory.current", "file"), ("memory.limit_in_bytes", "memory.usage_in_bytes", "cache"))
    for group, (limit, usage, files) in itertools.product(groups, names):  # version 2 and 1
        with contextlib.suppress(OSError, ValueError):  # of the other version, or no limit ("max")
            left = int((group / limit).read_text()) - int((group / usage).read_text())
            counted = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
            room = min(room, left + int(counted.get(files, 0)))  # files in memory give way to other files
    return max(room, 0)


def judge_memory(clips: Clips, room: int, reader: CacheReader | None = None) -> Check:
    """Say whether the clips stay in memory from the second epoch on.

    Args:
        clips: Those of the cache.
        room: Bytes for them.
        reader: The cache, to see how fast it is read.
    """
    speeds = _reading_speed(reader) if reader else ""
    found = f"{size(room)} for the page cache, {room // clips.spec.clip_bytes:,} clips; needed: {clips}"
    if clips.num_bytes <= room:
        return Check("memory", OK, f"{found}: they fit, epochs after the first are read from memory{speeds}")
    advice = "Free or add memory; a cache with a smaller --size or fewer --num-frames is smaller in proportion"
    return Check("memory", WARNING, f"{found}: they do not fit, every epoch is read from the disk{speeds}", advice)


def _reading_speed(reader: CacheReader) -> str:
    """Read clips in random order that are not in memory, then again; return both speeds for people."""
    offsets, num_bytes = _some_clips(reader, lambda offset: in_memory(reader.fileno(), offset) is False)
    if not offsets:
        offsets, _ = _some_clips(reader, lambda _: True)
        if not offsets:
            return ""
        return f" ({speed(timed_reads(reader.fileno(), offsets, num_bytes)[1], reader.spec)} as it is now)"
    num_read, cold = timed_reads(reader.fileno(), offsets, num_bytes)
    _, warm = timed_reads(reader.fileno(), offsets[:num_read], num_bytes)
    return f" ({speed(cold, reader.spec)} from the disk, {speed(warm, reader.spec)} from memory)"


def _some_clips(reader: CacheReader, wanted: Callable[[int], bool]) -> tuple[list[int], int]:
    """Return where up to 64 of the wanted clips begin, in random order, and how much of each to read."""
    clip_bytes, start = reader.spec.clip_bytes, reader.header.clips_offset
    rows: list[int] = reader.rows().tolist()
    offsets = [start + row * clip_bytes for row in random.sample(rows, min(len(rows), 256))]
    return [offset for offset in offsets if wanted(offset + clip_bytes // 2)][:64], min(clip_bytes, PIECE_BYTES)
