"""A video as a file: opened by us, never by name in ffmpeg, and hashed."""

import os
import stat
from pathlib import Path

import xxhash

from vidcache.preprocess.failure import Failure, Reason


def open_video(path: str | bytes | Path) -> int:
    """Open a regular file for reading, and nothing else.

    Returns:
        A descriptor. No name ever reaches ffmpeg.

    Raises:
        Failure: It is a link, FIFO, device or folder, it is empty, or it cannot be read.
    """
    try:
        # O_NONBLOCK: opening a FIFO would wait for its writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if os.path.islink(path):
            raise Failure(Reason.NOT_A_REGULAR_FILE, "a symbolic link") from None
        if error.errno is not None and os.path.lexists(path) and not os.path.isfile(path):
            raise Failure(Reason.NOT_A_REGULAR_FILE, error.strerror or "") from None
        raise Failure(Reason.UNREADABLE, error.strerror or "") from None
    facts = os.fstat(descriptor)
    problem = None
    if not stat.S_ISREG(facts.st_mode):
        problem = Failure(Reason.NOT_A_REGULAR_FILE, stat.filemode(facts.st_mode))
    elif facts.st_size == 0:
        problem = Failure(Reason.UNREADABLE, "the file is empty")
    if problem:
        os.close(descriptor)
        raise problem
    return descriptor


def hash_video(path: str | bytes | Path) -> str:
    """Return the xxh3-128 of a video file, hex.

    Raises:
        Failure: It is not a regular file, or cannot be read.
    """
    descriptor = open_video(path)
    try:
        return hash_file(descriptor)
    finally:
        os.close(descriptor)


def hash_file(descriptor: int) -> str:
    """Return the xxh3-128 of what an open file has from here to its end, hex.

    Raises:
        Failure: It cannot be read.
    """
    digest = xxhash.xxh3_128()
    try:
        while chunk := os.read(descriptor, 1 << 20):
            digest.update(chunk)
    except OSError as error:
        raise Failure(Reason.UNREADABLE, error.strerror or "") from None
    return digest.hexdigest()
