"""What a folder of videos means: layouts, links, class names and lists of labels."""

import csv
import json
import os
import string
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.helpers import make_video
from vidcache import cli
from vidcache.cache.reader import CacheReader
from vidcache.errors import InputError
from vidcache.preprocess.video.classes import describe_twins, find_twins, read_labels
from vidcache.preprocess.video.find import Sources, find_videos, list_videos
from vidcache.preprocess.video.source_file import Failure, hash_video, open_video

SMALL = ("--num-frames", 4, "--size", 16, "--allow-tiny-classes", "--near-duplicates", "off", "--workers", 2)


def put(folder: Path, *names: str | bytes) -> Path:
    """Make files that are no videos; listing does not open them."""
    for number, name in enumerate(names):
        path = Path(os.fsdecode(os.fsencode(folder) + b"/" + os.fsencode(name)))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * (number + 1))
    return folder


def vidcache(*arguments: object) -> Result:
    return CliRunner().invoke(cli.main, [str(argument) for argument in arguments])


def labels_of(found: Sources) -> dict[str, str]:
    return {os.fsdecode(video.path): os.fsdecode(video.class_name) for video in found.videos}


def refusal(raw: Path, *arguments: Any, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        find_videos(raw, *arguments, **options)
    return str(caught.value)


# --- layouts ----------------------------------------------------------------------------------


def test_videos_are_found_by_place_and_sorted_by_bytes(tmp_path: Path) -> None:
    names = ("b/2.mp4", "b/10.mp4", "b/deep/er/x", "a/é.mkv", "a/notes.txt", "a/.hidden.mp4", ".git/x.mp4", "top.mp4")
    os.mkfifo(put(tmp_path, *names) / "b" / "fifo.mp4")

    found = find_videos(tmp_path)

    assert ["a/é.mkv", "b/10.mp4", "b/2.mp4", "b/deep/er/x", "b/fifo.mp4"] == list(labels_of(found))
    assert (b"a", b"b") == found.classes
    assert {"hidden": 2, "not a video by its name": 1, "outside a class folder": 1} == found.skipped
    assert [4, 2, 1, 3, 0] == [video.num_bytes for video in found.videos]


def test_a_folder_without_videos_is_refused(tmp_path: Path) -> None:
    assert "raw: No such file or directory. Name a folder of videos" in refusal(tmp_path / "raw")
    (tmp_path / "a").mkdir()
    assert f"{tmp_path}: no videos found. Put them into {tmp_path}/<class>/<video>, or give the" in refusal(tmp_path)
    assert "no videos found, but 1 file elsewhere, for example 1. Put them into" in refusal(put(tmp_path, "1"))


@pytest.mark.parametrize(
    ("names", "depth"),
    [
        ("train/a/1 test/a/2", 1),
        ("Train/a/1 VAL/a/2 Test/a/3", 1),
        ("training/a/1 validation/a/2 testing/a/3", 1),
        ("train/a/1 dev/a/2 eval/a/3", 1),
        ("train/a/1 valid/b/2", 1),
        ("TRAINING/a/deep/1 evaluation/a/2", 1),
        ("a/1 b/2", 0),
        ("a/x/1 b/x/2", 0),  # one folder in each is no choice
        ("a/x/1 a/y/2 b/x/3 b/z/4", 0),
        ("a/x/1 a/y/2 a/3 a/4 a/5 b/x/6 b/y/7 b/8 b/9", 0),  # most videos lie beside these folders
        ("a/1", 0),
    ],
)
def test_folders_are_classes_or_splits_by_their_names(tmp_path: Path, names: str, depth: int) -> None:
    found = find_videos(put(tmp_path, *names.split()))

    assert (depth, ()) == (found.class_depth, found.notes)
    assert {name.split("/")[depth] for name in names.split()} == {os.fsdecode(name) for name in found.classes}


@pytest.mark.parametrize(
    "names",
    [
        "train/a/1 test/a/2 extra/3",  # a folder that is no split beside splits
        "train/a/1 test/2",  # splits without classes, in part
        "val/a/1 test/a/2",  # nothing to train on, or nothing else
        "Train/a/1 training/b/2",
        "bus/1 car/2 train/3",  # a vehicle, or a split?
    ],
)
def test_split_names_that_may_be_classes_are_refused(tmp_path: Path, names: str) -> None:
    raw = put(tmp_path / "raw", *names.split())

    message = refusal(raw)

    assert f"{raw}: some of its folders are named like splits: " in message
    assert "Choose --layout splits" in message
    assert "or --layout classes, or give the labels by a CSV" in message
    tops = {name.split("/")[0] for name in names.split()}
    assert all(f"{name} (" in message for name in tops)
    assert tops == set(labels_of(find_videos(raw, "classes")).values())


def test_layout_splits_names_what_it_leaves_out(tmp_path: Path) -> None:
    (put(tmp_path, "train/a/1", "val/a/2", "validation/b/3", "extra/4", "extra/c/5", "val/6", "top") / "test").mkdir()

    found = find_videos(tmp_path, "splits")

    assert {"train/a/1": "a", "val/a/2": "a", "validation/b/3": "b"} == labels_of(found)
    assert {"outside a class folder": 4} == found.skipped
    loose, others, empty = found.notes
    assert "1 file directly in the raw folder, in no class, left out: for example top. Move them" in loose
    assert "in no class of a split, left out: extra (2), val (1). Move them to RAW/<split>/<class>/" == others
    assert "1 folder without a video: test" == empty


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            "s1/run/1 s1/walk/2 s2/run/3 s2/walk/4",
            "its folders (s1 (2), s2 (2)) hold the same folders (run (2), walk (2))",
        ),
        (
            "run/train/1 run/test/2 walk/train/3",
            "the folders in its classes have names of splits (train (2), test (1)).",
        ),
        ("UCF/run/1 UCF/walk/2", "its folders (UCF (2)) hold the same folders (run (1), walk (1)), so either may be"),
    ],
)
def test_folders_with_the_same_folders_inside_are_refused(tmp_path: Path, names: str, message: str) -> None:
    raw = put(tmp_path / "raw", *names.split())

    assert f"{raw}: {message}" in refusal(raw)
    assert 0 == find_videos(raw, "classes").class_depth


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = put(tmp_path / "raw", "a/1", "b/secret/2")
    scandir = os.scandir

    def refuse(path: bytes) -> Any:  # root reads everything
        if path.endswith(b"secret"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)

    assert f"{raw}/b/secret: Permission denied" in refusal(raw)


# --- links ------------------------------------------------------------------------------------


@pytest.fixture
def linked(tmp_path: Path) -> Path:
    """A class and a video that are links, and a folder of videos outside."""
    put(tmp_path / "store", "jump/1.mp4", "jump/sub/2.mp4", "odd.mp4")
    raw = put(tmp_path / "raw", "run/1.mp4", "run/2.mp4")
    (raw / "jump").symlink_to("../store/jump")
    (raw / "run" / "3.mp4").symlink_to(tmp_path / "store" / "odd.mp4")
    return raw


def test_a_linked_class_stops_and_is_followed_when_asked_for(linked: Path) -> None:
    assert refusal(linked) == (
        f"{linked}: 1 link in the place of classes or splits, not followed: jump -> ../store/jump. "
        "Follow links with --follow-links, or take them out of the raw folder if they are no part of the data"
    )

    found = find_videos(linked, follow_links=True)

    assert ["jump/1.mp4", "jump/sub/2.mp4", "run/1.mp4", "run/2.mp4", "run/3.mp4"] == list(labels_of(found))
    assert ((b"jump", b"run"), ()) == (found.classes, found.notes)
    assert [1, 2, 1, 2, 3] == [video.num_bytes for video in found.videos]


@pytest.mark.parametrize(("place", "depth"), [("val", 0), ("train/jump", 1), ("val/jump", 1)])
def test_a_linked_split_or_a_linked_class_in_a_split_stops(tmp_path: Path, place: str, depth: int) -> None:
    put(tmp_path / "store", "walk/1.mp4")
    raw = put(tmp_path / "raw", "train/run/1.mp4", "train/walk/2.mp4", "test/run/3.mp4")
    (raw / place).parent.mkdir(exist_ok=True)
    (raw / place).symlink_to(tmp_path / "store" / ("walk" if depth else ""))

    for layout in ("auto", "splits"):
        assert f"1 link in the place of classes or splits, not followed: {place} -> " in refusal(raw, layout)
    assert 4 == len(find_videos(raw, follow_links=True).videos)


def test_a_link_that_leads_nowhere_stops_at_a_class(tmp_path: Path) -> None:
    raw = put(tmp_path / "raw", "run/1.mp4")
    (raw / "jump").symlink_to("gone")

    assert "jump -> gone. Follow links" in refusal(raw)
    assert "jump -> gone (leads nowhere). Put a folder in the place of each" in refusal(raw, follow_links=True)


@pytest.mark.slow
def test_a_followed_build_is_current_and_not_undone_without_the_option(tmp_path: Path) -> None:
    raw, cache, followed = tmp_path / "raw", tmp_path / "c.h5", (*SMALL, "--follow-links")
    for number in range(4):
        video = make_video(tmp_path / "store" / f"{number}.mkv", 8, first=number * 40)
        (raw / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        (raw / "ab"[number % 2] / video.name).symlink_to(video)
    assert "4 decoded" in vidcache("build", raw, cache, *followed).stderr

    for more in ((), ("--verify-sources",)):
        assert "up to date" in vidcache("build", raw, cache, *followed, *more).stderr
    forgotten = vidcache("build", raw, cache, *SMALL)
    assert 2 == forgotten.exit_code
    assert "c.h5: was built with --follow-links, and without it linked videos would be lost. Name" in forgotten.stderr
    assert 0 == vidcache("split", cache, "--seed", 4).exit_code
    with CacheReader(cache) as reader:
        assert 1 == reader.attributes["follow_links"]
    make_video(tmp_path / "store" / "0.mkv", 8, first=111)  # the target, not the link, says whether a video has changed
    assert "1 decoded, 3 reused" in vidcache("build", raw, cache, *followed).stderr
    for failed, more in ((0, ("--follow-links",)), (4, ())):
        analysis = vidcache("analyze", raw, "--out", tmp_path / "out", "--json", *more)
        assert failed == json.loads(analysis.stdout)["num_failed"]


def test_cycles_end_and_no_folder_is_entered_twice(tmp_path: Path) -> None:
    put(tmp_path / "store", "deep/2.mp4")
    raw = put(tmp_path / "raw", "run/1.mp4", "walk/sub/3.mp4")
    (raw / "run" / "self").symlink_to(".")
    (raw / "run" / "up").symlink_to(tmp_path)
    (raw / "run" / "out").symlink_to(tmp_path / "store")
    (tmp_path / "store" / "deep" / "back").symlink_to(raw)
    (tmp_path / "store" / "twice").symlink_to("deep")

    found = find_videos(raw, follow_links=True)

    assert ["run/1.mp4", "run/out/deep/2.mp4", "walk/sub/3.mp4"] == list(labels_of(found))
    (note,) = found.notes
    assert note == (
        f"4 links were not followed: run/out/deep/back -> {raw} (leads to a folder above it), run/out/twice -> deep "
        f"(the same folder as run/out/deep), run/self -> . (the same folder as run), run/up -> {tmp_path} (leads to a "
        "folder above it)"
    )


def test_only_regular_files_are_opened_through_links(tmp_path: Path) -> None:
    put(tmp_path, "v.mp4")
    os.mkfifo(tmp_path / "fifo")
    for name, target in (("good", "v.mp4"), ("fifo.mp4", "fifo"), ("device.mp4", "/dev/zero"), ("gone.mp4", "no")):
        (tmp_path / name).symlink_to(target)

    with pytest.raises(Failure, match="a symbolic link; --follow-links follows it"):
        open_video(tmp_path / "good")
    deadline = time.monotonic() + 60
    through_link = hash_video(tmp_path / "good", deadline=deadline, follow_links=True)
    assert hash_video(tmp_path / "v.mp4", deadline=deadline) == through_link
    for name in ("fifo.mp4", "device.mp4"):
        with pytest.raises(Failure) as caught:
            open_video(tmp_path / name, follow_links=True)
        assert "not_a_regular_file" == caught.value.reason
    with pytest.raises(Failure) as caught:
        open_video(tmp_path / "gone.mp4", follow_links=True)
    assert "not_found" == caught.value.reason


def test_a_link_that_is_put_in_a_targets_place_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, "v.mp4", "secret")
    (tmp_path / "link.mp4").symlink_to("v.mp4")
    real = os.path.realpath

    def swap(path: Any, **options: Any) -> Any:
        found = real(path, **options)
        (tmp_path / "v.mp4").unlink()
        (tmp_path / "v.mp4").symlink_to("secret")
        return found

    monkeypatch.setattr(os.path, "realpath", swap)

    with pytest.raises(Failure, match="a symbolic link, and what it leads to is one too"):
        open_video(tmp_path / "link.mp4", follow_links=True)


def test_videos_to_predict_are_found_through_links(linked: Path) -> None:
    files, skipped, notes = list_videos(linked)
    assert [linked / "run" / name for name in ("1.mp4", "2.mp4", "3.mp4")] == list(files)
    assert {} == skipped
    assert notes == [
        f"2 links were not followed: jump -> ../store/jump, run/3.mp4 -> {linked.parent}/store/odd.mp4. Follow them "
        "with --follow-links"
    ]

    files, _, notes = list_videos(linked, follow_links=True)
    assert (5, []) == (len(files), notes)


# --- class names ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "other",
    ["Walk", "WALK", "walk ", " walk", "ｗａｌｋ", "walk\u200b"],  # noqa: RUF001
)
def test_names_that_look_alike_are_found(other: str) -> None:
    twins = find_twins([b"run", other.encode(), b"walk"])

    assert [[other.encode(), b"walk"]] == twins
    assert f"{other!a} and 'walk'" == describe_twins(twins)


@pytest.mark.slow
def test_twins_are_a_note_of_a_build_and_a_finding_of_an_analysis(tmp_path: Path) -> None:
    for number, name in enumerate(("walk", "Walk", "walk ", "run")):
        make_video(tmp_path / "raw" / name / f"{number}.mkv", 8, first=number * 40)
    note = "names of different classes look alike: 'Walk' and 'walk' and 'walk '. If they are one class, give it"

    assert note in " ".join(vidcache("build", tmp_path / "raw", tmp_path / "c.h5", *SMALL).stderr.split())
    assert note in " ".join(vidcache("build", tmp_path / "raw", tmp_path / "c.h5", *SMALL, "--dry-run").stdout.split())
    for path in ("raw", "c.h5"):
        said = vidcache("analyze", tmp_path / path, "--out", tmp_path / "out").stdout
        assert "warning: 3 classes have a name that looks like another one" in said
        assert "'Walk' and 'walk' and 'walk '" in said


# --- lists of labels --------------------------------------------------------------------------


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(text.encode(encoding, "surrogateescape"))
    return path


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("path,label\nx/1.mp4,run\n2.mp4,walk\n", "utf-8"),
        ("path,label\r\nx/1.mp4,run\r\n2.mp4,walk\r\n", "utf-8-sig"),
        ("Path;Label\nx/1.mp4;run\n2.mp4;walk\n", "utf-8"),
        ("label\tid\tpath\nrun\t7\tx/1.mp4\nwalk\t8\t2.mp4", "utf-8"),
        ('"path","label"\r"x/1.mp4","run"\r"2.mp4","walk"\r', "utf-8"),
        (" path , label \n x/1.mp4 , run \n\n ./2.mp4 , walk \n", "utf-8"),
        ("path,label\nx\\1.mp4,run\n2,walk\n", "utf-8"),  # from Windows; without extension
        ("path,label\n1.avi,run\n2.mp4,walk\n2.mp4,walk\n", "utf-8"),  # an end of a path; converted; named twice
    ],
)
def test_labels_come_from_a_list(tmp_path: Path, text: str, encoding: str) -> None:
    raw = put(tmp_path / "raw", "x/1.mp4", "2.mp4", "x/3.mp4", "y/4.mp4", "notes.txt")

    found = find_videos(raw, labels=write(tmp_path / "labels.csv", text, encoding))

    assert {"x/1.mp4": "run", "2.mp4": "walk"} == labels_of(found)
    assert (f"2 files not in {tmp_path}/labels.csv, left out: for example x/3.mp4",) == found.notes
    assert {"not a video by its name": 1, "not in the list of labels": 2} == found.skipped
    assert -1 == found.class_depth


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("path,label\nx/1.mp4,run\ngone,run\n", "line 3: gone names no video. Write paths below the raw folder (like"),
        ("path,label\ngone,a\n2.mp4,a\noff,b\n", "line 2: gone names no video; 2 lines in all. Write paths below"),
        ("path,label\nx/1.mp4,run\n2.mp4,a\nx/1.mp4,b\n", "line 4: x/1.mp4 has label 'b', and 'run' in line 2. Remove"),
        ("path,label\nx/1.mp4,\n", "line 2: no label for x/1.mp4. Write one, or remove the line"),
        ("path,label,split\n2.mp4,a,train\nx/1.mp4,b,x\n", "line 3: split 'x' is none of train, val and test. Correct"),
        ("path,label\n5.mp4,a\n", "line 2: 5.mp4 may be x/5.mp4 or y/5.mp4. Write more"),
        ("path,label\nlink/1.mp4,a\n", "(like 2.mp4), follow links with --follow-links, or remove the lines of"),
        ("name,label\nx/1.mp4,a\n", "no column 'path' in its first line 'name,label'. Add a line path,label"),
        ("", "no column 'path' in its first line"),
        ("path,label\n", "names no video. Write a line path,label for each"),
        ("path,label\n2.mp4,a\nx/1.mp4,a\0\n", "line 3: label a\\x00 has control characters. Remove them"),
        ('path,label\n2.mp4,"a\nx/1.mp4,b\n', "line 4: unexpected end of data. Correct"),
    ],
)
def test_a_wrong_list_is_refused_by_its_line(tmp_path: Path, text: str, expected: str) -> None:
    raw = put(tmp_path / "raw", "x/1.mp4", "2.mp4", "x/5.mp4", "y/5.mp4")
    (raw / "link").symlink_to("x")
    labels = write(tmp_path / "labels.csv", text)

    said = refusal(raw, labels=labels)

    assert said.startswith(f"{labels}")
    assert expected in said


def test_a_list_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    raw = put(tmp_path / "raw", "x/1.mp4")
    assert "no.csv: No such file or directory. Check the path" in refusal(raw, labels=tmp_path / "no.csv")
    write(tmp_path / "l.csv", "path,label\nx/1.mp4,a\n")
    for command in ("build", "analyze"):
        more = (tmp_path / "c.h5",) if command == "build" else ()
        both = vidcache(command, raw, *more, "--labels", tmp_path / "l.csv", "--layout", "classes")
        assert (2, True) == (both.exit_code, "--layout classes cannot be combined with --labels" in both.stderr)


@pytest.mark.parametrize("option", ["--labels=", "--split-file=", "--group-by=file:"])
def test_a_list_that_can_be_read_only_once_is_refused(tmp_path: Path, option: str) -> None:
    put(tmp_path / "raw", "a/1.mp4", "b/2.mp4")
    os.mkfifo(tmp_path / "list")  # what <(...) of a shell is; without a writer, opening it would wait for ever

    result = vidcache("build", tmp_path / "raw", tmp_path / "c.h5", *SMALL, f"{option}{tmp_path}/list")

    assert 2 == result.exit_code, result.stderr
    assert "list: is a pipe or a device, but a list is read several times" in result.stderr
    assert "Write the list to a file, and name that" in result.stderr


NAMES = st.lists(
    st.text(st.characters(blacklist_characters="\0/", blacklist_categories=["Cs"]), min_size=1, max_size=12)
    | st.text(st.sampled_from(string.punctuation.replace("/", "") + " \t\r\n\udcff"), min_size=1, max_size=8),
    min_size=1,
    max_size=8,
    unique=True,
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(NAMES, st.sampled_from(",;\t"))
def test_every_name_comes_back_from_a_list(tmp_path: Path, names: list[str], delimiter: str) -> None:
    paths = [os.fsencode(f"d/{name}.mp4") for name in names]
    with (tmp_path / "l.csv").open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(["path", "label"])
        writer.writerows([os.fsdecode(path), f"c{number}"] for number, path in enumerate(paths))

    assert tuple(b"c%d" % number for number in range(len(paths))) == read_labels(tmp_path / "l.csv", paths).classes


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    """12 videos in one folder, of three sessions and two classes that only a list knows."""
    for number in range(12):
        make_video(tmp_path / "raw" / "videos" / f"v{number:02}.mkv", 8, first=number * 20)
    make_video(tmp_path / "raw" / "other.mkv", 8, first=7)
    return tmp_path / "raw"


def table(path: Path, split: str = "", group: str = "") -> Path:
    rows = [f"path,label{',split' * bool(split)}{',group' * bool(group)}"]
    for number in range(12):
        parts = [f"videos/v{number:02}", ("run", "walk")[number % 2]]
        parts += [split.split()[number // 4]] if split else []
        parts += [f"{group}{number // 4}"] if group else []
        rows.append(",".join(parts))
    path.write_text("\n".join(rows))
    return path


def test_a_build_takes_classes_splits_and_groups_from_a_list(flat: Path, tmp_path: Path) -> None:
    labels, cache = table(tmp_path / "labels.csv", "train dev TEST", "s"), tmp_path / "c.h5"

    result = vidcache("build", flat, cache, *SMALL, "--labels", labels)

    assert 0 == result.exit_code, result.stderr
    assert "Note: 1 file not in " in result.stderr
    assert "12 clips of 2 classes (train 4, val 4, test 4)" in result.stderr
    with CacheReader(cache) as reader:
        assert ("run", "walk") == reader.classes
        assert [0, 1] * 6 == reader.labels.tolist()
        assert [0] * 4 + [1] * 4 + [2] * 4 == reader.columns["split"].tolist() == reader.columns["group"].tolist()
        names = ("split_by", "split_source", "class_depth")
        assert ("file labels.csv", "files", -1) == tuple(reader.attributes[name] for name in names)
    assert "up to date" in vidcache("build", flat, cache, *SMALL, "--labels", labels).stderr
    # Forgotten, the list would give the same videos other classes.
    forgotten = vidcache("build", flat, cache, *SMALL)
    assert 2 == forgotten.exit_code
    assert "c.h5: has its classes from a list, but the folders now read in another way. Name" in forgotten.stderr
    # A list that changes changes classes and split; nothing is decoded again.
    labels.write_text(table(labels, "train test val", "s").read_text().replace("v03,walk", "v03,hop"))
    changed = vidcache("build", flat, cache, *SMALL, "--labels", labels)
    assert "12 clips of 3 classes (train 4, val 4, test 4)" in changed.stderr
    assert "0 decoded, 12 reused" in changed.stderr
    with CacheReader(cache) as reader:
        assert [0] * 4 + [2] * 4 + [1] * 4 == reader.columns["split"].tolist()
    # What the command says about the split comes before the list.
    chosen = vidcache("build", flat, cache, *SMALL, "--labels", labels, "--split", "50/50/0", "--group-by", "video")
    assert "test 0)" in chosen.stderr


def test_columns_that_a_list_gained_later_are_named_while_they_are_not_used(flat: Path, tmp_path: Path) -> None:
    labels, cache = table(tmp_path / "labels.csv"), tmp_path / "c.h5"
    assert "is not used" not in vidcache("build", flat, cache, *SMALL, "--labels", labels).stderr
    table(labels, "train val test", "s")

    messages = " ".join(vidcache("build", flat, cache, *SMALL, "--labels", labels).stderr.split())

    assert (
        f"column split of {labels} is not used: the cache is split by fractions. Use it with --split-file" in messages
    )
    assert (
        f"column group of {labels} is not used: the cache is grouped by video. Use it with --group-by file:" in messages
    )
    followed = ("--split-file", labels, "--group-by", f"file:{labels}")
    assert "is not used" not in vidcache("build", flat, cache, *SMALL, "--labels", labels, *followed).stderr


def test_another_layout_than_that_of_the_cache_is_chosen_or_refused(tmp_path: Path) -> None:
    for number in range(8):
        split = ("train", "train", "val", "test")[number % 4]
        make_video(tmp_path / "raw" / split / ("a", "b")[number // 4] / f"{number}.mkv", 8, first=number * 25)
    raw, cache = tmp_path / "raw", tmp_path / "c.h5"
    assert 0 == vidcache("build", raw, cache, *SMALL, "--layout", "classes").exit_code

    result = vidcache("build", raw, cache, *SMALL)

    assert 2 == result.exit_code
    assert "c.h5: has its classes from RAW/<class>/, but the folders now read in another way. Name" in result.stderr
    assert "(train 4, val 2, test 2)" in vidcache("build", raw, cache, *SMALL, "--layout", "splits").stderr
    assert "up to date" in vidcache("build", raw, cache, *SMALL).stderr
