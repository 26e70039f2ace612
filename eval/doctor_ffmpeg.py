"""Checks of ffmpeg: which pair, what it cannot decode, and whether it decodes right and obeys.

The two canaries go through the same code as the videos of a build.
"""

import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from vidcache.eval.doctor import OK, PROBLEM, WARNING, Asked, Check, one
from vidcache.preprocess.backends import find_all_tools
from vidcache.preprocess.decode import Limits, decode_video
from vidcache.preprocess.failure import Failure
from vidcache.preprocess.ffmpeg import Children, Tools
from vidcache.sampling import sample_indices
from vidcache.spec import Spec
from vidcache.text import printable

# What cameras, phones, downloads and data sets contain.
CODECS = (
    "h264 hevc av1 vp8 vp9 mpeg4 msmpeg4v2 msmpeg4v3 mpeg1video mpeg2video mjpeg h263 flv1 wmv2 wmv3 vc1 theora prores "
    "dnxhd dvvideo ffv1 gif apng rawvideo"
).split()
# They decode with a GPU or a chip that the machine may not have; `av1` alone is the name of one of these.
_HARDWARE = re.compile(r"_(v4l2m2m|cuvid|qsv|mediacodec|mmal|rkmpp|amf|crystalhd|videotoolbox)$|^av1$")
_DECODER = re.compile(r"^ V\S{5} (\S+) .*?(?:\(codec (\S+)\))?$", re.M)
_FRAMES, _WIDTH, _HEIGHT = 100, 64, 48
_LIMITS = Limits(timeout_seconds=20.0)


def check_ffmpeg(asked: Asked) -> Iterator[Check]:
    """Check the pair that a build would use, and the second one that it would try."""
    pairs = find_all_tools(asked.ffmpeg_dir)
    yield Check("ffmpeg", OK, ", then ".join(_name(pair, asked) for pair in pairs))
    yield from one("decoders", lambda: judge_decoders(pairs, [decoders(pair) for pair in pairs]))
    with tempfile.TemporaryDirectory(prefix="vidcache-doctor-") as folder, Children() as children:
        for number, pair in enumerate(pairs):
            videos = make_videos(Path(folder, str(number)), pair)
            yield from one("decoding", check_decoding, pair, videos, children, WARNING if number else PROBLEM)
            yield from one("playlist", check_playlist, pair, videos[-1], children)


def _name(pair: Tools, asked: Asked) -> str:
    named_by = f", named by {asked.ffmpeg_named_by}" if pair.origin.startswith("folder ") else ""
    return f"ffmpeg {pair.version} from {pair.origin}{named_by} ({printable(pair.ffmpeg)})"


def decoders(pair: Tools) -> set[str]:
    """Return the codecs that an ffmpeg says it can decode without special hardware."""
    command = [pair.ffmpeg, "-hide_banner", "-decoders"]
    said = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, timeout=20).stdout
    found = _DECODER.findall(said.decode("utf-8", "replace"))
    return {codec or name for name, codec in found if not _HARDWARE.search(name)}


def judge_decoders(pairs: Sequence[Tools], known: Sequence[set[str]]) -> Check:
    """Say which of `CODECS` the first pair lacks, and whether another has them."""
    missing = [codec for codec in CODECS if codec not in known[0]]
    if not missing:
        return Check("decoders", OK, f"{pairs[0].version} has all of {', '.join(CODECS)}")
    nowhere = [codec for codec in missing if not any(codec in others for others in known[1:])]
    found = f"{pairs[0].version} lacks {', '.join(missing)} of {len(CODECS)}"
    for pair, others in zip(pairs[1:], known[1:], strict=True):
        has = [codec for codec in missing if codec in others]
        found += f"; {pair.version} ({pair.origin}), which is tried then, has {', '.join(has) or 'none of them'}"
    if not nowhere:
        return Check("decoders", OK, found)
    advice = (
        f"Only if you have such videos, which fail as unsupported_codec: install an ffmpeg with {', '.join(nowhere)} "
        "on PATH (that of a distribution has them), or name its folder with --ffmpeg-dir"
    )
    return Check("decoders", WARNING, found, advice)


def make_videos(folder: Path, pair: Tools) -> list[Path]:
    """Make videos whose brightness is the frame number.

    Returns:
        One that needs no codec, written here, and H.264 in MP4 where the pair can encode it.
    """
    folder.mkdir()
    plain, h264 = folder / "canary.y4m", folder / "canary.mp4"
    colour = bytes([128]) * (_WIDTH * _HEIGHT // 2)
    frames = [b"FRAME\n" + bytes([_luma(index)]) * (_WIDTH * _HEIGHT) + colour for index in range(_FRAMES)]
    plain.write_bytes(f"YUV4MPEG2 W{_WIDTH} H{_HEIGHT} F25:1 Ip A1:1 C420jpeg\n".encode() + b"".join(frames))
    command = [pair.ffmpeg, "-nostdin", "-v", "error", "-i", f"file:{plain}", "-c:v", "libx264", "-qp", "0"]
    ended = subprocess.run(
        [*command, f"file:{h264}"], capture_output=True, stdin=subprocess.DEVNULL, timeout=20, check=False
    )
    return [plain, h264] if ended.returncode == 0 else [plain]


def _luma(index: int) -> int:
    return 16 + 2 * index


def check_decoding(pair: Tools, videos: Sequence[Path], children: Children, bad: str) -> Check:
    """Decode them to clips, and compare every frame with what it must be.

    Args:
        pair: The ffmpeg.
        videos: As `make_videos` made them.
        children: Runs it.
        bad: What it is when something is wrong: only a warning, where another pair comes first.
    """
    spec = Spec()
    chosen = sample_indices(_FRAMES, spec.num_frames)
    expected = np.array([(_luma(int(index)) - 16) * 255 / 219 for index in chosen])
    advice = "Use another ffmpeg with --ffmpeg-dir, 5.1 or newer"
    for video in videos:
        try:
            decoded = decode_video(video, spec, [pair], children, _LIMITS)
        except Failure as failure:
            return Check("decoding", bad, f"{pair.version} fails on {video.name}: {failure}", advice)
        wrong = np.abs(decoded.clip.astype(float) - expected[:, None, None, None]).max(axis=(1, 2, 3)) > 2
        if wrong.any() or decoded.damage:
            found = f"{pair.version} gives {int(wrong.sum())} wrong frames of {spec.num_frames} for {video.name}"
            return Check("decoding", bad, f"{found} {decoded.damage}".rstrip(), advice)
    names = " and ".join(video.suffix for video in videos)
    return Check("decoding", OK, f"{pair.version} gives the right {spec.num_frames} of {_FRAMES} frames ({names})")


def check_playlist(pair: Tools, video: Path, children: Children) -> Check:
    """See that a text file with the name of a video cannot make ffmpeg read another file."""
    playlist = video.with_name("playlist.mp4")
    playlist.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:4,\nfile:{video}\n#EXT-X-ENDLIST\n")
    try:
        decode_video(playlist, Spec(), [pair], children, _LIMITS)
    except Failure as failure:
        return Check("playlist", OK, f"{pair.version} refuses a playlist that is named like a video ({failure.reason})")
    found = f"{pair.version} follows a playlist that is named like a video, and with it could read any file"
    return Check("playlist", PROBLEM, found, "Use another ffmpeg with --ffmpeg-dir, and no videos of strangers with it")
