"""The place that a cache is written to: its lock, its room, and the folder in which it is built.

Next to `cache.h5` lie, while it is built, `cache.h5.lock` (never removed: removing a lock file is
a race) and `.cache.h5.build/`; that of a cache has one folder for each plan.
"""

import errno
import fcntl
import os
import resource
import shutil
from pathlib import Path

from vidcache.errors import LockedError, VidcacheError
from vidcache.files import free_bytes
from vidcache.text import printable


def build_folder(output: Path) -> Path:
    """Return the folder in which a cache is built: cache.h5 -> .cache.h5.build."""
    return output.with_name(f".{output.name}.build")


def lock_output(output: Path) -> int:
    """Make this process the only one that writes a file; the lock is gone when the descriptor is closed.

    Raises:
        LockedError: Another process has it.
        VidcacheError: The folder cannot be written, or its file system cannot lock.
    """
    where = printable(output)
    try:
        descriptor = os.open(output.with_name(f"{output.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
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
    if build_folder(output).is_dir():
        try:
            lock = lock_output(output)
        except LockedError:
            return
        try:
            remove_builds(output)
        finally:
            os.close(lock)


def remove_builds(output: Path) -> None:
    """Remove all builds of a cache; the caller has its lock."""
    folder = build_folder(output)
    if folder.is_dir():
        for build in sorted(folder.iterdir()):
            remove_build(build)
        shutil.rmtree(folder)


def remove_build(folder: Path) -> None:
    """Remove one build, plan first, so that a kill in between leaves nothing that resumes."""
    (folder / "plan.json").unlink(missing_ok=True)
    if folder.is_dir():
        shutil.rmtree(folder)
