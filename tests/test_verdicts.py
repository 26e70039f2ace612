"""What is said of a video must still be true: what depends on the moment is tried again, and never published as a loss."""

import errno
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers import TOOLS, make_raw, make_video
from vidcache.cache.format import RECORD, Status
from vidcache.cache.lock import build_folder
from vidcache.cache.reader import CacheReader
from vidcache.cache.validate import check_columns
from vidcache.cache.writer import CacheWriter
from vidcache.cli import main
from vidcache.errors import InputError, VidcacheError
from vidcache.preprocess.analysis.facts import facts as survey
from vidcache.preprocess.build import BuildReport, build_cache
from vidcache.preprocess.executors import find_all_tools
from vidcache.preprocess.options import BuildOptions
from vidcache.preprocess.records import clip_record, failure_record
from vidcache.preprocess.split.config import SplitOverrides
from vidcache.preprocess.split.resplit import split_cache
from vidcache.preprocess.video import decode as decode_module
from vidcache.preprocess.video import ffmpeg as resources
from vidcache.preprocess.video import keyframes as keyed
from vidcache.preprocess.video import probe as probe_module
from vidcache.preprocess.video import source_file as opening
from vidcache.preprocess.video.decode import DecodedClip, DecodeLimits, DecodeStats, decode_video
from vidcache.preprocess.video.ffmpeg import FFmpegBinaries, SubprocessGroup, find_tools, find_tools_on_path
from vidcache.preprocess.video.probe import Probe
from vidcache.preprocess.video.source_file import Failure, Reason
from vidcache.spec import Spec

SPEC = Spec(4, 32, 32)
H264 = ("-c:v", "libx264", "-preset", "ultrafast", "-pix_fmt", "yuv420p")
MAIN = "from vidcache.cli import main; main()"


def program(path: Path, text: str) -> Path:
    """A shell script that is an ffmpeg to whoever asks for its version."""
    path.parent.mkdir(parents=True, exist_ok=True)
    real = TOOLS.ffprobe if path.name == "ffprobe" else TOOLS.ffmpeg
    path.write_text(f'#!/bin/sh\nreal={real}\n[ "$1" = -version ] && exec $real -version\n{text}\n')
    path.chmod(0o755)
    return path


def tools_of(folder: Path, ffmpeg: str = 'exec $real "$@"', ffprobe: str = 'exec $real "$@"') -> Path:
    """A folder with an ffmpeg and an ffprobe that do something else than theirs."""
    program(folder / "ffmpeg", ffmpeg)
    program(folder / "ffprobe", ffprobe)
    return folder


# The real program, slowed to the video's own speed, gets the signal when its first frame has been written.
SIGNALLED = """
for word; do case "$word" in file:/dev/fd/*) last=$word;; esac; done
file=/proc/self/fd/${{last##*/}}
$real -re "$@" & child=$!
until [ $(stat -Lc %s $file) -gt 0 ]; do sleep 0.01; done
kill -{signal} $child; wait $child; exit $?
"""


def failure_with(folder: Path, video: Path, spec: Spec = SPEC, **scripts: str) -> Failure:
    tools = find_tools(tools_of(folder, **scripts))
    with SubprocessGroup() as children, pytest.raises(Failure) as caught:
        decode_video(video, spec, [tools], children, DecodeLimits(timeout_seconds=60))
    return caught.value


def build(raw: Path, cache: Path, **options: Any) -> BuildReport:
    return build_cache(raw, cache, BuildOptions(**{"spec": SPEC, "workers": 1, "allow_tiny_classes": True, **options}))


def reasons(report: BuildReport) -> list[str]:
    return [problem.reason for problem in report.problems]


def touch(raw: Path) -> None:
    """Give all videos another time, as after a copy: they are to be read again."""
    for video in raw.rglob("*.mkv"):
        os.utime(video, ns=(0, video.stat().st_mtime_ns + 10**9))


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


@pytest.mark.skipif(sys.platform != "linux", reason="looks at a file in memory")
@pytest.mark.parametrize(("signal", "said"), [("TERM", "exit 255"), ("XCPU", "exit 255"), ("KILL", "SIGKILL")])
def test_a_part_is_never_taken_for_the_whole(tmp_path: Path, video: Path, signal: str, said: str) -> None:
    large = Spec(4, 320, 320)  # a frame of it is more than ffmpeg holds back before it writes
    failure = failure_with(tmp_path / "bin", video, large, ffmpeg=SIGNALLED.format(signal=signal))

    assert Reason.KILLED is failure.reason
    assert failure.detail.startswith(f"ffmpeg {TOOLS.version} was stopped from outside")
    assert said in failure.detail
    assert failure.source_hash


@pytest.mark.parametrize("signal", ["TERM", "KILL", "USR1"])
def test_an_ffprobe_that_is_stopped_says_nothing_of_the_video(tmp_path: Path, video: Path, signal: str) -> None:
    failure = failure_with(tmp_path / "bin", video, ffprobe=f'$real "$@"; kill -{signal} $$')

    assert f"killed: ffprobe {TOOLS.version} was stopped from outside (SIG{signal})" == str(failure)


@pytest.mark.parametrize("name", ["ffmpeg", "ffprobe"])
@pytest.mark.parametrize("end", ["kill -SEGV $$", "exit 139"])  # 139 is what a shell makes of a child that does so
def test_a_crash_names_the_version_that_crashed(tmp_path: Path, video: Path, name: str, end: str) -> None:
    failure = failure_with(tmp_path / "bin", video, **{name: f'$real "$@"; {end}'})

    assert f"decoder_crashed: {name} {TOOLS.version} ended with SIGSEGV" == str(failure)


@pytest.mark.parametrize("name", ["ffmpeg", "ffprobe"])
def test_too_little_of_the_machine_is_no_fault_of_the_video(tmp_path: Path, video: Path, name: str) -> None:
    failure = failure_with(tmp_path / "bin", video, **{name: "echo pthread_create failed >&2; exit 245"})

    assert f"no_resources: {name} {TOOLS.version}: pthread_create" == str(failure)


def test_a_listing_that_is_stopped_means_a_whole_decode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    video = make_video(tmp_path / "v.mp4", 240, codec=(*H264, "-g", "12"))
    monkeypatch.setattr(keyed, "SECONDS_PER_VIDEO", 0.0)
    monkeypatch.setattr(keyed, "SECONDS_PER_PACKET", 0.0)
    listing = 'case "$*" in *framecrc*) $real "$@"; kill -TERM $$;; esac; exec $real "$@"'
    stopped = find_tools(tools_of(tmp_path / "bin", ffmpeg=listing))

    with SubprocessGroup() as children:
        keyed_ = decode_video(video, SPEC, [TOOLS], children, DecodeLimits())
        whole = decode_video(video, SPEC, [stopped], children, DecodeLimits())

    assert (True, 0) == (keyed_.ledger.num_skipped > 0, whole.ledger.num_skipped)
    assert (keyed_.clip == whole.clip).all()


def test_an_exit_code_alone_is_damage(tmp_path: Path, video: Path) -> None:
    odd = find_tools(tools_of(tmp_path / "bin", ffmpeg='$real "$@"; exit 69'))
    with SubprocessGroup() as children:
        assert (
            "decode_error: ffmpeg ended with exit code 69"
            == decode_video(video, SPEC, [odd], children, DecodeLimits()).damage
        )


@pytest.mark.parametrize("name", ["ffmpeg", "ffprobe"])
def test_a_disk_that_fails_while_a_video_is_decoded_is_no_damage_of_the_video(
    tmp_path: Path, video: Path, name: str
) -> None:
    said = "echo '[in#0 @ 0x1] [error] Error during demuxing: Input/output error' >&2"
    (tmp_path / "other").write_bytes(bytes(video.stat().st_size))
    fail = f"touch -r {video} {tmp_path}/time; cat {tmp_path}/other >{video}; touch -r {tmp_path}/time {video}"
    end = '$real "$@"' if name == "ffmpeg" else "exit 1"

    failure = failure_with(tmp_path / "bad", video, **{name: f"{said}; {fail}; {end}"})

    assert "changed: the file reads differently the second time; run again" == str(failure)


def test_words_about_a_disk_are_damage_where_the_file_still_reads_as_before(tmp_path: Path, video: Path) -> None:
    said = "echo '[in#0 @ 0x1] [error] Error during demuxing: Input/output error' >&2"
    same = find_tools(tools_of(tmp_path / "same", ffmpeg=f'{said}; exec $real "$@"'))
    with SubprocessGroup() as children:
        assert "Input/output error" in decode_video(video, SPEC, [same], children, DecodeLimits()).damage


def test_a_disk_that_fails_while_a_container_is_looked_through(
    tmp_path: Path, video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(probe_module, "find_more", fail)
    with SubprocessGroup() as children, pytest.raises(Failure, match="not_accessible: Input/output error"):
        decode_video(video, SPEC, [TOOLS], children, DecodeLimits())


def test_a_second_ffmpeg_that_does_not_run_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tools_of(tmp_path / "bin") / "ffmpeg").write_text("#!/bin/sh\nexit 127\n")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))

    assert [TOOLS] == find_all_tools(None)


@pytest.mark.parametrize("harm", [lambda path: path.unlink(), lambda path: path.chmod(0o644)])
@pytest.mark.parametrize("name", ["ffmpeg", "ffprobe"])
def test_a_program_that_vanishes_stops_the_build_and_judges_no_video(
    raw: Path, tmp_path: Path, name: str, harm: Callable[[Path], None]
) -> None:
    folder, cache = tools_of(tmp_path / "bin"), tmp_path / "c.h5"

    def vanish(done: int, failed: int, total: int) -> None:
        del failed, total
        if done == 3:
            harm(folder / name)

    options = BuildOptions(spec=SPEC, workers=1, ffmpeg_dir=folder)
    with pytest.raises(InputError, match=rf"bin/{name}: .*, expected an ffmpeg. Name another folder with --ffmpeg-dir"):
        build_cache(raw, cache, options, vanish)
    assert not cache.exists()

    report = build(raw, cache)
    assert ((), True) == (report.problems, report.num_reused >= 3)


def test_a_program_that_cannot_load_its_libraries_is_refused_with_its_words(tmp_path: Path, video: Path) -> None:
    broken = program(tmp_path / "bin" / "ffmpeg", "echo libx264.so.1: cannot open >&2; exit 127")
    with (
        SubprocessGroup() as children,
        pytest.raises(InputError, match=r"bin/ffmpeg: libx264.so.1: cannot open, expected an"),
    ):
        decode_video(video, SPEC, [FFmpegBinaries(str(broken), TOOLS.ffprobe, "", "")], children, DecodeLimits())

    (tmp_path / "bin" / "ffprobe").write_text("#!/bin/sh\necho no libavutil >&2; exit 127\n")
    (tmp_path / "bin" / "ffprobe").chmod(0o755)
    with pytest.raises(InputError, match=r"bin/ffprobe: exit 127 for -version \(no libavutil\), expected an ffmpeg"):
        find_tools(tmp_path / "bin")


def test_a_relative_folder_of_programs_is_as_seen_from_here(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tools_of(tmp_path / "bin")
    monkeypatch.chdir(tmp_path)

    assert str(tmp_path / "bin" / "ffmpeg") == find_tools(Path("bin")).ffmpeg
    monkeypatch.setenv("PATH", "bin")
    on_path = find_tools_on_path()
    assert on_path
    assert (str(tmp_path / "bin" / "ffmpeg"), str(tmp_path / "bin" / "ffprobe")) == (on_path.ffmpeg, on_path.ffprobe)
    assert () == build(raw, tmp_path / "c.h5", ffmpeg_dir=Path("bin")).problems
    facts = survey.facts_of_folder(raw, ffmpeg_dir=Path("bin"))
    assert (facts.status != Status.FAILED).all()
    monkeypatch.setenv("VIDCACHE_FFMPEG_DIR", "bin")
    ended = CliRunner().invoke(main, ["build", "raw", "d.h5", "--size", "32", "--num-frames", "4"])
    assert (0, True) == (ended.exit_code, "0 failed" in ended.stderr)


def test_a_verdict_stands_where_no_time_is_left_to_read_the_file_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "junk.mkv").write_bytes(b"no video" * 99)
    hash_file, calls = opening.hash_file, []

    def slow(descriptor: int, *, deadline: float) -> str:
        calls.append(descriptor)
        if len(calls) > 1:
            raise Failure(Reason.TIMEOUT, "792 of 792 bytes were read")
        return hash_file(descriptor, deadline=deadline)

    monkeypatch.setattr(decode_module, "hash_file", slow)
    with SubprocessGroup() as children, pytest.raises(Failure, match="unreadable: "):
        decode_video(tmp_path / "junk.mkv", SPEC, [TOOLS], children, DecodeLimits())
    assert 2 == len(calls)


@pytest.mark.parametrize("num_bytes", [0, 70_000, 400_000])
def test_an_error_counts_however_much_is_said_after_it(tmp_path: Path, video: Path, num_bytes: int) -> None:
    said = "echo '[h264 @ 0x1] [error] corrupted macroblock' >&2"
    after = f"yes '[scale @ 0x2] [verbose] w:64 h:48 fmt:gray' | head -c {num_bytes} >&2; echo >&2"
    talkative = find_tools(tools_of(tmp_path / "bin", ffmpeg=f'{said}; {after}; exec $real "$@"'))
    with SubprocessGroup() as children:
        decoded = decode_video(video, SPEC, [talkative], children, DecodeLimits())

    assert "decode_error: 0 packets refused, 1 messages; corrupted macroblock" == decoded.damage


def test_a_change_of_shape_is_seen_however_much_is_said_after_it(tmp_path: Path) -> None:
    said = "filter context - w: 64 h: 48 fmt: 8 csp: unknown, incoming frame - w: {} h: 48 fmt: 8 csp: gbr"
    lines = (f"echo '[graph @ 0x1] [info] {said.format(width)}'" for width in (64, 32))
    talk = f"for i in $(seq 300); do {next(lines)}; done; {next(lines)}; yes chatter | head -c 300000"
    with SubprocessGroup() as children:
        ended = children.run(["/bin/sh", "-c", f"exec >&2; {talk}"], pass_fds=(), deadline=time.monotonic() + 60)

    assert [said.format(32)] == re.findall("filter context.*", ended.stderr)
    assert 300_000 > len(ended.stderr) > 1 << 15


# --- what is momentary is tried again -----------------------------------------------------------


def test_a_codec_that_was_lacking_is_tried_again_by_every_run(raw: Path, tmp_path: Path) -> None:
    poor, cache = tools_of(tmp_path / "poor"), tmp_path / "c.h5"
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
def test_a_verdict_of_an_option_is_tried_again(raw: Path, cache: Path, limits: DecodeLimits, reason: str) -> None:
    make_video(raw / "a" / "large.mkv", 6, size="128x96")
    assert [reason] == reasons(build(raw, cache, limits=limits))

    assert () == build(raw, cache).problems


def test_what_depends_on_the_bytes_is_kept(raw: Path, cache: Path) -> None:
    (raw / "a" / "bad.mkv").write_bytes(b"no video" * 99)
    assert ["unreadable"] == reasons(build(raw, cache))

    assert (True, 0) == ((again := build(raw, cache)).up_to_date, again.num_decoded)
    assert (True, 1) == ((asked := build(raw, cache, retry_failed=True)).up_to_date, asked.num_decoded)


def test_an_interrupted_build_tries_again_what_failed_for_a_moment(raw: Path, tmp_path: Path) -> None:
    make_video(raw / "a" / "other.mkv", 24)
    killing = tools_of(tmp_path / "bin", ffmpeg="kill -TERM $$")

    def stop(done: int, failed: int, total: int) -> None:
        del total
        if failed == 4:
            raise KeyboardInterrupt

    options = BuildOptions(spec=SPEC, workers=1, ffmpeg_dir=killing)
    with pytest.raises(KeyboardInterrupt):
        build_cache(raw, tmp_path / "c.h5", options, stop)
    assert () == build(raw, tmp_path / "c.h5").problems
    with pytest.raises(KeyboardInterrupt):
        build_cache(raw, tmp_path / "d.h5", options, stop)
    make_video(raw / "b" / "new.mkv", 24)  # another plan: what was done is taken over

    assert () == build(raw, tmp_path / "d.h5").problems


def test_failures_that_are_tried_again_are_named_so(raw: Path, cache: Path) -> None:
    def run(*arguments: str) -> str:
        size = ("--num-frames", "4", "--size", "32", "--allow-tiny-classes", "--max-failures", "100%")
        ended = CliRunner().invoke(main, ["build", str(raw), str(cache), *size, *arguments])
        assert 0 == ended.exit_code, ended.output
        return " ".join(ended.stderr.split())

    make_video(raw / "a" / "large.mkv", 6, size="128x96")
    small = ("--max-pixels", "4000")
    assert "The next run tries the failed videos again." in run(*small)
    assert "up to date, 1 video failed again, nothing was written" in run(*small)
    (raw / "a" / "bad.mkv").write_bytes(b"no video" * 99)
    assert "The next run tries 1 of the 2 failed videos again; what else failed is kept until the video" in run(*small)
    assert "What failed is kept until the video changes, or is tried again with --retry-failed." in run()


# --- an older cache is not replaced by less -----------------------------------------------------


def when_done(number: int, act: Callable[[], object]) -> Callable[[int, int, int], None]:
    def progress(done: int, failed: int, total: int) -> None:
        del failed, total
        if done == number:
            act()

    return progress


@pytest.mark.parametrize("what", ["moved", "class moved", "emptied"])
def test_a_folder_that_vanishes_stops_the_build_and_the_cache_stays(
    raw: Path, cache: Path, tmp_path: Path, what: str
) -> None:
    good = cache.read_bytes()
    touch(raw)
    for video in raw.rglob("*.mkv"):  # other bytes: nothing can be taken over
        video.write_bytes(video.read_bytes() + b"\0")
    away = tmp_path / "away"
    folder = raw if what == "moved" else raw / "b"

    def vanish() -> None:
        if what == "emptied":  # as a mount point without its disk
            shutil.copytree(folder, away)
            for video in folder.iterdir():
                video.unlink()
        else:
            folder.rename(away)

    for path in sorted(raw.rglob("*.mkv")):  # b comes last, whatever comes first
        if path.parent.name == "b":
            path.write_bytes(path.read_bytes()[:-1])
    options = BuildOptions(spec=SPEC, workers=1)
    with pytest.raises(
        VidcacheError,
        match=r"raw/[ab]: (cannot be read any more \(No such file or directory\)|is empty now). Nothing was published",
    ):
        build_cache(raw, cache, options, when_done(2, vanish))

    assert good == cache.read_bytes()
    if what == "emptied":
        folder.rmdir()
    away.rename(folder)
    assert ((), 8) == ((report := build(raw, cache)).problems, report.num_videos)


def test_losing_many_clips_for_a_moment_publishes_nothing(raw: Path, cache: Path, tmp_path: Path) -> None:
    good = cache.read_bytes()
    listed = (cache.parent / "c.failures.csv").read_bytes()
    for video in raw.rglob("*.mkv"):
        video.write_bytes(video.read_bytes() + b"\0")
    killing = tools_of(tmp_path / "bin", ffmpeg="kill -TERM $$")

    with pytest.raises(
        VidcacheError,
        match=r"c\.h5: 8 of its 8 clips would be lost, since their videos failed this time \(8 killed; a/a_0\.mkv: "
        r"killed: ffmpeg .*\)\. It stays as it is, and what was decoded is kept: when the cause is gone, run the same",
    ):
        build(raw, cache, ffmpeg_dir=killing)

    assert (good, listed) == (cache.read_bytes(), (cache.parent / "c.failures.csv").read_bytes())
    assert () == build(raw, cache).problems


def test_many_videos_that_are_none_any_more_replace_no_older_cache(raw: Path, cache: Path) -> None:
    good, kept = cache.read_bytes(), {video: video.read_bytes() for video in sorted(raw.rglob("*.mkv"))[2:5]}
    for video in kept:
        video.write_text("<!DOCTYPE html><title>404 Not Found</title>")

    for _ in range(2):  # what was decoded is kept, and is refused again
        with pytest.raises(
            VidcacheError,
            match=r"c\.h5: 3 of its 8 clips would be lost, since their videos failed this time \(3 unreadable; a/a_2\.mkv"
            r": unreadable: .*\)\. It stays as it is, .* If they are to go, use another name, or --overwrite",
        ):
            build(raw, cache)
        assert good == cache.read_bytes()

    assert 3 == build(raw, cache.with_name("other.h5")).num_failed
    for video, data in kept.items():
        video.write_bytes(data)
    assert (0, ()) == ((report := build(raw, cache)).num_decoded, report.problems)
    for video in kept:
        video.write_text("<!DOCTYPE html><title>404 Not Found</title>")
    assert 3 == build(raw, cache, overwrite=True).num_failed


def test_two_lost_clips_are_published_and_come_back_by_themselves(raw: Path, cache: Path, tmp_path: Path) -> None:
    for name in ("a_0", "a_1"):
        video = raw / "a" / f"{name}.mkv"
        video.write_bytes(video.read_bytes() + b"\0")
    killing = tools_of(tmp_path / "bin", ffmpeg="kill -TERM $$")

    assert ["killed", "killed"] == reasons(build(raw, cache, ffmpeg_dir=killing))
    assert (2, ()) == ((report := build(raw, cache)).num_decoded, report.problems)


def test_a_folder_without_most_of_the_videos_is_no_reason_to_drop_their_clips(
    raw: Path, cache: Path, tmp_path: Path
) -> None:
    good = cache.read_bytes()
    for name in ("a_0", "a_1", "a_2"):
        (raw / "a" / f"{name}.mkv").unlink()
    (raw / "b").rename(tmp_path / "b")

    with pytest.raises(
        InputError,
        match=r"c\.h5: 7 of its 8 clips are of videos that are no longer in .*raw; it stays as it is\. If a folder is "
        r"away, run the same command again when it is back; if they were removed for good, use another name, or replace",
    ):
        build(raw, cache)

    assert good == cache.read_bytes()
    assert not build_folder(cache).exists()
    split_cache(cache, SplitOverrides(seed=3))  # nothing that was half done is in its way
    assert 1 == build(raw, cache, overwrite=True).num_videos


def test_clips_that_are_dropped_are_counted_and_a_whole_class_is_named(raw: Path, cache: Path, tmp_path: Path) -> None:
    (raw / "b").rename(tmp_path / "b")
    make_video(raw / "a" / "new.mkv", 20)

    report = build(raw, cache)

    assert f"Dropped 4 clips of videos that are no longer in {raw}, all of class b." in report.notes


def test_a_class_whose_folder_is_empty_is_away_and_not_removed(raw: Path, cache: Path, tmp_path: Path) -> None:
    make_raw(raw, {"small": 2})
    build(raw, cache)
    good = cache.read_bytes()
    (raw / "small").rename(tmp_path / "disk")
    (raw / "small").mkdir()  # a mount point without its disk

    with pytest.raises(
        InputError,
        match=r"2 of its 10 clips are of videos that .* in .*raw, and .*raw/small is empty; it stays as it is",
    ):
        build(raw, cache)

    assert good == cache.read_bytes()
    assert 8 == build(raw, cache.with_name("other.h5")).num_videos
    (raw / "small").rmdir()
    assert any(note.startswith("Dropped 2 clips") and "class small" in note for note in build(raw, cache).notes)


def test_clips_that_move_to_names_of_others_are_not_dropped(raw: Path, cache: Path) -> None:
    for index in (5, 4, 3, 2):
        (raw / "a" / f"a_{index - 2}.mkv").rename(raw / "a" / f"a_{index}.mkv")

    assert not any("Dropped" in note for note in build(raw, cache).notes)


def test_clips_whose_copies_stay_in_another_class_are_dropped_ones(raw: Path, cache: Path) -> None:
    shutil.copytree(raw / "a", raw / "copies")
    build(raw, cache)
    shutil.rmtree(raw / "copies")

    assert f"Dropped 4 clips of videos that are no longer in {raw}, all of class copies." in build(raw, cache).notes


# --- facts that fit no column -------------------------------------------------------------------


@pytest.mark.parametrize("year", [2300, 1650])
def test_a_time_beyond_the_column_is_clamped(raw: Path, tmp_path: Path, year: int) -> None:
    seconds = (year - 1970) * 31_556_952
    os.utime(raw / "a" / "a_0.mkv", ns=(0, seconds * 10**9))
    if (raw / "a" / "a_0.mkv").stat().st_mtime_ns == seconds * 10**9 or year == 2300:
        bound = 2**63 - 1 if year > 2000 else -(2**63)
        if (raw / "a" / "a_0.mkv").stat().st_mtime_ns != seconds * 10**9:
            pytest.skip("this file system has no such times")

        report = build(raw, tmp_path / "c.h5")

        assert () == report.problems
        with CacheReader(tmp_path / "c.h5") as reader:
            assert bound == reader.columns["source_mtime_ns"][0]
        assert build(raw, tmp_path / "c.h5").up_to_date


ANY_INTEGER = st.integers(-(2**70), 2**70)
ANY_FLOAT = st.floats()


@settings(max_examples=60, deadline=None)
@given(
    st.builds(
        Probe,
        stream_index=st.just(0),
        codec=st.text(max_size=40),
        encrypted=st.booleans(),
        pixel_format=st.text(max_size=40),
        width=ANY_INTEGER,
        height=ANY_INTEGER,
        rotation=ANY_INTEGER,
        num_packets=st.integers(0, 2**70),
        num_packets_in_file=st.integers(0, 2**70),
        num_frames_from_header=ANY_INTEGER,
        fps_from_header=ANY_FLOAT,
        duration_seconds=ANY_FLOAT,
    ),
    st.integers(1, 2**70),
)
def test_any_header_gives_a_record_that_a_reader_believes(probe: Probe, num_frames: int) -> None:
    clip = np.zeros((2, 16, 16, 3), np.uint8)
    others = {"label": np.zeros(1, "<i4"), "split": np.zeros(1, "|u1"), "source_bytes": np.ones(1, "<i8")}

    for record in (
        clip_record(DecodedClip(clip, 2, probe, DecodeStats(num_frames, 0, ()), "", "")),
        survey._record(probe, 2),
        failure_record(Failure(Reason.NO_FRAMES, "", num_frames, probe.num_frames_from_header)),
    ):
        check_columns(Spec(2, 16, 16), 1, {**{name: np.array([record[name]]) for name in RECORD.names or ()}, **others})

        assert int(record["width"]) in (probe.width, 0, 2**24)


def test_the_largest_claim_of_a_header_is_read_exactly(tmp_path: Path, video: Path) -> None:
    claim = f"s/nb_frames=[^|]*/nb_frames={2**63 - 1}/;s/^stream|index=0/stream|index=0|nb_frames={2**63 - 1}/"
    tools = find_tools(tools_of(tmp_path / "bin", ffprobe=f'$real "$@" | sed "{claim}"'))
    with SubprocessGroup() as children:
        decoded = decode_video(video, SPEC, [tools], children, DecodeLimits())

    assert 2**63 - 1 == decoded.probe.num_frames_from_header
    assert 2**48 == clip_record(decoded)["num_frames_from_header"]


# --- time ---------------------------------------------------------------------------------------


def sparse(path: Path) -> Path:
    """A file that takes hours to read, and no room."""
    with path.open("wb") as file:
        file.truncate(12 << 40)
    return path


def test_the_time_of_a_video_holds_for_reading_it_too(raw: Path, tmp_path: Path) -> None:
    sparse(raw / "a" / "sparse.mkv")
    limits = DecodeLimits(timeout_seconds=1.0)

    (problem,) = build(raw, tmp_path / "c.h5", limits=limits).problems

    assert "timeout" == problem.reason
    assert f"of {12 << 40:,} bytes were read after 1 s; raise --timeout" in problem.detail


def test_the_time_of_a_video_holds_for_comparing_contents(raw: Path, cache: Path) -> None:
    sparse(raw / "a" / "sparse.mkv")
    limits = DecodeLimits(timeout_seconds=0.5)
    start = time.monotonic()

    assert ["timeout"] == reasons(build(raw, cache, limits=limits))
    assert ["timeout"] == reasons(build(raw, cache, limits=limits, check_contents=True))
    shutil.move(raw / "a" / "sparse.mkv", raw / "a" / "moved.mkv")  # its size is that of a known one
    assert ["timeout"] == reasons(build(raw, cache, limits=limits))
    assert time.monotonic() > start


def test_a_survey_does_not_read_forever(raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survey, "Limits", lambda **settings: DecodeLimits(timeout_seconds=0.5, **settings))
    sparse(raw / "a" / "sparse.mkv")
    sparse(raw / "a" / "again.mkv")

    facts = survey.facts_of_folder(raw)

    failed = facts.status == Status.FAILED
    assert [b"a/again.mkv", b"a/sparse.mkv"] == facts.path[failed].tolist()


# --- narrow machines ----------------------------------------------------------------------------


def build_under(limits: str, raw: Path, cache: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Build in a process of its own under limits that a shell has set; none can be raised again."""
    command = [
        sys.executable,
        "-c",
        MAIN,
        "build",
        str(raw),
        str(cache),
        "--size",
        "32",
        "--num-frames",
        "4",
        *arguments,
    ]
    environment = {**os.environ}
    environment.pop("COVERAGE_PROCESS_CONFIG", None)  # it could not write what it measures
    shell = ["bash", "-c", f'{limits}; exec "$@"', "sh", *command]
    return subprocess.run(shell, capture_output=True, text=True, env=environment)


@pytest.mark.parametrize("limits", ["ulimit -v 3000000", "ulimit -f 1000; ulimit -v 3000000"])
def test_a_lower_limit_than_ours_stays(raw: Path, tmp_path: Path, limits: str) -> None:
    seen = tmp_path / "seen"
    watching = tools_of(tmp_path / "bin", ffmpeg=f'sleep 0.3; ulimit -Hv >>{seen}; exec $real "$@"')

    ended = build_under(limits, raw, tmp_path / "c.h5", "--ffmpeg-dir", str(watching))

    assert (0, True) == (ended.returncode, " 0 failed, 0 damaged" in ended.stderr), ended.stderr
    assert {"3000000"} == set(seen.read_text().split())


def test_a_cache_that_is_longer_than_a_file_may_be_is_refused_at_once(raw: Path, tmp_path: Path) -> None:
    ended = build_under("ulimit -f 50", raw, tmp_path / "c.h5")

    assert 1 == ended.returncode
    assert re.search(
        r"c\.h5: will have [\d,]+ bytes, but this process may not write a file of more than 51,200. Raise the limit "
        r"\(ulimit -f\)$",
        ended.stderr.strip(),
    )
    assert not (tmp_path / "c.h5").exists()


@pytest.mark.parametrize(("limits", "workers"), [("ulimit -n 40", "[12]"), ("ulimit -n 64", "[2-5]")])
def test_workers_are_as_many_as_there_are_file_descriptors_for(
    raw: Path, tmp_path: Path, limits: str, workers: str
) -> None:
    ended = build_under(limits, raw, tmp_path / "c.h5", "--workers", "32")

    assert (0, True) == (ended.returncode, " 0 failed, 0 damaged" in ended.stderr), ended.stderr
    assert re.search(
        rf"Only {workers} of 32 workers: raise the limit of open files \(ulimit -n\) for more", ended.stderr
    )


def test_a_soft_limit_of_file_descriptors_is_raised_as_far_as_needed(raw: Path, tmp_path: Path) -> None:
    ended = build_under("ulimit -Sn 40", raw, tmp_path / "c.h5", "--workers", "32")

    assert (0, False) == (ended.returncode, "workers" in ended.stderr), ended.stderr


def test_no_file_descriptors_left_is_no_verdict(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*_: Any) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as patch:
        patch.setattr(decode_module, "ClipOutput", exhausted)
        with pytest.raises(
            VidcacheError, match=r"Too many open files .*: use fewer --workers, or raise the limit of open"
        ):
            build(raw, tmp_path / "c.h5")
    assert not (tmp_path / "c.h5").exists()
    with monkeypatch.context() as patch:
        patch.setattr(opening.os, "open", exhausted)
        with pytest.raises(OSError, match="Too many open files"):
            opening.open_video(raw / "a" / "a_0.mkv")


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (errno.EFBIG, r"raise the limit of the length of files \(ulimit -f\), then run"),
        (errno.EAGAIN, r"use fewer --workers, or raise the limits of this process \(ulimit -u and -v\), then run"),
        (errno.ENOMEM, r"use fewer --workers, or raise the limit of memory \(ulimit -v\), then run"),
    ],
)
def test_what_the_machine_lacks_is_named(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int, remedy: str
) -> None:
    def lack(*_: Any) -> None:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(CacheWriter, "write_clip", lack)
    with pytest.raises(VidcacheError, match=rf"c\.h5: .* What was decoded is kept: {remedy} the same command again"):
        build(raw, tmp_path / "c.h5")


def test_no_room_for_threads_is_an_error_of_the_machine(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(joblib.Parallel, "__call__", refuse)
    with pytest.raises(VidcacheError, match=r"c\.h5: can't start new thread .*: use fewer --workers"):
        build(raw, tmp_path / "c.h5")


def test_little_memory_is_no_fault_of_the_video(tmp_path: Path, video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = "echo '[error] Cannot allocate memory' >&2; exit 244"
    assert Reason.TOO_LARGE is failure_with(tmp_path / "a", video, ffmpeg=said).reason
    monkeypatch.setattr(resources.resource, "getrlimit", lambda _: (1 << 30, 1 << 30))

    assert f"no_resources: ffmpeg {TOOLS.version} had too little memory; raise the limit (ulimit -v)" == str(
        failure_with(tmp_path / "b", video, ffmpeg=said)
    )
    assert Reason.NO_RESOURCES is failure_with(tmp_path / "c", video, ffmpeg="kill -ABRT $$").reason


def test_a_clip_longer_than_a_file_may_be_is_no_fault_of_the_video(tmp_path: Path, video: Path) -> None:
    failure = failure_with(tmp_path / "bin", video, ffmpeg="kill -XFSZ $$")

    assert f"no_resources: ffmpeg {TOOLS.version} may not write a file as long as a clip; raise the limit" in str(
        failure
    )
