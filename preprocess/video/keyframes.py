"""Decoding only what is needed of a long video: for each sample, from the key frame before it up to it.

Allowed only where a decoder gives the same frames, bit for bit, as when it decodes everything: from an IDR picture of
H.264 or HEVC that parts the video in two (a closed GOP), in decoding order as in time, with parameter sets that never
change. Anything else is decoded as a whole.
"""

import dataclasses
import re

import numpy as np
import numpy.typing as npt

from vidcache.preprocess.video.ffmpeg import SAFE_INPUT, OpenVideo
from vidcache.preprocess.video.probe import Probe
from vidcache.spec import sample_indices

# What the choice is based on, for one core: H.264 decoding (1.6 to 3.3e-9 measured, taken low, since a plan that
# saves little is not worth its risk of a second decode), two more processes, one more reading.
SECONDS_PER_PIXEL = 1.0e-9
SECONDS_PER_VIDEO = 0.1
SECONDS_PER_PACKET = 10e-6

# Types of NAL units: IDR pictures, then each kind of parameter set (ITU-T H.264 table 7-1, H.265 table 7-1).
_UNITS = {"h264": ("5", "7", "8"), "hevc": ("19|20", "32", "33", "34")}
_REORDER_WINDOW = 32  # H.264 and HEVC reorder 16 pictures at most

NOISE = re.compile(rb"^\[noise @ [^\n]*\n", re.M)  # what ffmpeg's filter `noise` says of every packet

Times = npt.NDArray[np.int64]  # (N,) presentation times in decoding order
Marks = npt.NDArray[np.bool_]  # (N,)


@dataclasses.dataclass(frozen=True)
class SeekPlan:
    """Which packets to decode, and which of their frames to keep.

    `select` counts frames and knows their times: with one frame too many or too few, or at another time, less than
    the clip comes out.
    """

    drop: str  # expression for ffmpeg's bit stream filter `noise`, true for packets to skip
    select: str  # expression for ffmpeg's filter `select`
    num_kept: int  # packets to decode
    num_packets: int  # of the video


def plan_seeks(video: OpenVideo, probe: Probe, num_frames: int) -> SeekPlan | None:
    """Plan to decode from key frames; None if decoding everything is faster, or might give other frames."""
    timeline = probe.timeline
    if probe.codec not in _UNITS or timeline is None or len(timeline.pts) != probe.num_packets_in_file:
        return None
    pts = np.frombuffer(timeline.pts, np.int64)
    if len(pts) <= num_frames:
        return None
    order = np.argsort(pts)
    if (np.diff(pts[order]) == 0).any() or reorder_depth(pts) > probe.reorder_depth_from_header:
        return None
    clean = np.frombuffer(timeline.keys, np.uint8).astype(bool) & is_clean_cut(pts)
    num_pixels = probe.width * probe.height
    if not _is_worth_it(needed_packets(pts, clean, num_frames), num_pixels):
        return None
    idr = _find_idr_packets(video, probe)
    if idr is None:
        return None
    needed = needed_packets(pts, clean & np.isin(pts, np.array(sorted(idr), np.int64)), num_frames)
    if not _is_worth_it(needed, num_pixels):
        return None
    samples = pts[order[sample_indices(len(pts), num_frames)]]
    # Decoders give frames by their time, and nothing else is decoded: this is the number of a sample among them.
    ranks = np.searchsorted(np.sort(pts[needed]), samples)
    select = "+".join(f"eq(n,{n})*eq(pts,{time})" for n, time in zip(ranks.tolist(), samples.tolist(), strict=True))
    edges = np.flatnonzero(np.diff(needed, prepend=False, append=False)).reshape(-1, 2)  # of each run
    drop = f"not({'+'.join(f'between(n,{first},{end - 1})' for first, end in edges.tolist())})"
    return SeekPlan(drop, select, int(needed.sum()), len(pts))


def needed_packets(pts: Times, clean: Marks, num_frames: int) -> Marks:
    """Mark the packets that T samples need, decoding from `clean` ones: all, if the first is no place to start."""
    starts = np.flatnonzero(clean)
    if not len(starts) or starts[0] != 0:
        return np.ones(len(pts), bool)
    samples = np.argsort(pts)[sample_indices(len(pts), num_frames)]
    # +1 where a run of needed packets begins, -1 behind its end.
    steps = np.zeros(len(pts) + 1, np.int64)
    np.add.at(steps, starts[np.searchsorted(starts, samples, side="right") - 1], 1)
    np.add.at(steps, samples + 1, -1)
    needed: Marks = np.cumsum(steps[:-1]) > 0
    return needed


def is_clean_cut(pts: Times) -> Marks:
    """Mark the packets before which everything is shown earlier, and after which everything is shown later."""
    limits = np.iinfo(np.int64)
    latest_before = np.concatenate([[limits.min], np.maximum.accumulate(pts)[:-1]])
    earliest_after = np.concatenate([np.minimum.accumulate(pts[::-1])[::-1][1:], [limits.max]])
    clean: Marks = (latest_before < pts) & (pts < earliest_after)
    return clean


def reorder_depth(pts: Times) -> int:
    """Return how many pictures a decoder must hold back to give them in the order of their times."""
    depth = np.zeros(len(pts), np.int64)
    for distance in range(1, min(_REORDER_WINDOW, len(pts))):
        depth[distance:] += pts[:-distance] > pts[distance:]
    return int(depth.max(initial=0))


def _is_worth_it(needed: Marks, num_pixels: int) -> bool:
    saved = int((~needed).sum()) * num_pixels * SECONDS_PER_PIXEL
    return saved > SECONDS_PER_VIDEO + len(needed) * SECONDS_PER_PACKET


def _find_idr_packets(video: OpenVideo, probe: Probe) -> set[int] | None:
    """Return the times of packets with IDR pictures; None where parameter sets change or only some of them have any."""
    units = _UNITS[probe.codec]
    command = [video.binaries.ffmpeg, "-v", "error", "-nostdin"]
    command += [word for name, value in SAFE_INPUT.items() for word in (f"-{name}", value)]
    command += ["-copyts", "-i", video.url, *["-map", f"0:{probe.stream_index}"] * len(units)]
    for index, types in enumerate(units):
        command += [f"-bsf:v:{index}", f"filter_units=pass_types={types}"]
    listing = _Listing(len(units))
    result = video.ffmpeg([*command, "-c", "copy", "-f", "framecrc", "-"], on_output=listing.feed)
    if result.code != 0 or result.timed_out or result.stderr or not listing.is_clear:
        return None
    pictures, *parameters = listing.times
    is_steady = all(len(contents) <= 1 for contents in listing.contents[1:])
    return pictures if is_steady and all(not times or times == pictures for times in parameters) else None


class _Listing:
    """Parses ffmpeg's `framecrc`: `stream, dts, pts, duration, size, checksum[, side data]`."""

    def __init__(self, num_streams: int) -> None:
        self.times: list[set[int]] = [set() for _ in range(num_streams)]  # presentation times
        self.contents: list[set[tuple[bytes, bytes]]] = [set() for _ in range(num_streams)]  # size, checksum; not of 0
        self.is_clear = True  # until parameters outside the stream change, or a line makes no sense
        self._rest = b""

    def feed(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            if line.startswith(b"#"):
                continue
            fields = [field.strip() for field in line.split(b",")]
            try:
                stream = int(fields[0])
                self.times[stream].add(int(fields[2]))
                if stream:
                    self.contents[stream].add((fields[4], fields[5]))
            except (ValueError, IndexError):
                self.is_clear = False
            self.is_clear &= b"Extradata" not in line and b"Param Change" not in line
