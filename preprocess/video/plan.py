"""Decoding only what the samples of a video need: from a key frame before each, without what nothing refers to.

Allowed only where a decoder gives the same frames of an undamaged video, bit for bit, as when it decodes everything:

* from an IDR picture of H.264 or HEVC that parts the video in two (a closed GOP), in decoding order as in time;
* without pictures that no other one refers to: `nal_ref_idc` 0 (H.264 7.4.1), or a sub-layer non-reference picture of
  a video with one temporal sub-layer (H.265 7.4.2.2), that is shown before one that was decoded earlier. Others of them
  have no place in the encoders that number their frames as the standards say.

Parameter sets never change in such a video. Anything else is decoded as a whole.
"""

import array
import dataclasses
import re

import numpy as np
import numpy.typing as npt

from vidcache.preprocess.video.ffmpeg import SAFE_OPTIONS, OpenVideo
from vidcache.preprocess.video.probe import Probe
from vidcache.spec import sample_indices

# What the choice is based on, for one core: H.264 decoding (1.6 to 3.3e-9 measured, taken low, since a plan that
# saves little is not worth its risk of a second decode), one more process, its reading of each packet.
SECONDS_PER_PIXEL = 1.0e-9
SECONDS_PER_VIDEO = 0.02
SECONDS_PER_PACKET = 60e-6

NOISE = re.compile(rb"^\[noise @ [^\n]*\n", re.M)  # what ffmpeg's filter `noise` says of every packet

Times = npt.NDArray[np.int64]  # (N,) presentation times in decoding order
Marks = npt.NDArray[np.bool_]  # (N,)


@dataclasses.dataclass(frozen=True)
class _Units:
    """Types of NAL units (ITU-T H.264 table 7-1, H.265 table 7-1), as `filter_units` takes them."""

    pictures: str  # all that have slices
    idr: str
    parameters: str  # parameter sets of all kinds


_UNITS = {
    "h264": _Units("1-5", "5", "7|8"),
    "hevc": _Units("0-31", "19|20", "32-34"),
}
_REORDER_WINDOW = 32  # H.264 and HEVC reorder 16 pictures at most
MAX_PACKETS = 1 << 20  # 9 hours at 30 a second; `noise` writes 90 bytes about each
MAX_EXPRESSION_CHARS = 100_000  # Linux takes 128 KiB as one argument of a program
_MASK_BITS = 48  # packets of a leaf of `noise`'s expression: ffmpeg counts in doubles, which have 53


@dataclasses.dataclass(frozen=True)
class DecodePlan:
    """Which packets to decode, and which of their frames to keep.

    `select` counts frames and knows their times: with one frame too many or too few, or at another time, less than
    the clip comes out.
    """

    drop: str  # expression for ffmpeg's bit stream filter `noise`, true for packets to skip
    select: str  # expression for ffmpeg's filter `select`
    num_kept: int  # packets to decode
    num_packets: int  # of the video


def plan_decode(video: OpenVideo, probe: Probe, num_frames: int) -> DecodePlan | None:
    """Plan to decode what T samples need; None if decoding everything is faster, or might give other frames."""
    timeline = probe.timeline
    if probe.codec not in _UNITS or timeline is None or len(timeline.pts) != probe.num_packets_in_file:
        return None
    pts = np.frombuffer(timeline.pts, np.int64)
    if not num_frames < len(pts) <= MAX_PACKETS:
        return None
    order = np.argsort(pts)
    if (np.diff(pts[order]) == 0).any() or reorder_depth(pts) > probe.reorder_depth_from_header:
        return None
    samples = order[sample_indices(len(pts), num_frames)]
    clean = np.frombuffer(timeline.keys, np.uint8).astype(bool) & is_clean_cut(pts)
    is_early = pts < np.maximum.accumulate(pts)
    num_pixels = probe.width * probe.height
    if not _is_worth_it(needed_packets(samples, clean, is_early), num_pixels):
        return None
    pictures = _list_pictures(video, probe.codec, probe.stream_index, pts)
    if pictures is None:
        return None
    starts, unreferenced = clean & pictures.is_start, is_early & pictures.is_unreferenced
    needed = needed_packets(samples, starts, unreferenced)
    if not _is_worth_it(needed, num_pixels):
        return None
    drop = drop_expression(needed)
    if len(drop) > MAX_EXPRESSION_CHARS:
        needed = needed_packets(samples, starts, np.zeros_like(starts))
        drop = drop_expression(needed)
    if len(drop) > MAX_EXPRESSION_CHARS or not _is_worth_it(needed, num_pixels):
        return None
    # Decoders give frames by their time, and nothing else is decoded: this is the number of a sample among them.
    times = pts[samples]
    ranks = np.searchsorted(np.sort(pts[needed]), times)
    select = _sum([f"eq(n,{n})*eq(pts,{time})" for n, time in zip(ranks.tolist(), times.tolist(), strict=True)])
    return DecodePlan(drop, select, int(needed.sum()), len(pts))


def needed_packets(samples: npt.NDArray[np.int64], starts: Marks, unreferenced: Marks) -> Marks:
    """Mark the packets that samples need: from a start up to each, without those that only they would show.

    Args:
        samples: (T,) packets, ascending in time.
        starts: Where a decoder may start. If the first packet is no such place, all are needed.
        unreferenced: Packets without which all others decode to the same.
    """
    places = np.flatnonzero(starts)
    if not len(places) or places[0] != 0:
        return np.ones(len(starts), bool)
    # +1 where a run of needed packets begins, -1 behind its end.
    steps = np.zeros(len(starts) + 1, np.int64)
    np.add.at(steps, places[np.searchsorted(places, samples, side="right") - 1], 1)
    np.add.at(steps, samples + 1, -1)
    needed: Marks = (np.cumsum(steps[:-1]) > 0) & ~unreferenced
    needed[samples] = True
    return needed


def drop_expression(needed: Marks) -> str:
    """Return an expression of ffmpeg that is not 0 where packet n is not needed: a tree of tests, with bits as leaves.

    ffmpeg's parser takes neither a hundred terms in a row nor a hundred levels.
    """

    def build(first: int, end: int) -> str:
        marks = needed[first:end]
        if marks.all() or not marks.any():
            return "0" if marks.all() else "1"
        if len(marks) <= _MASK_BITS:
            bits = sum(1 << at for at in np.flatnonzero(~marks).tolist())
            return f"mod(floor({bits}/pow(2,n-{first})),2)"
        middle = (first + end) // 2
        return f"if(lt(n,{middle}),{build(first, middle)},{build(middle, end)})"

    return build(0, len(needed))


def _sum(terms: list[str]) -> str:
    """Add up terms as ffmpeg's parser takes them: no hundred in a row."""
    if len(terms) <= 8:
        return "+".join(terms)
    middle = len(terms) // 2
    return f"({_sum(terms[:middle])})+({_sum(terms[middle:])})"


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


# --- what the packets hold -------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Pictures:
    is_start: Marks  # has an IDR picture, and the parameter sets that it needs are there
    is_unreferenced: Marks  # has nothing but pictures that no other one refers to


def _list_pictures(video: OpenVideo, codec: str, stream_index: int, pts: Times) -> _Pictures | None:
    """Let ffmpeg list what is in the packets; None where parameter sets change or a packet has no picture."""
    units = _UNITS[codec]
    kinds = (units.pictures, f"{units.pictures}:discard=nonref", units.idr, units.parameters)
    command = [video.binaries.ffmpeg, "-v", "error", "-nostdin", *SAFE_OPTIONS]
    command += ["-copyts", "-i", video.url, *["-map", f"0:{stream_index}"] * len(kinds)]
    for index, kind in enumerate(kinds):
        command += [f"-bsf:v:{index}", f"filter_units=pass_types={kind}"]
    listing = _Listing(len(kinds))
    result = video.ffmpeg([*command, "-c", "copy", "-f", "framecrc", "-"], on_output=listing.feed)
    if result.code != 0 or result.timed_out or result.stderr or not listing.is_clear:
        return None
    pictures, referenced, idr, parameters = (np.frombuffer(times, np.int64) for times in listing.times)
    if not np.array_equal(np.sort(pictures), np.sort(pts)):
        return None
    if len(parameters) and not np.isin(idr, parameters).all():
        idr = idr[idr == pts[0]]
    if codec == "hevc" and len(referenced) < len(pictures) and not _has_one_sub_layer(video, stream_index):
        referenced = pictures
    return _Pictures(np.isin(pts, idr), ~np.isin(pts, np.concatenate([referenced, parameters])))


def _has_one_sub_layer(video: OpenVideo, stream_index: int) -> bool:
    """Whether the sequence parameter set says so: pictures of higher sub-layers refer to what lower ones do not."""
    command = [video.binaries.ffmpeg, "-v", "info", "-hide_banner", "-nostdin", *SAFE_OPTIONS]
    command += ["-i", video.url, "-map", f"0:{stream_index}", "-c", "copy", "-frames:v", "1"]
    command += ["-bsf:v", "filter_units=pass_types=33,trace_headers", "-f", "null", "-"]
    result = video.ffmpeg(command, noise=_NO_SUB_LAYERS)
    return result.code == 0 and set(_SUB_LAYERS.findall(result.stderr)) == {"0"}


_SUB_LAYERS = re.compile(r"^\[trace_headers @ \w+\] \d+ +sps_max_sub_layers_minus1 +\d+ = (\d+)$", re.M)
_NO_SUB_LAYERS = re.compile(rb"^(?![^\n]*sps_max_sub_layers_minus1)[^\n]*\n", re.M)
_LINE = re.compile(rb"^(\d+), *-?\d+, *(-?\d+), *\d+, *(\d+), *(0x\w+)[^\n]*$", re.M)
_COMMENT = re.compile(rb"^#", re.M)


class _Listing:
    """Parses ffmpeg's `framecrc`: `stream, dts, pts, duration, size, checksum[, side data]`."""

    def __init__(self, num_streams: int) -> None:
        self.times = [array.array("q") for _ in range(num_streams)]  # presentation times
        self.is_clear = True  # until parameter sets change, in the last stream or beside it, or a line makes no sense
        self._parameters: set[tuple[bytes, bytes]] = set()  # size and checksum
        self._rest = b""

    def feed(self, data: bytes) -> None:
        text, newline, self._rest = (self._rest + data).rpartition(b"\n")
        lines = _LINE.findall(text)
        is_parsed = len(lines) + len(_COMMENT.findall(text)) == text.count(b"\n") + len(newline)
        self.is_clear &= is_parsed and b"Extradata" not in text and b"Param Change" not in text
        for stream, pts, size, checksum in lines:
            self.times[int(stream)].append(int(pts))
            if int(stream) == len(self.times) - 1 and self.is_clear:
                self._parameters.add((size, checksum))
        self.is_clear &= len(self._parameters) <= 1
