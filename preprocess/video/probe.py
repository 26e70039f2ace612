"""One ffprobe per video: its best video stream, how many packets that really holds, and whether the file has more.

What a header claims is marked as such. Nothing is decoded here.
"""

import array
import dataclasses
import fractions
import math
import os
import re
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from vidcache.errors import InputError
from vidcache.preprocess.video.ffmpeg import OpenVideo
from vidcache.preprocess.video.source_file import Failure, Reason
from vidcache.text import one_line

HDR_TRANSFERS = ("smpte2084", "arib-std-b67")  # PQ and HLG: without tone mapping they look washed out

_PACKET_FIELDS = ("stream_index", "pts", "pts_time", "duration_time", "size", "pos", "flags")  # in ffprobe's own order
_ENTRIES = (
    "format=format_name,start_time,duration:stream=index,codec_name,codec_tag_string,width,height,nb_frames,pix_fmt,"
    "color_transfer,color_primaries,color_space,avg_frame_rate,has_b_frames,bit_rate"
    ":stream_disposition=default,attached_pic,hearing_impaired,visual_impaired:stream_side_data=displaymatrix"
    ":packet="
) + ",".join(_PACKET_FIELDS)
_PACKET = re.compile(rb"^packet" + b"".join(rb"\|%s=([^|\n]*)" % name.encode() for name in _PACKET_FIELDS), re.M)
_ANY_PACKET = re.compile(rb"^packet\|", re.M)
_OTHER = re.compile(rb"^(?:stream|format)\|.*$", re.M)
_MATRIX_ROW = re.compile(r"0000000\d: +(-?\d+) +(-?\d+) +(-?\d+)")
_MAX_TIMELINE = 1 << 23  # packets: 77 hours at 30 a second

# Where one file was appended to another, ffmpeg reads the first of these and stops; of most other containers, both.
# The GUID of ASF as in its specification; of FLV the whole header but the byte of flags.
_BEGINNINGS = {
    "asf": [bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")],
    "flv": [b"FLV\x01" + bytes([flags]) + b"\x00\x00\x00\x09" for flags in (0, 1, 4, 5)],
}
_MAX_BOXES = 1 << 16
_CHUNK_BYTES, _MAX_SEARCHED_BYTES = 1 << 20, 1 << 26  # an index may come first, but not more
# Sound that is a little longer than its pictures is no loss.
_MISSING_FRACTION, _MISSING_SECONDS, _MISSING_BYTES = 0.25, 0.25, 1 << 16
_MIN_PACKETS = 5  # of another stream that is missed: fewer are a preview


Filters = tuple[tuple[str, dict[str, str | int]], ...]  # of ffmpeg: name, options


@dataclasses.dataclass(frozen=True)
class Turn:
    """How a picture is turned and mirrored to be shown."""

    degrees: int = 0  # clockwise: 0, 90, 180 or 270; 0 if it is only mirrored, or turned by another angle
    filters: Filters = ()  # what turns it

    @property
    def swaps_sides(self) -> bool:
        """Whether width becomes height."""
        return self.degrees % 180 == 90


def turn_of(matrix: Sequence[int]) -> Turn:
    """Return what ffmpeg's autorotation does for a display matrix (row by row, fixed-point, at least two rows)."""
    a, b, _, c, d = matrix[:5]
    if not (math.hypot(a, c) and math.hypot(b, d)):
        return Turn()  # broken: it has no angle
    degrees = round(math.degrees(math.atan2(b / math.hypot(b, d), a / math.hypot(a, c)))) % 360
    if degrees == 90:
        return Turn(90, (("transpose", {"dir": "cclock_flip" if c > 0 else "clock"}),))
    if degrees == 270:
        return Turn(270, (("transpose", {"dir": "clock_flip" if c < 0 else "cclock"}),))
    if degrees % 180 == 0:
        flips: Filters = (*((("hflip", {}),) if degrees and a < 0 else ()), *((("vflip", {}),) if d < 0 else ()))
        return Turn(180 if len(flips) == 2 else 0, flips)
    return Turn(0, (("rotate", {"angle": f"{degrees}*PI/180"}),))


@dataclasses.dataclass(frozen=True)
class Timeline:
    """Every packet of a stream, in decoding order, 9 bytes each."""

    pts: "array.array[int]"  # presentation times, int64, in units of the stream
    keys: bytearray  # 1 where the container says that a decoder may start


@dataclasses.dataclass(frozen=True)
class Probe:
    """What ffprobe says of the best video stream; names are empty where they are unknown."""

    stream_index: int
    codec: str
    encrypted: bool  # says the container
    pixel_format: str
    width: int  # pixels, as displayed
    height: int
    rotation: int  # degrees clockwise that ffmpeg turns the pixels: 0, 90, 180, 270; 0 for a mirror or another angle
    num_packets: int  # that are to be shown: edit lists can discard some
    num_packets_in_file: int
    num_frames_from_header: int  # -1 unknown
    fps_from_header: float  # on average; 0 unknown
    duration_seconds: float  # start of the first to end of the last shown packet; 0 when a packet has no time
    transfer: str = ""
    primaries: str = ""
    matrix: str = ""  # of the colours
    more: str = ""  # what else the file holds, where this stream is not all of the recording
    reorder_depth_from_header: int = -1  # pictures that a decoder holds back to give them in order; -1 unknown
    timeline: Timeline | None = None  # None when a packet has no time, is discarded or broken, or they are too many


def probe_video(video: OpenVideo, max_pixels: int) -> Probe:
    """Ask ffprobe about a video; raises Failure if it cannot be read, or has more than `max_pixels` pixels."""
    reader = _Reader()
    arguments = ("-v", "error", "-select_streams", "v", "-of", "compact", "-show_entries", _ENTRIES)
    result = video.ffprobe(*arguments, on_output=reader.feed)
    if result.code != 0:  # the first message, without the address of its context and our name of the file
        lines = [re.sub(r"^(\[[^\]]*\] |file:/dev/fd/\d+: )+", "", line) for line in result.stderr.splitlines()]
        raise Failure(Reason.UNREADABLE, one_line(lines[0], 160) if lines else f"ffprobe ended with {result.code}")
    streams = [stream for stream in reader.streams if stream.get("disposition:attached_pic") != "1"]
    if not streams:
        problem = "only cover art" if reader.streams else "no video stream in the file"
        raise Failure(Reason.NO_VIDEO_STREAM, problem)
    best = max(streams, key=reader.rank)
    packets = reader.packets_of(best)
    others = [reader.packets_of(stream) for stream in streams if stream is not best]
    start, seconds = (_number(reader.container.get(name)) or 0.0 for name in ("start_time", "duration"))
    # Where an edit list leaves packets out, the file has longer streams than it shows.
    end = 0.0 if packets.discarded else start + seconds
    try:
        more = find_more(video.descriptor, _known(reader.container, "format_name"), end, packets, others)
    except OSError as error:
        raise Failure(Reason.NOT_ACCESSIBLE, error.strerror or "") from None
    probe = dataclasses.replace(reader.probe(best), more=more)
    if probe.width * probe.height > max_pixels:
        raise Failure(Reason.TOO_LARGE, f"{probe.width}x{probe.height} pixels, expected at most {max_pixels:,}")
    return probe


def probe_turn(video: OpenVideo, probe: Probe) -> Turn:
    """Ask how the first picture is to be turned: a decoder also knows what only the stream itself says."""
    output = bytearray()
    arguments = ("-v", "quiet", "-threads", "1", "-select_streams", str(probe.stream_index), "-of", "compact")
    entries = ("-read_intervals", "%+#8", "-show_entries", "frame=pts:frame_side_data=displaymatrix")
    video.ffprobe(*arguments, *entries, on_output=output.extend)
    return _turn(_fields(bytes(output).partition(b"\n")[0])[1])


# --- what ffprobe says ------------------------------------------------------------------------


@dataclasses.dataclass
class Packets:
    """The packets of one stream: how many, when, and where in the file."""

    timeline: Timeline | None = dataclasses.field(default_factory=lambda: Timeline(array.array("q"), bytearray()))
    shown: int = 0
    discarded: int = 0
    timed: int = 0
    start: float = math.inf  # of the first packet, in seconds
    end: float = -math.inf
    last_start: float = math.inf
    longest_step: float = 0.0  # between two packets, as they are stored
    first_byte: int = -1  # -1 unknown
    end_byte: int = -1
    gap: tuple[int, int] = (0, 0)  # first and last byte of the longest stretch between two packets

    def add(self, rows: Iterable[tuple[bytes, ...]]) -> None:
        """Count packets: pts, pts_time, duration_time, size, pos and flags of each, as ffprobe writes them."""
        pts, starts, durations, sizes, places, flags = zip(*rows, strict=True)
        self._keep_times(pts, flags)
        known = [
            (int(at), int(size)) for at, size in zip(places, sizes, strict=True) if at.isdigit() and size.isdigit()
        ]
        if known:
            self._keep_places(np.array(known))
        is_shown = np.array([b"D" not in flag for flag in flags])
        self.shown += int(is_shown.sum())
        self.discarded += int((~is_shown).sum())
        first = np.array([_number(start) for start in starts], np.float64)[is_shown]
        length = np.array([_number(duration) or 0.0 for duration in durations])[is_shown]
        first, length = first[~np.isnan(first)], length[~np.isnan(first)]
        if len(first):
            self.timed += len(first)
            self.longest_step = max(self.longest_step, float(np.diff(first, prepend=self.last_start).max()))
            self.last_start = float(first[-1])
            self.start = min(self.start, float(first.min()))
            self.end = max(self.end, float((first + length).max()))

    def _keep_places(self, known: npt.NDArray[np.int64]) -> None:
        first, end = known[:, 0], known.sum(axis=1)
        if self.first_byte < 0:
            self.first_byte = self.end_byte = int(first[0])
        before = np.concatenate([[self.end_byte], end[:-1]])
        longest = int((first - before).argmax())
        if first[longest] - before[longest] > self.gap[1] - self.gap[0]:
            self.gap = (int(before[longest]), int(first[longest]))
        self.end_byte = int(end[-1])

    def _keep_times(self, pts: Sequence[bytes], flags: Sequence[bytes]) -> None:
        if self.timeline is None:
            return
        try:
            self.timeline.pts.extend(map(int, pts))
        except (ValueError, OverflowError):
            self.timeline = None
            return
        self.timeline.keys.extend(b"K" in flag for flag in flags)
        if any(b"D" in flag or b"C" in flag for flag in flags) or len(self.timeline.keys) > _MAX_TIMELINE:
            self.timeline = None

    @property
    def seconds(self) -> float:
        """How long the stream is; 0 unknown."""
        return max(self.end - self.start, 0.0)

    def is_apart_from(self, other: "Packets") -> bool:
        """Whether one of the two ends about where the other begins, by time."""
        shorter = min(self.seconds, other.seconds)
        return shorter > 0 and min(self.end, other.end) - max(self.start, other.start) < shorter / 2

    def pauses_for(self, other: "Packets") -> bool:
        """Whether all of the other lies before, behind or between the packets of this one, by place in the file."""
        first, end = other.first_byte, other.end_byte
        return end <= self.first_byte or first >= self.end_byte or (self.gap[0] <= first and end <= self.gap[1])


def _fields(line: bytes) -> tuple[str, dict[str, str]]:
    """Parse `section|key=value|...`."""
    section, *pairs = line.decode("utf-8", "replace").split("|")
    return section, {key: value for key, _, value in (pair.partition("=") for pair in pairs)}


class _Reader:
    """Parses ffprobe's compact output as it comes."""

    def __init__(self) -> None:
        self.streams: list[dict[str, str]] = []
        self.container: dict[str, str] = {}
        self.packets: dict[str, Packets] = {}
        self._rest = b""

    def feed(self, data: bytes) -> None:
        text, _, self._rest = (self._rest + data).rpartition(b"\n")
        packets: dict[bytes, list[tuple[bytes, ...]]] = {}
        for index, *fields in _PACKET.findall(text):
            packets.setdefault(index, []).append(tuple(fields))
        if sum(map(len, packets.values())) != len(_ANY_PACKET.findall(text)):
            raise InputError("ffprobe: writes packets in an order of its own. Name another folder with --ffmpeg-dir")
        for index, rows in packets.items():
            self.packets.setdefault(index.decode(), Packets()).add(rows)
        for line in _OTHER.findall(text):
            section, fields = _fields(line)
            if section == "stream":
                self.streams.append(fields)
            elif section == "format":
                self.container = fields

    def packets_of(self, stream: dict[str, str]) -> Packets:
        return self.packets.get(stream["index"], Packets())

    def rank(self, stream: dict[str, str]) -> tuple[int, ...]:
        """Order streams as libavformat's `av_find_best_stream` does, but a single picture comes last."""
        impaired = "1" in (stream.get("disposition:hearing_impaired"), stream.get("disposition:visual_impaired"))
        disposition = (not impaired) + (stream.get("disposition:default") == "1")
        count, bit_rate = self.packets_of(stream).shown, _integer(stream.get("bit_rate"), 0)
        return (count > 1, disposition, min(count, 5), bit_rate, count, -int(stream["index"]))

    def probe(self, stream: dict[str, str]) -> Probe:
        turn, packets = _turn(stream), self.packets_of(stream)
        width, height = _integer(stream.get("width"), 0), _integer(stream.get("height"), 0)
        if turn.swaps_sides:
            width, height = height, width
        is_timed = packets.shown and packets.timed == packets.shown
        return Probe(
            stream_index=int(stream["index"]),
            codec=_known(stream, "codec_name"),
            encrypted=_known(stream, "codec_tag_string") in {"encv", "drmi"},
            pixel_format=_known(stream, "pix_fmt"),
            transfer=_known(stream, "color_transfer"),
            primaries=_known(stream, "color_primaries"),
            matrix=_known(stream, "color_space"),
            width=width,
            height=height,
            rotation=turn.degrees,
            num_packets=packets.shown,
            num_packets_in_file=packets.shown + packets.discarded,
            num_frames_from_header=_integer(stream.get("nb_frames"), -1),
            fps_from_header=_ratio(stream.get("avg_frame_rate", "")),
            duration_seconds=round(packets.seconds, 6) if is_timed else 0.0,
            reorder_depth_from_header=_integer(stream.get("has_b_frames"), -1),
            timeline=packets.timeline,
        )


def _turn(fields: dict[str, str]) -> Turn:
    """Read the matrix of a stream or frame, which ffprobe writes as the lines of a hexadecimal dump."""
    matrix = next((value for key, value in fields.items() if key.endswith(":displaymatrix")), "")
    rows = _MATRIX_ROW.findall(matrix)
    return turn_of([int(number) for row in rows for number in row]) if len(rows) == 3 else Turn()


def _known(fields: dict[str, str], name: str) -> str:
    value = fields.get(name, "")
    return "" if value in ("N/A", "unknown") else value


def _number(text: str | bytes | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _integer(text: str | None, default: int) -> int:
    try:
        return int(text or "")
    except ValueError:
        value = _number(text)
    return default if value is None else int(value)


def _ratio(text: str) -> float:
    """Turn "30000/1001" into a number; 0 for "0/0"."""
    try:
        return float(fractions.Fraction(text))
    except (ValueError, ArithmeticError):
        return 0.0


# --- recordings that go on behind the end of the video ----------------------------------------


def find_more(descriptor: int, container: str, end: float, video: Packets, others: list[Packets]) -> str:
    """Describe what there is behind the end of a video; empty if nothing.

    `container` is ffprobe's name of its format, `end` its own claim in seconds (0 unknown), `video` the stream that is
    decoded, and `others` are all other video streams.
    """
    names, size = set(container.split(",")), os.fstat(descriptor).st_size
    is_stream = bool(names & {"mpegts", "mpeg"})  # in these, what comes later lies later
    for other in others:
        takes_turns = is_stream and (video.pauses_for(other) or other.pauses_for(video))
        if other.shown >= _MIN_PACKETS and (takes_turns or video.is_apart_from(other)):
            return f"another video stream, of {other.shown} packets, has its turn before or after this one"
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
        places = [start + at for mark in marks if (at := chunk.find(mark)) >= 0]
        if places:
            return min(places)
    return -1


def _find_movie(descriptor: int, behind: int, size: int) -> int:
    """Return where a second `moov` begins, of which ffmpeg reads one per file; -1 if there is none."""
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
