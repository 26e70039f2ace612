"""Building over what earlier builds have left: nothing is decoded twice, nothing old is believed."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import damage_clip, make_raw, make_video
from tests.test_cache import fill, small_plan
from vidcache.cache import writer as writer_module
from vidcache.cache.builds import open_previous_builds
from vidcache.cache.lock import build_folder
from vidcache.cache.reader import CacheReader
from vidcache.cache.writer import CacheWriter
from vidcache.errors import CacheError, InputError, VidcacheError
from vidcache.preprocess.build import BuildReport, build_cache
from vidcache.preprocess.options import BuildOptions
from vidcache.spec import Spec

SPEC = Spec(4, 32, 32)
SLOW = pytest.mark.slow


def build(raw: Path, cache: Path, **settings: Any) -> BuildReport:
    return build_cache(raw, cache, BuildOptions(**{"spec": SPEC, "workers": 2, **settings}))


def stop_after(number: int) -> Callable[[int, int, int], None]:
    def progress(done: int, failed: int, total: int) -> None:
        del failed, total
        if done == number:
            raise KeyboardInterrupt

    return progress


def interrupt(raw: Path, cache: Path, number: int, **settings: Any) -> None:
    with pytest.raises(KeyboardInterrupt):
        build_cache(raw, cache, BuildOptions(**{"spec": SPEC, "workers": 1, **settings}), stop_after(number))


def touch(path: Path) -> None:
    facts = path.stat()
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns + 10**9))


def state_of(folder: Path) -> dict[str, tuple[int, int, int]]:
    return {str(path): (path.stat().st_ino, path.stat().st_mtime_ns, path.stat().st_size) for path in folder.rglob("*")}


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return make_raw(tmp_path / "raw", {"a": 4, "b": 4})


@pytest.fixture
def cache(raw: Path, tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    build(raw, tmp_path / "out" / "c.h5")
    return tmp_path / "out" / "c.h5"


# --- what changes, is decoded; what does not, is not -------------------------------------------


def test_an_unchanged_folder_writes_nothing(raw: Path, cache: Path) -> None:
    before = state_of(cache.parent)

    report = build(raw, cache)

    assert report.up_to_date
    assert (0, 8) == (report.num_decoded, report.num_reused)
    assert before == state_of(cache.parent)


def add(raw: Path) -> None:
    make_video(raw / "a" / "zz.mkv", 20)
    make_video(raw / "a" / "0first.mkv", 20, first=90)


def swap(raw: Path) -> None:
    for one, two in (("a_0", "x"), ("a_1", "a_0"), ("x", "a_1")):
        (raw / "a" / f"{one}.mkv").rename(raw / "a" / f"{two}.mkv")


CHANGES: dict[str, tuple[Callable[[Path], object], int]] = {  # and how many videos are to be decoded then
    "add": (add, 2),
    "change": (lambda raw: make_video(raw / "a" / "a_1.mkv", 21, first=77), 1),
    "rename": (lambda raw: (raw / "b" / "b_0.mkv").rename(raw / "b" / "moved.mkv"), 0),
    "remove": (lambda raw: (raw / "a" / "a_0.mkv").unlink(), 0),
    "touch": (lambda raw: touch(raw / "a" / "a_2.mkv"), 0),
    "copy": (lambda raw: shutil.copyfile(raw / "a" / "a_2.mkv", raw / "a" / "again.mkv"), 0),
    "swap": (swap, 0),
    "many": (lambda raw: [CHANGES[name][0](raw) for name in ("add", "change", "rename", "remove", "touch")], 3),
}


@pytest.mark.parametrize("name", [*(pytest.param(name, marks=SLOW) for name in CHANGES if name != "many"), "many"])
def test_after_a_change_only_what_is_new_is_decoded(raw: Path, cache: Path, tmp_path: Path, name: str) -> None:
    alter, num_decoded = CHANGES[name]
    alter(raw)

    report = build(raw, cache)

    fresh = build(raw, tmp_path / "fresh.h5")
    assert (num_decoded, fresh.num_videos - num_decoded) == (report.num_decoded, report.num_reused)
    assert not report.up_to_date
    assert (tmp_path / "fresh.h5").read_bytes() == cache.read_bytes()
    assert {"c.h5", "c.h5.lock", "c.failures.csv"} == {file.name for file in cache.parent.iterdir()}
    assert build(raw, cache).up_to_date


@pytest.mark.slow
def test_a_change_that_keeps_size_and_time_is_seen_with_check_contents(raw: Path, cache: Path, tmp_path: Path) -> None:
    video = raw / "a" / "a_0.mkv"
    facts = video.stat()
    data = video.read_bytes()
    video.write_bytes(data.replace(b"Lavf", b"Love"))  # a broken frame would give other pixels at every decode
    assert data != video.read_bytes()
    os.utime(video, ns=(facts.st_atime_ns, facts.st_mtime_ns))

    assert build(raw, cache).up_to_date
    report = build(raw, cache, check_contents=True)

    assert (1, 7) == (report.num_decoded, report.num_reused)
    build(raw, tmp_path / "fresh.h5")
    assert (tmp_path / "fresh.h5").read_bytes() == cache.read_bytes()
    assert build(raw, cache, check_contents=True).up_to_date


@pytest.mark.slow
def test_check_contents_heals_a_damaged_clip(raw: Path, cache: Path) -> None:
    good = cache.read_bytes()
    damage_clip(cache, 3)
    assert build(raw, cache).up_to_date  # sizes and times say nothing about it

    report = build(raw, cache, check_contents=True)

    assert (1, 7) == (report.num_decoded, report.num_reused)
    assert good == cache.read_bytes()


# --- failed videos ----------------------------------------------------------------------------


@pytest.mark.slow
def test_failed_videos_are_kept_until_asked_or_changed(raw: Path, cache: Path) -> None:
    bad = raw / "a" / "bad.mp4"
    bad.write_bytes(b"no video" * 50)
    assert (1, 1) == ((report := build(raw, cache)).num_decoded, report.num_failed)
    assert build(raw, cache).up_to_date
    assert (1, 8) == ((report := build(raw, cache, retry_failed=True)).num_decoded, report.num_reused)

    make_video(bad, 9)

    assert (1, 0) == ((report := build(raw, cache)).num_decoded, report.num_failed)
    assert build(raw, cache, retry_failed=True).up_to_date


def test_a_video_that_changes_while_it_is_read_is_not_believed(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vidcache.preprocess import executors as backends

    real = backends.decode_video

    def decode(path: bytes, *arguments: Any) -> Any:
        decoded = real(path, *arguments)
        if path.endswith(b"a_1.mkv"):
            touch(Path(os.fsdecode(path)))
        if path.endswith(b"a_2.mkv"):
            os.unlink(path)
        return decoded

    monkeypatch.setattr(backends, "decode_video", decode)
    report = build(raw, tmp_path / "c.h5", allow_tiny_classes=True)
    monkeypatch.undo()

    details = [problem.detail for problem in report.problems]
    assert ["the file changed after the build had begun; run again", "the file was removed; run again"] == details
    report = build(raw, tmp_path / "c.h5")
    assert (1, 6, 0) == (report.num_decoded, report.num_reused, report.num_failed)


# --- interrupted builds -----------------------------------------------------------------------


def test_an_interrupted_build_is_used_when_the_folder_has_changed_since(raw: Path, tmp_path: Path) -> None:
    interrupt(raw, tmp_path / "c.h5", 3)
    add(raw)

    report = build(raw, tmp_path / "c.h5")

    build(raw, tmp_path / "fresh.h5")
    assert (10 - 3, 3) == (report.num_decoded, report.num_reused)
    assert (tmp_path / "fresh.h5").read_bytes() == (tmp_path / "c.h5").read_bytes()


@pytest.mark.slow
def test_several_interrupted_builds_and_a_finished_one_are_all_used(raw: Path, cache: Path, tmp_path: Path) -> None:
    for name, number in (("x", 9), ("y", 5)):  # the second while it takes over what the first had
        make_video(raw / "a" / f"{name}.mkv", 15, first=number)
        make_video(raw / "b" / f"{name}.mkv", 15, first=20 * number)
        interrupt(raw, cache, number)
    assert 2 == len(list(build_folder(cache).iterdir()))

    report = build(raw, cache)

    build(raw, tmp_path / "fresh.h5")
    assert (12 - 9, 9) == (report.num_decoded, report.num_reused)
    assert (tmp_path / "fresh.h5").read_bytes() == cache.read_bytes()


def test_leftovers_of_a_killed_build_go_away_when_the_cache_is_current(raw: Path, cache: Path) -> None:
    folder = build_folder(cache) / "0123"
    folder.mkdir(parents=True)
    (folder / "data.h5").write_bytes(b"left")

    assert build(raw, cache).up_to_date

    assert not build_folder(cache).exists()


def test_an_up_to_date_check_leaves_a_running_build_alone(raw: Path, cache: Path) -> None:
    with CacheWriter(cache, small_plan(6, SPEC)) as other:
        fill(other, [0])

        assert build(raw, cache).up_to_date

        assert (other.folder / "data.h5").exists()


# --- another spec, another file ----------------------------------------------------------------


def test_another_spec_is_an_error_that_names_both_and_overwrite_replaces(raw: Path, cache: Path) -> None:
    good = cache.read_bytes()

    with pytest.raises(InputError, match=r"c\.h5: holds clips of 4 frames of 32x32, not of 8 frames of 32x48"):
        build(raw, cache, spec=Spec(8, 32, 48))

    assert good == cache.read_bytes()
    report = build(raw, cache, spec=Spec(8, 32, 48), overwrite=True)
    assert (8, 0) == (report.num_decoded, report.num_reused)
    with CacheReader(cache) as reader:
        assert (8, 32, 48) == reader.spec.clip_shape[:3]


def test_a_damaged_cache_is_replaced_when_it_is_told_to(raw: Path, cache: Path) -> None:
    good = cache.read_bytes()
    cache.write_bytes(b"vidcache" + bytes(100))

    with pytest.raises(CacheError, match=r"c\.h5: .*build it again with --overwrite"):
        build(raw, cache)

    assert 8 == build(raw, cache, overwrite=True).num_decoded
    assert good == cache.read_bytes()


# --- two builders, full disks, lost folders ----------------------------------------------------


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Path]:
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("needs a root that may mount")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.slow
def test_a_disk_that_fills_up_stops_the_build_which_goes_on_when_there_is_room(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = Spec(64, 64, 64)  # 0.75 MB a clip
    golden = build(raw, tmp_path / "golden.h5", spec=spec)
    old = b"vidcache: an older cache"
    with small_disk(tmp_path / "disk", 8) as disk:
        cache = disk / "c.h5"
        filler = disk / "filler"
        filler.write_bytes(bytes(4 << 20))
        with pytest.raises(VidcacheError, match=r"c\.h5: needs [\d,]+ bytes, but its disk has [\d,]+ free"):
            build(raw, cache, spec=spec)
        assert {"c.h5.lock", "filler"} == {path.name for path in disk.iterdir()}

        # Room when it begins, none later: another program was faster.
        monkeypatch.setattr(writer_module, "check_space", lambda *_: None)
        monkeypatch.setattr(writer_module, "COMMIT_SECONDS", 0)
        cache.write_bytes(old)
        with pytest.raises(
            VidcacheError, match=r"No space left on device while it was written. What was decoded is kept: free some"
        ):
            build(raw, cache, spec=spec, workers=1, overwrite=True)
        monkeypatch.undo()
        assert old == cache.read_bytes()

        filler.unlink()
        report = build(raw, cache, spec=spec, overwrite=True)

        assert report.num_reused > 0
        assert golden.fingerprint == report.fingerprint
        assert (tmp_path / "golden.h5").read_bytes() == cache.read_bytes()


@pytest.mark.slow
def test_a_read_only_folder_is_an_error_and_the_cache_stays(raw: Path, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 8) as disk:
        build(raw, disk / "c.h5")
        good = (disk / "c.h5").read_bytes()
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        assert build(raw, disk / "c.h5").up_to_date
        add(raw)

        with pytest.raises(VidcacheError, match=r"cannot write into .*disk \(Read-only file system\)"):
            build(raw, disk / "c.h5")

        assert good == (disk / "c.h5").read_bytes()


# --- scale ------------------------------------------------------------------------------------


def test_an_up_to_date_check_opens_no_video(raw: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, opened = os.open, []
    monkeypatch.setattr(os, "open", lambda path, *more, **mode: opened.append(str(path)) or real(path, *more, **mode))

    assert build(raw, cache).up_to_date

    assert not [path for path in opened if path.startswith(str(raw)) and path.endswith(".mkv")]
    assert [path for path in opened if path.endswith("c.h5")]


def test_only_whole_builds_of_other_plans_with_the_same_spec_give_clips(tmp_path: Path) -> None:
    output, own, other = tmp_path / "c.h5", small_plan(6), small_plan(5)
    for plan in (own, other, small_plan(5, Spec(2, 16, 16))):
        with CacheWriter(output, plan) as writer:
            fill(writer, [0, 1])
    (build_folder(output) / "no build").mkdir()
    data = build_folder(output) / other.hash() / "data.h5"
    whole, before = data.read_bytes(), os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else []

    with open_previous_builds(output, None, own) as donors:
        assert [5] == [len(donor.done) for donor in donors]
        assert [True, True, False, False, False] == donors[0].done.tolist()
        assert list(other.paths) == donors[0].columns["path"].tolist()
    if before:
        assert len(before) == len(os.listdir("/proc/self/fd"))
    for damaged in (whole[:-1], whole + b"x"):
        data.write_bytes(damaged)
        with open_previous_builds(output, None, own) as donors:
            assert [] == donors


def test_a_clip_that_an_earlier_build_has_lost_is_not_taken_over(tmp_path: Path) -> None:
    output, own, other = tmp_path / "c.h5", small_plan(6), small_plan(5)
    with CacheWriter(output, other) as writer:
        fill(writer, [0, 1])
    data = build_folder(output) / other.hash() / "data.h5"

    with CacheWriter(output, own) as writer, open_previous_builds(output, None, own) as (donor,):
        assert writer.copy_clip_from(1, donor, 1)
        os.truncate(data, donor.clips_offset + own.spec.clip_bytes // 2)  # while it is open
        assert not writer.copy_clip_from(0, donor, 0)
        assert [0, 2, 3, 4, 5] == writer.pending
