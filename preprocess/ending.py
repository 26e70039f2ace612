"""Whether a file goes on where its video ends: then what was decoded is only a part of the recording.

Reads headers, and the bytes behind the last packet. Decodes nothing.
"""

import dataclasses
import os

# Where one file was appended to another, ffmpeg reads the first of these and stops; of most other containers, both.
# GUIDs of ASF and WTV as in their specifications; of FLV the whole header but the byte of flags.
_BEGINNINGS = {
    "asf": [bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")],
    "wtv": [bytes.fromhex("b7d800203749da11a64e0007e95ead8d")],
    "flv": [b"FLV\x01" + bytes([flags]) + b"\x00\x00\x00\x09" for flags in (0, 1, 4, 5)],
}
_MAX_BOXES = 1 << 16
_CHUNK_BYTES, _MAX_SEARCHED_BYTES = 1 << 20, 1 << 26  # an index may come first, but not more
# Sound that is a little longer than its pictures is no loss.
_MISSING_FRACTION, _MISSING_SECONDS, _MISSING_BYTES = 0.25, 0.25, 1 << 16
_MIN_PACKETS = 5  # of a part that is missed: fewer are a preview


@dataclasses.dataclass(frozen=True)
class Extent:
    """Where a stream lies.

    Attributes:
        num_packets: How many it has.
        start: Of its first packet, in seconds; infinite when no packet has a time.
        end: Of its last packet.
        longest_step: Longest time between two packets, as they are stored.
        first_byte: Where its first packet begins in the file; -1 unknown.
        end_byte: Where its last packet ends; -1 unknown.
        skip: First and last byte of the longest stretch between two of its packets.
    """

    num_packets: int
    start: float
    end: float
    longest_step: float
    first_byte: int
    end_byte: int
    skip: tuple[int, int]

    @property
    def seconds(self) -> float:
        """How long it is; 0 unknown."""
        return max(self.end - self.start, 0.0)

    def is_apart_from(self, other: "Extent") -> bool:
        """Whether one of the two ends about where the other begins, by time."""
        shorter = min(self.seconds, other.seconds)
        return shorter > 0 and min(self.end, other.end) - max(self.start, other.start) < shorter / 2

    def pauses_for(self, other: "Extent") -> bool:
        """Whether all of the other lies before, behind or between the packets of this one, by place in the file."""
        first, end = other.first_byte, other.end_byte
        return end <= self.first_byte or first >= self.end_byte or (self.skip[0] <= first and end <= self.skip[1])


def find_more(descriptor: int, container: str, end: float, video: Extent, others: list[Extent]) -> str:
    """Say what there is behind the end of a video.

    Args:
        descriptor: The file, open for reading.
        container: What ffprobe calls its format.
        end: Of the container, in seconds, as it says itself; 0 unknown.
        video: The stream that is decoded.
        others: Of all other video streams.

    Returns:
        What was found, for people; empty if nothing.
    """
    names, size = set(container.split(",")), os.fstat(descriptor).st_size
    is_stream = bool(names & {"mpegts", "mpeg"})  # in these, what comes later lies later
    for other in others:
        takes_turns = is_stream and (video.pauses_for(other) or other.pauses_for(video))
        if other.num_packets >= _MIN_PACKETS and (takes_turns or video.is_apart_from(other)):
            return f"another video stream, of {other.num_packets} packets, has its turn before or after this one"
    at = _find_beginning(descriptor, names, max(video.end_byte, 0), size)
    if at >= 0:
        return f"another file begins at byte {at:,} of {size:,}, which ffmpeg does not read"
    if is_stream and video.end_byte >= 0 and size - video.end_byte > max(_MISSING_FRACTION * size, _MISSING_BYTES):
        return f"its last packet is at byte {video.end_byte:,} of {size:,}"
    allowed = max(_MISSING_FRACTION * (end - video.start), 2 * video.longest_step, _MISSING_SECONDS)
    if video.seconds and end - video.end > allowed:
        return f"it ends at {video.end - video.start:.2f} s, the file at {end - video.start:.2f} s"
    return ""


def _find_beginning(descriptor: int, names: set[str], behind: int, size: int) -> int:
    """Return where another file begins; -1 if there is none."""
    if "mp4" in names:
        return _find_movie(descriptor, behind, size)
    marks = [mark for name in names for mark in _BEGINNINGS.get(name, [])]
    if not marks:
        return -1
    overlap = max(len(mark) for mark in marks) - 1
    for start in range(behind, min(size, behind + _MAX_SEARCHED_BYTES), _CHUNK_BYTES):
        chunk = os.pread(descriptor, _CHUNK_BYTES + overlap, start)
        found = [start + at for mark in marks if (at := chunk.find(mark)) >= 0]
        if found:
            return min(found)
    return -1


def _find_movie(descriptor: int, behind: int, size: int) -> int:
    """Return where a second `moov` begins; -1 if there is none. Only one of a file is read."""
    at, num_movies = 0, 0
    for _ in range(_MAX_BOXES):
        head = os.pread(descriptor, 16, at)
        box_bytes, kind = int.from_bytes(head[:4]), head[4:8]
        if box_bytes == 1:
            box_bytes = int.from_bytes(head[8:16])
        num_movies += kind == b"moov"
        if kind == b"moov" and num_movies > 1 and at >= behind:
            return at
        if box_bytes < 8 or at + box_bytes >= size:  # the last one may say 0
            return -1
        at += box_bytes
    return -1
