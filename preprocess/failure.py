"""Why a video gave no clip, or a damaged one: plain data that survives every kind of worker."""

import enum


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
