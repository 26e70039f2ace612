"""Groups: which videos the rule puts together, and that it says so when it cannot."""

import os
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vidcache.errors import InputError
from vidcache.preprocess.split.groups import GroupBy, group_videos, merge_groups, parse_grouping

PATHS = [
    b"run/v_g01_c01.avi",
    b"run/v_g01_c02.avi",
    b"run/v_g02_c01.avi",
    b"walk/v_g01_c01.avi",
    b"walk/alone.avi",
]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("video", GroupBy("video")),
        (" folder ", GroupBy("folder")),
        (r"regex _g(\d+)_", GroupBy("regex", r"_g(\d+)_")),
        ("regex (a b) c", GroupBy("regex", "(a b) c")),
        ("file my groups.csv", GroupBy("file", "my groups.csv")),
    ],
)
def test_a_rule_is_read(text: str, expected: GroupBy) -> None:
    assert expected == parse_grouping(text)


@pytest.mark.parametrize("text", ["", "person", "video x", "folder x", "regex", "file", "file ", "Video"])
def test_other_rules_are_refused(text: str) -> None:
    expected = f"group by {text!r}, expected video, folder, 'regex PATTERN' or 'file GROUPS.csv'"
    with pytest.raises(ValueError, match=re.escape(expected)):
        parse_grouping(text)


def test_an_invalid_pattern_is_refused() -> None:
    expected = "group by regex '(a': missing ), unterminated subpattern at position 0, expected a regular expression"
    with pytest.raises(ValueError, match=re.escape(expected)):
        parse_grouping("regex (a")


def test_a_pattern_must_say_what_names_the_group() -> None:
    expected = r"group by regex '_g(?:\\d+)_': no capture group, expected one. Put what names the group in parentheses"
    with pytest.raises(ValueError, match=re.escape(expected)):
        parse_grouping(r"regex _g(?:\d+)_")


def test_every_video_is_its_own_group() -> None:
    grouped = group_videos(PATHS, GroupBy("video"))

    assert [0, 1, 2, 3, 4] == grouped.ids.tolist()
    assert (np.int32, 0, ()) == (grouped.ids.dtype, grouped.num_alone, grouped.unknown)


def test_a_folder_below_the_class_is_a_group_of_this_class() -> None:
    paths = [b"run/t1/a.mp4", b"run/t1/deep/b.mp4", b"run/t2/a.mp4", b"run/c.mp4", b"run/d.mp4", b"walk/t1/a.mp4"]

    grouped = group_videos(paths, GroupBy("folder"))

    assert [0, 0, 1, 2, 3, 4] == grouped.ids.tolist()
    assert 2 == grouped.num_alone


def test_the_class_may_be_the_second_part() -> None:
    paths = [b"test/run/t1/a.mp4", b"test/run/x.mp4", b"train/run/t1/b.mp4", b"train/walk/t1/b.mp4"]

    grouped = group_videos(paths, GroupBy("folder"), class_depth=1)

    assert [0, 1, 0, 2] == grouped.ids.tolist()  # one take in two splits is still one take
    assert 1 == grouped.num_alone
    assert [0, 0, 1, 2] == group_videos(paths, GroupBy("folder"), class_depth=0).ids.tolist()


def test_what_a_pattern_captures_is_a_group_in_all_classes() -> None:
    grouped = group_videos(PATHS, parse_grouping(r"regex _g(\d+)_"))

    assert [0, 0, 1, 0, 2] == grouped.ids.tolist()
    assert 1 == grouped.num_alone


@pytest.mark.parametrize("pattern", [r"_g(01)?", r"_g(\d*?)"])
def test_a_group_without_a_name_is_no_group(pattern: str) -> None:
    grouped = group_videos([b"a/_g01", b"a/_g02", b"a/_g03"], GroupBy("regex", pattern))

    assert [0, 1, 2] == grouped.ids.tolist()
    assert grouped.num_alone == (2 if "01" in pattern else 3)


def test_any_bytes_can_be_captured() -> None:
    paths = [b"a/\xff_1.mp4", b"a/\xff_2.mp4", b"a/\xfe_1.mp4"]

    assert [0, 0, 1] == group_videos(paths, GroupBy("regex", r"/(.)_")).ids.tolist()


def test_a_group_and_a_lonely_video_are_never_confused() -> None:
    """A group may be called like the number of a row."""
    assert [0, 1, 2] == group_videos([b"a/x", b"a/g0", b"a/g1"], GroupBy("regex", r"g(\d)")).ids.tolist()


def test_a_pattern_must_match_something() -> None:
    expected = (
        r"group by regex '_h(\\d+)_': matches none of 5 paths (for example run/v_g01_c01.avi), expected a pattern that "
        "finds the group somewhere in the path. Try it on one path, or group by folder or file"
    )
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
    grouped = group_videos(PATHS, _file(tmp_path, content))

    assert [0, 1, 2, 3, 0] == grouped.ids.tolist()
    assert (3, (b"run/gone.avi",)) == (grouped.num_alone, grouped.unknown)


def test_a_file_names_any_bytes(tmp_path: Path) -> None:
    paths = [b"a/\xff.mp4", "b/\u00e9.mp4".encode()]

    grouped = group_videos(paths, _file(tmp_path, b"path,group\na/\xff.mp4,\xfe\nb/\xc3\xa9.mp4,\xfe\n"))

    assert ([0, 0], 0) == (grouped.ids.tolist(), grouped.num_alone)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (
            "path,person\na,b\n",
            "groups.csv: no column 'group' in its first line 'path,person', expected path,group. Add that line",
        ),
        ("", "groups.csv: no column 'path' in its first line '', expected path,group"),
        (
            "path,group\nrun/a.avi,x\n\nrun/a.avi,y\n",
            "groups.csv, line 4: run/a.avi is in group 'y' and in 'x', expected one group for a video. Remove one",
        ),
        (
            "path,group\nraw/run/a.avi,x\n",
            "groups.csv: none of its 1 path is one of the 5 videos (for example raw/run/a.avi), expected paths below "
            "the raw folder (for example run/v_g01_c01.avi). Correct the column 'path'",
        ),
        ("path,group\n", "groups.csv: none of its 0 paths is one of the 5 videos, expected paths below"),
        (
            'path,group\n"' + "a" * 200_000 + '",x\n',
            "groups.csv, line 2: field larger than field limit (131072), expected comma-separated values. Correct",
        ),
    ],
)
def test_a_wrong_file_is_refused(tmp_path: Path, content: str, expected: str) -> None:
    with pytest.raises(InputError, match=re.escape(expected)):
        group_videos(PATHS, _file(tmp_path, content))


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    expected = f"{tmp_path}/no.csv: No such file or directory, expected a text file. Check the path"
    with pytest.raises(InputError, match=re.escape(expected)):
        group_videos(PATHS, GroupBy("file", os.fspath(tmp_path / "no.csv")))


def test_groups_are_merged() -> None:
    assert [0, 0, 1, 2, 0] == merge_groups([5, 5, 9, 7, 3], [(0, 4)]).tolist()
    assert [0, 0, 0, 0, 0] == merge_groups([5, 5, 9, 7, 3], np.array([(4, 2), (3, 2), (1, 3)])).tolist()
    assert [0, 0, 1] == merge_groups([9, 9, 1], np.empty((0, 2), int)).tolist()
    assert [] == merge_groups([], []).tolist()


@given(st.integers(1, 12).flatmap(lambda n: st.tuples(
    st.lists(st.integers(0, 8), min_size=n, max_size=n),
    st.lists(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)), max_size=12),
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


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("(a)" + "|b" * 3000, r"6,003 letters, expected at most 4,000\. Group by 'file GROUPS\.csv'"),
        ("(" * 1500 + ")" * 1500, "expected a regular expression of Python"),
        ("(a){99999999999999}", "expected a regular expression of Python"),
    ],
    ids=["long", "deep", "large"],
)
def test_patterns_that_no_cache_can_keep_or_python_compile(pattern: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_grouping(f"regex {pattern}")
