"""Videos of strangers: whatever is in a file or its name, only that file is read, and within bounds."""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest

from tests.helpers import TOOLS, make_raw, make_video, run_ffmpeg
from tests.test_decode import make_encrypted
from tests.videos import H264, SPEC, decode
from vidcache.preprocess.build import build_cache
from vidcache.preprocess.video import ffmpeg as ffmpeg_module
from vidcache.preprocess.video.source_file import Failure, Reason

# Made in tests/test_verdicts.py.
OF_A_MOMENT = {"changed", "decoder_crashed", "killed", "no_resources", "not_accessible", "not_found"}
MAIN = "import sys; from vidcache.cli import main; main()"


def outcome(path: Path | bytes, **limits: Any) -> str:
    """ "ok", "damaged", or the reason code."""
    try:
        return "damaged" if decode(path, **limits).damage else "ok"
    except Failure as failure:
        return str(failure.reason)


# --- files that want other files ---------------------------------------------------------------


def referring_files(folder: Path, secret: Path, port: int) -> list[Path]:
    """Files named like videos that ask for another file, or for a host."""
    url, name = f"http://127.0.0.1:{port}/x.ts", secret.name
    hls = "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{}\n#EXT-X-ENDLIST\n"
    mpd = (
        '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" mediaPresentationDuration="PT1S">'
        "<Period><AdaptationSet><Representation id='1' mimeType='video/mp2t'><BaseURL>{}</BaseURL>"
        "</Representation></AdaptationSet></Period></MPD>"
    )
    contents = {
        "hls_file.mp4": hls.format(f"file://{secret}"),
        "hls_sibling.mp4": hls.format(name),
        "hls_http.mp4": hls.format(url),
        "hls_master.mp4": f"#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\n{url}\n",
        "hls_key.mp4": hls.format(name).replace("#EXTINF", f'#EXT-X-KEY:METHOD=AES-128,URI="{url}"\n#EXTINF'),
        "concat_sibling.mkv": f"ffconcat version 1.0\nfile {name}\n",
        "concat_absolute.mkv": f"ffconcat version 1.0\nfile '{secret}'\n",
        "concat_http.mkv": f"ffconcat version 1.0\nfile '{url}'\n",
        "dash_file.mp4": mpd.format(f"file://{secret}"),
        "dash_http.mp4": mpd.format(url),
        "sdp.mp4": f"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video {port} RTP/AVP 96\na=rtpmap:96 H264/90000\n",
        "m3u.avi": f"#EXTM3U\n{secret}\n",
        "asx.wmv": f'<asx version="3.0"><entry><ref href="{url}"/></entry></asx>',
        "rtsp.mov": f"RTSPtext\nrtsp://127.0.0.1:{port}/x\n",
        "smil.mp4": f'<smil><body><video src="{secret}"/></body></smil>',
        "imf.mxf": f"<?xml version='1.0'?><AssetMap xmlns='http://www.smpte-ra.org/schemas/429-9/2007/AM'><Path>{name}</Path></AssetMap>",
        "vapoursynth.vpy": "import os; os.system('touch /tmp/pwned')",
        "lavfi.mp4": f"movie={secret}",
        "subfile.mp4": f"subfile,,start,0,end,0,,:{secret}",
    }
    paths = []
    for file_name, content in contents.items():
        (folder / file_name).write_text(content)
        paths.append(folder / file_name)
    # A QuickTime movie whose samples lie in another file (dref alis/url).
    reference = make_video(folder / "dref.mov", 4, codec=H264)
    data = bytearray(reference.read_bytes())
    at = data.index(b"url \0\0\0\1")
    data[at + 4 : at + 8] = b"\0\0\0\0"  # no longer "in this file"
    reference.write_bytes(data)
    # An image sequence's name, and one image of it.
    pattern = folder / "img%03d.png.mp4"
    matplotlib.image.imsave(folder / "img001.png", np.zeros((48, 64, 3)))
    shutil.copy(folder / "img001.png", pattern)
    return [*paths, pattern]


@pytest.fixture
def listener() -> object:
    """A server on loopback that must get no visitor."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        yield server
        with pytest.raises(BlockingIOError):
            server.accept()


def test_no_file_makes_us_read_another_or_connect(tmp_path: Path, listener: socket.socket) -> None:
    folder = tmp_path / "raw" / "a"
    folder.mkdir(parents=True)
    secret = make_video(tmp_path / "secret.ts", 10, codec=H264)
    shutil.copy(secret, folder / "secret.ts")  # a sibling, for relative names
    paths = referring_files(folder, secret, listener.getsockname()[1])

    for path in paths:
        found = outcome(path)
        # A picture is a picture, whatever its name says.
        assert found in ("unreadable", "no_video_stream", "no_frames") or path.name.startswith("img"), (path, found)
    assert not Path("/tmp/pwned").exists()


@pytest.mark.slow
def test_strace_sees_no_other_file_and_no_connection(tmp_path: Path, listener: socket.socket) -> None:
    strace = shutil.which("strace")
    if not strace:
        pytest.skip("needs strace")
    raw = make_raw(tmp_path / "raw", {"a": 2, "b": 1}, num_frames=6)
    secret = make_video(tmp_path / "secret.ts", 6, codec=H264)
    shutil.copy(secret, raw / "a" / "secret.ts")
    referring_files(raw / "a", secret, listener.getsockname()[1])
    for name in (b"-i.mkv", b"%03d.mkv", b"\xff\n'\".mkv", b"http:x.mkv"):
        shutil.copy(raw / "b" / "b_0.mkv", os.path.join(os.fsencode(raw / "b"), name))
    trace = tmp_path / "trace"
    command = [strace, "-f", "-s", "400", "-e", "trace=execve,open,openat,connect,bind,sendto", "-o", str(trace)]
    command += [sys.executable, "-c", MAIN, "build", str(raw), str(tmp_path / "c.h5"), "--num-frames", "4"]
    command += ["--size", "16", "--allow-tiny-classes", "--max-failures", "100%", "--workers", "2"]
    ended = subprocess.run(command, capture_output=True, text=True)
    if "ptrace" in ended.stderr:
        pytest.skip("this container may not trace")
    assert ended.returncode == 0, ended.stderr

    lines = trace.read_text().splitlines()
    decoders = {line.split()[0] for line in lines if re.search(r'execve\("[^"]*/(ffmpeg|ffprobe)', line)}
    assert len(decoders) > 40
    opened = []
    for line in lines:
        if line.split()[0] not in decoders or "execve" in line or "resumed>" in line:
            continue
        assert not re.search(r" (connect|bind|sendto)\(", line), line
        opened += re.findall(r' open(?:at)?\([^"]*"([^"]*)"', line)
    assert len([name for name in opened if name.startswith("/dev/fd/")]) > 40
    own = Path(TOOLS.ffmpeg).parent
    harmless = re.compile(
        rf"/dev/fd/\d+|/dev/null|/dev/urandom|/proc/.*|/sys/.*|/etc/(ld\.so|localtime|ssl|openssl).*|{own}.*|.*\.so.*"
    )
    assert [] == [name for name in opened if not harmless.fullmatch(name)]


# --- things that are no files -------------------------------------------------------------------


def test_things_named_like_videos_are_listed_and_never_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = make_raw(tmp_path / "raw", {"a": 3}, num_frames=6)
    outside = make_video(tmp_path / "outside.mkv", 6)
    folder = raw / "a"
    os.mkfifo(folder / "fifo.mp4")
    (folder / "folder.mp4").mkdir()
    (folder / "dangling.mp4").symlink_to("nowhere.mp4")
    (folder / "loop.mp4").symlink_to("loop.mp4")
    (folder / "leaves.mp4").symlink_to(outside)
    (folder / "inside.mp4").symlink_to("a_0.mkv")
    with socket.socket(socket.AF_UNIX) as unix:
        monkeypatch.chdir(folder)  # a socket's path is short
        unix.bind("socket.mp4")
    if os.geteuid() == 0:
        os.mknod(folder / "zero.mp4", 0o20666, os.makedev(1, 5))
    expected = {"dangling", "fifo", "inside", "leaves", "loop", "socket"} | ({"zero"} if os.geteuid() == 0 else set())
    start = time.monotonic()

    report = build_cache(raw, tmp_path / "c.h5", spec=SPEC, workers=2)

    assert time.monotonic() - start < 30
    assert {f"a/{name}.mp4".encode() for name in expected} == {problem.path for problem in report.problems}
    assert {"not_a_regular_file"} == {problem.reason for problem in report.problems}
    assert 3 + len(expected) == report.num_videos


# --- bombs ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_picture_of_any_size_is_refused_or_fits(tmp_path: Path) -> None:
    gif = b"GIF89a\xff\xff\xff\xff\x80\0\0" + bytes(6) + b",\0\0\0\0\xff\xff\xff\xff\0\x02\x02D\x01\0;"
    (tmp_path / "bomb.gif").write_bytes(gif)
    big = make_video(tmp_path / "big.mp4", 2, size="2048x2048", codec=H264)

    assert "too_large" == outcome(tmp_path / "bomb.gif")
    assert "ok" == outcome(big)
    assert "too_large" == outcome(big, max_pixels=2048 * 2047)


def test_a_size_that_grows_in_mid_stream_is_bounded_too(tmp_path: Path) -> None:
    make_video(tmp_path / "small.ts", 10, codec=H264)
    make_video(tmp_path / "large.ts", 10, size="512x512", codec=H264)
    both = tmp_path / "both.ts"
    both.write_bytes((tmp_path / "small.ts").read_bytes() + (tmp_path / "large.ts").read_bytes())

    assert "ok" == outcome(both)
    assert "damaged" == outcome(both, max_pixels=256 * 256)  # the small frames are a clip


@pytest.mark.slow
def test_memory_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    video = make_video(tmp_path / "big.mp4", 4, size="4096x4096", codec=H264)
    assert "ok" == outcome(video)

    monkeypatch.setattr(ffmpeg_module, "MEMORY_BYTES", 100 << 20)

    # Its first frames may fit, as references are allocated one after the other.
    try:
        problem = decode(video).damage
    except Failure as failure:
        problem = str(failure)
    assert "Cannot allocate memory" in problem or "get_buffer() failed" in problem


def test_frames_far_apart_are_two_frames(tmp_path: Path) -> None:
    path = tmp_path / "gap.mkv"
    source = "color=c=gray:s=64x48:r=25"
    run_ffmpeg(
        "-f", "lavfi", "-i", source, "-frames:v", "2", "-vf", "setpts=N*100000/TB", "-fps_mode", "vfr", *H264, str(path)
    )
    start = time.monotonic()

    assert 2 == decode(path).stats.num_frames
    assert time.monotonic() - start < 20


@pytest.mark.slow
def test_hours_of_one_frame_end_with_the_timeout(tmp_path: Path) -> None:
    path = tmp_path / "long.mp4"
    run_ffmpeg("-f", "lavfi", "-i", "color=c=gray:s=64x48:r=30:d=3600", *H264, str(path))

    assert "ok" == outcome(path)
    assert "timeout" == outcome(path, timeout_seconds=0.05)


def test_an_endless_gif_is_played_once(tmp_path: Path) -> None:
    path = tmp_path / "x.gif"
    run_ffmpeg("-f", "lavfi", "-i", "testsrc2=s=64x48:r=10:d=1", "-loop", "0", str(path))

    assert 10 == decode(path).stats.num_frames


# --- what is said of each ------------------------------------------------------------------------


def test_every_reason_code_has_a_file_that_gives_it(tmp_path: Path) -> None:
    make_video(tmp_path / "v.mkv", 10)
    (tmp_path / "text.mp4").write_text("no video")
    run_ffmpeg("-f", "lavfi", "-i", "sine=d=0.2", str(tmp_path / "sound.mp4"))
    (tmp_path / "link.mp4").symlink_to("v.mkv")
    make_encrypted(tmp_path / "encrypted.mp4")
    # A stream whose every packet is garbage.
    video = make_video(tmp_path / "garbage.mp4", 12, codec=H264)
    data = bytearray(video.read_bytes())
    start = data.index(b"mdat") + 4
    end = data.index(b"moov") - 4 if data.index(b"moov") > start else len(data)
    for at in range(start + 4, end):
        data[at] = (at * 7919) % 251
    video.write_bytes(data)
    # A codec that no decoder is there for: the sample entry says so.
    unknown = make_video(tmp_path / "unknown.avi", 6, codec=("-c:v", "mpeg4"))
    unknown.write_bytes(unknown.read_bytes().replace(b"FMP4", b"VXYZ"))
    # Packets of an MPEG-4 stream that all say "not coded".
    silent = make_video(tmp_path / "silent.avi", 6, codec=("-c:v", "mpeg4"))
    data = bytearray(silent.read_bytes())
    at = data.index(b"movi")
    while (at := data.find(b"\0\0\1\xb6", at + 1)) >= 0:
        data[at + 4 : at + 8] = b"\x00" * 4
    silent.write_bytes(data)

    found = {path.name: outcome(path) for path in sorted(tmp_path.iterdir())}

    assert {
        "encrypted.mp4": "encrypted",
        "garbage.mp4": "decode_error",
        "link.mp4": "not_a_regular_file",
        "silent.avi": "no_frames",
        "sound.mp4": "no_video_stream",
        "text.mp4": "unreadable",
        "unknown.avi": "unsupported_codec",
        "v.mkv": "ok",
    } == found
    assert "too_large" == outcome(tmp_path / "v.mkv", max_pixels=10)
    assert "timeout" == outcome(tmp_path / "v.mkv", timeout_seconds=1e-6)
    tested = {*found.values(), "too_large", "timeout", "missing_frames", "unsupported_colours"} - {"ok"}
    assert {str(reason) for reason in Reason} == tested | OF_A_MOMENT
