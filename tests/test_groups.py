"""Groups: which videos the rule puts together, and that it says so when it cannot."""

import os
import re
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vidcache.errors import InputError
from vidcache.preprocess.split.groups import GroupBy, group_videos, merge_groups, parse_group_by
from vidcache.text import plural

PATHS = [b"run/v_g01_c01.avi", b"run/v_g01_c02.avi", b"run/v_g02_c01.avi", b"walk/v_g01_c01.avi", b"walk/alone.avi"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("video", GroupBy("video")),
        (" folder ", GroupBy("folder")),
        (r"regex:_g(\d+)_", GroupBy("regex", r"_g(\d+)_")),
        ("regex:(a b): c", GroupBy("regex", "(a b): c")),
        ("file:my groups.csv", GroupBy("file", "my groups.csv")),
        ("regex :(a)", GroupBy("regex", ":(a)")),  # as caches store it
    ],
)
def test_a_rule_is_read(text: str, expected: GroupBy) -> None:
    assert expected == parse_group_by(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        *(
            (text, f"group by {text!r}: not video, folder, regex:PATTERN or file:GROUPS.csv")
            for text in ("", "person", "video x", "folder:x", "regex", "regex:", "file: ", "Video")
        ),
        ("regex:(a", "group by regex '(a': invalid regular expression: missing ), unterminated subpattern"),
        (r"regex:_g(?:\d+)_", r"group by regex '_g(?:\\d+)_': no capture group. Put the part that names the group in"),
        ("regex:(a)" + "|b" * 3000, "over 4,000 characters. Use file:GROUPS.csv"),
        ("regex:" + "(" * 1500 + ")" * 1500, "invalid regular expression"),
        ("regex:(a){99999999999999}", "invalid regular expression"),
    ],
    ids=lambda text: text[:20],
)
def test_other_rules_are_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        parse_group_by(text)


RAW = [b"run/t1/a.mp4", b"run/t1/deep/b.mp4", b"run/t2/a.mp4", b"run/c.mp4", b"run/d.mp4", b"walk/t1/a.mp4"]
SPLITS = [b"test/run/t1/a.mp4", b"test/run/x.mp4", b"train/run/t1/b.mp4", b"train/walk/t1/b.mp4"]


@pytest.mark.parametrize(
    ("paths", "by", "class_depth", "expected", "num_alone"),
    [
        (PATHS, "video", 0, [0, 1, 2, 3, 4], 0),
        (RAW, "folder", 0, [0, 0, 1, 2, 3, 4], 2),  # a folder below the class is a group of this class
        (RAW, "folder", -1, [0, 1, 2, 3, 3, 4], 0),  # without classes any folder is one
        (SPLITS, "folder", 1, [0, 1, 0, 2], 1),  # one take in two splits is still one take
    ],
)
def test_videos_and_folders(
    paths: list[bytes], by: Literal["video", "folder"], class_depth: int, expected: list[int], num_alone: int
) -> None:
    groups, notes = group_videos(paths, GroupBy(by), class_depth)

    assert (expected, np.int32) == (groups.tolist(), groups.dtype)
    alone = f"--group-by folder matches no group for {plural(num_alone, 'video')}: each is a group of its own"
    assert notes == ([alone] if num_alone else [])


@pytest.mark.parametrize(
    ("paths", "pattern", "expected", "num_alone"),
    [
        (PATHS, r"_g(\d+)_", [0, 0, 1, 0, 2], 1),  # one group in all classes
        ([b"a/_g01", b"a/_g02", b"a/_g03"], "_g(01)?", [0, 1, 2], 2),
        ([b"a/_g01", b"a/_g02", b"a/_g03"], r"_g(\d*?)", [0, 1, 2], 3),  # a group without a name is none
        ([b"a/\xff_1.mp4", b"a/\xff_2.mp4", b"a/\xfe_1.mp4"], "/(.)_", [0, 0, 1], 0),  # any bytes
        ([b"a/x", b"a/g0", b"a/g1"], r"g(\d)", [0, 1, 2], 1),  # a group may be called like the number of a row
    ],
)
def test_the_capture_of_a_pattern_is_a_group(
    paths: list[bytes], pattern: str, expected: list[int], num_alone: int
) -> None:
    groups, notes = group_videos(paths, GroupBy("regex", pattern))

    assert expected == groups.tolist()
    assert (f" {num_alone} video" in "".join(notes)) == bool(num_alone)


def test_a_pattern_must_match_something() -> None:
    expected = r"group by regex '_h(\\d+)_': matches none of 5 paths (for example run/v_g01_c01.avi). The pattern must"
    with pytest.raises(InputError, match=re.escape(expected)):
        group_videos(PATHS, GroupBy("regex", r"_h(\d+)_"))


def _file(folder: Path, content: str | bytes) -> GroupBy:
    path = folder / "groups.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return GroupBy("file", str(path))


@pytest.mark.parametrize(
    "content",
    [
        "path,group\nrun/v_g01_c01.avi,x\nwalk/alone.avi,x\nrun/v_g02_c01.avi,\nrun/gone.avi,y\n",
        '\ufeffGroup , note, PATH\nx,,run/v_g01_c01.avi\r\n\r\nx,"a,\nb",walk/alone.avi\ny,,run/gone.avi',
        "path,group\nrun/v_g01_c01.avi,x\nrun/v_g01_c01.avi,x\nwalk/alone.avi,x\nrun/gone.avi\n",
    ],
)
def test_groups_from_a_file(tmp_path: Path, content: str) -> None:
    groups, notes = group_videos(PATHS, _file(tmp_path, content))

    assert [0, 1, 2, 3, 0] == groups.tolist()
    assert "file:groups.csv matches no group for 3 videos" in notes[0]
    assert f"{tmp_path}/groups.csv: 1 line without a video (for example run/gone.avi)" == notes[1]


def test_a_file_names_any_bytes(tmp_path: Path) -> None:
    paths = [b"a/\xff.mp4", "b/\u00e9.mp4".encode()]

    groups, notes = group_videos(paths, _file(tmp_path, b"path,group\na/\xff.mp4,\xfe\nb/\xc3\xa9.mp4,\xfe\n"))

    assert ([0, 0], []) == (groups.tolist(), notes)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("path,person\na,b\n", "groups.csv: no column 'group'"),
        (
            "path,group\nrun/a.avi,x\n\nrun/a.avi,y\n",
            "groups.csv, line 4: run/a.avi is in group 'y' and in 'x'. Remove",
        ),
        (
            "path,group\nraw/run/a.avi,x\n",
            "groups.csv: none of its 1 path (for example raw/run/a.avi) is one of the 5 videos (for example "
            "run/v_g01_c01.avi). The column 'path' must hold paths below the raw folder",
        ),
        ("path,group\n", "groups.csv: none of its 0 paths is one of the 5 videos (for example run/v_g01_c01.avi)"),
        ('path,group\n"' + "a" * 200_000 + '",x\n', "groups.csv, line 2: field larger than field limit"),
    ],
    ids=range(5),
)
def test_a_wrong_file_is_refused(tmp_path: Path, content: str, expected: str) -> None:
    with pytest.raises(InputError, match=re.escape(expected)):
        group_videos(PATHS, _file(tmp_path, content))


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=re.escape(f"{tmp_path}/no.csv: No such file or directory")):
        group_videos(PATHS, GroupBy("file", os.fspath(tmp_path / "no.csv")))


@given(st.integers(0, 12).flatmap(lambda n: st.tuples(
    st.lists(st.integers(0, 8), min_size=n, max_size=n),
    st.lists(st.tuples(st.integers(0, max(0, n - 1)), st.integers(0, max(0, n - 1))), max_size=12 if n else 0),
)))  # fmt: skip
def test_merged_groups_are_what_can_be_reached(case: tuple[list[int], list[tuple[int, int]]]) -> None:
    ids, pairs = case
    reached = np.equal.outer(ids, ids)
    for first, second in pairs:
        reached[first, second] = reached[second, first] = True
    for _ in ids:
        reached = reached @ reached

    merged = merge_groups(ids, pairs)

    assert (reached == np.equal.outer(merged, merged)).all()
    assert merged.dtype == np.int32
    firsts = list(dict.fromkeys(merged.tolist()))
    assert list(range(len(firsts))) == firsts
