"""One ffprobe per video: its best video stream, and how many packets that really holds.

Header facts are marked as such. Nothing is decoded here.
"""

import array
import contextlib
import dataclasses
import math
import re

from vidcache.preprocess.ending import Extent, find_more
from vidcache.preprocess.failure import Failure, Reason
from vidcache.preprocess.ffmpeg import Children, Exit, Tools
from vidcache.preprocess.picture import Turn, turn_of
from vidcache.text import one_line

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


def probe_video(tools: Tools, children: Children, descriptor: int, *, deadline: float, max_pixels: int) -> Probe:
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


def probe_turn(tools: Tools, children: Children, descriptor: int, probe: Probe, *, deadline: float) -> Turn:
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


def _why(ended: Exit) -> str:
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
