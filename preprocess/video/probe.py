"""One ffprobe per video: its best video stream, and how many packets that really holds.

Header facts are marked as such. Nothing is decoded here.
"""

import array
import contextlib
import dataclasses
import math
import os
import re
from collections.abc import Sequence

from vidcache.preprocess.video.ffmpeg import FFmpegBinaries, ProcessResult, SubprocessGroup
from vidcache.preprocess.video.source_file import Failure, Reason
from vidcache.text import one_line

Filters = tuple[tuple[str, dict[str, str | int]], ...]  # of ffmpeg: name, options

HDR_TRANSFERS = ("smpte2084", "arib-std-b67")  # PQ and HLG, of which 8 bits as they are look washed out

# What ffmpeg's scaler converts; it refuses a video with another matrix as a whole.
_CONVERTIBLE = {"unknown", "gbr", "bt709", "fcc", "bt470bg", "smpte170m", "smpte240m", "bt2020nc"}


@dataclasses.dataclass(frozen=True)
class Turn:
    """How a picture is turned and mirrored to be shown.

    Attributes:
        degrees: Clockwise: 0, 90, 180 or 270; 0 where it is only mirrored, or turned by another angle.
        filters: What turns it.
    """

    degrees: int = 0
    filters: Filters = ()

    @property
    def swaps_sides(self) -> bool:
        """Whether width becomes height."""
        return self.degrees % 180 == 90


def turn_of(matrix: Sequence[int]) -> Turn:
    """Return what ffmpeg's autorotation does for a display matrix.

    Args:
        matrix: Its first two rows or more, row by row, in the fixed-point numbers of the container.
    """
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
class Remedy:
    """What ffmpeg must be told of one video; nothing, of nearly all.

    Attributes:
        turn: How to turn its pictures once they are scaled; None where ffmpeg does it by itself, before.
        matrix: Colour matrix to use instead of what the video names; empty for that.
        tonemap: Map its tones and colours to those of SDR.
    """

    turn: Turn | None = None
    matrix: str = ""
    tonemap: bool = False


def convertible_matrix(matrix: str, primaries: str) -> str:
    """Return the colour matrix that is nearest to one of a video, and that ffmpeg can convert.

    Args:
        matrix: Name of it; empty unknown.
        primaries: Name of the colour primaries; empty unknown.
    """
    if (matrix or "unknown") in _CONVERTIBLE:
        return matrix or "unknown"
    return "bt2020nc" if "bt2020" in matrix + primaries else "bt709"


def scaling_filters(width: int, height: int, flags: str, remedy: Remedy, size: tuple[int, int]) -> Filters:
    """Return the filters that make pictures of the wanted size, shown as they are to be.

    Args:
        width: Wanted.
        height: Wanted.
        flags: Of the scaler.
        remedy: What ffmpeg must be told.
        size: Width and height of the pictures, as far as is known.
    """
    sdr = {"out_transfer": "bt709", "out_primaries": "bt709"} if remedy.tonemap else {}

    def scale(to_width: int, to_height: int) -> Filters:
        return (("scale", {"w": to_width, "h": to_height, "flags": flags, **sdr}),)

    filters: Filters = ()
    if remedy.matrix:  # some transfer functions are refused too, and they change no pixel unless tones are mapped
        transfer = {} if remedy.tonemap else {"color_trc": "bt709"}
        filters = (("setparams", {"colorspace": remedy.matrix, **transfer}),)
    turn = remedy.turn or Turn()
    if turn.filters and turn.filters[0][0] == "rotate":  # a squeezed picture turns by another angle
        return (*filters, *scale(*size), *turn.filters, *scale(width, height))
    if turn.swaps_sides:
        width, height = height, width
    return (*filters, *scale(width, height), *turn.filters)


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


# Containers that hold their own data. Never those that name other files or hosts: hls, dash,
# concat, sdp, image2. ffmpeg matches one word of a demuxer's list ("mov,mp4,...") against these.
FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,mxf,flv,asf,ogg,gif,apng,nut,ivf,rm,dv,"
    "wtv,gxf,h261,h263,h264,hevc,m4v,obu,av1,vc1,swf,yuv4mpegpipe"
)
# Before the input: no other file, no other protocol, no guessing beyond the first 10 MB.
SAFE_INPUT = {"protocol_whitelist": "file", "format_whitelist": FORMATS}


_MATRIX_ROW = re.compile(r"0000000\d: +(-?\d+) +(-?\d+) +(-?\d+)")
_MAX_TIMELINE = 1 << 23  # packets: 77 hours at 30 a second


@dataclasses.dataclass(frozen=True)
class Timeline:
    """Every packet of a stream, in decoding order; 9 bytes each.

    Attributes:
        pts: Presentation times, int64, in units of the stream.
        keys: 1 where the container says that a decoder may start.
    """

    pts: "array.array[int]"
    keys: bytearray


@dataclasses.dataclass(frozen=True)
class Probe:
    """What ffprobe says of the best video stream.

    Attributes:
        stream_index: Of the stream in its file.
        codec: Name of the codec.
        encrypted: The container says that the stream is encrypted.
        pixel_format: Name of the pixel format; empty if unknown.
        transfer: Name of the transfer function; empty if unknown.
        primaries: Name of the colour primaries; empty if unknown.
        matrix: Name of the colour matrix; empty if unknown.
        width: Pixels, as displayed.
        height: Pixels, as displayed.
        rotation: Degrees clockwise that ffmpeg will turn the pixels: 0, 90, 180 or 270; 0 where it mirrors them
            only, or turns them by another angle.
        num_packets: Packets that are to be shown: edit lists can discard some.
        num_packets_in_file: Packets, discarded ones included.
        num_frames_from_header: What the container claims; -1 unknown.
        fps_from_header: Average rate that the container claims; 0 unknown.
        duration_seconds: From the start of the first to the end of the last shown packet; 0 when a
            packet has no timestamp.
        more: What else the file holds, where this stream is not all of the recording; empty if it is.
        reorder_depth_from_header: Pictures that a decoder holds back to give them in order; -1 unknown.
        timeline: All packets; None when one has no time, is discarded or broken, or they are too many.
    """

    stream_index: int
    codec: str
    encrypted: bool
    pixel_format: str
    width: int
    height: int
    rotation: int
    num_packets: int
    num_packets_in_file: int
    num_frames_from_header: int
    fps_from_header: float
    duration_seconds: float
    transfer: str = ""
    primaries: str = ""
    matrix: str = ""
    more: str = ""
    reorder_depth_from_header: int = -1
    timeline: Timeline | None = None


def probe_video(
    tools: FFmpegBinaries, children: SubprocessGroup, descriptor: int, *, deadline: float, max_pixels: int
) -> Probe:
    """Ask ffprobe about an open video file.

    Args:
        tools: Which ffprobe.
        children: Runs it.
        descriptor: The file, open for reading.
        deadline: By `time.monotonic()`.
        max_pixels: Largest width * height to accept.

    Raises:
        Failure: It is no video that can be read.
    """
    command = [tools.ffprobe, "-v", "error"]
    for name, value in SAFE_INPUT.items():
        command += [f"-{name}", value]
    shown = "default,attached_pic,hearing_impaired,visual_impaired"
    stream = (
        "index,codec_name,codec_tag_string,width,height,nb_frames,pix_fmt,color_transfer,color_primaries,"
        "color_space,avg_frame_rate,has_b_frames,bit_rate"
    )
    command += [
        *("-select_streams", "v", "-of", "compact", "-show_entries"),
        f"format=format_name,start_time,duration:stream={stream}:stream_disposition={shown}"
        ":stream_side_data=displaymatrix:packet=stream_index,flags,pts,pts_time,duration_time,pos,size",
        f"file:/dev/fd/{descriptor}",
    ]
    reader = _Reader()
    ended = children.run(command, pass_fds=(descriptor,), deadline=deadline, on_output=reader.feed)
    if ended.timed_out:
        raise Failure(Reason.TIMEOUT, "ffprobe was still reading")
    ended.check(tools.ffprobe, tools.version)
    if ended.code != 0:
        raise Failure(Reason.UNREADABLE, _why(ended))
    streams = [stream for stream in reader.streams if stream.get("disposition:attached_pic") != "1"]
    if not streams:
        found = "only cover art" if reader.streams else "no video stream in the file"
        raise Failure(Reason.NO_VIDEO_STREAM, found)
    best = max(streams, key=reader.rank)
    others = [reader.packets_of(stream).extent() for stream in streams if stream is not best]
    start, seconds = (_number(reader.container.get(name)) or 0.0 for name in ("start_time", "duration"))
    packets, container = reader.packets_of(best), _known(reader.container.get("format_name"))
    # Where an edit list leaves packets out, the file has longer streams than it shows.
    end = 0.0 if packets.discarded else start + seconds
    try:
        more = find_more(descriptor, container, end, packets.extent(), others)
    except OSError as error:
        raise Failure(Reason.NOT_ACCESSIBLE, error.strerror or "") from None
    probe = dataclasses.replace(reader.probe(best), more=more)
    if probe.width * probe.height > max_pixels:
        raise Failure(Reason.TOO_LARGE, f"{probe.width}x{probe.height} pixels, expected at most {max_pixels:,}")
    return probe


def probe_turn(
    tools: FFmpegBinaries, children: SubprocessGroup, descriptor: int, probe: Probe, *, deadline: float
) -> Turn:
    """Ask how the first picture is to be turned: a decoder also knows what only the stream itself says.

    Args:
        tools: Which ffprobe.
        children: Runs it.
        descriptor: The file, open for reading.
        probe: What is known of it.
        deadline: By `time.monotonic()`.

    Raises:
        Failure: It did not come to its own end.
    """
    command = [tools.ffprobe, "-v", "quiet", "-threads", "1"]
    for name, value in SAFE_INPUT.items():
        command += [f"-{name}", value]
    command += [
        *("-select_streams", str(probe.stream_index), "-read_intervals", "%+#8", "-of", "compact"),
        *("-show_entries", "frame=pts:frame_side_data=displaymatrix", f"file:/dev/fd/{descriptor}"),
    ]
    output = bytearray()
    ended = children.run(command, pass_fds=(descriptor,), deadline=deadline, on_output=output.extend)
    if ended.timed_out:
        raise Failure(Reason.TIMEOUT, "ffprobe was still reading")
    ended.check(tools.ffprobe, tools.version)
    return _turn(_fields(bytes(output).partition(b"\n")[0])[1])


def _why(ended: ProcessResult) -> str:
    """The first thing that ffprobe said, without the address of its context or our name of the file."""
    lines = [re.sub(r"^(\[[^\]]*\] |file:/dev/fd/\d+: )+", "", line) for line in ended.stderr.splitlines()]
    return one_line(lines[0], 160) if lines else f"ffprobe ended with {ended.code}"


@dataclasses.dataclass
class _Packets:
    """Running count of one stream's packets, and their times while nothing is odd about any."""

    timeline: Timeline | None = dataclasses.field(default_factory=lambda: Timeline(array.array("q"), bytearray()))
    shown: int = 0
    discarded: int = 0
    timed: int = 0
    start: float = math.inf
    end: float = -math.inf
    last_start: float = math.inf
    longest_step: float = 0.0
    first_byte: int = -1
    end_byte: int = -1
    skip: tuple[int, int] = (0, 0)

    def add(self, fields: dict[str, str]) -> None:
        flags = fields.get("flags", "")
        self._keep_time(fields.get("pts", ""), flags)
        self._keep_place(fields.get("pos", ""), fields.get("size", ""))
        if "D" in flags:
            self.discarded += 1
            return
        self.shown += 1
        start = _number(fields.get("pts_time"))
        if start is not None:
            self.timed += 1
            self.longest_step = max(self.longest_step, start - self.last_start)
            self.last_start = start
            self.start = min(self.start, start)
            self.end = max(self.end, start + (_number(fields.get("duration_time")) or 0.0))

    def _keep_place(self, pos: str, size: str) -> None:
        if not (pos.isdecimal() and size.isdecimal()):
            return
        first, end = int(pos), int(pos) + int(size)
        if self.first_byte < 0:
            self.first_byte = first
        elif first - self.end_byte > self.skip[1] - self.skip[0]:
            self.skip = (self.end_byte, first)
        self.end_byte = end

    def _keep_time(self, pts: str, flags: str) -> None:
        if self.timeline is None:
            return
        try:
            self.timeline.pts.append(int(pts))
        except (ValueError, OverflowError):
            self.timeline = None
            return
        self.timeline.keys.append("K" in flags)
        if "D" in flags or "C" in flags or len(self.timeline.keys) > _MAX_TIMELINE:
            self.timeline = None

    def extent(self) -> Extent:
        places = (self.first_byte, self.end_byte, self.skip)
        return Extent(self.shown, self.start, self.end, self.longest_step, *places)

    @property
    def duration_seconds(self) -> float:
        known = self.shown and self.timed == self.shown and self.end > self.start
        return round(self.end - self.start, 6) if known else 0.0


def _fields(line: bytes) -> tuple[str, dict[str, str]]:
    """Parse `section|key=value|...`."""
    section, *pairs = line.decode("utf-8", "replace").split("|")
    return section, {key: value for key, _, value in (pair.partition("=") for pair in pairs)}


class _Reader:
    """Parses ffprobe's compact output (`section|key=value|...` lines) as it comes."""

    def __init__(self) -> None:
        self.streams: list[dict[str, str]] = []
        self.container: dict[str, str] = {}
        self.packets: dict[str, _Packets] = {}
        self._rest = b""

    def feed(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            section, fields = _fields(line)
            if section == "packet":
                self.packets.setdefault(fields.get("stream_index", ""), _Packets()).add(fields)
            elif section == "stream":
                self.streams.append(fields)
            elif section == "format":
                self.container = fields

    def packets_of(self, stream: dict[str, str]) -> _Packets:
        return self.packets.get(stream["index"], _Packets())

    def rank(self, stream: dict[str, str]) -> tuple[int, ...]:
        """Order streams as libavformat's `av_find_best_stream` does, but a single picture comes last."""
        impaired = "1" in (stream.get("disposition:hearing_impaired"), stream.get("disposition:visual_impaired"))
        disposition = (not impaired) + (stream.get("disposition:default") == "1")
        count, bit_rate = self.packets_of(stream).shown, _integer(stream.get("bit_rate"), 0)
        return (count > 1, disposition, min(count, 5), bit_rate, count, -int(stream["index"]))

    def probe(self, stream: dict[str, str]) -> Probe:
        turn = _turn(stream)
        width, height = _integer(stream.get("width"), 0), _integer(stream.get("height"), 0)
        if turn.swaps_sides:
            width, height = height, width
        packets = self.packets_of(stream)
        return Probe(
            stream_index=int(stream["index"]),
            codec=_known(stream.get("codec_name")),
            encrypted=_known(stream.get("codec_tag_string")) in {"encv", "drmi"},
            pixel_format=_known(stream.get("pix_fmt")),
            transfer=_known(stream.get("color_transfer")),
            primaries=_known(stream.get("color_primaries")),
            matrix=_known(stream.get("color_space")),
            width=width,
            height=height,
            rotation=turn.degrees,
            num_packets=packets.shown,
            num_packets_in_file=packets.shown + packets.discarded,
            num_frames_from_header=_integer(stream.get("nb_frames"), -1),
            fps_from_header=_ratio(stream.get("avg_frame_rate", "")),
            duration_seconds=packets.duration_seconds,
            reorder_depth_from_header=_integer(stream.get("has_b_frames"), -1),
            timeline=packets.timeline,
        )


def _turn(fields: dict[str, str]) -> Turn:
    """Of a stream or frame, whose matrix ffprobe writes as the lines of a hexadecimal dump."""
    matrix = next((value for key, value in fields.items() if key.endswith(":displaymatrix")), "")
    rows = _MATRIX_ROW.findall(matrix)
    return turn_of([int(number) for row in rows for number in row]) if len(rows) == 3 else Turn()


def _known(text: str | None) -> str:
    return "" if text in (None, "N/A", "unknown") else str(text)


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _integer(text: str | None, default: int) -> int:
    with contextlib.suppress(ValueError):
        return int(text or "")
    value = _number(text)
    return default if value is None else int(value)


def _ratio(text: str) -> float:
    """Turn "30000/1001" into a number; 0 for "0/0"."""
    above, _, below = text.partition("/")
    denominator = _number(below) or 0.0
    return (_number(above) or 0.0) / denominator if denominator else 0.0
