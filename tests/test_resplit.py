"""Splitting: options of build and of `vidcache split`, given splits, and a cache that is split again."""

import csv
import json
import os
import shutil
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from click.testing import CliRunner, Result

from tests.helpers import damage_clip, make_cache, make_raw, make_video, read_split
from vidcache import cli
from vidcache.cache import writer
from vidcache.cache.format import Split
from vidcache.cache.reader import CacheReader
from vidcache.errors import CacheError, InputError, LockedError
from vidcache.preprocess.build import build_cache
from vidcache.preprocess.options import BuildOptions
from vidcache.preprocess.split import config, resplit
from vidcache.preprocess.split.config import SplitOverrides
from vidcache.preprocess.split.resplit import split_cache
from vidcache.spec import Spec

SPEC = Spec(8, 32, 32)


def vidcache(*arguments: object) -> Result:
    return CliRunner().invoke(cli.main, [str(argument) for argument in arguments])


def build(raw: Path, cache: Path, *arguments: object) -> Result:
    result = vidcache("build", raw, cache, "--num-frames", 8, "--size", 32, "--workers", 2, *arguments)
    assert 0 == result.exit_code, result.stderr
    return result


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2 classes of 9 videos in 3 folders each, not the same ones, recorded in 6 sessions that both classes share."""
    folder = tmp_path_factory.mktemp("data") / "raw"
    for number in range(18):
        name, index = ("jump", "run")[number // 9], number % 9
        place = folder / name / f"take{index // 3 + number // 9}" / f"s{index % 6}_{index}.mkv"
        make_video(place, 24, first=number * 13, step=(1, 3, 7)[number % 3], size=("64x48", "48x64")[number % 2])
    return folder


@pytest.fixture(scope="module")
def built(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    cache = tmp_path_factory.mktemp("built") / "c.h5"
    build(raw, cache)
    return cache


@pytest.fixture
def cache(built: Path, tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return Path(shutil.copy(built, tmp_path / "out" / "c.h5"))


def splits_by(cache: Path, part: int) -> dict[str, set[int]]:
    """In which splits the clips are whose path has the same characters at a place."""
    found: dict[str, set[int]] = {}
    with CacheReader(cache) as reader:
        for row in reader.rows().tolist():
            key = os.fsdecode(reader.path_of(row)).split("/")
            name = "/".join(key[:2]) if part == 0 else key[2].split("_")[0]
            found.setdefault(name, set()).add(int(reader.columns["split"][row]))
    return found


@pytest.mark.parametrize(("by", "part"), [("folder", 0), (r"regex:/(s\d)_", 1)])
def test_groups_stay_together_and_build_and_split_give_the_same_bytes(
    raw: Path, cache: Path, tmp_path: Path, by: str, part: int
) -> None:
    assert any(len(splits) > 1 for splits in splits_by(cache, part).values())

    result = vidcache("split", cache, "--group-by", by)

    assert 0 == result.exit_code, result.stderr
    assert all(len(splits) == 1 for splits in splits_by(cache, part).values())
    assert f"by {by.replace(':', ' ', 1)}, 6 groups" in result.stdout
    build(raw, tmp_path / "fresh.h5", "--group-by", by)
    assert (tmp_path / "fresh.h5").read_bytes() == cache.read_bytes()
    assert {"c.h5", "c.h5.lock"} == {file.name for file in cache.parent.iterdir()}


def test_what_is_not_given_stays_as_it_is(raw: Path, cache: Path) -> None:
    vidcache("split", cache, "--group-by", "folder", "--split", "50/25/25", "--near-duplicates", "off")
    before = cache.read_bytes()

    again = vidcache("split", cache)
    assert "it has this split already, nothing was written" in again.stdout
    assert "nothing was written" in vidcache("split", cache, "--seed", 5, "--dry-run").stdout
    assert "nothing was written" in build(raw, cache).stderr
    assert before == cache.read_bytes()

    said = json.loads(vidcache("split", cache, "--seed", 5, "--json").stdout)
    names = ("split_by", "split_fractions", "split_seed", "split_near_duplicates")
    assert ["folder", [0.5, 0.25, 0.25], 5, "off"] == [said[name] for name in names]
    assert said["num_moved"] > 0
    with CacheReader(cache) as reader:
        assert said["split_hash"] == reader.split_hash
        counts = {name: sum(row.values()) for name, row in said["splits"].items()}
        assert {"jump": 9, "run": 9} == counts
    assert all(len(splits) == 1 for splits in splits_by(cache, 0).values())


def test_clips_fingerprint_links_and_permissions_stay(cache: Path, tmp_path: Path) -> None:
    with CacheReader(cache) as reader:
        clips, before = reader.read(reader.rows()), (reader.fingerprint, reader.split_hash)
    (link := tmp_path / "link.h5").symlink_to(cache)
    cache.chmod(0o600)

    report = split_cache(link, SplitOverrides(seed=3))

    assert (True, 0o600) == (link.is_symlink(), cache.stat().st_mode & 0o777)
    with CacheReader(cache) as reader:
        assert (clips == reader.read(reader.rows(), verify=True)).all()
        assert (before[0], True) == (reader.fingerprint, before[1] != reader.split_hash)
        assert (report.split_hash, report.up_to_date) == (reader.split_hash, False)
    assert split_cache(cache, SplitOverrides(seed=3)).up_to_date


def test_a_split_of_an_earlier_version_stays_until_another_is_asked_for(tmp_path: Path) -> None:
    cache = make_cache(tmp_path / "c.h5", {"a": 12, "b": 12})
    with mock.patch.object(config, "assign_splits", lambda paths, *_: np.arange(len(paths), dtype=np.uint8) % 3):
        assert not split_cache(cache, SplitOverrides(seed=1)).up_to_date
    before = cache.read_bytes()

    report = split_cache(cache)

    assert (True, 0, before) == (report.up_to_date, report.num_moved, cache.read_bytes())
    assert "the split stays as it is; this version would choose another one" in report.notes[-1]
    assert split_cache(cache, SplitOverrides(seed=2)).num_moved > 0


# --- given splits -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def given_raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """raw/{train,val,test}/<class>/: 3, 1 and 2 videos of 2 classes."""
    folder = tmp_path_factory.mktemp("given") / "raw"
    number = 0
    for split, count in (("train", 3), ("val", 1), ("test", 2)):
        for name in ("jump", "run"):
            for index in range(count):
                make_video(folder / split / name / f"{name}{index}.mkv", 24, first=number * 19, step=1 + number % 5)
                number += 1
    return folder


def test_folders_called_train_val_and_test_are_the_split(given_raw: Path, tmp_path: Path) -> None:
    result = build(given_raw, tmp_path / "c.h5")

    assert "12 clips of 2 classes (train 6, val 2, test 4)" in result.stderr
    with CacheReader(tmp_path / "c.h5") as reader:
        assert ("jump", "run") == reader.classes
        assert ("folders", 1) == (reader.attributes["split_source"], reader.attributes["class_depth"])
        for row, name in enumerate(reader.columns["path"].tolist()):
            assert name.split(b"/")[0].decode() == Split(reader.columns["split"][row]).name.lower()
            assert name.split(b"/")[1].decode() == reader.classes[reader.labels[row]]


def test_another_layout_or_fractions_overrule_the_folders(given_raw: Path, tmp_path: Path) -> None:
    build(given_raw, tmp_path / "classes.h5", "--layout", "classes", "--allow-tiny-classes")
    with CacheReader(tmp_path / "classes.h5") as reader:
        assert ("test", "train", "val") == reader.classes
    build(given_raw, tmp_path / "c.h5", "--split", "100/0/0")
    assert 12 == len(read_split(tmp_path / "c.h5", Split.TRAIN))
    assert 0 == vidcache("split", tmp_path / "c.h5", "--split", "folders").exit_code
    assert 4 == len(read_split(tmp_path / "c.h5", Split.TEST))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--group-by", "file:none.csv"), "none.csv: No such file or directory"),
        (("--group-by", "regex"), "group by 'regex': not video, folder"),
        (("--group-by", "regex:s"), "group by regex 's': no capture group"),
        (("--group-by",), "Option '--group-by' requires an argument"),
        (("--split", "80/30"), "split '80/30': not train/val/test percentages"),
        (("--split", "folders", "--split-file", "x.csv"), "--split folders and --split-file exclude each other"),
        (("--split-file", "no.csv"), "no.csv: no such file"),
        (("--near-duplicates", "maybe"), "'maybe' is not one of"),
        (("--group-by", "regex:(zzz)"), "matches none of 18 paths"),
        (("--split", "folders"), "split: no video is for training (for example jump/take0/s0_0.mkv)"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_done(
    raw: Path, cache: Path, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    before = cache.read_bytes()

    for command in (("split", cache), ("build", raw, tmp_path / "new.h5")):
        result = vidcache(*command, *arguments)

        assert 2 == result.exit_code, result.output
        assert message in result.stderr.replace("\n", " ")
    assert before == cache.read_bytes()
    assert not (tmp_path / "new.h5").exists()


def test_group_by_may_come_first_and_from_the_environment(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "by folder" in vidcache("split", "--group-by", "folder", cache).stdout
    assert "by regex (s2)_" in vidcache("split", cache, "--group-by=regex:(s2)_").stdout
    monkeypatch.setenv("VIDCACHE_GROUP_BY", "regex:(s3)_")
    assert "by regex (s3)_" in vidcache("split", "--", cache).stdout


def write_list(cache: Path, path: Path, column: str, values: list[str]) -> list[str]:
    """Write a CSV with the paths of a cache and a value for each, as far as there are values; return the paths."""
    with CacheReader(cache) as reader:
        paths = [os.fsdecode(name) for name in reader.columns["path"].tolist()]
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("path", column), *zip(paths, values, strict=False)])
    return paths


def test_a_list_gives_the_split_and_what_it_leaves_out_is_unused(raw: Path, cache: Path, tmp_path: Path) -> None:
    splits, names = tmp_path / "splits.csv", ["train", "train", "val", "test"]
    paths = write_list(cache, splits, "split", names * 4)
    with splits.open("a") as file:
        file.write("jump/no/such.mkv,test\n")

    result = vidcache("split", cache, "--split-file", splits)

    assert 0 == result.exit_code, result.stderr
    assert "Note: 1 line of the lists without a video" in result.stderr
    assert "Note: 2 videos are in no list: not used" in result.stderr
    for split in (Split.TRAIN, Split.VAL, Split.TEST):
        wanted = [path for path, name in zip(paths, names * 4, strict=False) if name == split.name.lower()]
        assert wanted == [os.fsdecode(path) for path in read_split(cache, split)]
    assert 2 == sum(json.loads(vidcache("info", cache, "--json").stdout)["splits"]["unused"].values())
    fresh = build(raw, tmp_path / "fresh.h5", "--split-file", splits)
    assert "(train 8, val 4, test 4, unused 2)" in fresh.stderr
    assert (tmp_path / "fresh.h5").read_bytes() == cache.read_bytes()


def test_a_cache_stores_no_lists(raw: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing to do is no problem; anything else needs the lists again, not what happens to be there under the name."""
    splits, groups = tmp_path / "splits.csv", tmp_path / "g.csv"
    write_list(cache, splits, "split", ["train"] * 18)
    write_list(cache, groups, "group", [str(row % 5) for row in range(18)])
    assert 0 == vidcache("split", cache, "--split-file", splits).exit_code

    assert "up to date" in build(raw, cache).stderr
    result = vidcache("split", cache, "--seed", 1)

    assert 2 == result.exit_code
    assert "by video and files, but the cache does not store the lists. Pass them again" in result.stderr
    for more in (("--split-file", splits), ("--split", "70/15/15"), ("--group-by", f"file:{groups}")):
        assert 0 == vidcache("split", cache, "--seed", 1, *more).exit_code
    monkeypatch.chdir(tmp_path)
    result = vidcache("split", cache, "--split-file", splits)
    assert 2 == result.exit_code
    assert "by file g.csv and files, but the cache does not store the lists" in result.stderr.replace("\n", " ")


def test_what_a_list_lacks_is_taken_out_of_train(cache: Path, tmp_path: Path) -> None:
    splits = tmp_path / "splits.csv"
    write_list(cache, splits, "split", ["test", "train", "train"] * 6)

    result = vidcache("split", cache, "--split-file", splits)

    assert "Note: the given split has no val: taken out of train, in whole groups" in result.stderr
    assert 6 == len(read_split(cache, Split.TEST))
    assert len(read_split(cache, Split.VAL)) >= 2
    assert "taken out of train" not in vidcache("split", cache, "--split-file", splits, "--split", "80/0/20").stderr
    assert 0 == len(read_split(cache, Split.VAL))


@pytest.mark.parametrize(
    ("options", "note"),
    [
        (["regex:/(s[0-4])_", "--split", "40/30/30"], "Note: --group-by regex:/(s[0-4])_ matches no group for"),
        (["regex:/take[01]/(s)", "--split", "34/33/33"], "of 2 classes cannot be near 34/33/33, because groups stay"),
        (["regex:/(t)"], "Note: no clip is in val and test: 1 group of 18 clips are too few. Use a finer --group-by"),
    ],
)
def test_notes_say_what_is_not_as_one_may_think(cache: Path, options: list[str], note: str) -> None:
    assert note in vidcache("split", cache, "--group-by", *options).stderr
    assert "no clip is in" not in vidcache("split", cache, "--split", "100/0/0").stderr


@pytest.mark.parametrize(("spec", "overwrite"), [(SPEC, False), (Spec(4, 16, 16), True)])
def test_an_interrupted_build_is_not_thrown_away(
    raw: Path, cache: Path, tmp_path: Path, spec: Spec, overwrite: bool
) -> None:
    more = Path(shutil.copytree(raw, tmp_path / "raw"))
    make_raw(more, {"jump": 2})

    def stop(done: int, failed: int, total: int) -> None:
        if done == 19:
            raise KeyboardInterrupt

    options = BuildOptions(spec=spec, workers=1, overwrite=overwrite)
    with pytest.raises(KeyboardInterrupt):
        build_cache(more, cache, options, stop)
    with pytest.raises(InputError, match="c.h5: a build of it was interrupted, and what it has decoded would be lost"):
        split_cache(cache, SplitOverrides(seed=1))
    assert split_cache(cache).up_to_date
    assert 1 == build_cache(more, cache, options).num_decoded
    assert not split_cache(cache, SplitOverrides(seed=1)).up_to_date


# --- what must not happen -------------------------------------------------------------------


def test_a_damaged_clip_is_not_copied(cache: Path) -> None:
    damage_clip(cache, 4)
    before = cache.read_bytes()

    with pytest.raises(CacheError, match=r"c.h5: the clip of row 4 \(jump/take1/s4_4.mkv\) does not match its hash"):
        split_cache(cache, SplitOverrides(seed=1))

    assert before == cache.read_bytes()


def test_two_cannot_write_at_once(cache: Path) -> None:
    def try_again(done: int, total: int) -> None:
        assert 18 == total
        if done == 9:
            with pytest.raises(LockedError, match="c.h5: another build is writing it"):
                split_cache(cache, SplitOverrides(seed=2))

    split_cache(cache, SplitOverrides(seed=1), progress=try_again)


def split_and_die(cache: Path, num_calls: int) -> bool:
    """Split in a forked child that is killed at the n-th call that writes; return whether it was."""
    child = os.fork()
    if not child:
        left = iter(range(num_calls))

        def killing(function: Any) -> Any:
            return lambda *more: function(*more) if next(left, None) is not None else os.kill(os.getpid(), 9)

        for name in ("pwrite_all", "copy_range", "sync_file", "sync_folder", "remove_builds"):
            setattr(writer, name, killing(getattr(writer, name)))
        Path.rename = killing(Path.rename)  # type: ignore[method-assign]
        split_cache(cache, SplitOverrides(seed=1))
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, -9)
    return status != 0


@pytest.mark.slow
def test_a_kill_at_any_instant_leaves_the_old_split_or_the_new(cache: Path, tmp_path: Path) -> None:
    """A process is killed after more and more of its work; whatever was left, the same command ends the same."""
    before = cache.read_bytes()
    golden = Path(shutil.copy(cache, tmp_path / "golden.h5"))
    split_cache(golden, SplitOverrides(seed=1))
    num_killed = 0
    while split_and_die(cache, 3 * num_killed):
        num_killed += 1
        assert cache.read_bytes() in (before, golden.read_bytes())
        if num_killed % 4 == 0:  # from the start again, else from what was left
            shutil.rmtree(cache.with_name(".c.h5.build"), ignore_errors=True)
            cache.write_bytes(before)
    assert num_killed >= 5
    assert golden.read_bytes() == cache.read_bytes()
    split_cache(cache, SplitOverrides(seed=2))  # what a kill after the end has left goes with the next one
    assert {"c.h5", "c.h5.lock"} == {file.name for file in cache.parent.iterdir()}


def test_a_cache_that_was_replaced_meanwhile_is_not_overwritten(cache: Path, tmp_path: Path) -> None:
    newer = make_cache(tmp_path / "newer.h5", {"a": 4, "b": 4})
    inner = resplit.Splitter.assign

    def assign(self: resplit.Splitter, *arguments: Any) -> Any:
        newer.replace(cache)
        return inner(self, *arguments)

    with (
        mock.patch.object(resplit.Splitter, "assign", assign),
        pytest.raises(LockedError, match="c.h5: replaced by another build meanwhile"),
    ):
        split_cache(cache, SplitOverrides(seed=1))
    with CacheReader(cache) as reader:
        assert ("a", "b") == reader.classes
