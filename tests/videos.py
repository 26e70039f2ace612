"""Decoding one video in a test, and programs that stand in for ffmpeg."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import TOOLS
from vidcache.preprocess.video.decode import DecodedClip, DecodeLimits, decode_video
from vidcache.preprocess.video.ffmpeg import FFmpegBinaries, OpenVideo, SubprocessGroup, find_tools
from vidcache.preprocess.video.probe import Probe, probe_video
from vidcache.preprocess.video.source_file import Failure
from vidcache.spec import Spec

SPEC = Spec(8, 48, 64)
H264 = ("-c:v", "libx264", "-preset", "ultrafast", "-pix_fmt", "yuv420p")
LOSSLESS = ("-c:v", "libx264", "-preset", "ultrafast", "-qp", "0", "-pix_fmt", "yuv444p")
RUN = 'exec $real "$@"'


def decode(
    path: Path | bytes, spec: Spec = SPEC, tools: Sequence[FFmpegBinaries] = (TOOLS,), **limits: Any
) -> DecodedClip:
    """The clip of a video."""
    with SubprocessGroup() as group:
        return decode_video(path, spec, tools, group, DecodeLimits(**limits))


def failure_of(
    path: Path | bytes, spec: Spec = SPEC, tools: Sequence[FFmpegBinaries] = (TOOLS,), **limits: Any
) -> Failure:
    """Why a video gives no clip."""
    with pytest.raises(Failure) as caught:
        decode(path, spec, tools, **limits)
    return caught.value


def probe(path: Path, max_pixels: int = 1 << 30) -> Probe:
    """What ffprobe says of a video."""
    with path.open("rb") as file, SubprocessGroup() as group:
        return probe_video(OpenVideo(file.fileno(), TOOLS, group, time.monotonic() + 60), max_pixels)


def program(path: Path, text: str) -> Path:
    """A shell script that is an ffmpeg to whoever asks for its version; `$real` is a true one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    real = TOOLS.ffprobe if path.name == "ffprobe" else TOOLS.ffmpeg
    path.write_text(f'#!/bin/sh\nreal={real}\n[ "$1" = -version ] && exec $real -version\n{text}\n')
    path.chmod(0o755)
    return path


def fake_folder(folder: Path, ffmpeg: str = RUN, ffprobe: str = RUN) -> Path:
    """A folder with an ffmpeg and an ffprobe that do what a shell is told."""
    program(folder / "ffmpeg", ffmpeg)
    program(folder / "ffprobe", ffprobe)
    return folder


def fake_tools(folder: Path, ffmpeg: str = RUN, ffprobe: str = RUN) -> FFmpegBinaries:
    """An ffmpeg and an ffprobe that do what a shell is told."""
    return find_tools(fake_folder(folder, ffmpeg, ffprobe))
