"""One video file to one clip: probe, decode, and check what ffmpeg really did."""

import dataclasses
import mmap
import os
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ffmpeg
import numpy as np
import numpy.typing as npt

from vidcache.preprocess.video.ffmpeg import (
    SAFE_INPUT,
    FFmpegBinaries,
    OpenVideo,
    ProcessResult,
    SubprocessGroup,
    memory_file,
)
from vidcache.preprocess.video.plan import NOISE, plan_decode
from vidcache.preprocess.video.probe import HDR_TRANSFERS, Filters, Probe, Turn, probe_turn, probe_video
from vidcache.preprocess.video.source_file import Failure, Reason, hash_file, is_momentary, open_video
from vidcache.spec import Spec
from vidcache.text import one_line

# The same pixels as rgb24, plane by plane: swscale packs pixels without SIMD, 8 to 10 ms of 55 for a short clip.
PIXEL_FORMAT, _PLANES = "gbrp", (2, 0, 1)

# Colour matrices that ffmpeg's scaler converts; it refuses a video with another one as a whole.
_CONVERTIBLE = {"unknown", "gbr", "bt709", "fcc", "bt470bg", "smpte170m", "smpte240m", "bt2020nc"}

_COUNTS = re.compile(r"Input stream #0:\d+ \(video\):.*?(\d+) frames decoded(?:; (\d+) decode errors)?")
# A line of `-v level+verbose`, "[h264 @ 0x55] [error] text", that is not about writing the output. A video stream
# that begins later is one that nobody decodes.
_PROBLEM = re.compile(
    r"^(?!\[(?:out|vost|rawvideo|enc))(?:\[[^\]]*\] )*"
    r"(?:\[(?:error|fatal)\] (?!Conversion failed)|\[warning\] (?=New video stream))(.+)$",
    re.M,
)
_UNSUPPORTED = re.compile(
    r"no decoder found for|Decoder .* not found|doesn't support hardware accelerated|Function not implemented"
    r"|is not implemented|No decoder for|'out_transfer'"
)
_NO_TONEMAP = "'out_transfer'"  # the option of FFmpeg 7.1 and newer
_REFUSES_COLOURS = re.compile(r"Impossible to convert between the formats|Unsupported input \(")
_CHANGES_SHAPE = re.compile(r"filter context - (w: \d+ h: \d+ fmt: \d+)\b.*incoming frame - (?!\1\b)")
_CONCEALED = "] concealing "  # what H.264's decoder says of a picture that lacks parts
_ENCRYPTED = re.compile(r"encrypt|decrypt", re.I)
_TOO_LARGE = re.compile(r"Picture size \S+ is invalid|exceeds specified max|Cannot allocate memory")


@dataclasses.dataclass(frozen=True)
class DecodeLimits:
    """Bounds for one video.

    Attributes:
        timeout_seconds: Wall-clock time for everything that is done with it.
        max_pixels: Largest width * height of a frame.
        keyed: Decode only what the samples need, where the clip is the same bit for bit.
        follow_links: Decode what a symbolic link leads to.
    """

    timeout_seconds: float = 900.0
    max_pixels: int = 8192 * 8192
    keyed: bool = True
    follow_links: bool = False


@dataclasses.dataclass(frozen=True)
class DecodeStats:
    """What ffmpeg did, by its own account."""

    num_frames: int  # decoded; skipped ones included
    num_errors: int  # packets that the decoder refused
    problems: tuple[str, ...]  # error messages of decoder and demuxer
    num_skipped: int = 0  # frames that were not decoded, since no sample needs them


@dataclasses.dataclass(frozen=True)
class DecodedClip:
    """A video that gave a clip."""

    clip: npt.NDArray[np.uint8]  # (T, H, W, 3), RGB
    num_real: int  # frames of the clip that are not padding
    probe: Probe
    stats: DecodeStats
    source_hash: str  # xxh3-128 of the file, hex
    damage: str  # "reason: detail" when frames were missing or broken, else empty


def decode_video(
    path: str | bytes | Path,
    spec: Spec,
    tools: Sequence[FFmpegBinaries],
    group: SubprocessGroup,
    limits: DecodeLimits,
) -> DecodedClip:
    """Turn a video file into a clip of shape `spec`; `tools[1:]` are tried where the first lacks the codec.

    Raises Failure, with the reason code, if no frame could be decoded.
    """
    deadline = time.monotonic() + limits.timeout_seconds
    descriptor, source_hash = open_video(path, follow_links=limits.follow_links), ""
    try:
        before = os.fstat(descriptor)
        source_hash = hash_file(descriptor, deadline=deadline)
        videos = [OpenVideo(descriptor, binaries, group, deadline) for binaries in tools]
        try:
            decoded = _decode_with_any(videos, spec, limits)
        except Failure as failure:
            if not is_momentary(failure.reason):
                _check_bytes(descriptor, source_hash, deadline)
            raise
        after = os.fstat(descriptor)
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            raise Failure(Reason.CHANGED, "the file changed while it was read; run again")
        if any("Input/output error" in problem for problem in decoded.stats.problems):  # of the disk, or of the file?
            _check_bytes(descriptor, source_hash, deadline, is_short_of_time_ok=False)
        return dataclasses.replace(decoded, source_hash=source_hash)
    except Failure as failure:
        if failure.reason is Reason.TIMEOUT:
            detail = f"{failure.detail} after {limits.timeout_seconds:g} s; raise --timeout"
            failure = Failure(Reason.TIMEOUT, detail, failure.num_frames, failure.num_frames_from_header)
        failure.source_hash = source_hash
        raise failure from None
    finally:
        os.close(descriptor)


def _decode_with_any(videos: Sequence[OpenVideo], spec: Spec, limits: DecodeLimits) -> DecodedClip:
    lacking: list[str] = []
    for video in videos:
        try:
            return VideoDecoder(video, spec, limits).decode()
        except Failure as failure:
            if failure.reason is not Reason.UNSUPPORTED_CODEC:
                raise
            last = failure
            lacking.append(video.binaries.version)
    others = f" ({', '.join(lacking[:-1])} cannot either)" if len(lacking) > 1 else ""
    raise Failure(last.reason, last.detail + others, 0, last.num_frames_from_header)


def _check_bytes(descriptor: int, source_hash: str, deadline: float, *, is_short_of_time_ok: bool = True) -> None:
    """Check that a file still reads as it did; otherwise a verdict is not about its bytes."""
    os.lseek(descriptor, 0, os.SEEK_SET)
    try:
        second_hash = hash_file(descriptor, deadline=deadline)
    except Failure as failure:
        if failure.reason is Reason.TIMEOUT and is_short_of_time_ok:  # the first verdict stays
            return
        raise
    if second_hash != source_hash:
        raise Failure(Reason.CHANGED, "the file reads differently the second time; run again")


@dataclasses.dataclass(frozen=True)
class Remedy:
    """What ffmpeg must be told of one video; nothing for nearly all of them."""

    turn: Turn | None = None  # how to turn its pictures once they are scaled; None: ffmpeg does it by itself, before
    matrix: str = ""  # colour matrix to use instead of the one that the video names
    tonemap: bool = False  # map its tones and colours to those of SDR


class VideoDecoder:
    """Decodes one open video with one ffmpeg, which writes its frames to a file in memory: a pipe would wake us."""

    def __init__(self, video: OpenVideo, spec: Spec, limits: DecodeLimits) -> None:
        self._video, self._spec, self._limits = video, spec, limits
        self._probe = probe_video(video, limits.max_pixels)
        self._claimed = self._probe.num_frames_from_header
        self._first_remedy = Remedy(tonemap=spec.is_tonemapped and self._probe.transfer in HDR_TRANSFERS)

    def decode(self) -> DecodedClip:
        """Return the clip, without the hash of the source; raises Failure if there is no frame, or none can be read."""
        if self._probe.encrypted:  # decoders of AV1 make pictures of anything
            detail = f"{self._probe.codec or 'unknown codec'}; the container says that it is encrypted"
            raise Failure(Reason.ENCRYPTED, detail, 0, self._claimed)
        self._frames = memory_file("clip")
        try:
            stats, damage = self._decode_needed() or self._decode_all()
            return DecodedClip(self._padded_clip(), self._num_frames(), self._probe, stats, "", damage)
        finally:
            os.close(self._frames)

    def _num_frames(self) -> int:
        return os.fstat(self._frames).st_size // (self._spec.clip_bytes // self._spec.num_frames)

    def _padded_clip(self) -> npt.NDArray[np.uint8]:
        """Return (T, H, W, 3), the last frame repeated as far as need be."""
        num_frames, spec = self._num_frames(), self._spec
        with mmap.mmap(self._frames, 0, prot=mmap.PROT_READ) as memory:
            planes = np.frombuffer(memory, np.uint8, num_frames * spec.clip_bytes // spec.num_frames)
            planes = planes.reshape(num_frames, 3, spec.height, spec.width)
            clip = np.empty(spec.clip_shape, np.uint8)
            for channel, plane in enumerate(_PLANES):
                clip[:num_frames, ..., channel] = planes[:, plane]
            del planes  # or the memory could not be unmapped
        clip[num_frames:] = clip[num_frames - 1]
        return clip

    def _decode_needed(self) -> tuple[DecodeStats, str] | None:
        """Decode only what the samples need; None where that is not certain to give the same frames."""
        num_frames = self._spec.num_frames
        plan = plan_decode(self._video, self._probe, num_frames) if self._limits.keyed else None
        if plan is None:
            return None
        result = self._run(plan.select, self._first_remedy, plan.drop)
        stats = _read_stats(result)
        is_as_planned = (self._num_frames(), stats.num_frames) == (num_frames, plan.num_kept)
        if result.code != 0 or result.timed_out or not is_as_planned or stats.num_errors or stats.problems:
            return None
        if _CONCEALED in result.stderr:  # with parts of the picture before, which may have been skipped
            return None
        stats = DecodeStats(plan.num_packets, 0, (), plan.num_packets - plan.num_kept)
        return stats, self._damage(stats)

    def _decode_all(self) -> tuple[DecodeStats, str]:
        # Packets are not always frames: a wrong count shows in what ffmpeg decoded, and then the true one is known.
        # The decoder is deterministic, so the second pass cannot be wrong again; nor can one with the remedy for what
        # made ffmpeg give up, or give garbage.
        remedy, wanted = self._first_remedy, self._spec.num_frames
        expected = max(self._probe.num_packets, 1)
        for _ in range(4):
            result = self._run(select_expression(expected, wanted), remedy)
            given = self._num_frames()
            if result.timed_out:
                raise Failure(Reason.TIMEOUT, f"ffmpeg had given {given} of {wanted} frames", given, self._claimed)
            before, remedy = remedy, self._remedy_for(result, remedy)
            if remedy != before:
                continue
            result.check(self._video.binaries.ffmpeg, self._video.binaries.version)
            stats = _read_stats(result)
            if stats.num_frames == 0 or given == 0:
                raise self._no_frames(stats, result)
            is_complete = given == min(stats.num_frames, wanted)
            if is_complete and (stats.num_frames == expected or max(stats.num_frames, expected) <= wanted):
                damage = self._damage(stats) or self._colour_damage(remedy)
                if result.code and not damage:
                    damage = f"{Reason.DECODE_ERROR}: ffmpeg ended with exit code {result.code}"
                return stats, damage
            expected = stats.num_frames
        wanted = min(stats.num_frames, wanted)
        detail = f"ffmpeg gave {given} frames, expected {wanted}: {_last_problems(stats, result)}"
        raise Failure(Reason.DECODE_ERROR, detail, stats.num_frames, self._claimed)

    def _run(self, select: str, remedy: Remedy, drop: str = "") -> ProcessResult:
        """Let ffmpeg write the frames, from the start of their file."""
        probe, spec, output = self._probe, self._spec, self._frames
        source: dict[str, Any] = {
            **SAFE_INPUT,
            "max_pixels": self._limits.max_pixels,
            "threads": 1,
            "flags": "+bitexact",  # the same bytes with any SIMD (MPEG-4 differs without)
            # A new frame size in mid-stream would restart the filters, and `select` its count of
            # frames: 11 wrong frames of 10 wanted. Kept alive, `scale` follows the size by itself.
            "reinit_filter": 0,
        }
        if remedy.turn:
            source["noautorotate"] = None
        if drop:
            source[f"bsf:{probe.stream_index}"] = f"noise=drop='{drop}'"
        stream = ffmpeg.input(self._video.url, **source)[str(probe.stream_index)].filter("select", select)
        size = (probe.width, probe.height)
        for name, options in scaling_filters(spec.width, spec.height, spec.scaler_flags, remedy, size):
            stream = stream.filter(name, **options)
        settings = {"format": "rawvideo", "pix_fmt": PIXEL_FORMAT, "fps_mode": "passthrough"}
        stream = stream.output(f"file:/dev/fd/{output}", **settings)
        stream = stream.global_args("-y", "-nostdin", "-hide_banner", "-nostats", "-v", "level+verbose")
        stream = stream.global_args("-filter_complex_threads", "1")
        if drop:
            stream = stream.global_args("-copyts")  # the times that ffprobe saw
        command: list[str] = stream.compile(cmd=self._video.binaries.ffmpeg)
        os.ftruncate(output, 0)
        return self._video.ffmpeg(command, output, max_file_bytes=spec.clip_bytes, noise=NOISE)

    def _remedy_for(self, result: ProcessResult, remedy: Remedy) -> Remedy:
        """Return what ffmpeg must be told after its messages; the same again, where that is nothing more."""
        if not remedy.matrix and _REFUSES_COLOURS.search(result.stderr):
            return dataclasses.replace(remedy, matrix=convertible_matrix(self._probe.matrix, self._probe.primaries))
        # What turns pictures has the size and format of the first one, and reads beyond the end of a smaller one.
        if remedy.turn is None and _CHANGES_SHAPE.search(result.stderr):
            turn = probe_turn(self._video, self._probe)
            return dataclasses.replace(remedy, turn=turn if turn.filters else None)
        return remedy

    def _no_frames(self, stats: DecodeStats, result: ProcessResult) -> Failure:
        probe, binaries = self._probe, self._video.binaries
        reason, detail = Reason.NO_FRAMES, f"{probe.num_packets} packets in the file, none gave a frame"
        if _ENCRYPTED.search(result.stderr):
            reason, detail = Reason.ENCRYPTED, f"{probe.codec or 'unknown codec'}; {_last_problems(stats, result)}"
        elif _UNSUPPORTED.search(result.stderr):
            lacks_tonemap = _NO_TONEMAP in result.stderr
            task = "map HDR to SDR" if lacks_tonemap else f"decode {probe.codec or 'its unknown codec'}"
            reason, remedy = Reason.UNSUPPORTED_CODEC, "install an ffmpeg that can, or use --ffmpeg-dir"
            detail = f"ffmpeg {binaries.version} ({binaries.origin}) cannot {task}: {remedy}"
        elif _TOO_LARGE.search(result.stderr):
            reason, detail = Reason.TOO_LARGE, _last_problems(stats, result)
        elif stats.num_errors:
            reason = Reason.DECODE_ERROR
            detail = f"all {stats.num_errors} packets refused; {_last_problems(stats, result)}"
        return Failure(reason, detail, 0, self._claimed)

    def _damage(self, stats: DecodeStats) -> str:
        if stats.num_errors or stats.problems:
            counts = f"{stats.num_errors} packets refused, {len(stats.problems)} messages"
            return f"{Reason.DECODE_ERROR}: {counts}; {stats.problems[0] if stats.problems else ''}"
        # Packets that an edit list discards are in the file, and a fragmented file's header counts
        # only its first part: only a header that promises more than the file holds means a loss.
        if self._claimed > self._probe.num_packets_in_file:
            return f"{Reason.MISSING_FRAMES}: {stats.num_frames} decoded, the header says {self._claimed}"
        more = self._probe.more
        return f"{Reason.MISSING_FRAMES}: {stats.num_frames} decoded; {more}" if more else ""

    def _colour_damage(self, remedy: Remedy) -> str:
        matrix = self._probe.matrix
        if remedy.matrix and matrix not in ("", remedy.matrix):
            return f"{Reason.UNSUPPORTED_COLOURS}: ffmpeg cannot convert {matrix}; read as {remedy.matrix}"
        return ""


def select_expression(num_video_frames: int, num_clip_frames: int) -> str:
    r"""Return the `select` expression that keeps the frames of `vidcache.spec.sample_indices`.

    With frames numbered n = 0, 1, ..., the smallest i whose sample is not before n is `ceil(n * (T - 1) / (N - 1))`;
    n is kept when that sample is n itself. Products stay far below 2**53, so the doubles of ffmpeg's evaluator are
    exact. A video that turns out longer than N gives at most T frames, so a wrong N can be seen but does no harm.
    """
    last, steps = num_video_frames - 1, num_clip_frames - 1
    if num_video_frames <= num_clip_frames:
        return f"lt(n,{num_clip_frames})"
    return f"lt(n,{num_video_frames})*eq(n,floor(ceil(n*{steps}/{last})*{last}/{steps}))"


def convertible_matrix(matrix: str, primaries: str) -> str:
    """Return the colour matrix that ffmpeg can convert and that is nearest to one of a video; names, empty unknown."""
    if (matrix or "unknown") in _CONVERTIBLE:
        return matrix or "unknown"
    return "bt2020nc" if "bt2020" in matrix + primaries else "bt709"


def scaling_filters(width: int, height: int, flags: str, remedy: Remedy, size: tuple[int, int]) -> Filters:
    """Return the filters that make pictures of `width` and `height` as they are to be shown from those of `size`."""
    sdr = {"out_transfer": "bt709", "out_primaries": "bt709"} if remedy.tonemap else {}

    def scale(to_width: int, to_height: int) -> Filters:
        return (("scale", {"w": to_width, "h": to_height, "flags": flags, **sdr}),)

    filters: Filters = ()
    if remedy.matrix:  # some transfer functions are refused too, and change no pixel unless tones are mapped
        transfer = {} if remedy.tonemap else {"color_trc": "bt709"}
        filters = (("setparams", {"colorspace": remedy.matrix, **transfer}),)
    turn = remedy.turn or Turn()
    if turn.filters and turn.filters[0][0] == "rotate":  # a squeezed picture would turn by another angle
        return (*filters, *scale(*size), *turn.filters, *scale(width, height))
    if turn.swaps_sides:
        width, height = height, width
    return (*filters, *scale(width, height), *turn.filters)


def _read_stats(result: ProcessResult) -> DecodeStats:
    counts = _COUNTS.search(result.stderr)
    problems = tuple(one_line(line, 160) for line in _PROBLEM.findall(result.stderr))
    num_frames, num_errors = (int(count or 0) for count in counts.groups()) if counts else (0, 0)
    return DecodeStats(num_frames, num_errors, problems)


def _last_problems(stats: DecodeStats, result: ProcessResult) -> str:
    """The last three different problems."""
    last = list(dict.fromkeys(reversed(stats.problems)))[:3]
    return "; ".join(reversed(last)) or result.last_line()
