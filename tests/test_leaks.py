"""The leak guard: what it tells of a cache, of a training, of an evaluation."""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner, Result
from matplotlib.image import imread

from tests.helpers import make_plan, make_record, tiny_models
from tests.test_near import COPIES, Clip, scene
from vidcache import cli
from vidcache.cache import leakage
from vidcache.cache.format import Split, Status
from vidcache.cache.leakage import draw_leaks, find_duplicates, find_leaks, leaks_between, near_groups
from vidcache.cache.reader import CacheReader, open_caches
from vidcache.cache.writer import CacheWriter
from vidcache.eval.cli import main as videval
from vidcache.near_duplicates import NEAR
from vidcache.plotting import Filmstrip
from vidcache.preprocess.split.config import SplitOverrides
from vidcache.preprocess.split.resplit import split_cache
from vidcache.spec import Spec, sample_indices
from vidcache.train.cli import main as vidtrain

SPEC = Spec(16, 48, 48)
QUICK = ("--weights", "none", "--epochs", "1", "--batch-size", "8", "--amp", "off", "--device", "cpu")
TRAIN, VAL, TEST, UNUSED = Split


def call(command: click.Command, *arguments: object) -> Result:
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


def vidcache(*arguments: object) -> Result:
    return call(cli.main, *arguments)


def write(path: Path, clips: list[Clip | None], splits: list[Split]) -> Path:
    """A cache of given clips of two classes, in given splits; None is a video that failed."""
    plan = make_plan(SPEC, ["a", "b"], np.sort(np.arange(len(clips)) % 2))
    with CacheWriter(path, plan) as writer:
        for row, clip in enumerate(clips):
            if clip is None:
                writer.mark_done(row, make_record(np.zeros(SPEC.clip_shape, np.uint8), Status.FAILED, "no_frames: x"))
            else:
                writer.write_clip(row, clip)
                writer.mark_done(row, make_record(clip))
        writer.finish(np.arange(len(clips), dtype=np.int32), np.array(splits, np.uint8))
    return path


def scenes(count: int) -> list[Clip | None]:
    return [scene(seed, num_frames=16, size=48) for seed in range(count)]


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 scenes, 14 to train on, 3 and 3."""
    splits = [TRAIN] * 7 + [VAL, TEST, TEST] + [TRAIN] * 7 + [VAL, VAL, TEST]
    return write(tmp_path_factory.mktemp("clean") / "c.h5", scenes(20), splits)


@pytest.fixture(scope="module")
def leaky(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, but row 8 (test) is the mirror of row 0 (train), row 17 (val) has the very bytes of row 1 (train),
    and row 3 is noisy row 2 (both train)."""
    clips = scenes(20)
    originals = scenes(4)
    assert originals[0] is not None
    assert originals[2] is not None
    clips[8], clips[17], clips[3] = COPIES["mirrored"](originals[0]), originals[1], COPIES["noise"](originals[2])
    splits = [TRAIN] * 7 + [VAL, TEST, TEST] + [TRAIN] * 7 + [VAL, VAL, TEST]
    return write(tmp_path_factory.mktemp("leaky") / "c.h5", clips, splits)


def test_pairs_across_splits_are_found_the_nearest_first(clean: Path, leaky: Path) -> None:
    with CacheReader(leaky) as reader:
        found = find_duplicates(reader.columns)
        assert [[0, 8], [2, 3]] == found.rows.tolist()
        assert [*range(17), 1, 18, 19] == found.same.tolist()
        leaks = find_leaks(reader)
    assert {(1, 17), (0, 8)} == {tuple(pair) for pair in leaks.pairs.tolist()}
    assert sorted(leaks.distances) == leaks.distances.tolist()
    assert ([17], [8], [0, 1]) == tuple(leaks.rows_of(split).tolist() for split in (VAL, TEST, TRAIN))
    assert "1 val clip and 1 test clip look like clips of another split (2 pairs)" == leaks.in_words
    with CacheReader(clean) as reader:
        assert "no clip looks like one of another split" == find_leaks(reader).in_words


def test_blank_clips_look_like_nothing_and_dark_ones_like_their_copies(tmp_path: Path) -> None:
    (room,) = scenes(1)
    assert room is not None
    black, dark = np.zeros(SPEC.clip_shape, np.uint8), room // 30
    cache = write(tmp_path / "c.h5", [black, dark, black, None, dark], [TRAIN, TRAIN, TEST, TEST, TEST])

    with CacheReader(cache) as reader:
        assert [0, 1, 2, 3, 1] == find_duplicates(reader.columns).same.tolist()
        assert [[1, 4]] == find_leaks(reader).pairs.tolist()


@pytest.mark.parametrize("copy", ["same", "noise"])
@pytest.mark.parametrize(
    ("splits", "leaking"),
    [
        ((UNUSED, TEST, TRAIN), {1, 2}),
        ((TEST, TEST, TRAIN), {0, 1, 2}),
        ((VAL, VAL, TEST), {0, 1, 2}),
        ((UNUSED, UNUSED, TEST), set()),
        ((TRAIN, VAL, TEST), {0, 1, 2}),
    ],
)
def test_every_one_of_several_copies_leaks(
    tmp_path: Path, copy: str, splits: tuple[Split, ...], leaking: set[int]
) -> None:
    """Also when the first of them is unused, and when another clip looks like all of them."""
    (clip,) = scenes(1)
    assert clip is not None
    clips: list[Clip | None] = [clip, clip, clip if copy == "same" else COPIES["noise"](clip)]

    with CacheReader(write(tmp_path / "c.h5", clips, list(splits))) as reader:
        leaks = find_leaks(reader)

    assert leaking == set(leaks.pairs.reshape(-1).tolist())
    assert leaking == {row for split in (TRAIN, VAL, TEST) for row in leaks.rows_of(split).tolist()}
    assert all(splits[first] != splits[second] for first, second in leaks.pairs.tolist())


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)])
def test_any_number_of_copies_is_one_group_and_each_in_another_split_is_found(tmp_path: Path, seed: int) -> None:
    """25 copies of a clip and 25 of its cropped copy: each has more than 16 that are nearer than those of the others."""
    rng = np.random.default_rng(seed)
    originals = scenes(6)
    assert originals[seed] is not None
    cropped = COPIES["5 % off each side"](originals[seed])
    clips: list[Clip | None] = [*originals]
    for clip in (originals[seed], cropped):
        clips += [(clip + rng.normal(0, 3, clip.shape)).clip(0, 255).astype(np.uint8) for _ in range(25)]
    cache = write(tmp_path / "c.h5", clips, [TRAIN] * 31 + [TEST] * 25)

    with CacheReader(cache) as reader:
        assert {seed, *range(6, 56)} == set(find_leaks(reader).pairs.reshape(-1).tolist())

    assert 6 == split_cache(cache, SplitOverrides(seed=seed)).num_groups
    with CacheReader(cache) as reader:
        assert 0 == len(find_leaks(reader).pairs)


def test_two_caches_leak_into_each_other(clean: Path, tmp_path: Path) -> None:
    clips = scenes(40)
    cache = write(tmp_path / "c.h5", [clips[2], clips[30], clips[31]], [TEST, TRAIN, VAL])

    with open_caches([clean, cache]) as reader:
        assert [[2, 20]] == find_leaks(reader).pairs.tolist()


@pytest.mark.pictures
def test_leaks_lists_pairs_and_draws_them(leaky: Path, clean: Path, tmp_path: Path) -> None:
    result = vidcache("leaks", leaky, "--out", tmp_path / "pairs.png")

    assert 0 == result.exit_code, result.stderr
    lines = result.stdout.splitlines()
    assert "0.000000  train  a/video_0001.mp4  val    b/video_0017.mp4" in lines
    assert re.search(r"^0\.00\d{4}  train  a/video_0000.mp4  test   a/video_0008.mp4$", result.stdout, re.M)
    assert f"{leaky}: 1 val clip and 1 test clip look like clips of another split (2 pairs)" in lines
    assert f"{tmp_path}/pairs.png: the nearest 2 side by side" == lines[-1]
    both = imread(tmp_path / "pairs.png").shape
    vidcache("leaks", leaky, "--out", tmp_path / "one.png", "--num-pictures", 1)
    one = imread(tmp_path / "one.png").shape
    assert both[1] == one[1] > 900
    assert abs(both[0] - 2 * one[0]) < 3

    assert f"{clean}: no clip looks like one of another split\n" == vidcache("leaks", clean).stdout
    assert ["c.h5", "c.h5.lock"] == sorted(file.name for file in clean.parent.iterdir())


def test_each_clip_is_drawn_beside_its_split(leaky: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Filmstrip] = []
    monkeypatch.setattr("vidcache.plotting.draw_filmstrips", lambda strips, _: drawn.extend(strips))
    with CacheReader(leaky) as reader:
        leaks = find_leaks(reader)
        draw_leaks(reader, leaks, tmp_path / "p.png", 2)
        assert 2 == len(drawn)
        for strip, rows in zip(drawn, leaks.pairs.tolist(), strict=True):
            for (name, frames), row in zip(strip.lines, rows, strict=True):
                assert Split(reader.columns["split"][row]).name.lower() == name
                assert (reader.read([row], sample_indices(16, 8))[0] == frames).all()


def test_max_distance_is_what_counts_as_alike(tmp_path: Path) -> None:
    (clip,) = scenes(1)
    assert clip is not None
    cache = write(tmp_path / "c.h5", [clip, COPIES["noise"](clip)], [TRAIN, TEST])
    with CacheReader(cache) as reader:
        (distance,) = find_leaks(reader).distances.tolist()

    for limit, count in ((distance / 2, 0), (0.1, 1)):
        said = json.loads(vidcache("leaks", cache, "--json", "--max-distance", limit).stdout)
        assert (count, count) == (said["num_pairs"], len(said["pairs"]))


def test_leaks_json(leaky: Path, tmp_path: Path) -> None:
    said = json.loads(vidcache("leaks", leaky, "--out", tmp_path / "p.png", "--json", "--max-distance", 0).stdout)

    assert (str(leaky), str(tmp_path / "p.png")) == (said["cache"], said["picture"])
    assert 1 <= said["num_pairs"] == len(said["pairs"]) <= 2
    assert {
        "distance": 0.0,
        "splits": ["train", "val"],
        "classes": ["a", "b"],
        "paths": ["a/video_0001.mp4", "b/video_0017.mp4"],
    } in said["pairs"]
    short = vidcache("leaks", leaky, "--out", tmp_path / "p.png", "--num-pairs", 1)
    assert "and 1 more: --num-pairs" in short.stdout
    for out in (leaky, tmp_path / "best.pt"):
        refused = vidcache("leaks", leaky, "--out", out)
        assert 2 == refused.exit_code
        assert "the name of a picture must end in .png" in refused.stderr.replace("\n", " ")


@pytest.mark.slow
def test_near_duplicates_are_kept_together_counted_or_left_alone(leaky: Path, tmp_path: Path) -> None:
    cache = tmp_path / "c.h5"
    cache.write_bytes(leaky.read_bytes())

    grouped = split_cache(cache, SplitOverrides(seed=4))
    assert "6 clips look alike (copies, or cuts of one still scene) and stay together in 3 gr" in grouped.notes[0]
    assert 17 == grouped.num_groups
    with CacheReader(cache) as reader:
        assert 0 == len(find_leaks(reader).pairs)
    reports = [split_cache(cache, SplitOverrides(seed=seed, near_duplicates="report")) for seed in range(8)]
    said = r"\d pairs? of clips that look alike (is|are) in different splits: see vidcache leaks"
    assert any(report.notes and re.match(said, report.notes[0]) for report in reports)
    assert 20 == reports[0].num_groups
    assert () == split_cache(cache, SplitOverrides(near_duplicates="off")).notes


def test_a_given_split_that_parts_copies_says_so_and_nothing_else(leaky: Path, tmp_path: Path) -> None:
    cache = tmp_path / "c.h5"
    cache.write_bytes(leaky.read_bytes())
    with CacheReader(cache) as reader:
        rows = zip(reader.columns["path"].tolist(), reader.columns["split"].tolist(), strict=True)
        lines = [f"{os.fsdecode(path)},{Split(split).name.lower()}" for path, split in rows]
    (tmp_path / "s.csv").write_text("\n".join(["path,split", *lines]))

    report = split_cache(cache, SplitOverrides(source="files", files=(str(tmp_path / "s.csv"),)))

    said = "2 pairs of clips that look alike are in different splits: see vidcache leaks, and --near-duplicates"
    assert (said,) == report.notes


# --- vidtrain and videval -----------------------------------------------------------------------


@pytest.fixture
def tiny() -> Iterator[None]:
    with tiny_models():
        yield


@pytest.mark.usefixtures("tiny")
def test_vidtrain_says_it_and_strict_splits_stops(leaky: Path, clean: Path, tmp_path: Path) -> None:
    result = call(vidtrain, leaky, *QUICK, "--out", tmp_path / "a.pt")
    assert 0 == result.exit_code, result.stderr
    said = "1 val clip and 1 test clip look like clips of another split (2 pairs)"
    assert said in result.stderr

    strict = call(vidtrain, leaky, *QUICK, "--out", tmp_path / "b.pt", "--fail-on-leaks")
    assert 2 == strict.exit_code
    assert re.search(rf"Error: .*c\.h5: {re.escape(said)}.*vidcache leaks CACHE", strict.stderr)
    assert not (tmp_path / "b.pt").exists()
    assert not (tmp_path / "b.run").exists()

    result = call(vidtrain, clean, *QUICK, "--out", tmp_path / "c.pt", "--fail-on-leaks")
    assert 0 == result.exit_code, result.stderr
    assert "no clip looks like one of another split" in result.stderr


@pytest.mark.slow
@pytest.mark.usefixtures("tiny")
def test_videval_says_whether_the_test_split_is_clean(leaky: Path, clean: Path, tmp_path: Path) -> None:
    for cache, num_leaked in ((leaky, 1), (clean, 0)):
        assert 0 == call(vidtrain, cache, *QUICK, "--out", tmp_path / "best.pt", "--overwrite").exit_code

        result = call(videval, cache, "--ckpt", tmp_path / "best.pt", "--device", "cpu")

        assert 0 == result.exit_code, result.stderr
        said = json.loads((tmp_path / "best.eval" / "metrics.json").read_text())
        assert (num_leaked, 3 - num_leaked) == (said["num_leaked"], said["num_clean"])
        assert said["clean_accuracy"] == said["num_clean_correct"] / said["num_clean"]
        assert said["clean_low"] <= said["clean_accuracy"] <= said["clean_high"]


# --- the column ---------------------------------------------------------------------------------


@pytest.mark.parametrize("threshold", [NEAR, NEAR / 2, 2 * NEAR])
def test_stored_groups_change_no_result(leaky: Path, threshold: float) -> None:
    with CacheReader(leaky) as reader:
        columns, splits = reader.columns, reader.columns["split"]
    assert [0, 1, 2, 2, 4, 5, 6, 7, 0, *range(9, 17), 1, 18, 19] == columns["near_group"].tolist()
    without = {name: values for name, values in columns.items() if name != "near_group"}
    assert near_groups(without).tolist() == columns["near_group"].tolist()

    pairs, searched = (find_duplicates(some, threshold, splits) for some in (columns, without))
    leaks, expected = (leaks_between(some, splits, threshold) for some in (columns, without))

    for name in ("rows", "distances", "same"):
        assert getattr(pairs, name).tolist() == getattr(searched, name).tolist()
    assert (leaks.pairs.tolist(), leaks.distances.tolist()) == (expected.pairs.tolist(), expected.distances.tolist())


def test_a_split_by_groups_is_checked_without_a_search(
    leaky: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched: list[int] = []
    real = leakage.find_near_pairs
    monkeypatch.setattr(leakage, "find_near_pairs", lambda some, *more: searched.append(len(some)) or real(some, *more))
    cache = tmp_path / "c.h5"
    cache.write_bytes(leaky.read_bytes())

    split_cache(cache, SplitOverrides(seed=3))
    with CacheReader(cache) as reader:
        assert 0 == len(find_leaks(reader).pairs)
        assert [0, 1, 2, 2] == reader.columns["near_group"][:4].tolist()

    assert not any(searched)
