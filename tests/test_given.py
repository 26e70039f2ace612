"""Given splits: lists in the formats of the data sets, matched to videos that were renamed, moved and converted."""

import os
import re
import time
from pathlib import Path

import numpy as np
import pytest

from vidcache.cache.format import Split
from vidcache.errors import InputError
from vidcache.preprocess.split.config import SplitConfig, SplitOverrides
from vidcache.preprocess.split.groups import GroupBy
from vidcache.preprocess.split.predefined import (
    UNNAMED,
    PredefinedSplit,
    expand,
    fill_missing_splits,
    folder_splits,
    read_split_files,
)
from vidcache.preprocess.video.lists import SPLIT_WORDS, split_of_folder

DEFAULT = (0.70, 0.15, 0.15)
PATHS = [b"Run/v_a_g01.avi", b"Run/v_b_g01.avi", b"Walk/sub/v_a_g02.mp4", b"Walk/v c 1.avi"]


def _write(folder: Path, **files: str) -> list[str]:
    """Write files; "__" in a name is its dot."""
    names = []
    for name, content in files.items():
        path = folder / name.replace("__", ".")
        path.write_bytes(os.fsencode(content))
        names.append(str(path))
    return names


def _read(folder: Path, paths: list[bytes] = PATHS, **files: str) -> list[int]:
    return read_split_files(_write(folder, **files), paths).split.tolist()


def test_a_csv(tmp_path: Path) -> None:
    content = (
        "note,Split, path\n,train,Run/v_a_g01.avi\n,Validate,v_b_g01.avi\n\n,TEST,Walk/sub/v_a_g02.avi\n,test,x/y.avi\n"
    )

    given = read_split_files(_write(tmp_path, any__txt=content), PATHS)

    assert [Split.TRAIN, Split.VAL, Split.TEST, UNNAMED] == given.split.tolist()
    assert np.uint8 == given.split.dtype
    assert (1, 1, ("CSV",)) == (given.num_unknown, given.num_unnamed, given.formats)
    assert given.has_val
    assert given.has_test


@pytest.mark.parametrize("word", ["val", "valid", "validation", "validate", "dev", "Dev"])
def test_val_has_many_names(tmp_path: Path, word: str) -> None:
    assert Split.VAL == _read(tmp_path, a__csv=f"path,split\nv_b_g01,{word}\n")[1]


@pytest.mark.parametrize("word", ["0", "1", "2", "devel", ""])
def test_other_words_are_refused(tmp_path: Path, word: str) -> None:
    expected = f"a.csv, line 3: split {word!r}, expected train, val or test. Correct the line, or remove it"
    with pytest.raises(InputError, match=re.escape(expected)):
        _read(tmp_path, a__csv=f"path,split\n\nv_b_g01.avi,{word}\n")


def test_ucf101_lists(tmp_path: Path) -> None:
    files = {"trainlist01__txt": "Run/v_a_g01.avi 1\nWalk/v c 1.avi\n\n", "testlist01__txt": "Run/v_b_g01.avi\r\n"}

    given = read_split_files(_write(tmp_path, **files), PATHS)

    assert [Split.TRAIN, Split.TEST, UNNAMED, Split.TRAIN] == given.split.tolist()
    assert (("UCF101",), True, False) == (given.formats, given.has_test, given.has_val)


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("vallist02__txt", Split.VAL),
        ("my_train_videos__lst", Split.TRAIN),
        ("VALIDATION__txt", Split.VAL),
        ("ucf101_val_split_1__txt", Split.VAL),
        ("test", Split.TEST),
    ],
)
def test_the_name_of_a_list_says_what_it_is_for(tmp_path: Path, name: str, split: Split) -> None:
    assert split == _read(tmp_path, **{name: "Run/v_b_g01.avi 7"})[1]


@pytest.mark.parametrize("name", ["videos__txt", "trainer__txt", "train_test__txt", "contest__txt"])
def test_an_unknown_format_is_refused(tmp_path: Path, name: str) -> None:
    expected = f"{name.replace('__', '.')}: unknown format, expected a CSV with the columns path,split, a Kinetics CSV"
    with pytest.raises(InputError, match=re.escape(expected)):
        _read(tmp_path, **{name: "Run/v_b_g01.avi 7"})


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=re.escape("clip.mp4: unknown format, expected a CSV with the columns")):
        _read(tmp_path, clip__mp4="\0\udcff" * 100_000)


def test_hmdb51_lists(tmp_path: Path) -> None:
    paths = [b"brush_hair/a#1.avi", b"brush_hair/b 2.mp4", b"hair/a#1.avi", b"brush_hair/c.avi", b"brush_hair/d.avi"]
    content = "a#1.avi 1 \nb 2.avi 2\n\nc.avi 0\n"

    given = read_split_files(_write(tmp_path, brush_hair_test_split1__txt=content), paths)

    assert [Split.TRAIN, Split.TEST, UNNAMED, Split.UNUSED, UNNAMED] == given.split.tolist()
    assert ("HMDB51",) == given.formats


@pytest.mark.parametrize("line", ["a.avi 3", "a.avi", "1", "a.avi train"])
def test_a_wrong_line_of_hmdb51_is_refused(tmp_path: Path, line: str) -> None:
    expected = f"run_test_split1.txt, line 2: {line!r}, expected a video and 0 (unused), 1 (train) or 2 (test)"
    with pytest.raises(InputError, match=re.escape(expected)):
        _read(tmp_path, run_test_split1__txt=f"\n{line}\n")


KINETICS = "label,youtube_id,time_start,time_end,split\n"


def test_kinetics(tmp_path: Path) -> None:
    paths = [
        b"riding_a_bike/-abc_000010_000020.mp4",
        b"riding a bike/x_y.webm",
        b"other/deep/z.mp4",
        b"v_000001_000002.mp4",
    ]
    content = f'{KINETICS}"riding a bike",-abc,10,20,train\nriding a bike,x_y,0,10,val\nnone,z,,,test\n,v,1.0,2.0,test\n,w,3,4,test\n'

    given = read_split_files(_write(tmp_path, k__csv=content), paths)

    assert [Split.TRAIN, Split.VAL, Split.TEST, Split.TEST] == given.split.tolist()
    assert (1, ("Kinetics",)) == (given.num_unknown, given.formats)


def test_kinetics_tells_the_times_of_one_video_apart(tmp_path: Path) -> None:
    paths = [b"run/abc_000000_000010.mp4", b"run/abc_000010_000020.mp4"]

    assert [0, 2] == _read(tmp_path, paths, k__csv=f"{KINETICS}run,abc,0,10,train\nrun,abc,10,20,test\n")


def test_kinetics_tells_the_classes_of_one_video_apart(tmp_path: Path) -> None:
    paths = [b"run/abc.mp4", b"walk/abc.mp4", b"walk/def.mp4"]
    content = f"{KINETICS}run,abc,0,10,train\nwalk,abc,10,20,test\nrun,def,0,10,train\nwalk,def,0,10,test\n"

    given = read_split_files(_write(tmp_path, k__csv=content), paths)

    assert [0, 2, 2] == given.split.tolist()
    assert 1 == given.num_unknown  # that of run/def is not here


def test_a_list_without_labels_or_times(tmp_path: Path) -> None:
    assert [2] == _read(tmp_path, [b"run/abc.mp4"], k__csv="youtube_id,split\nabc,test\n")


def test_an_exact_path_comes_before_an_end_and_an_end_before_another_extension(tmp_path: Path) -> None:
    paths = [b"a/v.avi", b"x/a/v.avi", b"x/b/v.mp4", b"y/w.avi", b"y/w.mp4"]

    assert [0, UNNAMED, UNNAMED, UNNAMED, UNNAMED] == _read(tmp_path, paths, trainlist__txt="a/v.avi")
    assert [UNNAMED, 0, UNNAMED, UNNAMED, 0] == _read(tmp_path, paths, trainlist__txt="x/a/v.avi\nw.mp4")
    assert [UNNAMED, UNNAMED, 0, UNNAMED, UNNAMED] == _read(tmp_path, paths, trainlist__txt="b/v.avi")


def test_an_end_is_whole_parts_of_the_path(tmp_path: Path) -> None:
    assert [UNNAMED, 0] == _read(tmp_path, [b"a/xv.avi", b"a/v.avi"], trainlist__txt="v.avi")


def test_a_name_without_an_extension_may_have_dots(tmp_path: Path) -> None:
    assert [0, UNNAMED] == _read(tmp_path, [b"a/v.01.avi", b"a/v.02.avi"], trainlist__txt="v.01")


@pytest.mark.parametrize("name", ["v.avi", "v", "v.mkv"])
def test_a_name_that_fits_two_videos_is_refused(tmp_path: Path, name: str) -> None:
    expected = f"trainlist.txt, line 2: {name} may be a/v.avi or b/v.avi, expected one video. Write more of the path"
    with pytest.raises(InputError, match=re.escape(expected)):
        _read(tmp_path, [b"a/v.avi", b"b/v.avi"], trainlist__txt=f"\n{name}")


def test_a_video_with_two_splits_is_refused(tmp_path: Path) -> None:
    expected = (
        rf"{re.escape(str(tmp_path))}/testlist02.txt, line 2: Run/v_a_g01.avi is test, and train in "
        rf"{re.escape(str(tmp_path))}/trainlist01.txt, line 1, expected one split for a video. Give the lists of one"
    )
    with pytest.raises(InputError, match=expected):
        _read(tmp_path, trainlist01__txt="v_a_g01.avi", testlist02__txt="v_b_g01.avi\nRun/v_a_g01.mp4")


def test_a_video_may_be_named_twice(tmp_path: Path) -> None:
    assert 0 == _read(tmp_path, trainlist01__txt="v_a_g01.avi\nRun/v_a_g01.avi")[0]


def test_lists_of_other_videos_are_refused(tmp_path: Path) -> None:
    expected = (
        "trainlist01.txt: none of 2 lines (Jump/x.avi) names one of 4 videos (Run/v_a_g01.avi), expected paths, or "
        "ends of paths, below the raw folder. Check that these lists belong to these videos"
    )
    with pytest.raises(InputError, match=re.escape(expected)):
        _read(tmp_path, trainlist01__txt="Jump/x.avi\nJump/y.avi")


def test_patterns_are_expanded_and_files_with_brackets_are_meant_literally(tmp_path: Path) -> None:
    names = _write(tmp_path, trainlist01__txt="v_a_g01", testlist01__txt="v_b_g01", **{"train[1]__txt": "v_a_g02"})

    assert [names[1], names[0]] == expand([f"{tmp_path}/*list01.txt"])
    assert [names[2]] == expand([names[2]])
    assert [0, 2, 0, UNNAMED] == read_split_files([f"{tmp_path}/*list*.txt", names[2]], PATHS).split.tolist()


def test_a_pattern_without_a_file_is_refused(tmp_path: Path) -> None:
    expected = f"{tmp_path}/*.csv: no such file, expected a list of videos, or a pattern of lists. Check the path"
    with pytest.raises(InputError, match=re.escape(expected)):
        read_split_files([f"{tmp_path}/*.csv"], PATHS)


def test_a_folder_is_no_list(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=re.escape(f"{tmp_path}: Is a directory, expected a text file. Check the path")
    ):
        read_split_files([str(tmp_path)], PATHS)


def test_any_bytes_are_names(tmp_path: Path) -> None:
    assert [0] == _read(tmp_path, [b"a/\xff\xe9.avi"], trainlist__txt=os.fsdecode(b"\xef\xbb\xbf\xff\xe9.mp4 1"))


def test_many_lines_take_little_time(tmp_path: Path) -> None:
    """100,000 take a second; matching each with each would take hours."""
    paths = [b"c%d/r%d/video.mp4" % (number % 100, number) for number in range(20_000)]
    content = "".join(f"r{number}/video.avi\n" for number in range(20_000))
    start = time.perf_counter()

    assert {0} == set(_read(tmp_path, paths, trainlist__txt=content))
    assert time.perf_counter() - start < 100


def test_notes_say_what_is_not_as_one_may_think() -> None:
    given = PredefinedSplit(np.array([0, 2, UNNAMED], np.uint8), 2, ("CSV", "UCF101"))

    assert given.notes == (
        "2 lines of the lists (CSV, UCF101) name no video",
        "1 video is in no list: not used",
    )
    assert () == PredefinedSplit(np.array([0, 1, 2, 3], np.uint8)).notes
    assert folder_splits([b"train/a/x", b"other/a/x", b"b/a/x"]).notes == (
        "2 videos are in no folder train, val or test: not used",
    )


def test_folders_say_what_a_video_is_for() -> None:
    paths = [
        b"train/a/x",
        b"val/a/x",
        b"valid/a/x",
        b"validation/a/x",
        b"test/a/x",
        b"a/train/x",
        b"TRAINING/a/x",
        b"train",
    ]

    assert [0, 1, 1, 1, 2, UNNAMED, 0, UNNAMED] == folder_splits(paths).split.tolist()
    assert [UNNAMED] * 5 + [0, UNNAMED, UNNAMED] == folder_splits(paths, class_depth=0).split.tolist()
    for split, words in (("TRAIN", "train training"), ("VAL", "val valid validate validation dev")):
        assert {Split[split]} == {split_of_folder(word.title().encode()) for word in words.split()}
    assert {Split.TEST} == {SPLIT_WORDS[word] for word in ("test", "testing", "eval", "evaluation")}


# What the given split lacks comes out of train.

MANY = [b"c/%03d.mp4" % number for number in range(200)]
LABELS, GOOD = np.repeat([0, 1], 100), np.ones(200, bool)


def _complete(split: list[int], **changes: object) -> list[int]:
    arguments = {"labels": LABELS, "good": GOOD, "groups": None, "fractions": DEFAULT, "seed": 0, **changes}
    given = PredefinedSplit(np.array(split, np.uint8))
    before = given.split.copy()
    completed = fill_missing_splits(given, MANY, **arguments)  # type: ignore[arg-type]
    assert (before == given.split).all()
    assert np.uint8 == completed.dtype
    return completed.tolist()


def test_a_complete_split_stays_and_what_is_not_named_is_not_used() -> None:
    assert [0, 1, 2, 3, 3] * 40 == _complete([0, 1, 2, 3, UNNAMED] * 40)


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ([0, 2] * 100, [82, 18, 100, 0]),  # val out of train: 15 / 85
        ([0, 1] * 100, [82, 100, 18, 0]),
        ([0] * 200, [140, 30, 30, 0]),
        ([0, UNNAMED] * 100, [70, 16, 14, 100]),
    ],
)
def test_what_is_missing_is_taken_out_of_train(split: list[int], expected: list[int]) -> None:
    completed = _complete(split)

    assert expected == np.bincount(completed, minlength=4).tolist()
    assert all(before in (after, 0) or before == UNNAMED for before, after in zip(split, completed, strict=True))


def test_every_argument_of_the_completion_matters() -> None:
    split = [0, 2] * 100
    default = _complete(split)

    assert default != _complete(split, seed=1)
    assert default != _complete(split, labels=[0] * 50 + [1] * 150)
    assert default != _complete(split, good=[False] * 50 + [True] * 150)
    assert 50 == _complete(split, fractions=(0.4, 0.4, 0.2)).count(Split.VAL)
    assert default == _complete(split, fractions=(0.35, 0.075, 0.575))  # test is given: only train and val count
    assert split == _complete(split, fractions=(0.8, 0, 0.2))
    groups = np.arange(200) // 10
    grouped = np.array(_complete(split, groups=groups))
    for group in range(20):
        assert 1 == len(set(grouped[0::2][groups[0::2] == group].tolist()))


def test_something_must_be_for_training() -> None:
    expected = "given splits: 0 train, 50 val, 100 test, 50 unused, expected videos to train on. Give the list of the"
    with pytest.raises(InputError, match=re.escape(expected)):
        _complete([1, 2, 2, UNNAMED] * 50)


def test_a_rule_knows_its_groups_by_their_content(tmp_path: Path) -> None:
    path, hashes = tmp_path / "g.csv", set()
    for group in ("1", "2"):
        path.write_text(f"path,group\na/x,{group}\n")
        hashes.add(SplitOverrides(grouping=GroupBy("file", str(path))).applied_to(SplitConfig()).files_hash)

    assert 2 == len(hashes)


def test_a_rule_knows_its_lists_by_their_content(tmp_path: Path) -> None:
    """A list that was changed is another split, also where two lists only divide the same lines otherwise."""
    first, second = tmp_path / "a.csv", tmp_path / "b.csv"

    def hash_of(*contents: str) -> str:
        for path, content in zip((first, second), contents, strict=True):
            path.write_text(content)
        return SplitOverrides(source="files", files=(str(first), str(second))).applied_to(SplitConfig()).files_hash

    hashes = [hash_of("x", "yz"), hash_of("xy", "z"), hash_of("x", "yy"), hash_of("x", "yz")]

    assert hashes[0] == hashes[3]
    assert 3 == len(set(hashes))
    second.unlink()
    with pytest.raises(InputError, match="b.csv: no such file, expected a list of videos, or a pattern of lists"):
        SplitOverrides(source="files", files=(str(first), str(second))).applied_to(SplitConfig())
