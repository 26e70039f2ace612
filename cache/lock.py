"""The place where a cache is written: its lock, the space it needs, and the folder in which it is built.

Next to `cache.h5` lie, while it is built, `cache.h5.lock` (never removed: removing a lock file is a race) and
`.cache.h5.build/`, with one folder for each manifest. No link is followed here, and nothing is removed that no build
has made.
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

# What is in the folder of one build.
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


def check_space(output: Path, num_bytes: int, present: int = 0) -> None:
    """Check before the work begins that a file of `num_bytes`, of which some are present, may be written and has room.

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


def check_build_folder(folder: Path) -> None:
    """Raise InputError where a link, a file, or a folder with something that no build has made is in the way."""
    if not os.path.lexists(folder) or _is_build(folder) or all(map(_is_build, _entries(folder) or [folder])):
        return
    inside = [path for entry in _entries(folder) for path in (entry, *_entries(entry))]
    foreign = (path for path in inside if not _is_made(path) and not stat.S_ISDIR(_mode(path)))
    raise InputError(
        f"{printable(next(foreign, folder))}: was not made by vidcache, which builds there. Move it away, or choose "
        "another name"
    )


def own_builds(output: Path) -> list[Path]:
    """List the folders of the builds of a cache that were not finished."""
    return [entry for entry in _entries(build_folder(output)) if _is_build(entry)]


def clean_up(output: Path, mark: str = "") -> None:
    """Remove what killed builds have left beside a finished cache, unless a build is running.

    With `mark`, only what cannot be resumed, or has a file of that name.
    """
    folder = build_folder(output)
    if stat.S_ISDIR(_mode(folder)) and all(map(_is_build, _entries(folder))):
        try:
            lock = lock_output(output)
        except LockedError:
            return
        try:
            for build in own_builds(output):
                if (build / mark).exists() or not (build / "plan.json").exists():
                    remove_build(build)
            with contextlib.suppress(OSError):  # others are left
                folder.rmdir()
        finally:
            os.close(lock)


def remove_builds(output: Path) -> None:
    """Remove all builds of a cache; the caller has its lock."""
    for build in own_builds(output):
        remove_build(build)
    with contextlib.suppress(OSError):  # it is not there, or somebody has put something into it
        build_folder(output).rmdir()


def remove_build(folder: Path) -> None:
    """Remove one build, manifest first, so that a kill in between leaves nothing that resumes."""
    if _is_build(folder):
        for file in sorted(folder.iterdir(), key=lambda file: file.name != "plan.json"):
            file.unlink()
        folder.rmdir()


def _is_build(folder: Path) -> bool:
    """Whether it is a real folder with nothing in it but what a build makes; it may be begun, or half removed."""
    return stat.S_ISDIR(_mode(folder)) and all(map(_is_made, _entries(folder)))


def _is_made(path: Path) -> bool:
    return bool(_MADE.fullmatch(path.name)) and stat.S_ISREG(_mode(path))


def _entries(folder: Path) -> list[Path]:
    """List a folder; nothing where none is, or a link to one."""
    try:
        return sorted(folder.iterdir()) if stat.S_ISDIR(_mode(folder)) else []
    except OSError:  # another build has removed it meanwhile
        return []


def _mode(path: Path) -> int:
    """Return type and permissions of a file, of a link those of the link; 0 where nothing is."""
    try:
        return path.lstat().st_mode
    except OSError:
        return 0
