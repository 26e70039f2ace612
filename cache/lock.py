"""The place where a cache is written: its lock, the space it needs, and the folder in which it is built.

While `cache.h5` is built, `cache.h5.lock` (never removed: removing a lock file is a race) and `.cache.h5.build/`, with
one folder for each manifest, lie next to it. No link is followed here, and only what a build has made is removed.
"""

import contextlib
import errno
import fcntl
import os
import re
import resource
from collections.abc import Callable
from pathlib import Path

from vidcache.errors import InputError, LockedError, VidcacheError
from vidcache.files import free_bytes
from vidcache.text import printable

# Files in the folder of one build.
_MADE = re.compile(r"plan\.json|data\.h5|journal|split|\..+\.[0-9]+\.tmp")


def build_folder(output: Path) -> Path:
    """Return the folder in which a cache is built: cache.h5 -> .cache.h5.build."""
    return output.with_name(f".{output.name}.build")


def lock_output(output: Path) -> int:
    """Make this process the only one that writes a file; closing the descriptor releases the lock.

    Raises:
        LockedError: Another process has it.
        VidcacheError: The folder cannot be written, or its file system cannot lock.
    """
    where, lock = printable(output), output.with_name(f"{output.name}.lock")
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise VidcacheError(f"{printable(lock)}: is a link, not a lock file. Rename it") from None
        raise VidcacheError(
            f"{where}: cannot write into {printable(output.parent)} ({error.strerror}). "
            "Choose a folder that exists and is writable"
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            raise VidcacheError(
                f"{where}: this file system cannot lock files ({error.strerror}). Build on a local disk"
            ) from error
        raise LockedError(f"{where}: another build is writing it. Wait for that build, or stop it") from None
    return descriptor


def check_space(output: Path, num_bytes: int, begun: Path) -> None:
    """Check before the work begins that a file of `num_bytes` may be written and has room; `begun` is a part of it.

    Raises:
        VidcacheError: Fewer bytes are free than are needed, or allowed in one file.
    """
    allowed, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    if allowed != resource.RLIM_INFINITY and num_bytes > allowed:
        raise VidcacheError(
            f"{printable(output)}: will have {num_bytes:,} bytes, but this process may not write a file of more than "
            f"{allowed:,}. Raise the limit (ulimit -f)"
        )
    needed, free = num_bytes, free_bytes(output.parent)
    with contextlib.suppress(FileNotFoundError):
        needed -= begun.stat().st_blocks * 512
    if needed > free:
        raise VidcacheError(
            f"{printable(output)}: needs {needed:,} bytes, but its disk has {free:,} free. "
            "Free some space, or write to another disk"
        )


def check_build_folder(output: Path) -> None:
    """Raise InputError where a link, a file, or a folder with something that no build has made is in the way."""
    folder = build_folder(output)
    foreign = [entry for entry in _entries(folder) if not _is_build(entry)]
    if os.path.lexists(folder) and not _is_folder(folder):
        foreign = [folder]
    if foreign:
        inside = [file for file in _entries(foreign[0]) if not _is_made(file)]
        where = printable([foreign[0], *inside][-1])
        raise InputError(f"{where}: was not made by vidcache, which builds there. Move it away, or choose another name")


def own_builds(output: Path) -> list[Path]:
    """List the folders of the builds of a cache that were not finished."""
    return [entry for entry in _entries(build_folder(output)) if _is_build(entry)]


def clean_up(output: Path, mark: str = "") -> None:
    """Remove what killed builds have left beside a finished cache, unless a build is running.

    With `mark`, only what cannot be resumed, or has a file of that name.
    """
    folder = build_folder(output)
    if _is_folder(folder) and len(own_builds(output)) == len(_entries(folder)):
        with contextlib.suppress(LockedError):
            lock = lock_output(output)
            try:
                remove_builds(output, lambda build: (build / mark).exists() or not (build / "plan.json").exists())
            finally:
                os.close(lock)


def remove_builds(output: Path, is_over: Callable[[Path], bool] = lambda _: True) -> None:
    """Remove builds of a cache, all by default, each manifest first: a kill in between leaves nothing that resumes.

    The caller has the lock.
    """
    for build in filter(is_over, own_builds(output)):
        for file in sorted(build.iterdir(), key=lambda file: file.name != "plan.json"):
            file.unlink()
        build.rmdir()
    with contextlib.suppress(OSError):  # it is not there, or not empty
        build_folder(output).rmdir()


def _is_build(folder: Path) -> bool:
    """Whether it is a real folder with nothing in it but what a build makes; it may be begun, or half removed."""
    return _is_folder(folder) and all(map(_is_made, _entries(folder)))


def _is_made(file: Path) -> bool:
    return bool(_MADE.fullmatch(file.name)) and os.path.isfile(file) and not file.is_symlink()


def _is_folder(path: Path) -> bool:
    return os.path.isdir(path) and not path.is_symlink()


def _entries(folder: Path) -> list[Path]:
    """List a folder; nothing where none is, or a link to one."""
    try:
        return sorted(folder.iterdir()) if _is_folder(folder) else []
    except OSError:  # another build has removed it meanwhile
        return []
