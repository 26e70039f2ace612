"""Predefined splits: lists in the formats of the data sets, matched to videos that were renamed, moved and converted."""

import os
import re
from pathlib import Path

import numpy as np
import pytest

from vidcache.cache.builds import Manifest
from vidcache.cache.format import Split
from vidcache.errors import CacheError, InputError
from vidcache.preprocess.split.config import SplitConfig, SplitOverrides, Splitter
from vidcache.preprocess.split.groups import GroupBy
from vidcache.preprocess.split.predefined import UNLISTED, expand, folder_splits, read_split_files
from vidcache.spec import Spec

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


# --- formats ------------------------------------------------------------------------------------


def test_a_csv(tmp_path: Path) -> None:
    content = (
        "note,Split, path\n,train,Run/v_a_g01.avi\n,Validate,v_b_g01.avi\n\n,TEST,Walk/sub/v_a_g02.avi\n,test,x/y.avi\n"
    )

    predefined = read_split_files(_write(tmp_path, any__txt=content), PATHS)

    assert [Split.TRAIN, Split.VAL, Split.TEST, UNLISTED] == predefined.split.tolist()
    assert np.uint8 == predefined.split.dtype
    assert predefined.notes == ("1 line of the lists without a video", "1 video is in no list: not used")


def test_ucf101_lists(tmp_path: Path) -> None:
    files = {"trainlist01__txt": "Run/v_a_g01.avi 1\nWalk/v c 1.avi\n\n", "testlist01__txt": "Run/v_b_g01.avi\r\n"}

    assert [Split.TRAIN, Split.TEST, UNLISTED, Split.TRAIN] == _read(tmp_path, **files)


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
def test_the_name_of_a_list_is_its_split(tmp_path: Path, name: str, split: Split) -> None:
    assert split == _read(tmp_path, **{name: "Run/v_b_g01.avi 7"})[1]


def test_hmdb51_lists(tmp_path: Path) -> None:
    paths = [b"brush_hair/a#1.avi", b"brush_hair/b 2.mp4", b"hair/a#1.avi", b"brush_hair/c.avi", b"brush_hair/d.avi"]

    split = _read(tmp_path, paths, brush_hair_test_split1__txt="a#1.avi 1 \nb 2.avi 2\n\nc.avi 0\n")

    assert [Split.TRAIN, Split.TEST, UNLISTED, Split.UNUSED, UNLISTED] == split


KINETICS = "label,youtube_id,time_start,time_end,split\n"


@pytest.mark.parametrize(
    ("paths", "content", "expected"),
    [
        (
            [
                b"riding_a_bike/-abc_000010_000020.mp4",
                b"riding a bike/x_y.webm",
                b"other/z.mp4",
                b"v_000001_000002.mp4",
            ],
            f'{KINETICS}"riding a bike",-abc,10,20,train\nriding a bike,x_y,0,10,val\nnone,z,,,test\n,v,1.0,2.0,test\n',
            [0, 1, 2, 2],
        ),
        (  # the times of one video are told apart
            [b"run/abc_000000_000010.mp4", b"run/abc_000010_000020.mp4"],
            f"{KINETICS}run,abc,0,10,train\nrun,abc,10,20,test\n",
            [0, 2],
        ),
        (  # and its classes; run/def is not here
            [b"run/abc.mp4", b"walk/abc.mp4", b"walk/def.mp4"],
            f"{KINETICS}run,abc,0,10,train\nwalk,abc,10,20,test\nrun,def,0,10,train\nwalk,def,0,10,test\n",
            [0, 2, 2],
        ),
        ([b"run/abc.mp4"], "youtube_id,split\nabc,test\n", [2]),
    ],
)
def test_kinetics(tmp_path: Path, paths: list[bytes], content: str, expected: list[int]) -> None:
    assert expected == _read(tmp_path, paths, k__csv=content)


# --- which video is meant -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("paths", "names", "expected"),
    [
        ([b"a/v.avi", b"x/a/v.avi", b"x/b/v.mp4"], "a/v.avi", [0, UNLISTED, UNLISTED]),  # an exact path comes first
        ([b"x/a/v.avi", b"y/w.avi", b"y/w.mp4"], "w.mp4", [UNLISTED, UNLISTED, 0]),  # then an end with the extension
        ([b"x/a/v.avi", b"x/b/v.mp4"], "b/v.avi", [UNLISTED, 0]),  # then one without
        ([b"a/xv.avi", b"a/v.avi"], "v.avi", [UNLISTED, 0]),  # an end is whole parts
        ([b"a/v.01.avi", b"a/v.02.avi"], "v.01", [0, UNLISTED]),
        ([b"a/\xff\xe9.avi"], os.fsdecode(b"\xef\xbb\xbf\xff\xe9.mp4 1"), [0]),  # any bytes
        ([b"a/v.avi"], "v.avi\na/v.mp4", [0]),  # named twice
    ],
)
def test_a_name_is_a_path_or_the_end_of_one(
    tmp_path: Path, paths: list[bytes], names: str, expected: list[int]
) -> None:
    assert expected == _read(tmp_path, paths, trainlist__txt=names)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"a__csv": "path,split\n\nv_b_g01.avi,devel\n"}, "a.csv, line 3: split 'devel'"),
        ({"a__csv": "path,split\n\nv_b_g01.avi,\n"}, "a.csv, line 3: split ''"),
        *(
            (
                {f"{name}__txt": "Run/v_b_g01.avi 7"},
                f"{name}.txt: unknown format, not a CSV with the columns path,split",
            )
            for name in ("videos", "trainer", "train_test", "contest")
        ),
        ({"clip__mp4": "\0\udcff" * 100_000}, "clip.mp4: unknown format"),
        *(
            ({"run_test_split1__txt": f"\n{line}\n"}, f"run_test_split1.txt, line 2: {line!r} is not a video and 0 (un")
            for line in ("a.avi 3", "a.avi", "1", "a.avi train")
        ),
        *(
            (
                {"trainlist__txt": f"\n{name}"},
                f"trainlist.txt, line 2: {name} may be {PATHS[0].decode()} or Jump/v_a_g01",
            )
            for name in ("v_a_g01.avi", "v_a_g01", "v_a_g01.mkv")
        ),
        (
            {"trainlist01__txt": "Run/v_a_g01.avi", "testlist02__txt": "v_b_g01.avi\nRun/v_a_g01.mp4"},
            "testlist02.txt, line 2: Run/v_a_g01.avi is test, but train in FOLDER/trainlist01.txt, line 1. Give the lists",
        ),
        (
            {"trainlist01__txt": "Jump/x.avi\nJump/y.avi"},
            "trainlist01.txt: none of 2 lines (Jump/x.avi) names one of 5 videos (Run/v_a_g01.avi). Lists must hold paths",
        ),
    ],
    ids=range(16),
)
def test_wrong_lists_are_refused(tmp_path: Path, files: dict[str, str], expected: str) -> None:
    with pytest.raises(InputError, match=re.escape(expected.replace("FOLDER", str(tmp_path)))):
        _read(tmp_path, [*PATHS, b"Jump/v_a_g01.avi"], **files)


@pytest.mark.parametrize(("name", "message"), [("*.csv", ": no such file"), ("", ": Is a directory")])
def test_a_pattern_without_a_file_is_refused(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(f"{tmp_path / name}{message}")):
        read_split_files([str(tmp_path / name)], PATHS)


def test_patterns_are_expanded_and_files_with_brackets_are_meant_literally(tmp_path: Path) -> None:
    names = _write(tmp_path, trainlist01__txt="v_a_g01", testlist01__txt="v_b_g01", **{"train[1]__txt": "v_a_g02"})

    assert [names[1], names[0]] == expand([f"{tmp_path}/*list01.txt"])
    assert [names[2]] == expand([names[2]])
    assert [0, 2, 0, UNLISTED] == read_split_files([f"{tmp_path}/*list*.txt", names[2]], PATHS).split.tolist()


def test_folders_are_splits() -> None:
    paths = [b"train/a/x", b"val/a/x", b"Dev/a/x", b"test/a/x", b"a/train/x", b"TRAINING/a/x", b"train"]

    assert [0, 1, 1, 2, UNLISTED, 0, UNLISTED] == folder_splits(paths).split.tolist()
    assert [UNLISTED] * 4 + [0, UNLISTED, UNLISTED] == folder_splits(paths, class_depth=0).split.tolist()
    assert folder_splits(paths).notes == ("2 videos are in no folder train, val or test: not used",)


# --- what the lists lack comes out of train ---------------------------------------------------------

MANY = [b"%s/%d/c/%03d.mp4" % (name, k // 10, k) for k in range(200) for name in [[b"train", b"test"][k % 2]]]
LABELS, GOOD = np.repeat([0, 1], 100), np.ones(200, bool)
ALL_TRAIN = [b"train/" + path.split(b"/", 1)[1] for path in MANY]


def _fill(paths: list[bytes] = MANY, labels: object = LABELS, good: object = GOOD, **changes: object) -> list[int]:
    config = SplitConfig(source="folders", near_duplicates="off", **changes)  # type: ignore[arg-type]
    rows = tuple(np.asarray(labels).tolist())
    manifest = Manifest(Spec(), (b"a", b"b"), tuple(paths), rows, rows, rows, {"class_depth": 1})
    splitter = Splitter(config, manifest)
    return splitter.assign({}, np.asarray(good)).split.tolist()


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (MANY, [82, 18, 100, 0]),  # val out of train: 15 / 85
        ([path.replace(b"test/", b"val/") for path in MANY], [82, 100, 18, 0]),
        (ALL_TRAIN, [140, 30, 30, 0]),
        ([path.replace(b"test/", b"none/") for path in MANY], [70, 16, 14, 100]),
        ([[b"train/", b"val/", b"test/", b"none/"][k % 4] + path for k, path in enumerate(MANY)], [50, 50, 50, 50]),
    ],
)
def test_what_is_missing_is_taken_out_of_train(paths: list[bytes], expected: list[int]) -> None:
    split = _fill(paths)

    assert expected == np.bincount(split, minlength=4).tolist()
    listed = np.minimum(folder_splits(paths).split, Split.UNUSED)
    assert all(before in (after, Split.TRAIN) for before, after in zip(listed, split, strict=True))


def test_everything_matters_for_what_is_taken() -> None:
    default = _fill()

    assert default != _fill(seed=1)
    assert default != _fill(labels=[0] * 50 + [1] * 150)
    assert default != _fill(good=[False] * 50 + [True] * 150)
    assert 50 == _fill(fractions=(0.4, 0.4, 0.2)).count(Split.VAL)
    assert default == _fill(fractions=(0.35, 0.075, 0.575))  # test is given: only train and val count
    assert 0 == _fill(fractions=(0.8, 0, 0.2)).count(Split.VAL)
    grouped = np.array(_fill(group_by=GroupBy("regex", r"/(\d+)/")))
    for group in range(20):
        assert 1 == len(set(grouped[0::2][np.arange(100) // 5 == group].tolist()))


def test_something_must_be_for_training() -> None:
    expected = (
        "split: no video is for training (for example test/0/c/001.mp4). The folders must be RAW/{train,val,test}/"
    )
    with pytest.raises(InputError, match=re.escape(expected)):
        _fill(MANY[1::2])


# --- the configuration ------------------------------------------------------------------------------


def test_a_configuration_survives_the_cache() -> None:
    config = SplitConfig(GroupBy("regex", r"_g(\d+)_"), "fractions", (0.5, 0.25, 0.25), 7, "report")

    assert config == SplitConfig.from_attributes(config.attributes())
    assert config == config.override(SplitOverrides())
    finer = SplitConfig(fractions=(0.725, 0.1375, 0.1375))
    assert finer == SplitConfig.from_attributes(finer.attributes())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split_by": "regex ("}, "group by regex '\\(': invalid"),
        ({"split_source": "dice"}, "'dice' and 'group'"),
        ({"split_fractions": [0.5, 0.5]}, "not enough values to unpack"),
        ({"split_seed": None}, "int"),
        ({"split_by": "file g.csv"}, "a file without its hash"),
    ],
)
def test_a_cache_without_valid_split_settings(change: dict[str, object], message: str) -> None:
    with pytest.raises(CacheError, match=f"the cache has no valid split settings .*{message}.*--overwrite"):
        SplitConfig.from_attributes(SplitConfig().attributes() | change)


def test_lists_are_known_by_their_content(tmp_path: Path) -> None:
    """A list that was changed is another split, also where two lists only divide the same lines otherwise."""

    def hash_of(**contents: str) -> str:
        return (
            SplitConfig().override(SplitOverrides(source="files", files=tuple(_write(tmp_path, **contents)))).files_hash
        )

    hashes = [hash_of(a=first, b=second) for first, second in (("x", "yz"), ("xy", "z"), ("x", "yy"), ("x", "yz"))]
    groups = [
        SplitConfig().override(SplitOverrides(group_by=GroupBy("file", *_write(tmp_path, g=text)))).files_hash
        for text in "12"
    ]

    assert hashes[0] == hashes[3]
    assert 5 == len({*hashes, *groups})
    (tmp_path / "b").unlink()
    with pytest.raises(InputError, match="b: no such file"):
        SplitConfig().override(SplitOverrides(source="files", files=(str(tmp_path / "b"),)))
