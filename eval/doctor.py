"""Whether this machine can do the work: one line for each thing that is checked, with what to do.

What a check needs is imported by that check: a package that is missing or broken is one of the things to be found.
"""

import contextlib
import dataclasses
import importlib
import importlib.metadata
import os
import platform
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from vidcache.cli import num_cpus
from vidcache.errors import VidcacheError
from vidcache.text import one_line, printable

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
    "torch": "vidcache.eval.doctor_torch:check_torch",
    "device": "vidcache.eval.doctor_torch:check_devices",
    "cpus": "vidcache.eval.doctor_torch:check_cpus",
    "weights": "vidcache.eval.doctor_torch:check_weights",
    "hdf5": "vidcache.eval.doctor:check_hdf5",
    "ffmpeg": "vidcache.eval.doctor_ffmpeg:check_ffmpeg",
    "limits": "vidcache.eval.doctor:check_limits",
    "text": "vidcache.eval.doctor:check_text",
    "path": "vidcache.eval.doctor_place:check_place",
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
