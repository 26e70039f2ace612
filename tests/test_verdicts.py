"""What is reported of a video must still be true: what depends on the moment is tried again, and never published."""

import errno
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import imageio_ffmpeg
import joblib
import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers import TOOLS, make_raw, make_video
from tests.videos import H264, decode, failure_of, fake_folder, fake_tools, program
from vidcache.cache.format import RECORD
from vidcache.cache.lock import build_folder
from vidcache.cache.reader import CacheReader
from vidcache.cache.validate import check_columns
from vidcache.cache.writer import CacheWriter
from vidcache.cli import main
from vidcache.errors import InputError, VidcacheError
from vidcache.preprocess.build import BuildReport, build_cache
from vidcache.preprocess.options import BuildOptions
from vidcache.preprocess.records import clip_record, failure_record
from vidcache.preprocess.split.config import SplitOverrides
from vidcache.preprocess.split.resplit import split_cache
from vidcache.preprocess.video import decode as decode_module
from vidcache.preprocess.video import ffmpeg as ffmpeg_module
from vidcache.preprocess.video import plan, source_file
from vidcache.preprocess.video import probe as probe_module
from vidcache.preprocess.video.decode import DecodedClip, DecodeLimits, DecodeStats
from vidcache.preprocess.video.ffmpeg import (
    FFmpegBinaries,
    SubprocessGroup,
    find_tools,
    find_tools_on_path,
)
from vidcache.preprocess.video.probe import Probe
from vidcache.preprocess.video.source_file import Failure, Reason
from vidcache.spec import Spec

SPEC = Spec(4, 32, 32)
SMALL = ("--num-frames", "4", "--size", "32")
KILLED = "kill -TERM $$"


def build(raw: Path, cache: Path, *callbacks: Any, **options: Any) -> BuildReport:
    settings = {"spec": SPEC, "workers": 1, "allow_tiny_classes": True, **options}
    return build_cache(raw, cache, BuildOptions(**settings), *callbacks)


def reasons(report: BuildReport) -> list[str]:
    return [problem.reason for problem in report.problems]


def change_all(folder: Path) -> None:
    """Give all videos other bytes: they are to be decoded again."""
    for video in folder.rglob("*.mkv"):
        video.write_bytes(video.read_bytes() + b"\0")


def when_done(number: int, act: Callable[[], object]) -> Callable[[int, int, int], None]:
    def progress(done: int, failed: int, total: int) -> None:
        del failed, total
        if done == number:
            act()

    return progress


@pytest.fixture
def video(tmp_path: Path) -> Path:
    return make_video(tmp_path / "video.mkv", 60)


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return make_raw(tmp_path / "raw", {"a": 4, "b": 4})


@pytest.fixture
def cache(raw: Path, tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    build(raw, tmp_path / "out" / "c.h5")
    return tmp_path / "out" / "c.h5"


# --- a program that is stopped, crashes, or is none ---------------------------------------------

# The real program, slowed to the video's own speed, gets the signal when its first frame has been written.
SIGNALLED = """
for word; do case "$word" in file:/dev/fd/*) last=$word;; esac; done
file=/proc/self/fd/${{last##*/}}
$real -re "$@" & child=$!
until [ $(stat -Lc %s $file) -gt 0 ]; do sleep 0.01; done
kill -{signal} $child; wait $child; exit $?
"""


@pytest.mark.skipif(sys.platform != "linux", reason="looks at a file in memory")
@pytest.mark.parametrize(("signal", "end"), [("TERM", "exit 255"), ("KILL", "SIGKILL")])
def test_a_part_is_never_taken_for_the_whole(tmp_path: Path, video: Path, signal: str, end: str) -> None:
    large = Spec(4, 320, 320)  # a frame of it is more than ffmpeg holds back before it writes

    failure = failure_of(video, large, [fake_tools(tmp_path / "bin", SIGNALLED.format(signal=signal))])

    assert f"killed: ffmpeg {TOOLS.version} was stopped from outside ({end})" == str(failure)
    assert failure.source_hash


@pytest.mark.parametrize("name", ["ffmpeg", "ffprobe"])
@pytest.mark.parametrize(
    ("script", "verdict"),
    [
        ('$real "$@"; kill -USR1 $$', "killed: {} was stopped from outside (SIGUSR1)"),
        ('$real "$@"; kill -SEGV $$', "decoder_crashed: {} ended with SIGSEGV"),
        ('$real "$@"; exit 139', "decoder_crashed: {} ended with SIGSEGV"),  # so does a shell when its child crashes
        ("echo pthread_create failed >&2; exit 245", "no_resources: {}: pthread_create"),
        ("kill -XFSZ $$", "no_resources: {} may not write a file as long as a clip; raise the limit (ulimit -f)"),
    ],
)
def test_the_end_of_a_program_is_no_fault_of_the_video(
    tmp_path: Path, video: Path, name: str, script: str, verdict: str
) -> None:
    failure = failure_of(video, SPEC, [fake_tools(tmp_path / "bin", **{name: script})])

    assert verdict.format(f"{name} {TOOLS.version}") == str(failure)


def test_a_listing_that_is_stopped_means_a_whole_decode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    video = make_video(tmp_path / "v.mp4", 240, codec=(*H264, "-g", "12"))
    monkeypatch.setattr(plan, "SECONDS_PER_VIDEO", 0.0)
    monkeypatch.setattr(plan, "SECONDS_PER_PACKET", 0.0)
    listing = 'case "$*" in *framecrc*) $real "$@"; kill -TERM $$;; esac; exec $real "$@"'

    by_keys, whole = decode(video, SPEC), decode(video, SPEC, [fake_tools(tmp_path / "bin", listing)])

    assert (True, 0) == (by_keys.stats.num_skipped > 0, whole.stats.num_skipped)
    assert (by_keys.clip == whole.clip).all()


def test_an_exit_code_alone_is_damage(tmp_path: Path, video: Path) -> None:
    odd = fake_tools(tmp_path / "bin", '$real "$@"; exit 69')

    assert "decode_error: ffmpeg ended with exit code 69" == decode(video, SPEC, [odd]).damage


@pytest.mark.parametrize(("name", "end"), [("ffmpeg", '$real "$@"'), ("ffprobe", "exit 1")])
def test_a_disk_that_fails_is_no_damage_of_the_video(tmp_path: Path, video: Path, name: str, end: str) -> None:
    message = "echo '[in#0 @ 0x1] [error] Error during demuxing: Input/output error' >&2"
    (tmp_path / "other").write_bytes(bytes(video.stat().st_size))
    replace = f"touch -r {video} {tmp_path}/time; cat {tmp_path}/other >{video}; touch -r {tmp_path}/time {video}"
    if name == "ffmpeg":  # the file still reads as before
        same = fake_tools(tmp_path / "same", f'{message}; exec $real "$@"')
        assert "Input/output error" in decode(video, SPEC, [same]).damage

    failure = failure_of(video, SPEC, [fake_tools(tmp_path / "bad", **{name: f"{message}; {replace}; {end}"})])

    assert "changed: the file reads differently the second time; run again" == str(failure)


def test_a_disk_that_fails_while_a_container_is_looked_through(video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe_module, "find_more", mock.Mock(side_effect=OSError(errno.EIO, os.strerror(errno.EIO))))

    assert "not_accessible: Input/output error" == str(failure_of(video))


@pytest.mark.parametrize("name", ["ffmpeg", "ffprobe"])
def test_a_program_that_vanishes_stops_the_build_and_judges_no_video(raw: Path, tmp_path: Path, name: str) -> None:
    folder, cache = fake_folder(tmp_path / "bin"), tmp_path / "c.h5"

    with pytest.raises(InputError, match=rf"bin/{name}: is no working ffmpeg \(.*\)\. Name another folder with"):
        build(raw, cache, when_done(3, (folder / name).unlink), ffmpeg_dir=folder)
    assert not cache.exists()

    report = build(raw, cache)
    assert ((), True) == (report.problems, report.num_reused >= 3)


def test_a_program_that_cannot_load_its_libraries_is_refused_with_its_words(tmp_path: Path, video: Path) -> None:
    broken = program(tmp_path / "bin" / "ffmpeg", "echo libx264.so.1: cannot open >&2; exit 127")

    with pytest.raises(InputError, match=r"bin/ffmpeg: is no working ffmpeg \(libx264.so.1: cannot open\)"):
        decode(video, SPEC, [FFmpegBinaries(str(broken), TOOLS.ffprobe, "", "")])


def test_a_relative_folder_of_programs_is_as_seen_from_here(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_folder(tmp_path / "bin")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "bin")
    on_path = find_tools_on_path()

    assert on_path
    assert str(tmp_path / "bin" / "ffmpeg") == find_tools(Path("bin")).ffmpeg == on_path.ffmpeg
    monkeypatch.setenv("VIDCACHE_FFMPEG_DIR", "bin")
    ended = CliRunner().invoke(main, ["build", "raw", "d.h5", *SMALL])
    assert (0, True) == (ended.exit_code, "0 failed" in ended.stderr)


def test_a_verdict_stands_where_no_time_is_left_to_read_the_file_again_but_not_one_of_the_disk(
    tmp_path: Path, video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "junk.mkv").write_bytes(b"no video" * 99)
    failing = fake_tools(tmp_path / "bin", """echo '[in#0 @ 0x1] [error] Input/output error' >&2; exec $real "$@\"""")
    hash_file, calls = source_file.hash_file, []

    def slow(descriptor: int, *, deadline: float) -> str:
        calls.append(descriptor)
        if len(calls) % 2 == 0:
            raise Failure(Reason.TIMEOUT, "792 of 792 bytes were read")
        return hash_file(descriptor, deadline=deadline)

    monkeypatch.setattr(decode_module, "hash_file", slow)

    assert Reason.UNREADABLE is failure_of(tmp_path / "junk.mkv").reason
    assert Reason.TIMEOUT is failure_of(video, tools=[failing]).reason
    assert 4 == len(calls)


@pytest.mark.parametrize("num_bytes", [0, 400_000])
def test_an_error_counts_however_many_messages_follow(tmp_path: Path, video: Path, num_bytes: int) -> None:
    error = "echo '[h264 @ 0x1] [error] corrupted macroblock' >&2"
    after = f"yes '[scale @ 0x2] [verbose] w:64 h:48 fmt:gray' | head -c {num_bytes} >&2; echo >&2"
    talkative = fake_tools(tmp_path / "bin", f'{error}; {after}; exec $real "$@"')

    damage = decode(video, SPEC, [talkative]).damage

    assert "decode_error: 0 packets refused, 1 messages; corrupted macroblock" == damage


def test_a_change_of_shape_is_seen_however_many_messages_follow() -> None:
    message = "filter context - w: 64 h: 48 fmt: 8 csp: unknown, incoming frame - w: {} h: 48 fmt: 8 csp: gbr"
    lines = (f"echo '[graph @ 0x1] [info] {message.format(width)}'" for width in (64, 32))
    script = f"exec >&2; for i in $(seq 300); do {next(lines)}; done; {next(lines)}; yes chatter | head -c 300000"
    with SubprocessGroup() as group:
        result = group.run(["/bin/sh", "-c", script], pass_fds=(), deadline=math.inf)

    assert [message.format(32)] == re.findall("filter context.*", result.stderr)
    assert 300_000 > len(result.stderr) > 1 << 15


# --- what is momentary is tried again -----------------------------------------------------------


def test_a_codec_that_was_lacking_is_tried_again_by_every_run(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_binary() -> str:
        raise RuntimeError

    monkeypatch.setattr(imageio_ffmpeg, "get_ffmpeg_exe", no_binary)
    monkeypatch.setenv("PATH", "/nowhere")
    poor, cache = fake_folder(tmp_path / "poor"), tmp_path / "c.h5"
    make_video(raw / "a" / "h264.mp4", 12, codec=H264)
    program(
        poor / "ffmpeg",
        'file=$(echo "$*" | sed "s/.*-i file:.dev.fd.\\([0-9]*\\).*/\\1/")\n'
        'grep -q ftyp /dev/fd/$file || exec $real "$@"\necho "Decoder (codec h264) not found" >&2; exit 1',
    )
    first = build(raw, cache, ffmpeg_dir=poor)
    before = cache.stat()

    again = build(raw, cache, ffmpeg_dir=poor)

    assert ["unsupported_codec"] == reasons(first) == reasons(again)
    assert TOOLS.version in first.problems[0].detail
    assert (True, 1) == (again.up_to_date, again.num_decoded)
    assert (before.st_ino, before.st_mtime_ns) == (cache.stat().st_ino, cache.stat().st_mtime_ns)
    rich = build(raw, cache)
    assert ((), 1, 8) == (rich.problems, rich.num_decoded, rich.num_reused)
    assert (True, 0) == ((last := build(raw, cache)).up_to_date, last.num_decoded)


@pytest.mark.parametrize(
    ("limits", "reason"),
    [(DecodeLimits(max_pixels=4000), "too_large"), (DecodeLimits(timeout_seconds=1e-6), "timeout")],
)
def test_a_verdict_of_an_option_is_tried_again_and_one_of_the_bytes_is_kept(
    raw: Path, cache: Path, limits: DecodeLimits, reason: str
) -> None:
    make_video(raw / "a" / "large.mkv", 6, size="128x96")
    assert [reason] == reasons(build(raw, cache, limits=limits))
    assert () == build(raw, cache).problems
    (raw / "a" / "large.mkv").write_bytes(b"no video" * 99)
    assert ["unreadable"] == reasons(build(raw, cache))

    for retry_failed in (False, True):
        again = build(raw, cache, retry_failed=retry_failed)
        assert (True, int(retry_failed)) == (again.up_to_date, again.num_decoded)


def test_an_interrupted_build_tries_again_what_failed_for_a_moment(raw: Path, tmp_path: Path) -> None:
    killing = fake_folder(tmp_path / "bin", ffmpeg=KILLED)

    def stop(done: int, failed: int, total: int) -> None:
        del done, total
        if failed == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(raw, tmp_path / "c.h5", stop, ffmpeg_dir=killing)
    make_video(raw / "b" / "new.mkv", 24)  # another plan: what was done is taken over

    assert () == build(raw, tmp_path / "c.h5").problems


def test_failures_that_are_tried_again_are_named_so(raw: Path, cache: Path) -> None:
    def run(*arguments: str) -> str:
        options = (*SMALL, "--allow-tiny-classes", "--max-failures", "100%")
        ended = CliRunner().invoke(main, ["build", str(raw), str(cache), *options, *arguments])
        assert 0 == ended.exit_code, ended.output
        return " ".join(ended.stderr.split())

    make_video(raw / "a" / "large.mkv", 6, size="128x96")
    small = ("--max-pixels", "4000")
    assert "The next run tries 1 of 1 failed video again." in run(*small)
    assert "up to date, 1 video failed again, nothing was written" in run(*small)
    (raw / "a" / "bad.mkv").write_bytes(b"no video" * 99)
    assert "The next run tries 1 of 2 failed videos again; --retry-failed tries all of them." in run(*small)
    assert "The next run tries 0 of 1 failed video again; --retry-failed tries all of them." in run()


# --- an older cache is not replaced by less -----------------------------------------------------


@pytest.mark.parametrize("kind", ["moved", "emptied"])
def test_a_folder_that_vanishes_stops_the_build_and_the_cache_stays(
    raw: Path, cache: Path, tmp_path: Path, kind: str
) -> None:
    good, away, folder = cache.read_bytes(), tmp_path / "away", raw / "b"
    change_all(raw / "a")
    change_all(raw / "a")  # longer, so that b comes last
    change_all(raw / "b")

    def vanish() -> None:
        if kind == "emptied":  # as a mount point without its disk
            shutil.copytree(folder, away)
            for video in folder.iterdir():
                video.unlink()
        else:
            folder.rename(away)

    problem = r"raw/[ab]: (cannot be read any more \(No such file or directory\)|is empty now). Nothing was published"
    with pytest.raises(VidcacheError, match=problem):
        build(raw, cache, when_done(2, vanish))

    assert good == cache.read_bytes()
    if kind == "emptied":
        folder.rmdir()
    away.rename(folder)
    assert ((), 8) == ((report := build(raw, cache)).problems, report.num_videos)


def test_losing_many_clips_publishes_nothing(raw: Path, cache: Path, tmp_path: Path) -> None:
    good, listed = cache.read_bytes(), (cache.parent / "c.failures.csv").read_bytes()
    change_all(raw)

    with pytest.raises(VidcacheError, match=r"c\.h5: 8 of its 8 clips would be lost.* \(8 killed; a/a_0\.mkv: killed"):
        build(raw, cache, ffmpeg_dir=fake_folder(tmp_path / "bin", ffmpeg=KILLED))

    assert (good, listed) == (cache.read_bytes(), (cache.parent / "c.failures.csv").read_bytes())
    assert () == build(raw, cache).problems
    good = cache.read_bytes()
    for video in sorted(raw.rglob("*.mkv"))[2:5]:
        video.write_text("<!DOCTYPE html><title>404 Not Found</title>")
    for _ in range(2):  # what was decoded is kept, and is refused again
        with pytest.raises(VidcacheError, match=r"c\.h5: 3 of its 8 clips would be lost.*\(3 unreadable; a/a_2\.mkv"):
            build(raw, cache)
        assert good == cache.read_bytes()
    assert 3 == build(raw, cache, overwrite=True).num_failed


def test_a_folder_without_most_of_the_videos_is_no_reason_to_drop_their_clips(
    raw: Path, cache: Path, tmp_path: Path
) -> None:
    good = cache.read_bytes()
    for name in ("a_0", "a_1", "a_2"):
        (raw / "a" / f"{name}.mkv").unlink()
    (raw / "b").rename(tmp_path / "b")

    with pytest.raises(InputError, match=r"c\.h5: 7 of its 8 clips are of videos that are no longer in .*raw"):
        build(raw, cache)

    assert good == cache.read_bytes()
    assert not build_folder(cache).exists()
    split_cache(cache, SplitOverrides(seed=3))  # nothing that was half done is in its way
    assert 1 == build(raw, cache, overwrite=True).num_videos


def test_clips_that_are_dropped_are_counted_and_a_whole_class_is_named(raw: Path, cache: Path, tmp_path: Path) -> None:
    for index in (5, 4, 3, 2):  # moved to names of others: not dropped
        (raw / "a" / f"a_{index - 2}.mkv").rename(raw / "a" / f"a_{index}.mkv")
    assert not any("Dropped" in note for note in build(raw, cache).notes)
    (raw / "b").rename(tmp_path / "b")

    assert f"Dropped 4 clips of videos that are no longer in {raw}, all of class b." in build(raw, cache).notes
    shutil.copytree(raw / "a", raw / "copies")
    build(raw, cache)
    shutil.rmtree(raw / "copies")  # their copies stay in another class
    assert f"Dropped 4 clips of videos that are no longer in {raw}, all of class copies." in build(raw, cache).notes


def test_a_class_whose_folder_is_empty_is_away_and_not_removed(raw: Path, cache: Path, tmp_path: Path) -> None:
    make_raw(raw, {"small": 2})
    build(raw, cache)
    (raw / "small").rename(tmp_path / "disk")
    (raw / "small").mkdir()  # a mount point without its disk

    with pytest.raises(InputError, match=r"2 of its 10 clips are of videos that .* and .*raw/small is empty"):
        build(raw, cache)

    (raw / "small").rmdir()
    assert any(note.startswith("Dropped 2 clips") and "class small" in note for note in build(raw, cache).notes)


# --- facts that fit no column -------------------------------------------------------------------


@pytest.mark.parametrize("year", [2300, 1650])
def test_a_time_beyond_the_column_is_clamped(raw: Path, tmp_path: Path, year: int) -> None:
    time_ns = (year - 1970) * 31_556_952 * 10**9
    os.utime(raw / "a" / "a_0.mkv", ns=(0, time_ns))
    if (raw / "a" / "a_0.mkv").stat().st_mtime_ns != time_ns:
        pytest.skip("this file system has no such times")

    assert () == build(raw, tmp_path / "c.h5").problems

    with CacheReader(tmp_path / "c.h5") as reader:
        assert (2**63 - 1 if year > 2000 else -(2**63)) == reader.columns["source_mtime_ns"][0]
    assert build(raw, tmp_path / "c.h5").up_to_date


ANY_INTEGER, ANY_FLOAT, ANY_NAME = st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=40)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(
    st.builds(
        Probe, stream_index=st.just(0), codec=ANY_NAME, encrypted=st.booleans(), pixel_format=ANY_NAME,
        width=ANY_INTEGER, height=ANY_INTEGER, rotation=ANY_INTEGER, num_packets=st.integers(0, 2**70),
        num_packets_in_file=st.integers(0, 2**70), num_frames_from_header=ANY_INTEGER, fps_from_header=ANY_FLOAT,
        duration_seconds=ANY_FLOAT,
    ),
    st.integers(1, 2**70),
)  # fmt: skip
def test_any_header_gives_a_record_that_a_reader_believes(probe: Probe, num_frames: int) -> None:
    clip = np.zeros((2, 16, 16, 3), np.uint8)
    others = {"label": np.zeros(1, "<i4"), "split": np.zeros(1, "|u1"), "source_bytes": np.ones(1, "<i8")}

    for record in (
        clip_record(DecodedClip(clip, 2, probe, DecodeStats(num_frames, 0, ()), "", "")),
        failure_record(Failure(Reason.NO_FRAMES, "", num_frames, probe.num_frames_from_header)),
    ):
        check_columns(Spec(2, 16, 16), 1, {**{name: np.array([record[name]]) for name in RECORD.names or ()}, **others})

        assert int(record["width"]) in (probe.width, 0, 2**24)


@pytest.mark.slow
def test_the_time_of_a_video_holds_for_reading_it_too(raw: Path, cache: Path) -> None:
    with (raw / "a" / "sparse.mkv").open("wb") as file:  # takes hours to read, and no room
        file.truncate(12 << 40)
    limits = DecodeLimits(timeout_seconds=0.5)

    (problem,) = build(raw, cache, limits=limits).problems

    assert "timeout" == problem.reason
    assert f"of {12 << 40:,} bytes were read after 0.5 s; raise --timeout" in problem.detail
    assert ["timeout"] == reasons(build(raw, cache, limits=limits, check_contents=True))
    shutil.move(raw / "a" / "sparse.mkv", raw / "a" / "moved.mkv")  # its size is that of a known one
    assert ["timeout"] == reasons(build(raw, cache, limits=limits))


# --- narrow machines ----------------------------------------------------------------------------


def build_under(limits: str, raw: Path, cache: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Build in a process of its own under limits that a shell has set; none can be raised again."""
    command = [sys.executable, "-c", "from vidcache.cli import main; main()", "build", str(raw), str(cache), *SMALL]
    environment = {**os.environ}
    environment.pop("COVERAGE_PROCESS_CONFIG", None)  # it could not write what it measures
    shell = ["bash", "-c", f'{limits}; exec "$@"', "sh", *command, *arguments]
    return subprocess.run(shell, capture_output=True, text=True, env=environment)


@pytest.mark.slow
def test_a_lower_limit_than_ours_stays(raw: Path, tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    watching = fake_folder(tmp_path / "bin", f'sleep 0.3; ulimit -Hv >>{seen}; exec $real "$@"')

    ended = build_under("ulimit -f 1000; ulimit -v 3000000", raw, tmp_path / "c.h5", "--ffmpeg-dir", str(watching))

    assert (0, True) == (ended.returncode, " 0 failed, 0 damaged" in ended.stderr), ended.stderr
    assert {"3000000"} == set(seen.read_text().split())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("limits", "code", "message"),
    [
        ("ulimit -f 50", 1, r"c\.h5: will have [\d,]+ bytes, but .* 51,200. Raise the limit \(ulimit -f\)"),
        ("ulimit -n 40", 0, r"Only [12] of 32 workers: raise the limit of open files \(ulimit -n\) for more"),
        ("ulimit -n 64", 0, r"Only [2-5] of 32 workers: .* 0 failed, 0 damaged"),
        ("ulimit -Sn 40", 0, r"\A(?!.*workers).* 0 failed, 0 damaged"),  # raised as far as needed
    ],
)
def test_limits_of_the_process_are_obeyed(raw: Path, tmp_path: Path, limits: str, code: int, message: str) -> None:
    ended = build_under(limits, raw, tmp_path / "c.h5", "--workers", "32")

    assert code == ended.returncode, ended.stderr
    assert re.search(message, ended.stderr, re.DOTALL), ended.stderr
    assert (code == 0) == (tmp_path / "c.h5").exists()


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (errno.EFBIG, r"raise the limit of the length of files \(ulimit -f\), then run"),
        (errno.EAGAIN, r"use fewer --workers, or raise the limits of this process \(ulimit -u and -v\), then run"),
        (errno.ENOMEM, r"use fewer --workers, or raise the limit of memory \(ulimit -v\), then run"),
        (errno.EMFILE, r"use fewer --workers, or raise the limit of open files \(ulimit -n\), then run"),
    ],
)
def test_what_the_machine_lacks_is_named_and_is_no_verdict(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int, remedy: str
) -> None:
    lack = mock.Mock(side_effect=OSError(error, os.strerror(error)))
    if error == errno.EMFILE:
        monkeypatch.setattr(decode_module, "memory_file", lack)
    else:
        monkeypatch.setattr(CacheWriter, "write_clip", lack)
    with pytest.raises(VidcacheError, match=rf"c\.h5: .* What was decoded is kept: {remedy} the same command again"):
        build(raw, tmp_path / "c.h5")
    assert not (tmp_path / "c.h5").exists()
    monkeypatch.undo()

    monkeypatch.setattr(source_file.os, "open", lack)
    if error in source_file.SHORTAGES:
        with pytest.raises(OSError, match=os.strerror(error)):
            source_file.open_video(raw / "a" / "a_0.mkv")


def test_no_room_for_threads_is_an_error_of_the_machine(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(joblib.Parallel, "__call__", mock.Mock(side_effect=RuntimeError("can't start new thread")))

    with pytest.raises(VidcacheError, match=r"c\.h5: can't start new thread .*: use fewer --workers"):
        build(raw, tmp_path / "c.h5")


def test_little_memory_is_no_fault_of_the_video(tmp_path: Path, video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = fake_tools(tmp_path / "a", "echo '[error] Cannot allocate memory' >&2; exit 244")
    assert Reason.TOO_LARGE is failure_of(video, SPEC, [full]).reason
    monkeypatch.setattr(ffmpeg_module.resource, "getrlimit", lambda _: (1 << 30, 1 << 30))

    message = f"no_resources: ffmpeg {TOOLS.version} had too little memory; raise the limit (ulimit -v)"
    assert message == str(failure_of(video, SPEC, [full]))
    assert Reason.NO_RESOURCES is failure_of(video, SPEC, [fake_tools(tmp_path / "b", "kill -ABRT $$")]).reason
