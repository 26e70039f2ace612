"""The place that a cache is written to: its lock, its room, and the folder in which it is built.

Next to `cache.h5` lie, while it is built, `cache.h5.lock` (never removed: removing a lock file is
a race) and `.cache.h5.build/`; that of a cache has one folder for each plan. No link is followed here, and
nothing is removed that no build has made.
"""

import contextlib
import errno
import fcntl
import os
import re
import resource
import stat
from pathlib import Path

from vidcache.errors import InputError, LockedError, VidcacheError
from vidcache.files import free_bytes
from vidcache.text import printable

# What is in the folder of a build, of a cache or of features.
_MADE = re.compile(r"plan\.json|key|data\.h5|journal|split|\..+\.[0-9]+\.tmp")


def build_folder(output: Path) -> Path:
    """Return the folder in which a cache is built: cache.h5 -> .cache.h5.build."""
    return output.with_name(f".{output.name}.build")


def lock_output(output: Path) -> int:
    """Make this process the only one that writes a file; the lock is gone when the descriptor is closed.

    Raises:
        LockedError: Another process has it.
        VidcacheError: The folder cannot be written, or its file system cannot lock.
    """
    where, lock = printable(output), output.with_name(f"{output.name}.lock")
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise VidcacheError(f"{printable(lock)}: is a link, not a lock. Rename it") from None
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


def check_space(output: Path, num_bytes: int, present: int = 0) -> None:
    """Refuse to begin what the disk has no room for, or what is longer than this process may write.

    Args:
        output: The file.
        num_bytes: How long it will be.
        present: What of it is on the disk already.

    Raises:
        VidcacheError: Fewer bytes are free than are needed, or allowed in one file.
    """
    allowed, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    if allowed != resource.RLIM_INFINITY and num_bytes > allowed:
        raise VidcacheError(
            f"{printable(output)}: will have {num_bytes:,} bytes, but this process may not write a file of more than "
            f"{allowed:,}. Raise the limit (ulimit -f)"
        )
    free, needed = free_bytes(output.parent), num_bytes - present
    if needed > free:
        raise VidcacheError(
            f"{printable(output)}: needs {needed:,} bytes, but its disk has {free:,} free. "
            "Free some space, or write to another disk"
        )


def clean_up(output: Path) -> None:
    """Remove what a killed build has left beside a finished cache; leave it to a build that still runs."""
    if _is_folder(build_folder(output)) and _holds_builds(build_folder(output)):
        try:
            lock = lock_output(output)
        except LockedError:
            return
        try:
            remove_builds(output)
        finally:
            os.close(lock)


def check_build_folder(folder: Path) -> None:
    """Refuse to build where something lies that no build has made.

    Args:
        folder: Of all builds of a cache, of one of them, or of a file of features.

    Raises:
        InputError: A link, a file, or a folder with other things in it.
    """
    if not os.path.lexists(folder) or _is_build(folder) or (_is_folder(folder) and _holds_builds(folder)):
        return
    inside = _entries(folder) if _is_folder(folder) else []
    foreign = (
        path
        for path in (*inside, *(file for build in inside if _is_folder(build) for file in _entries(build)))
        if not _is_folder(path) and not (_MADE.fullmatch(path.name) and stat.S_ISREG(_mode(path)))
    )
    raise InputError(
        f"{printable(next(foreign, folder))}: was not made by vidcache, which builds there. Move it away, or choose "
        "another name"
    )


def own_builds(output: Path) -> list[Path]:
    """List the folders of the builds of a cache that were not finished."""
    folder = build_folder(output)
    return [entry for entry in _entries(folder) if _is_build(entry)] if _is_folder(folder) else []


def remove_builds(output: Path) -> None:
    """Remove all builds of a cache; the caller has its lock."""
    for build in own_builds(output):
        remove_build(build)
    with contextlib.suppress(OSError):  # it is not there, or somebody has put something into it
        build_folder(output).rmdir()


def remove_build(folder: Path) -> None:
    """Remove one build, plan first, so that a kill in between leaves nothing that resumes."""
    if _is_build(folder):
        for file in sorted(folder.iterdir(), key=lambda file: file.name not in ("plan.json", "key")):
            file.unlink()
        folder.rmdir()


def _is_build(folder: Path) -> bool:
    """Whether it is a real folder with nothing in it but what a build makes; it may be begun, or half removed."""
    return _is_folder(folder) and all(
        _MADE.fullmatch(entry.name) and stat.S_ISREG(_mode(entry)) for entry in _entries(folder)
    )


def _holds_builds(folder: Path) -> bool:
    return all(_is_build(entry) for entry in _entries(folder))


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:  # another build has removed it meanwhile
        return []


def _is_folder(path: Path) -> bool:
    return stat.S_ISDIR(_mode(path))


def _mode(path: Path) -> int:
    """Return type and permissions of what is there, of a link those of the link; 0 where nothing is."""
    try:
        return path.lstat().st_mode
    except OSError:
        return 0
