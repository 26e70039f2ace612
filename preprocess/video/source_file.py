"""A video as a file: opened by us, never by name in ffmpeg, and hashed; and the reasons why one gives no clip."""

import enum
import errno
import os
import stat
import time
from pathlib import Path

import xxhash

from vidcache.errors import VidcacheError
from vidcache.text import printable

Reason = enum.StrEnum(  # codes, as they stand in the `error` column before the colon
    "Reason",
    "NO_VIDEO_STREAM UNREADABLE UNSUPPORTED_CODEC DECODE_ERROR NO_FRAMES MISSING_FRAMES TIMEOUT TOO_LARGE "
    "NOT_A_REGULAR_FILE ENCRYPTED UNSUPPORTED_COLOURS DECODER_CRASHED NOT_FOUND NOT_ACCESSIBLE CHANGED KILLED "
    "NO_RESOURCES",
)
# True at that moment, on that machine, with those tools (a codec, a crash) and options (time, pixels): every later run
# tries these again. All other reasons depend on the bytes of the video alone, and are kept.
MOMENTARY = frozenset(
    "unsupported_codec decoder_crashed timeout too_large not_found not_accessible changed killed no_resources".split()
)
# Out of descriptors or memory: this says nothing about a video, and ends the work.
SHORTAGES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})


def is_momentary(reason: str) -> bool:
    """Whether a failure with this reason code is tried again by every later run."""
    return reason in MOMENTARY


class Failure(Exception):  # noqa: N818 -- an outcome, caught where a worker ends
    """A video that cannot become a clip: the code, one line for people, and what is known nevertheless.

    Raised and caught inside one worker. Frames from the header are -1 where they are unknown, and `source_hash`, the
    xxh3-128 of the file in hex, is empty if it could not be read.
    """

    def __init__(self, reason: Reason, detail: str, num_frames: int = 0, num_frames_from_header: int = -1) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail, self.source_hash = reason, detail, ""
        self.num_frames, self.num_frames_from_header = num_frames, num_frames_from_header


def open_video(path: str | bytes | Path, *, follow_links: bool = False) -> int:
    """Open a regular file that is not empty for reading, and nothing else; returns a descriptor.

    Raises Failure for anything else, and OSError for too little memory or too few file descriptors.
    """
    if follow_links:
        path = os.path.realpath(path)  # a link that replaces the target meanwhile is not followed
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
    if stat.S_ISREG(facts.st_mode) and facts.st_size:
        return descriptor
    os.close(descriptor)
    if stat.S_ISREG(facts.st_mode):
        raise Failure(Reason.UNREADABLE, "the file is empty")
    raise Failure(Reason.NOT_A_REGULAR_FILE, stat.filemode(facts.st_mode))


def check_folder(path: bytes) -> None:
    """Raise VidcacheError if the folder of an unreadable video has vanished, or is an empty mount point now."""
    folder = os.path.dirname(path)
    try:
        problem = "" if os.listdir(folder) else "is empty now"
    except OSError as error:
        if error.errno in SHORTAGES:
            raise
        problem = f"cannot be read any more ({error.strerror})"
    if problem:
        raise VidcacheError(
            f"{printable(folder)}: {problem}. Nothing was published, and what was decoded is kept: "
            "when the folder is back, run the same command again"
        )


def hash_video(path: str | bytes | Path, *, deadline: float, follow_links: bool = False) -> str:
    """Return the xxh3-128 of a video file, hex; raises as `open_video` and `hash_file` do."""
    descriptor = open_video(path, follow_links=follow_links)
    try:
        return hash_file(descriptor, deadline=deadline)
    finally:
        os.close(descriptor)


def hash_file(descriptor: int, *, deadline: float) -> str:
    """Return the xxh3-128 of an open file in hex; raises Failure if it cannot be read, or not before the deadline."""
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
