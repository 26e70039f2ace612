"""Why a video gave no clip, or a damaged one: plain data that survives every kind of worker."""

import enum
import errno


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
