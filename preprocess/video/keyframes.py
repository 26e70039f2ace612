"""Decoding only what is needed of a long video: for each sample, from the key frame before it up to it.

Allowed only where a decoder gives the same frames, bit for bit, as when it decodes everything: from
an IDR picture of H.264 or HEVC that parts the video in two, in decoding order as in time, with
parameter sets that never change. Whatever else there is, is decoded as a whole.
"""

import dataclasses
import re
from typing import Any

import numpy as np
import numpy.typing as npt

from vidcache.preprocess.video.ffmpeg import FFmpegBinaries, SubprocessGroup
from vidcache.preprocess.video.probe import SAFE_INPUT, Probe
from vidcache.sampling import sample_indices

# What the choice is based on, for one core: H.264 decoding (1.6 to 3.3e-9 measured, taken low, since a plan that
# saves little is not worth its risk of a second decode), two more processes, one more reading.
SECONDS_PER_PIXEL = 1.0e-9
SECONDS_PER_VIDEO = 0.1
SECONDS_PER_PACKET = 10e-6

# Types of NAL units: IDR pictures, then each kind of parameter set (ITU-T H.264 table 7-1, H.265 table 7-1).
_UNITS = {"h264": ("5", "7", "8"), "hevc": ("19|20", "32", "33", "34")}
_REORDER_WINDOW = 32  # H.264 and HEVC reorder 16 pictures at most

# What ffmpeg's `noise` says of every packet.
CHATTER = re.compile(rb"^\[noise @ [^\n]*\n", re.M)


@dataclasses.dataclass(frozen=True)
class Plan:
    """Which packets to decode, and which of their frames to keep.

    Attributes:
        drop: Expression for ffmpeg's bit stream filter `noise`, true for packets to skip.
        select: Expression for ffmpeg's filter `select`. It counts frames and knows their times: one
            frame too many or too few, or one at another time, and less than the clip comes out.
        num_kept: Packets to decode.
        num_packets: Packets of the video.
    """

    drop: str
    select: str
    num_kept: int
    num_packets: int


def plan_keyed(
    tools: FFmpegBinaries, children: SubprocessGroup, descriptor: int, probe: Probe, num_frames: int, *, deadline: float
) -> Plan | None:
    """Find out whether a video can and should be decoded from its key frames.

    Args:
        tools: Which ffmpeg.
        children: Runs it.
        descriptor: The file, open for reading.
        probe: What ffprobe said.
        num_frames: Frames of the clip.
        deadline: By `time.monotonic()`.

    Returns:
        None when decoding everything is faster, or when there is any doubt that the frames are the same.
    """
    timeline = probe.timeline
    if probe.codec not in _UNITS or timeline is None or len(timeline.pts) != probe.num_packets_in_file:
        return None
    pts = np.frombuffer(timeline.pts, np.int64)
    if len(pts) <= num_frames:
        return None
    keys = np.frombuffer(timeline.keys, np.uint8).astype(bool)
    order = np.argsort(pts)
    if (np.diff(pts[order]) == 0).any() or reorder_depth(pts) > probe.reorder_depth_from_header:
        return None
    num_pixels = probe.width * probe.height
    clean = keys & parts_in_two(pts)
    if not _is_worth_it(needed_packets(pts, clean, num_frames), num_pixels):
        return None
    idr = _find_idr_packets(tools, children, descriptor, probe, deadline)
    if idr is None:
        return None
    needed = needed_packets(pts, clean & np.isin(pts, np.array(sorted(idr), np.int64)), num_frames)
    if not _is_worth_it(needed, num_pixels):
        return None
    samples = order[sample_indices(len(pts), num_frames)]
    # Decoders give frames by their time, and nothing else is decoded: so many come before a sample.
    rank = np.searchsorted(np.sort(pts[needed]), pts[samples])
    select = "+".join(f"eq(n,{n})*eq(pts,{time})" for n, time in zip(rank.tolist(), pts[samples].tolist(), strict=True))
    drop = f"not({'+'.join(f'between(n,{first},{last})' for first, last in _ranges(needed))})"
    return Plan(drop, select, int(needed.sum()), len(pts))


def needed_packets(pts: npt.NDArray[np.int64], clean: npt.NDArray[np.bool_], num_frames: int) -> npt.NDArray[np.bool_]:
    """Mark the packets without which the samples cannot be decoded.

    Args:
        pts: (N,) presentation times in decoding order, all different.
        clean: (N,) where a decoder may start.
        num_frames: Frames of the clip (T).

    Returns:
        (N,) bool. All of them if the first is no place to start.
    """
    starts = np.flatnonzero(clean)
    if not len(starts) or starts[0] != 0:
        return np.ones(len(pts), bool)
    samples = np.argsort(pts)[sample_indices(len(pts), num_frames)]
    # +1 where a run of needed packets begins, -1 behind its end.
    steps = np.zeros(len(pts) + 1, np.int64)
    np.add.at(steps, starts[np.searchsorted(starts, samples, side="right") - 1], 1)
    np.add.at(steps, samples + 1, -1)
    needed: npt.NDArray[np.bool_] = np.cumsum(steps[:-1]) > 0
    return needed


def parts_in_two(pts: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Mark the packets before which everything is shown earlier, and after which everything is shown later.

    Args:
        pts: (N,) presentation times in decoding order.
    """
    latest_before = np.concatenate([[np.iinfo(np.int64).min], np.maximum.accumulate(pts)[:-1]])
    earliest_after = np.concatenate([np.minimum.accumulate(pts[::-1])[::-1][1:], [np.iinfo(np.int64).max]])
    parts: npt.NDArray[np.bool_] = (latest_before < pts) & (pts < earliest_after)
    return parts


def reorder_depth(pts: npt.NDArray[np.int64]) -> int:
    """Return how many pictures a decoder must hold back to give them in the order of their times.

    Args:
        pts: (N,) presentation times in decoding order.
    """
    depth = np.zeros(len(pts), np.int64)
    for distance in range(1, min(_REORDER_WINDOW, len(pts))):
        depth[distance:] += pts[:-distance] > pts[distance:]
    return int(depth.max(initial=0))


def _is_worth_it(needed: npt.NDArray[np.bool_], num_pixels: int) -> bool:
    saved = int((~needed).sum()) * num_pixels * SECONDS_PER_PIXEL
    return saved > SECONDS_PER_VIDEO + len(needed) * SECONDS_PER_PACKET


def _ranges(marked: npt.NDArray[np.bool_]) -> list[tuple[int, int]]:
    """First and last index of each run."""
    edges = np.flatnonzero(np.diff(marked, prepend=False, append=False))
    return [(int(first), int(behind) - 1) for first, behind in edges.reshape(-1, 2)]


def _find_idr_packets(
    tools: FFmpegBinaries, children: SubprocessGroup, descriptor: int, probe: Probe, deadline: float
) -> frozenset[int] | None:
    """Times of the packets that hold IDR pictures: containers also call others key frames.

    None when parameter sets change, or some such packets have them and some have not: a picture could
    depend on one that was skipped.
    """
    units = _UNITS[probe.codec]
    command = [tools.ffmpeg, "-v", "error", "-nostdin"]
    for name, value in SAFE_INPUT.items():
        command += [f"-{name}", value]
    command += ["-copyts", "-i", f"file:/dev/fd/{descriptor}"]
    command += ["-map", f"0:{probe.stream_index}"] * len(units)
    for index, types in enumerate(units):
        command += [f"-bsf:v:{index}", f"filter_units=pass_types={types}"]
    listing = _Listing(len(units))
    ended = children.run(
        [*command, "-c", "copy", "-f", "framecrc", "-"],
        pass_fds=(descriptor,),
        deadline=deadline,
        on_output=listing.feed,
    )
    pictures, *parameters = listing.times
    steady = all(len(contents) <= 1 for contents in listing.contents[1:])
    complete = all(not times or times == pictures for times in parameters)
    trusted = ended.code == 0 and not ended.timed_out and not ended.stderr and not listing.doubtful
    return frozenset(pictures) if trusted and steady and complete else None


class _Listing:
    """Parses ffmpeg's `framecrc`: `stream, dts, pts, duration, size, checksum[, side data]`.

    Attributes:
        times: Of each stream, presentation times.
        contents: Of each stream, every different (size, checksum); of the first stream nothing.
        doubtful: Parameters outside the stream change, or a line makes no sense.
    """

    def __init__(self, num_streams: int) -> None:
        self.times: list[set[int]] = [set() for _ in range(num_streams)]
        self.contents: list[set[tuple[bytes, bytes]]] = [set() for _ in range(num_streams)]
        self.doubtful = False
        self._rest = b""

    def feed(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            if line.startswith(b"#"):
                continue
            fields: list[Any] = [field.strip() for field in line.split(b",")]
            try:
                stream, pts = int(fields[0]), int(fields[2])
                self.times[stream].add(pts)
                if stream:
                    self.contents[stream].add((fields[4], fields[5]))
            except (ValueError, IndexError):
                self.doubtful = True
            self.doubtful |= b"Extradata" in line or b"Param Change" in line
