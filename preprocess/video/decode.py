"""One video file to one clip: probe, decode, and say what really happened.

Knows one video at a time; what to do with the clip is the caller's.
"""

import dataclasses
import mmap
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import ffmpeg
import numpy as np
import numpy.typing as npt

from vidcache.preprocess.video.ffmpeg import FFmpegBinaries, ProcessResult, SubprocessGroup
from vidcache.preprocess.video.keyframes import CHATTER, plan_keyed
from vidcache.preprocess.video.probe import (
    HDR_TRANSFERS,
    SAFE_INPUT,
    Probe,
    Remedy,
    Turn,
    convertible_matrix,
    probe_turn,
    probe_video,
    scaling_filters,
)
from vidcache.preprocess.video.source_file import Failure, Reason, hash_file, is_momentary, open_video
from vidcache.spec import Spec
from vidcache.text import one_line

# The same pixels as rgb24, plane by plane: swscale packs pixels without SIMD, 8 to 10 ms of 55 for a short clip.
PIXEL_FORMAT, _PLANES = "gbrp", (2, 0, 1)


class ClipOutput:
    """A file in memory that ffmpeg writes by itself: through a pipe, each frame would wake us."""

    def __init__(self, spec: Spec) -> None:
        self._spec = spec
        if sys.platform == "linux":
            self.descriptor = os.memfd_create("clip", os.MFD_CLOEXEC)
        else:
            with tempfile.TemporaryFile() as file:
                self.descriptor = os.dup(file.fileno())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self.descriptor)

    @property
    def num_frames(self) -> int:
        """Whole frames that are there."""
        return os.fstat(self.descriptor).st_size // (self._spec.clip_bytes // self._spec.num_frames)

    def run(self, children: SubprocessGroup, command: Sequence[str], source: int, deadline: float) -> ProcessResult:
        """Let ffmpeg write here from the start."""
        os.ftruncate(self.descriptor, 0)
        return children.run(
            command,
            pass_fds=(source, self.descriptor),
            deadline=deadline,
            max_file_bytes=self._spec.clip_bytes,
            chatter=CHATTER,
        )

    def padded_clip(self) -> npt.NDArray[np.uint8]:
        """Return (T, H, W, 3) uint8, the last frame repeated as far as need be."""
        num_frames, spec = self.num_frames, self._spec
        with mmap.mmap(self.descriptor, 0, prot=mmap.PROT_READ) as memory:
            planes = np.frombuffer(memory, np.uint8, num_frames * spec.clip_bytes // spec.num_frames)
            planes = planes.reshape(num_frames, 3, spec.height, spec.width)
            clip = np.empty(spec.clip_shape, np.uint8)
            for channel, plane in enumerate(_PLANES):
                clip[:num_frames, ..., channel] = planes[:, plane]
            del planes  # or the memory could not be unmapped
        clip[num_frames:] = clip[num_frames - 1]
        return clip


def select_expression(num_video_frames: int, num_clip_frames: int) -> str:
    r"""Return the `select` expression that keeps the frames of `vidcache.sampling.sample_indices`.

    With frames numbered n = 0, 1, ..., the smallest i whose sample is not before n is
    `ceil(n * (T - 1) / (N - 1))`; n is kept when that sample is n itself. Products stay far below
    2**53, so the doubles of ffmpeg's evaluator are exact.

    Args:
        num_video_frames: Frames that the video is believed to have (N). >= 1.
        num_clip_frames: Frames wanted (T). >= 2.

    Returns:
        An expression in `n`, without ffmpeg's filter quoting. A video that turns out longer than
        N gives no more than T frames, so a wrong N can be seen but does no harm.
    """
    last, steps = num_video_frames - 1, num_clip_frames - 1
    if num_video_frames <= num_clip_frames:
        return f"lt(n,{num_clip_frames})"
    return f"lt(n,{num_video_frames})*eq(n,floor(ceil(n*{steps}/{last})*{last}/{steps}))"


_LEDGER = re.compile(r"Input stream #0:\d+ \(video\):.*?(\d+) frames decoded(?:; (\d+) decode errors)?")
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
_ENCRYPTED = re.compile(r"encrypt|decrypt", re.I)
_TOO_LARGE = re.compile(r"Picture size \S+ is invalid|exceeds specified max|Cannot allocate memory")


@dataclasses.dataclass(frozen=True)
class DecodeLimits:
    """Bounds for one video.

    Attributes:
        timeout_seconds: Wall-clock time for everything that is done with it.
        max_pixels: Largest width * height of a frame.
        keyed: Skip what no sample needs, where the clip is the same bit for bit.
        follow_links: Decode what a symbolic link leads to.
    """

    timeout_seconds: float = 900.0
    max_pixels: int = 8192 * 8192
    keyed: bool = True
    follow_links: bool = False


@dataclasses.dataclass(frozen=True)
class DecodeStats:
    """What ffmpeg says it did.

    Attributes:
        num_frames: Frames decoded, skipped ones included.
        num_skipped: Frames that were not decoded, since no sample needs them.
        num_errors: Packets that the decoder refused.
        problems: Error lines of decoder and demuxer.
    """

    num_frames: int
    num_errors: int
    problems: tuple[str, ...]
    num_skipped: int = 0


@dataclasses.dataclass(frozen=True)
class DecodedClip:
    """A video that gave a clip.

    Attributes:
        clip: (T, H, W, 3) uint8, RGB.
        num_real: Frames of the clip that are not padding.
        probe: What ffprobe said.
        ledger: What ffmpeg did.
        source_hash: xxh3-128 of the file, hex.
        damage: "reason: detail" when frames were missing or broken, else empty.
    """

    clip: npt.NDArray[np.uint8]
    num_real: int
    probe: Probe
    ledger: DecodeStats
    source_hash: str
    damage: str


def decode_video(
    path: str | bytes | Path,
    spec: Spec,
    tools: Sequence[FFmpegBinaries],
    children: SubprocessGroup,
    limits: DecodeLimits,
) -> DecodedClip:
    """Turn a video file into a clip.

    Args:
        path: The file.
        spec: Shape of the clip.
        tools: The ffmpeg to use, and others to try when it lacks the codec.
        children: Runs them.
        limits: Bounds.

    Raises:
        Failure: No frame could be decoded; carries the reason code.
    """
    deadline = time.monotonic() + limits.timeout_seconds
    descriptor, source_hash = open_video(path, follow_links=limits.follow_links), ""
    try:
        before = os.fstat(descriptor)
        source_hash = hash_file(descriptor, deadline=deadline)
        decoded = _decode_with_any(tools, descriptor, spec, children, deadline, limits, source_hash)
        after = os.fstat(descriptor)
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            raise Failure(Reason.CHANGED, "the file changed while it was read; run again")
        if any("Input/output error" in problem for problem in decoded.ledger.problems):  # of the disk, or of the file?
            _check_bytes(descriptor, source_hash, deadline)
        return decoded
    except Failure as failure:
        if failure.reason is Reason.TIMEOUT:
            detail = f"{failure.detail} after {limits.timeout_seconds:g} s; raise --timeout"
            failure = Failure(Reason.TIMEOUT, detail, failure.num_frames, failure.num_frames_from_header)
        failure.source_hash = source_hash
        raise failure from None
    finally:
        os.close(descriptor)


def _decode_with_any(
    tools: Sequence[FFmpegBinaries],
    descriptor: int,
    spec: Spec,
    children: SubprocessGroup,
    deadline: float,
    limits: DecodeLimits,
    source_hash: str,
) -> DecodedClip:
    *others, last = tools
    try:
        for pair in others:
            try:
                return _decode(descriptor, spec, pair, children, deadline, limits, source_hash)
            except Failure as failure:
                if failure.reason is not Reason.UNSUPPORTED_CODEC:
                    raise
        return _decode(descriptor, spec, last, children, deadline, limits, source_hash)
    except Failure as failure:
        if not is_momentary(failure.reason):
            try:
                _check_bytes(descriptor, source_hash, deadline)
            except Failure as second:
                if second.reason is not Reason.TIMEOUT:  # it was found in time
                    raise
        if others and failure.reason is Reason.UNSUPPORTED_CODEC:
            detail = f"{failure.detail} ({', '.join(pair.version for pair in others)} cannot either)"
            raise Failure(failure.reason, detail, 0, failure.num_frames_from_header) from None
        raise


def _check_bytes(descriptor: int, source_hash: str, deadline: float) -> None:
    """See that a file still reads as it did: else what was said of it is not about its bytes."""
    os.lseek(descriptor, 0, os.SEEK_SET)
    if hash_file(descriptor, deadline=deadline) != source_hash:
        raise Failure(Reason.CHANGED, "the file reads differently the second time; run again")


def _decode(
    descriptor: int,
    spec: Spec,
    tools: FFmpegBinaries,
    children: SubprocessGroup,
    deadline: float,
    limits: DecodeLimits,
    source_hash: str,
) -> DecodedClip:
    probe = probe_video(tools, children, descriptor, deadline=deadline, max_pixels=limits.max_pixels)
    expected, remedy = max(probe.num_packets, 1), _first_remedy(spec, probe)
    with ClipOutput(spec) as output:
        if limits.keyed:
            keyed = _decode_keyed(descriptor, spec, tools, children, deadline, limits, probe, output)
            if keyed:
                return DecodedClip(
                    output.padded_clip(), spec.num_frames, probe, keyed, source_hash, _damage(probe, keyed)
                )
        # Packets are not always frames: a wrong count shows in the ledger, and then the true one is
        # known. The decoder is deterministic, so the second pass cannot be wrong again; nor can one with the remedy
        # for what made ffmpeg give up, or give garbage.
        for _ in range(4):
            chosen = select_expression(expected, spec.num_frames)
            command = _command(tools, descriptor, output.descriptor, spec, probe, chosen, limits, remedy)
            ended = output.run(children, command, descriptor, deadline)
            given = output.num_frames
            if ended.timed_out:
                detail = f"ffmpeg had given {given} of {spec.num_frames} frames"
                raise Failure(Reason.TIMEOUT, detail, given, probe.num_frames_from_header)
            before = remedy
            remedy = _remedy_for(
                ended, before, probe, lambda: probe_turn(tools, children, descriptor, probe, deadline=deadline)
            )
            if remedy != before:
                continue
            ended.check(tools.ffmpeg, tools.version)
            ledger = _read_ledger(ended)
            if ledger.num_frames == 0 or given == 0:
                raise _no_frames(probe, ledger, ended, tools)
            wanted = min(ledger.num_frames, spec.num_frames)
            if given == wanted and (
                ledger.num_frames == expected or max(ledger.num_frames, expected) <= spec.num_frames
            ):
                break
            expected = ledger.num_frames
        else:
            detail = f"ffmpeg gave {given} frames, expected {wanted}: {_last_words(ledger, ended)}"
            raise Failure(Reason.DECODE_ERROR, detail, ledger.num_frames, probe.num_frames_from_header)
        clip = output.padded_clip()
    return DecodedClip(
        clip=clip,
        num_real=given,
        probe=probe,
        ledger=ledger,
        source_hash=source_hash,
        damage=_damage(probe, ledger) or _colour_damage(probe, remedy) or _exit_damage(ended),
    )


def _decode_keyed(
    descriptor: int,
    spec: Spec,
    tools: FFmpegBinaries,
    children: SubprocessGroup,
    deadline: float,
    limits: DecodeLimits,
    probe: Probe,
    output: ClipOutput,
) -> DecodeStats | None:
    """Decode only what the samples need; None, where that is not sure to give the same frames."""
    plan = plan_keyed(tools, children, descriptor, probe, spec.num_frames, deadline=deadline)
    if plan is None:
        return None
    command = _command(
        tools, descriptor, output.descriptor, spec, probe, plan.select, limits, _first_remedy(spec, probe), plan.drop
    )
    ended = output.run(children, command, descriptor, deadline)
    ledger = _read_ledger(ended)
    as_planned = (output.num_frames, ledger.num_frames) == (spec.num_frames, plan.num_kept)
    if ended.code != 0 or ended.timed_out or not as_planned or ledger.num_errors or ledger.problems:
        return None
    return DecodeStats(plan.num_packets, 0, (), plan.num_packets - plan.num_kept)


def _command(
    tools: FFmpegBinaries,
    descriptor: int,
    output: int,
    spec: Spec,
    probe: Probe,
    chosen: str,
    limits: DecodeLimits,
    remedy: Remedy,
    drop: str = "",
) -> list[str]:
    source: dict[str, Any] = {
        **SAFE_INPUT,
        "max_pixels": limits.max_pixels,
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
    stream = ffmpeg.input(f"file:/dev/fd/{descriptor}", **source)[str(probe.stream_index)]
    stream = stream.filter("select", chosen)
    size = (probe.width, probe.height)
    for name, options in scaling_filters(spec.width, spec.height, spec.scaler_flags, remedy, size):
        stream = stream.filter(name, **options)
    stream = stream.output(f"file:/dev/fd/{output}", format="rawvideo", pix_fmt=PIXEL_FORMAT, fps_mode="passthrough")
    stream = stream.global_args("-y", "-nostdin", "-hide_banner", "-nostats", "-v", "level+verbose")
    stream = stream.global_args("-filter_complex_threads", "1")
    if drop:
        stream = stream.global_args("-copyts")  # the times that ffprobe saw
    command: list[str] = stream.compile(cmd=tools.ffmpeg)
    return command


def _first_remedy(spec: Spec, probe: Probe) -> Remedy:
    return Remedy(tonemap=spec.is_tonemapped and probe.transfer in HDR_TRANSFERS)


def _remedy_for(ended: ProcessResult, remedy: Remedy, probe: Probe, ask_for_turn: Callable[[], Turn]) -> Remedy:
    """See from what ffmpeg said what it must be told; the same again, where that is nothing more."""
    if not remedy.matrix and _REFUSES_COLOURS.search(ended.stderr):
        return dataclasses.replace(remedy, matrix=convertible_matrix(probe.matrix, probe.primaries))
    # What turns pictures has the size and format of the first one, and reads beyond the end of a smaller one.
    if remedy.turn is None and _CHANGES_SHAPE.search(ended.stderr):
        turn = ask_for_turn()
        return dataclasses.replace(remedy, turn=turn if turn.filters else None)
    return remedy


def _read_ledger(ended: ProcessResult) -> DecodeStats:
    counts = _LEDGER.search(ended.stderr)
    problems = tuple(one_line(line, 160) for line in _PROBLEM.findall(ended.stderr))
    num_frames, num_errors = (int(count or 0) for count in counts.groups()) if counts else (0, 0)
    return DecodeStats(num_frames, num_errors, problems)


def _last_words(ledger: DecodeStats, ended: ProcessResult) -> str:
    """The last three different things that ffmpeg complained about."""
    last = list(dict.fromkeys(reversed(ledger.problems)))[:3]
    return "; ".join(reversed(last)) or ended.last_line()


def _no_frames(probe: Probe, ledger: DecodeStats, ended: ProcessResult, tools: FFmpegBinaries) -> Failure:
    """Find the reason why a video that has a video stream gave no frame."""
    claimed, words = probe.num_frames_from_header, _last_words(ledger, ended)
    if probe.encrypted or _ENCRYPTED.search(ended.stderr):
        detail = f"{probe.codec or 'unknown codec'}; the container says that it is encrypted"
        return Failure(Reason.ENCRYPTED, detail, 0, claimed)
    if _UNSUPPORTED.search(ended.stderr):
        lacking = "map HDR to SDR" if _NO_TONEMAP in ended.stderr else f"decode {probe.codec or 'its unknown codec'}"
        detail = (
            f"ffmpeg {tools.version} ({tools.origin}) cannot {lacking}: install an ffmpeg that can, or use --ffmpeg-dir"
        )
        return Failure(Reason.UNSUPPORTED_CODEC, detail, 0, claimed)
    if _TOO_LARGE.search(ended.stderr):
        return Failure(Reason.TOO_LARGE, words, 0, claimed)
    if ledger.num_errors:
        return Failure(Reason.DECODE_ERROR, f"all {ledger.num_errors} packets refused; {words}", 0, claimed)
    return Failure(Reason.NO_FRAMES, f"{probe.num_packets} packets in the file, none gave a frame", 0, claimed)


def _exit_damage(ended: ProcessResult) -> str:
    return f"{Reason.DECODE_ERROR}: ffmpeg ended with exit code {ended.code}" if ended.code else ""


def _damage(probe: Probe, ledger: DecodeStats) -> str:
    if ledger.num_errors or ledger.problems:
        first = ledger.problems[0] if ledger.problems else ""
        return f"{Reason.DECODE_ERROR}: {ledger.num_errors} packets refused, {len(ledger.problems)} messages; {first}"
    # Packets that an edit list discards are in the file, and a fragmented file's header counts
    # only its first part: only a header that promises more than the file holds means a loss.
    if probe.num_frames_from_header > probe.num_packets_in_file:
        return f"{Reason.MISSING_FRAMES}: {ledger.num_frames} decoded, the header says {probe.num_frames_from_header}"
    return f"{Reason.MISSING_FRAMES}: {ledger.num_frames} decoded; {probe.more}" if probe.more else ""


def _colour_damage(probe: Probe, remedy: Remedy) -> str:
    """Say that the colours can be wrong."""
    if remedy.matrix and probe.matrix not in ("", remedy.matrix):
        return f"{Reason.UNSUPPORTED_COLOURS}: ffmpeg cannot convert {probe.matrix}; read as {remedy.matrix}"
    return ""
