"""Whether this machine can do the work: one line for each thing that is checked, with what to do.

What a check needs is imported by that check: a package that is missing or broken is one of the things to be found.
"""

import contextlib
import dataclasses
import importlib
import importlib.metadata
import itertools
import os
import platform
import random
import re
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from torch.nn.functional import conv3d

from vidcache import model
from vidcache.cache.lock import lock_output
from vidcache.cache.reader import CacheReader
from vidcache.cli import num_cpus
from vidcache.errors import LockedError, VidcacheError
from vidcache.files import pread_all, pwrite_all, sync_file, write_text_atomically
from vidcache.preprocess.executors import find_all_tools
from vidcache.preprocess.video.decode import DecodeLimits, decode_video
from vidcache.preprocess.video.ffmpeg import FFmpegBinaries, SubprocessGroup
from vidcache.preprocess.video.source_file import Failure
from vidcache.sampling import sample_indices
from vidcache.spec import Spec
from vidcache.text import one_line, plural, printable

OK, WARNING, PROBLEM = "ok", "warning", "problem"
# Those whose versions are told by other checks.
TOLD_ELSEWHERE = ("torch", "torchvision", "h5py")
LINE_BYTES = 1000
_LOOK = "See that it is what it should be, and that you may read and write it"
_FILES_PER_CPU = 16  # descriptors: a video, its clip, pipes and a pidfd for each worker, and room


@dataclasses.dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: A word or two.
        status: "ok"; "warning": it works, but not as well or not everything; "problem": it does not work.
        found: What it is.
        advice: What to do; empty where nothing is to be done.
    """

    name: str
    status: str
    found: str
    advice: str = ""

    def line(self) -> str:
        """Return what was found and what to do."""
        return f"{self.found}. {self.advice}" if self.advice else self.found


@dataclasses.dataclass(frozen=True)
class Asked:
    """What the checks are about.

    Attributes:
        path: A folder or a cache.
        clips: How many are planned; None: those of the cache, or 1,000.
        megabytes: Size of the file that measures the disk (MiB); 0: it is not measured.
        ffmpeg_dir: Folder of the ffmpeg to use; None finds one.
        ffmpeg_named_by: Who named that folder.
        weights: As in `vidtrain --weights`: "kinetics400", "none" or a path.
    """

    path: Path = Path()
    clips: int | None = None
    megabytes: int = 256
    ffmpeg_dir: Path | None = None
    ffmpeg_named_by: str = "--ffmpeg-dir"
    weights: str = "kinetics400"


# What a check is about, and where it lives. Imported one by one, in this order.
CHECKS = {
    "python": "vidcache.eval.doctor:check_python",
    "packages": "vidcache.eval.doctor:check_packages",
    "torch": "vidcache.eval.doctor:check_torch",
    "device": "vidcache.eval.doctor:check_devices",
    "cpus": "vidcache.eval.doctor:check_cpus",
    "weights": "vidcache.eval.doctor:check_weights",
    "hdf5": "vidcache.eval.doctor:check_hdf5",
    "ffmpeg": "vidcache.eval.doctor:check_ffmpeg",
    "limits": "vidcache.eval.doctor:check_limits",
    "text": "vidcache.eval.doctor:check_text",
    "path": "vidcache.eval.doctor:check_place",
}


def examine(asked: Asked) -> Iterator[Check]:
    """Check everything, one thing after the other.

    Nothing is raised, whatever is wrong, but what ends the program: Ctrl-C.
    """
    for name, place in CHECKS.items():
        yield from guarded(name, _run, place, asked)


def guarded(name: str, make: Callable[..., Iterator[Check]], *arguments: Any) -> Iterator[Check]:
    """Yield the checks that `make` gives; what it raises is a problem too.

    Args:
        name: Of the problem.
        make: Makes them.
        arguments: Of `make`.
    """
    try:
        for check in make(*arguments):
            yield dataclasses.replace(
                check, found=one_line(check.found, LINE_BYTES), advice=one_line(check.advice, LINE_BYTES)
            )
    except VidcacheError as error:  # <where>: <found>, <expected>. <what to do>
        found, _, advice = one_line(str(error), LINE_BYTES).partition(". ")
        yield Check(name, PROBLEM, found, advice or _LOOK)
    except OSError as error:
        where = f"{printable(os.fsdecode(error.filename))}: " if error.filename else ""
        yield Check(name, PROBLEM, one_line(f"{where}{error.strerror or error}", LINE_BYTES), _LOOK)
    except Exception as error:
        what = one_line(f"{type(error).__name__}: {error}", LINE_BYTES)
        yield Check(name, PROBLEM, what, "Install vidcache again; if that does not help, report this line")


def one(name: str, make: Callable[..., Check], *arguments: Any) -> Iterator[Check]:
    """Yield the one check that `make` gives, guarded."""
    yield from guarded(name, lambda: iter((make(*arguments),)))


def _run(place: str, asked: Asked) -> Iterator[Check]:
    module, _, name = place.partition(":")
    yield from getattr(importlib.import_module(module), name)(asked)


# --- Python and its packages ------------------------------------------------------------------


def check_python(asked: Asked) -> Iterator[Check]:  # noqa: ARG001 -- as every check
    """Say which Python and which vidcache run."""
    import vidcache

    metadata = importlib.metadata.metadata("vidcache")
    place = printable(os.path.dirname(os.path.realpath(vidcache.__file__ or "")))
    found = (
        f"Python {platform.python_version()} ({printable(sys.executable)}) on {platform.system()} "
        f"{platform.release()} {platform.machine()}, vidcache {metadata['Version']} from {place}"
    )
    wanted = metadata["Requires-Python"]
    if not meets(platform.python_version(), wanted):
        yield Check("python", PROBLEM, found, f"Install Python {wanted}")
        return
    yield Check("python", OK, found)


@dataclasses.dataclass(frozen=True)
class Requirement:
    """A package that vidcache needs.

    Attributes:
        name: Of the package.
        wanted: Such as ">=2.10".
        found: The version that is installed; empty if none is.
    """

    name: str
    wanted: str
    found: str

    @property
    def is_met(self) -> bool:
        """It is installed, and new enough."""
        return bool(self.found) and meets(self.found, self.wanted)


def requirements() -> list[Requirement]:
    """Return what the installed vidcache says that it needs, extras left out."""
    found = []
    for text in importlib.metadata.requires("vidcache") or []:
        if ";" in text:  # only wanted with an extra
            continue
        name, wanted = re.fullmatch(r"([\w.-]+)\s*(.*)", text).groups()  # type: ignore[union-attr]
        version = ""
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            version = importlib.metadata.version(name)
        found.append(Requirement(name, wanted, version))
    return found


def meets(version: str, wanted: str) -> bool:
    """Return whether a version is not below the bound that vidcache names.

    >>> meets("2.14.1+cu130", ">=2.10"), meets("2.9.1", ">=2.10")
    (True, False)
    """
    return _release(version) >= _release(wanted.removeprefix(">="))


def _release(version: str) -> tuple[int, ...]:
    """The numbers before the first letter: (2, 14, 1) of "2.14.1+cu130"; zeros at the end do not count."""
    numbers = [int(number) for number in re.match(r"[\d.]*", version.strip()).group().split(".") if number]  # type: ignore[union-attr]
    while numbers and not numbers[-1]:
        numbers.pop()
    return tuple(numbers)


def check_packages(asked: Asked) -> Iterator[Check]:  # noqa: ARG001
    """Compare what is installed with what vidcache needs."""
    others = [requirement for requirement in requirements() if requirement.name not in TOLD_ELSEWHERE]
    yield judge_packages("packages", others, f"{len(others)} requirements are met: {versions(others)}")


def judge_packages(name: str, needed: list[Requirement], found: str) -> Check:
    """Return a problem where one is missing or too old, else `found`."""
    bad = [requirement for requirement in needed if not requirement.is_met]
    if not bad:
        return Check(name, OK, found)
    said = ", ".join(f"{entry.name} {entry.found or 'is missing'} (expected {entry.wanted})" for entry in bad)
    install = " ".join(f"'{entry.name}{entry.wanted}'" for entry in bad)
    return Check(name, PROBLEM, said, f"{printable(sys.executable)} -m pip install {install}")


def versions(needed: list[Requirement]) -> str:
    """Return their names and versions."""
    return ", ".join(f"{entry.name} {entry.found}" for entry in needed)


def check_hdf5(asked: Asked) -> Iterator[Check]:  # noqa: ARG001
    """Say which h5py and HDF5 read caches."""
    import h5py

    needed = [requirement for requirement in requirements() if requirement.name == "h5py"]
    found = f"h5py {h5py.version.version} with HDF5 {h5py.version.hdf5_version}"
    yield judge_packages("hdf5", needed, f"{found} ({needed[0].wanted} is needed)")


# --- what the operating system allows ----------------------------------------------------------


def check_limits(asked: Asked) -> Iterator[Check]:  # noqa: ARG001
    """Look at the limits of this process: open files, size of a file, memory."""
    import resource

    def limit(which: int) -> int | None:
        soft = resource.getrlimit(which)[0]
        return None if soft == resource.RLIM_INFINITY else soft

    files, size = limit(resource.RLIMIT_NOFILE), limit(resource.RLIMIT_FSIZE)
    memory = limit(resource.RLIMIT_AS)
    needed = 128 + _FILES_PER_CPU * num_cpus()
    bounds: dict[str, Any] = {"open files": files, "bytes of a file": size, "bytes of memory": memory}
    found = ", ".join(f"{name} {'unlimited' if value is None else f'{value:,}'}" for name, value in bounds.items())
    advice = []
    if files is not None and files < needed:
        advice.append(f"ulimit -n {needed}: {num_cpus()} workers need about so many open files")
    if size is not None:
        advice.append("ulimit -f unlimited: a larger cache could not be written")
    if memory is not None:
        advice.append("ulimit -v unlimited: torch reserves much more memory than it uses")
    yield Check("limits", WARNING if advice else OK, found, "; ".join(advice))


def control_groups(kind: str, proc: Path = Path("/proc"), mounted: Path = Path("/sys/fs/cgroup")) -> Iterator[Path]:
    """Yield the folders of the control groups that limit this process, innermost first, of version 2 and of 1.

    Args:
        kind: "cpu" or "memory".
        proc: Where the kernel tells about processes.
        mounted: Where control groups are mounted.
    """
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:  # no Linux
        return
    for line in lines:
        _, kinds, name = line.split(":", 2)
        if kinds and kind not in kinds.split(","):
            continue
        base = mounted / kind if kinds else mounted
        parts = [] if ".." in name else name.strip("/").split("/")  # "..": above what a container sees
        for depth in range(len(parts), -1, -1):
            yield base.joinpath(*parts[:depth])


def check_text(asked: Asked) -> Iterator[Check]:  # noqa: ARG001
    """Look at how names of files and output are encoded."""
    names, output = sys.getfilesystemencoding(), sys.stdout.encoding or "ascii"
    found = f"names of files are {names}, output is {output}"
    good = {name.lower().replace("_", "-") for name in (names, output)} == {"utf-8"}
    advice = "export PYTHONUTF8=1: names with other letters are shown as numbers, or end a command"
    yield Check("text", OK if good else WARNING, found, "" if good else advice)


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


# What cameras, phones, downloads and data sets contain.
CODECS = (
    "h264 hevc av1 vp8 vp9 mpeg4 msmpeg4v2 msmpeg4v3 mpeg1video mpeg2video mjpeg h263 flv1 wmv2 wmv3 vc1 theora prores "
    "dnxhd dvvideo ffv1 gif apng rawvideo"
).split()
# They decode with a GPU or a chip that the machine may not have; `av1` alone is the name of one of these.
_HARDWARE = re.compile(r"_(v4l2m2m|cuvid|qsv|mediacodec|mmal|rkmpp|amf|crystalhd|videotoolbox)$|^av1$")
_DECODER = re.compile(r"^ V\S{5} (\S+) .*?(?:\(codec (\S+)\))?$", re.M)
_FRAMES, _WIDTH, _HEIGHT = 100, 64, 48
_LIMITS = DecodeLimits(timeout_seconds=20.0)


def check_ffmpeg(asked: Asked) -> Iterator[Check]:
    """Check the pair that a build would use, and the second one that it would try."""
    pairs = find_all_tools(asked.ffmpeg_dir)
    yield Check("ffmpeg", OK, ", then ".join(_name(pair, asked) for pair in pairs))
    yield from one("decoders", lambda: judge_decoders(pairs, [decoders(pair) for pair in pairs]))
    with tempfile.TemporaryDirectory(prefix="vidcache-doctor-") as folder, SubprocessGroup() as children:
        for number, pair in enumerate(pairs):
            videos = make_videos(Path(folder, str(number)), pair)
            yield from one("decoding", check_decoding, pair, videos, children, WARNING if number else PROBLEM)
            yield from one("playlist", check_playlist, pair, videos[-1], children)


def _name(pair: FFmpegBinaries, asked: Asked) -> str:
    named_by = f", named by {asked.ffmpeg_named_by}" if pair.origin.startswith("folder ") else ""
    return f"ffmpeg {pair.version} from {pair.origin}{named_by} ({printable(pair.ffmpeg)})"


def decoders(pair: FFmpegBinaries) -> set[str]:
    """Return the codecs that an ffmpeg says it can decode without special hardware."""
    command = [pair.ffmpeg, "-hide_banner", "-decoders"]
    said = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, timeout=20).stdout
    found = _DECODER.findall(said.decode("utf-8", "replace"))
    return {codec or name for name, codec in found if not _HARDWARE.search(name)}


def judge_decoders(pairs: Sequence[FFmpegBinaries], known: Sequence[set[str]]) -> Check:
    """Say which of `CODECS` the first pair lacks, and whether another has them."""
    missing = [codec for codec in CODECS if codec not in known[0]]
    if not missing:
        return Check("decoders", OK, f"{pairs[0].version} has all of {', '.join(CODECS)}")
    nowhere = [codec for codec in missing if not any(codec in others for others in known[1:])]
    found = f"{pairs[0].version} lacks {', '.join(missing)} of {len(CODECS)}"
    for pair, others in zip(pairs[1:], known[1:], strict=True):
        has = [codec for codec in missing if codec in others]
        found += f"; {pair.version} ({pair.origin}), which is tried then, has {', '.join(has) or 'none of them'}"
    if not nowhere:
        return Check("decoders", OK, found)
    advice = (
        f"Only if you have such videos, which fail as unsupported_codec: install an ffmpeg with {', '.join(nowhere)} "
        "on PATH (that of a distribution has them), or name its folder with --ffmpeg-dir"
    )
    return Check("decoders", WARNING, found, advice)


def make_videos(folder: Path, pair: FFmpegBinaries) -> list[Path]:
    """Make videos whose brightness is the frame number.

    Returns:
        One that needs no codec, written here, and H.264 in MP4 where the pair can encode it.
    """
    folder.mkdir()
    plain, h264 = folder / "canary.y4m", folder / "canary.mp4"
    colour = bytes([128]) * (_WIDTH * _HEIGHT // 2)
    frames = [b"FRAME\n" + bytes([_luma(index)]) * (_WIDTH * _HEIGHT) + colour for index in range(_FRAMES)]
    plain.write_bytes(f"YUV4MPEG2 W{_WIDTH} H{_HEIGHT} F25:1 Ip A1:1 C420jpeg\n".encode() + b"".join(frames))
    command = [pair.ffmpeg, "-nostdin", "-v", "error", "-i", f"file:{plain}", "-c:v", "libx264", "-qp", "0"]
    ended = subprocess.run(
        [*command, f"file:{h264}"], capture_output=True, stdin=subprocess.DEVNULL, timeout=20, check=False
    )
    return [plain, h264] if ended.returncode == 0 else [plain]


def _luma(index: int) -> int:
    return 16 + 2 * index


def check_decoding(pair: FFmpegBinaries, videos: Sequence[Path], children: SubprocessGroup, bad: str) -> Check:
    """Decode them to clips, and compare every frame with what it must be.

    Args:
        pair: The ffmpeg.
        videos: As `make_videos` made them.
        children: Runs it.
        bad: What it is when something is wrong: only a warning, where another pair comes first.
    """
    spec = Spec()
    chosen = sample_indices(_FRAMES, spec.num_frames)
    expected = np.array([(_luma(int(index)) - 16) * 255 / 219 for index in chosen])
    advice = "Use another ffmpeg with --ffmpeg-dir, 5.1 or newer"
    for video in videos:
        try:
            decoded = decode_video(video, spec, [pair], children, _LIMITS)
        except Failure as failure:
            return Check("decoding", bad, f"{pair.version} fails on {video.name}: {failure}", advice)
        wrong = np.abs(decoded.clip.astype(float) - expected[:, None, None, None]).max(axis=(1, 2, 3)) > 2
        if wrong.any() or decoded.damage:
            found = f"{pair.version} gives {int(wrong.sum())} wrong frames of {spec.num_frames} for {video.name}"
            return Check("decoding", bad, f"{found} {decoded.damage}".rstrip(), advice)
    names = " and ".join(video.suffix for video in videos)
    return Check("decoding", OK, f"{pair.version} gives the right {spec.num_frames} of {_FRAMES} frames ({names})")


def check_playlist(pair: FFmpegBinaries, video: Path, children: SubprocessGroup) -> Check:
    """See that a text file with the name of a video cannot make ffmpeg read another file."""
    playlist = video.with_name("playlist.mp4")
    playlist.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:4,\nfile:{video}\n#EXT-X-ENDLIST\n")
    try:
        decode_video(playlist, Spec(), [pair], children, _LIMITS)
    except Failure as failure:
        return Check("playlist", OK, f"{pair.version} refuses a playlist that is named like a video ({failure.reason})")
    found = f"{pair.version} follows a playlist that is named like a video, and with it could read any file"
    return Check("playlist", PROBLEM, found, "Use another ffmpeg with --ffmpeg-dir, and no videos of strangers with it")


# As in training: what --amp auto accepts.
MAX_GRADIENT_ERROR = 0.05
# An ordinary convolution of R3D-18; and one of layer4 with 2 frames left (16 frames of input, or fewer), whose weight
# gradient is wrong in bf16 on some CPUs.
ORDINARY, DEEP = (2, 64, 4, 28, 28), (2, 512, 2, 4, 4)
DRIVER = Path("/proc/driver/nvidia/version")


def check_torch(asked: Asked) -> Iterator[Check]:  # noqa: ARG001 -- as every check
    """Say which torch and torchvision run, and what they were built for."""
    needed = [requirement for requirement in requirements() if requirement.name in ("torch", "torchvision")]
    built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
    if torch.version.hip:
        built = f"ROCm {torch.version.hip}"
    cudnn = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    floors = ", ".join(f"{entry.name}{entry.wanted}" for entry in needed)
    found = (
        f"torch {torch.__version__}, torchvision {torchvision.__version__} (needed: {floors}), built for {built}, "
        f"{f'cuDNN {cudnn_version(cudnn)}' if cudnn else 'no cuDNN'}; CPU code for "
        f"{torch.backends.cpu.get_cpu_capability()}"
    )
    yield judge_packages("torch", needed, found)


def cudnn_version(number: int) -> str:
    """Read cuDNN's version number.

    >>> cudnn_version(92400), cudnn_version(8902)
    ('9.24.0', '8.9.2')
    """
    major = 10_000 if number >= 90_000 else 1_000
    return f"{number // major}.{number % major // 100}.{number % 100}"


# --- devices -----------------------------------------------------------------------------------


def check_devices(asked: Asked) -> Iterator[Check]:  # noqa: ARG001
    """Name each GPU and try bf16 on it; without one, on the CPU, where training will go on."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not num_gpus:
        yield why_no_gpu([str(warning.message) for warning in said])
    for index in range(num_gpus):
        yield from one(f"gpu {index}", describe_gpu, index)
    for name in [f"cuda:{index}" for index in range(num_gpus)] or ["cpu"]:
        yield from one("bf16", check_bf16, torch.device(name))


def why_no_gpu(said: list[str]) -> Check:
    """Say why torch has none: the build, the driver, a variable, or the machine.

    Args:
        said: What torch warned of when it was asked.
    """
    slow = "a step of R3D-18 takes 1 to 3 s for each clip on 2 CPUs"
    has_device = os.path.exists("/dev/nvidiactl") or os.path.exists("/dev/dxg")  # dxg: Windows Subsystem for Linux
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if not torch.version.cuda and not torch.version.hip:
        advice = "If this machine has an NVIDIA GPU, install a torch that was built for CUDA"
        return Check("gpu", WARNING, f"none for torch {torch.__version__}, which has no CUDA: {slow}", advice)
    if visible is not None and visible.strip() in ("", "-1"):
        found = f"none: CUDA_VISIBLE_DEVICES is '{visible}': {slow}"
        return Check("gpu", WARNING, found, "unset CUDA_VISIBLE_DEVICES, or put the number of a GPU there")
    reason = one_line(said[0], 300) if said else "there is a device file, but CUDA finds no device"
    if said or has_device:
        advice = "Install or update the driver of the GPU; in a container, start it with its GPUs"
        return Check("gpu", WARNING, f"none: {reason}: {slow}", advice)
    advice = "Train on a machine with one, with smaller pictures and fewer frames, or with --cache-features"
    return Check("gpu", WARNING, f"none in this machine: {slow}", advice)


def describe_gpu(index: int) -> Check:
    """Name a GPU, its memory, its capability and the driver."""
    facts, (free, total) = torch.cuda.get_device_properties(index), torch.cuda.mem_get_info(index)
    driver = one_line(DRIVER.read_text().split("\n")[0], 120) if DRIVER.exists() else ""
    found = (
        f"{facts.name}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free, capability {facts.major}.{facts.minor}"
        f"{f', {driver}' if driver else ''}"
    )
    if free < total / 2:
        return Check(f"gpu {index}", WARNING, found, "Another program holds its memory: see nvidia-smi")
    return Check(f"gpu {index}", OK, found)


@dataclasses.dataclass(frozen=True)
class Trial:
    """One convolution, forward and backward, in bf16 beside float32.

    Attributes:
        speedup: Seconds in float32 over seconds in bf16.
        error: How far the gradients are off, by norm; infinite when one is not finite.
    """

    speedup: float
    error: float


def try_bf16(device: torch.device, shape: tuple[int, ...], repeats: int = 1) -> Trial:
    """Convolve (B, C, T, H, W) with C filters of 3x3x3, forward and backward, in each precision.

    Args:
        device: Where.
        shape: Of the inputs.
        repeats: How often; the fastest counts.
    """
    source = torch.Generator().manual_seed(0)
    channels = shape[1]
    inputs = torch.randn(shape, generator=source).to(device).requires_grad_()
    weight = torch.randn((channels, channels, 3, 3, 3), generator=source) / (27 * channels) ** 0.5
    weight = weight.to(device).requires_grad_()
    wanted = torch.randn(shape, generator=source).to(device)
    seconds: dict[bool, float] = {}
    gradients: dict[bool, list[torch.Tensor]] = {}
    for is_bf16 in (False, True):
        for _ in range(repeats):
            _wait(device)
            start = time.perf_counter()
            with torch.autocast(device.type, torch.bfloat16, enabled=is_bf16):
                outputs = conv3d(inputs, weight, padding=1)
            gradients[is_bf16] = list(torch.autograd.grad((outputs.float() * wanted).sum(), [inputs, weight]))
            _wait(device)
            seconds[is_bf16] = min(time.perf_counter() - start, seconds.get(is_bf16, float("inf")))
    errors = [_error(*pair) for pair in zip(gradients[True], gradients[False], strict=True)]
    return Trial(seconds[False] / seconds[True], max(errors))


def _error(found: torch.Tensor, expected: torch.Tensor) -> float:
    if not bool(torch.isfinite(found).all()):
        return float("inf")
    return float((found - expected).norm() / expected.norm())


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def check_bf16(device: torch.device) -> Check:
    """Try bf16 on a device."""
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        found = f"{device} has no bf16"
        return Check("bf16", WARNING, found, "--amp auto trains in float32; --amp fp16 can be tried")
    return judge_bf16(str(device), try_bf16(device, ORDINARY, 3), try_bf16(device, DEEP))


def judge_bf16(device: str, ordinary: Trial, deep: Trial) -> Check:
    """Say whether bf16 is worth it and right.

    Args:
        device: Its name.
        ordinary: Of `ORDINARY`.
        deep: Of `DEEP`.
    """
    found = (
        f"on {device} one convolution, forward and backward, is {ordinary.speedup:.2g} times as fast as in float32, "
        f"gradients {_off(ordinary)}; with 512 channels and 2 frames {_off(deep)}"
    )
    if not ordinary.error <= MAX_GRADIENT_ERROR:
        return Check("bf16", WARNING, found, "Do not force it with --amp bf16; --amp auto sees it and refuses")
    if not deep.error <= MAX_GRADIENT_ERROR:
        advice = "--amp auto sees it and refuses bf16 there; do not force it with --amp bf16 on 16 frames or fewer"
        return Check("bf16", WARNING, found, advice)
    if ordinary.speedup < 1:
        return Check("bf16", OK, found, "--amp auto will train in float32")
    return Check("bf16", OK, found)


def _off(trial: Trial) -> str:
    if trial.error == float("inf"):
        return "inf or NaN"
    return f"off by {trial.error:.1%}"


# --- CPUs --------------------------------------------------------------------------------------


def check_cpus(asked: Asked) -> Iterator[Check]:  # noqa: ARG001
    """Compare the threads of torch with the CPUs that this process may use."""
    yield judge_cpus(num_cpus(), torch.get_num_threads(), cpu_quota(control_groups("cpu")))


def cpu_quota(groups: Iterable[Path]) -> float | None:
    """Return how many CPUs control groups grant, by time; None: all.

    Args:
        groups: Their folders.
    """
    quotas = []
    for group in groups:
        with contextlib.suppress(OSError, ValueError):  # of the other version, or no limit ("max")
            quota, period = (group / "cpu.max").read_text().split()  # microseconds of CPU in so many of the clock
            quotas.append(int(quota) / int(period))
        with contextlib.suppress(OSError, ValueError):
            quota, period = ((group / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
            quotas.append(int(quota) / int(period))
    return min((quota for quota in quotas if quota > 0), default=None)  # version 1 says -1 for none


def judge_cpus(cpus: int, threads: int, quota: float | None) -> Check:
    """Say whether torch and the workers of a build take as many CPUs as there are.

    Args:
        cpus: That this process may use.
        threads: That torch would start.
        quota: How many of them it gets by time; None: all.
    """
    granted = min(cpus, max(round(quota or cpus), 1))
    found = f"{plural(cpus, 'CPU')}, {plural(threads, 'thread')} of torch"
    if granted < cpus:
        found += f", but the control group (container, job) gets the time of {quota:.2g}"
    if threads > granted or granted < cpus:
        advice = f"export OMP_NUM_THREADS={granted}, and vidcache build --workers {granted}"
        return Check("cpus", WARNING, found, f"{advice}: more get in each other's way")
    if threads < cpus // 2:  # one thread for two hyperthreads is torch's own choice
        return Check("cpus", WARNING, found, "Set OMP_NUM_THREADS to the number of CPUs, unless others need them")
    return Check("cpus", OK, found)


# --- weights -----------------------------------------------------------------------------------


def check_weights(asked: Asked) -> Iterator[Check]:
    """See whether the Kinetics-400 weights are there and are the published ones; download nothing."""
    if asked.weights == "none":
        yield Check("weights", OK, "none are wanted")
        return
    if asked.weights == "kinetics400":
        path = Path(str(torch.hub.get_dir()), "checkpoints", os.path.basename(model.KINETICS_URL))
        if not path.exists():
            advice = (
                "The first vidtrain downloads them, 127 MB; offline, put the file of "
                f"{model.KINETICS_URL} there, or name its place with --weights PATH"
            )
            yield Check("weights", WARNING, f"{printable(path)}: not there", advice)
            return
    else:
        path = Path(asked.weights)
        if not path.exists():
            advice = f"Download {model.KINETICS_URL} and put it there"
            yield Check("weights", PROBLEM, f"{printable(path)}: not there", advice)
            return
    tensors = model.load_kinetics(path)
    yield Check("weights", OK, f"{printable(path)}: the sha256 is right, {len(tensors)} tensors")
