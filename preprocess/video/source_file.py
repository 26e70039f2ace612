"""A video as a file: opened by us, never by name in ffmpeg, and hashed."""

import enum
import errno
import os
import stat
import time
from pathlib import Path

import xxhash

from vidcache.errors import VidcacheError
from vidcache.text import printable


class Reason(enum.StrEnum):
    """Reason codes, as they stand in the `error` column before the colon."""

    NO_VIDEO_STREAM = "no_video_stream"
    UNREADABLE = "unreadable"
    UNSUPPORTED_CODEC = "unsupported_codec"
    DECODE_ERROR = "decode_error"
    NO_FRAMES = "no_frames"
    MISSING_FRAMES = "missing_frames"
    TIMEOUT = "timeout"
    TOO_LARGE = "too_large"
    NOT_A_REGULAR_FILE = "not_a_regular_file"
    ENCRYPTED = "encrypted"
    UNSUPPORTED_COLOURS = "unsupported_colours"
    DECODER_CRASHED = "decoder_crashed"
    NOT_FOUND = "not_found"
    NOT_ACCESSIBLE = "not_accessible"
    CHANGED = "changed"
    KILLED = "killed"
    NO_RESOURCES = "no_resources"


# True of a video at that moment, on that machine, with those tools and options: another run tries these again by
# itself. All other reasons depend on the bytes of the video alone, and are kept.
MOMENTARY = frozenset(
    {
        Reason.UNSUPPORTED_CODEC,  # of the ffmpeg that was there
        Reason.DECODER_CRASHED,  # likewise, or its memory was not what it should be
        Reason.TIMEOUT,
        Reason.TOO_LARGE,  # --max-pixels, or the memory of the machine
        Reason.NOT_FOUND,
        Reason.NOT_ACCESSIBLE,
        Reason.CHANGED,
        Reason.KILLED,
        Reason.NO_RESOURCES,
    }
)

# What this machine has run out of. These say nothing about a video, and end the work.
SHORTAGES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})


def is_momentary(reason: str) -> bool:
    """Whether a failure with this reason code is tried again by every later run."""
    return reason in MOMENTARY


class Failure(Exception):  # noqa: N818 -- not an error of ours: an outcome, caught where a worker ends
    """A video cannot become a clip. Raised and caught inside one worker.

    Attributes:
        reason: The code.
        detail: One line for people.
        num_frames: Frames that decoded nevertheless.
        num_frames_from_header: Frames that the file claims; -1 unknown.
        source_hash: xxh3-128 of the file, hex; empty when it could not be read.
    """

    def __init__(self, reason: Reason, detail: str, num_frames: int = 0, num_frames_from_header: int = -1) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
        self.num_frames = num_frames
        self.num_frames_from_header = num_frames_from_header
        self.source_hash = ""


def open_video(path: str | bytes | Path, *, follow_links: bool = False) -> int:
    """Open a regular file for reading, and nothing else.

    Args:
        path: The file.
        follow_links: Open what a symbolic link leads to; it has to be a regular file too.

    Returns:
        A descriptor. No name ever reaches ffmpeg.

    Raises:
        Failure: It is a link, FIFO, device or folder, it is empty, not there, or cannot be read.
        OSError: This process or machine is out of memory or of file descriptors.
    """
    if follow_links:
        path = os.path.realpath(path)  # what replaces it meanwhile is not followed
    try:
        # O_NONBLOCK: opening a FIFO would wait for its writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in SHORTAGES:
            raise
        if os.path.islink(path):
            advice = ", and what it leads to is one too" if follow_links else "; --follow-links follows it"
            raise Failure(Reason.NOT_A_REGULAR_FILE, f"a symbolic link{advice}") from None
        if error.errno is not None and os.path.lexists(path) and not os.path.isfile(path):
            raise Failure(Reason.NOT_A_REGULAR_FILE, error.strerror or "") from None
        is_away = error.errno in (errno.ENOENT, errno.ENOTDIR)
        raise Failure(Reason.NOT_FOUND if is_away else Reason.NOT_ACCESSIBLE, error.strerror or "") from None
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


def check_folder(path: bytes) -> None:
    """See that the folder of a video that cannot be read is still there, and not an empty mount point.

    Raises:
        VidcacheError: It is away: a fault of the moment, that would make failures of all videos in it.
    """
    folder = os.path.dirname(path)
    try:
        with os.scandir(folder) as entries:
            what = "" if next(entries, None) else "is empty now"
    except OSError as error:
        if error.errno in SHORTAGES:
            raise
        what = f"cannot be read any more ({error.strerror})"
    if what:
        raise VidcacheError(
            f"{printable(folder)}: {what}. Nothing was published, and what was decoded is kept: "
            "when the folder is back, run the same command again"
        )


def hash_video(path: str | bytes | Path, *, deadline: float, follow_links: bool = False) -> str:
    """Return the xxh3-128 of a video file, hex.

    Args:
        path: The file.
        deadline: By `time.monotonic()`.
        follow_links: As of `open_video`.

    Raises:
        Failure: It is not a regular file, cannot be read, or takes too long.
        OSError: This process or machine is out of memory or of file descriptors.
    """
    descriptor = open_video(path, follow_links=follow_links)
    try:
        return hash_file(descriptor, deadline=deadline)
    finally:
        os.close(descriptor)


def hash_file(descriptor: int, *, deadline: float) -> str:
    """Return the xxh3-128 of what an open file has from here to its end, hex.

    Args:
        descriptor: The file, open for reading.
        deadline: By `time.monotonic()`. A sparse file can be longer than any disk.

    Raises:
        Failure: It cannot be read, or takes too long.
    """
    digest, num_bytes = xxhash.xxh3_128(), 0
    try:
        while chunk := os.read(descriptor, 1 << 20):
            digest.update(chunk)
            num_bytes += len(chunk)
            if time.monotonic() >= deadline:
                raise Failure(Reason.TIMEOUT, f"{num_bytes:,} of {os.fstat(descriptor).st_size:,} bytes were read")
    except OSError as error:
        raise Failure(Reason.NOT_ACCESSIBLE, error.strerror or "") from None
    return digest.hexdigest()
