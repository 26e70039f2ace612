"""What the first ffmpeg cannot decode, the next one does: AV1, APNG and AVIF work out of the box."""

import subprocess
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
import pytest
from click.testing import CliRunner

from tests.helpers import TOOLS, make_video
from tests.videos import decode, failure_of, fake_folder
from vidcache.cache.reader import CacheReader
from vidcache.cli import main
from vidcache.preprocess.video.ffmpeg import find_all_tools
from vidcache.spec import Spec

ODD = Path(__file__).parents[2] / "shared" / "data" / "odd"
SPEC = Spec(8, 48, 64)


@pytest.fixture(autouse=True)
def nothing_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")


def encode_av1(path: Path, *codec: str) -> Path:
    """30 frames of 64x48."""
    source = ("-f", "lavfi", "-i", "testsrc2=s=64x48:r=25", "-frames:v", "30")
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", *source, *codec, str(path)]
    subprocess.run(command, check=True, capture_output=True)
    return path


def frames_of_pyav(path: Path, stream_index: int = 0) -> np.ndarray:
    """(T, 48, 64, 3): all frames, by another build of the libraries, scaled as vidcache scales."""
    av: Any = pytest.importorskip("av")
    frames = []
    with av.open(str(path)) as file:
        stream = file.streams[stream_index]
        graph = av.filter.Graph()
        size = graph.add("scale", f"w=64:h=48:flags={SPEC.scaler_flags}")
        source, shape, sink = graph.add_buffer(template=stream), graph.add("format", "gbrp"), graph.add("buffersink")
        source.link_to(size)
        size.link_to(shape)
        shape.link_to(sink)
        graph.configure()
        for frame in file.decode(stream):
            graph.push(frame)
            frames.append(graph.pull().to_ndarray())
    return np.stack(frames)


@pytest.mark.slow
@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuv420p10le"])
@pytest.mark.parametrize("encoder", ["libsvtav1", "libaom-av1"])
def test_av1_gives_the_frames_of_pyav(tmp_path: Path, encoder: str, pixel_format: str) -> None:
    quick = ("-preset", "12") if encoder == "libsvtav1" else ("-cpu-used", "8", "-usage", "realtime")
    path = encode_av1(tmp_path / "v.mp4", "-c:v", encoder, *quick, "-pix_fmt", pixel_format)

    decoded = decode(path, Spec(30, 48, 64), tools=find_all_tools())

    assert ("av1", pixel_format, "") == (decoded.probe.codec, decoded.probe.pixel_format, decoded.damage)
    assert (frames_of_pyav(path) == decoded.clip).all()


@pytest.mark.skipif(not ODD.is_dir(), reason="no ../shared/data")
@pytest.mark.parametrize(
    ("name", "num_frames"), [("Pillow__star.avifs", 5), ("mp4parse-rust__alpha_video_fixed.avif", 48)]
)
def test_avif_gives_the_frames_of_pyav(name: str, num_frames: int) -> None:
    decoded = decode(ODD / name, Spec(num_frames, 48, 64), tools=find_all_tools())

    assert (num_frames, "") == (decoded.stats.num_frames, decoded.damage)
    assert (frames_of_pyav(ODD / name, decoded.probe.stream_index) == decoded.clip).all()


def test_a_build_decodes_av1_and_apng(tmp_path: Path) -> None:
    (tmp_path / "raw" / "a").mkdir(parents=True)
    for number in range(2):
        encode_av1(
            tmp_path / "raw" / "a" / f"{number}.mp4", "-c:v", "libaom-av1", "-cpu-used", "8", "-usage", "realtime"
        )
    encode_av1(tmp_path / "raw" / "a" / "2.apng")
    arguments = ["build", str(tmp_path / "raw"), str(tmp_path / "c.h5"), "--num-frames", "8", "--size", "16"]

    result = CliRunner().invoke(main, arguments)

    assert 0 == result.exit_code, result.stderr
    with CacheReader(tmp_path / "c.h5") as reader:
        assert [b"av1", b"av1", b"apng"] == reader.columns["codec"].tolist()
        assert [30] * 3 == reader.columns["num_frames"].tolist()
        assert not reader.columns["status"].any(), reader.columns["error"]


def test_without_another_ffmpeg_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> str:
        raise RuntimeError("No ffmpeg exe could be found.")

    path = make_video(tmp_path / "v.mkv", 12)
    poor = fake_folder(tmp_path / "poor", "echo '[error] no decoder found for: ffv1' >&2; exit 1")
    assert ["package imageio-ffmpeg"] == [tools.origin for tools in find_all_tools(poor)[1:]]
    assert 12 == decode(path, SPEC, tools=find_all_tools(poor)).stats.num_frames
    monkeypatch.setattr(imageio_ffmpeg, "get_ffmpeg_exe", fail)  # as where it ships no binary
    assert [f"folder {poor}"] == [tools.origin for tools in find_all_tools(poor)]

    failure = failure_of(path, tools=find_all_tools(poor))

    assert "cannot decode ffv1: install an ffmpeg that can, or use --ffmpeg-dir" in str(failure)


def test_path_is_the_last_and_one_that_does_not_run_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = fake_folder(tmp_path / "bin")
    monkeypatch.setenv("PATH", str(folder))
    assert [TOOLS.origin, "package imageio-ffmpeg", "PATH"] == [tools.origin for tools in find_all_tools()]

    (folder / "ffmpeg").write_text("#!/bin/sh\nexit 127\n")

    assert [TOOLS.origin, "package imageio-ffmpeg"] == [tools.origin for tools in find_all_tools()]
