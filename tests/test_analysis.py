"""`vidcache analyze`: the facts, what is said to be odd about them, and what is not."""

import csv
import dataclasses
import io
import json
import os
import re
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from click.testing import CliRunner, Result
from matplotlib.image import imread

from tests.helpers import SHARED, TOOLS, make_cache, make_plan, make_raw, make_record, make_video, run_ffmpeg
from tests.made_facts import EVEN, SPLIT, make_facts, make_split, make_varied_facts, where
from tests.test_decode import make_encrypted
from vidcache.cache.format import Status
from vidcache.cache.reader import CacheReader
from vidcache.cache.writer import CacheWriter
from vidcache.cli import main
from vidcache.errors import InputError
from vidcache.preprocess.analysis.charts import BLUE, ORANGE, draw_all, draw_histogram, draw_sizes
from vidcache.preprocess.analysis.checks import find_all, find_copies
from vidcache.preprocess.analysis.facts import Facts, facts_of_cache, facts_of_folder
from vidcache.preprocess.analysis.report import render, summarise, videos_csv, write_analysis
from vidcache.preprocess.analysis.shortcuts import study_shortcuts
from vidcache.spec import Spec

HOSTILE = ("<script>alert(1)</script>", "[red]", "$x^2$", "new\nline\x1b[31m", "not\udcffutf8", "=cmd()", "名前")


def analyze(*arguments: object, env: dict[str, str] | None = None) -> Result:
    return CliRunner().invoke(main, ["analyze", *map(str, arguments)], env=env)


def write_cache(path: Path, clips: list[npt.NDArray[np.uint8]], **values: list[Any]) -> Path:
    """A cache of these clips, one class."""
    spec = Spec(len(clips[0]), *clips[0].shape[1:3])
    plan = make_plan(spec, ["a"], np.zeros(len(clips), int))
    with CacheWriter(path, plan) as writer:
        for row, clip in enumerate(clips):
            writer.write_clip(row, clip)
            writer.complete(row, make_record(clip, **{name: value[row] for name, value in values.items()}))
        writer.finish(np.arange(len(clips), dtype=np.int32), np.zeros(len(clips), np.uint8))
    return path


# --- the facts --------------------------------------------------------------------------------


def test_a_folder_and_the_cache_of_it_give_the_same_facts(raw_dir: Path, tmp_path: Path) -> None:
    arguments = ["build", str(raw_dir), str(tmp_path / "c.h5"), "--size", "16", "--num-frames", "32"]
    assert 0 == CliRunner().invoke(main, arguments).exit_code

    folder = facts_of_folder(raw_dir, num_frames_per_clip=32, workers=2)
    with CacheReader(tmp_path / "c.h5") as reader:
        cache = facts_of_cache(reader)

    for field in dataclasses.fields(Facts):
        if field.name not in {*"name fingerprint skipped source_hash clip_hash split group black still".split()}:
            assert np.array_equal(getattr(folder, field.name), getattr(cache, field.name)), field.name
    assert (None,) * 5 == (folder.split, folder.clip_hash, folder.group, folder.black, folder.still)
    assert cache.group is not None
    hashed = folder.source_hash != b""
    assert (folder.source_hash[hashed] == cache.source_hash[hashed]).all()
    assert [24] * 9 == folder.num_real.tolist()
    assert pytest.approx([25.0] * 9) == folder.effective_fps.tolist()


def test_what_cannot_be_probed_is_a_failed_row_with_its_reason(tmp_path: Path) -> None:
    raw = make_raw(tmp_path / "raw", {"a": 1, "b": 1})
    (raw / "a" / "broken.mp4").write_bytes(b"broken" * 50)
    (raw / "a" / "empty.mp4").touch()
    (raw / "a" / "link.mp4").symlink_to(raw / "b" / "b_0.mkv")
    (raw / "b" / "notes.txt").write_text("not looked at")
    (raw / "stray.mp4").touch()
    run_ffmpeg("-f", "lavfi", "-i", "sine=d=1", "-c:a", "pcm_s16le", str(raw / "b" / "sound.mkv"))
    make_video(raw / "b" / "cut.avi", 60, codec=("-c:v", "mjpeg"))
    with (raw / "b" / "cut.avi").open("rb+") as file:
        file.truncate((raw / "b" / "cut.avi").stat().st_size // 2)

    calls: list[tuple[int, int, int]] = []
    facts = facts_of_folder(raw, progress=lambda *numbers: calls.append(numbers))

    reasons = {facts.name_of(row): (Status(facts.status[row]), facts.reason_of(row)) for row in range(len(facts))}
    assert {
        "a/a_0.mkv": (Status.OK, ""),
        "a/broken.mp4": (Status.FAILED, "unreadable"),
        "a/empty.mp4": (Status.FAILED, "unreadable"),
        "a/link.mp4": (Status.FAILED, "not_a_regular_file"),
        "b/b_0.mkv": (Status.OK, ""),
        "b/cut.avi": (Status.DAMAGED, "missing_frames"),
        "b/sound.mkv": (Status.FAILED, "no_video_stream"),
    } == reasons
    assert re.fullmatch(rb"missing_frames: \d+ in the file, the header says 60", bytes(facts.error[5]))
    assert {"outside a class folder": 1, "not a video by its name": 1} == facts.skipped
    assert [(done, 7) for done in range(1, 8)] == [(done, total) for done, _, total in calls]
    assert 4 == calls[-1][1]
    assert np.isnan(facts.effective_fps[1])


def test_encrypted_and_empty_streams_fail_as_they_would_in_a_build(tmp_path: Path) -> None:
    make_raw(tmp_path / "raw", {"a": 1})
    make_encrypted(tmp_path / "raw" / "a" / "locked.mp4")
    (tmp_path / "raw" / "a" / "none.y4m").write_bytes(b"YUV4MPEG2 W32 H32 F25:1 Ip A1:1 C420\n")

    facts = facts_of_folder(tmp_path / "raw")

    assert [b"", b"encrypted: unknown codec; the container says that it is encrypted"] == facts.error[:2].tolist()
    assert b"no_frames: no packets in the file" == facts.error[2]
    assert [Status.OK, Status.FAILED, Status.FAILED] == facts.status.tolist()


def test_only_files_of_equal_size_are_hashed(tmp_path: Path) -> None:
    raw = make_raw(tmp_path / "raw", {"a": 1, "b": 1})
    shutil.copy(raw / "a" / "a_0.mkv", raw / "b" / "copy.mkv")
    make_video(raw / "a" / "longer.mkv", 40)

    facts = facts_of_folder(raw)

    hashes = dict(zip(facts.path.tolist(), facts.source_hash.tolist(), strict=True))
    assert b"" == hashes[b"a/longer.mkv"]
    assert hashes[b"a/a_0.mkv"] == hashes[b"b/copy.mkv"] != b""
    assert [[b"a/a_0.mkv", b"b/copy.mkv"]] == [facts.path[rows].tolist() for rows in find_copies(facts)]


def test_a_survey_can_be_stopped(raw_dir: Path) -> None:
    def stop(done: int, failed: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        facts_of_folder(raw_dir, workers=2, progress=stop)


def test_clips_without_motion_and_black_clips_are_seen(tmp_path: Path) -> None:
    def clip(*levels: int) -> npt.NDArray[np.uint8]:
        return np.repeat(np.array(levels, np.uint8), 16 * 16 * 3).reshape(len(levels), 16, 16, 3)

    clips = [
        clip(50, 50, 50, 50, 50, 50, 50, 50),
        clip(50, 50, 52, 55, 58, 60, 60, 60),  # 10 levels: what encoding does
        clip(50, 50, 52, 55, 58, 61, 61, 61),
        clip(50, 50, 90, 90, 90, 50, 50, 50),  # the first and the last alone would be the same
        clip(50, 90, 90, 90, 90, 90, 90, 90),  # padded after two frames
        clip(50, 50, 50, 50, 50, 50, 50, 50),  # a single frame
        clip(0, 0, 0, 0, 0, 0, 0, 7),  # mean 0.875
        clip(0, 0, 0, 0, 0, 0, 0, 40),
    ]
    path = write_cache(tmp_path / "c.h5", clips, num_real=[8, 8, 8, 8, 2, 1, 8, 8])
    calls: list[tuple[int, int, int]] = []

    with CacheReader(path) as reader:
        facts = facts_of_cache(reader, lambda *numbers: calls.append(numbers))

    assert facts.still is not None
    assert facts.black is not None
    assert [True, True, False, False, False, True, True, False] == facts.still.tolist()
    assert [False] * 6 + [True, False] == facts.black.tolist()
    assert (8, 0, 8) == calls[-1]


def test_failed_rows_of_a_cache_are_not_read(tmp_path: Path) -> None:
    with CacheReader(make_cache(tmp_path / "c.h5", {"a": 4, "b": 4}, failed=(0, 1, 2, 3, 4, 5, 6))) as reader:
        facts = facts_of_cache(reader)

    assert [7] == np.flatnonzero(facts.good).tolist()
    assert facts.still is not None
    assert not facts.still.any()


# --- pictures, page and tables ------------------------------------------------------------------


def size_of(png: bytes) -> tuple[int, int]:
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", png[16:24])
    return int(width), int(height)


@pytest.mark.parametrize(("num_classes", "per_class"), [(1, 1), (5, 20), (400, 3)])
def test_charts_are_bounded_whatever_the_number_of_classes(num_classes: int, per_class: int) -> None:
    counts = {f"class {k:03}": per_class for k in range(num_classes)}

    charts = {chart.name: chart for chart in draw_all(make_varied_facts(counts, 0))}

    names = "videos_per_class frames_available padding durations effective_fps frame_rates frame_sizes"
    assert names.split() == list(charts)
    for chart in charts.values():
        width, height = size_of(chart.png)
        assert 700 <= width <= 800
        assert 100 <= height <= 1700
    said = charts["videos_per_class"].sentence
    assert ("370 classes lie between" in said) == (num_classes == 400)
    assert ("1 video of 1 class," in said) == (num_classes == 1)


def test_charts_show_what_differs() -> None:
    base = make_facts(EVEN)
    failed = make_facts(
        EVEN, status=where([1], Status.FAILED, base.status), error=where([1], b"timeout: x", base.error)
    )
    split = make_facts(EVEN, split=SPLIT)

    pictures = [{chart.name: chart.png for chart in draw_all(facts)} for facts in (base, failed, split)]

    assert "failures" not in pictures[0]
    assert "failures" in pictures[1]
    assert pictures[0]["videos_per_class"] != pictures[2]["videos_per_class"]
    assert pictures[0]["durations"] == pictures[2]["durations"], "the same facts give the same bytes"
    assert "1 failed and have no clip" in {c.name: c for c in draw_all(failed)}["failures"].sentence


def coloured(png: bytes, colour: str) -> npt.NDArray[np.bool_]:
    """Which pixels of a picture have a colour."""
    rgb = np.array([int(colour[place : place + 2], 16) for place in (1, 3, 5)])
    found: npt.NDArray[np.bool_] = (np.abs(imread(io.BytesIO(png))[:, :, :3] * 255 - rgb) < 2).all(axis=2)
    return found


def test_values_that_are_far_apart_have_a_logarithmic_axis() -> None:
    widths = []
    for last in (15.0, 100_000.0):  # evenly spaced as logarithms
        values = np.geomspace(1, last, 400)
        blue = coloured(draw_histogram(values, "seconds", [(last, "the last", ORANGE)]), BLUE)
        widths.append((blue.sum(axis=0) > 0.5 * blue.sum(axis=0).max()).mean())

    assert widths[0] < 0.5 < widths[1]  # 15 times as much is not far


def test_a_histogram_shows_its_marks() -> None:
    values = np.arange(50)

    assert coloured(draw_histogram(values, "frames", [(70, "here", ORANGE)]), ORANGE).any()
    assert not coloured(draw_histogram(values, "frames"), ORANGE).any()


def test_only_the_most_frequent_sizes_are_named() -> None:
    sizes = np.array([[100 * k, 70 * k] for k in range(1, 8)])
    counts = np.array([9, 1, 8, 7, 6, 5, 2])

    pale = "#c2c2c2"  # grey that lets the paper shine through
    few, many = (coloured(draw_sizes(sizes[:n], counts[:n]), pale).sum() for n in (5, 7))

    assert many > few + 200  # the two that have no colour of their own


def test_many_frame_rates_are_a_histogram() -> None:
    rates = np.linspace(10, 60, 120)

    chart = {chart.name: chart for chart in draw_all(make_facts(EVEN, fps=rates))}["frame_rates"]

    assert coloured(chart.png, BLUE).any(axis=0).mean() > 0.5


def test_nothing_but_failures_is_drawn_when_all_failed() -> None:
    facts = make_facts({"a": 3}, status=np.full(3, Status.FAILED), error=np.full(3, b"unreadable: x"))

    assert ["failures"] == [chart.name for chart in draw_all(facts)]
    assert ["problem", "problem", "problem"] == [
        finding.severity.value for finding in find_all(facts, study_shortcuts(facts))
    ]


def hostile_facts() -> Facts:
    counts = dict.fromkeys(HOSTILE, 2)
    names = [os.fsencode(name) + f"/{row}.mp4".encode() for name in HOSTILE for row in range(2)]
    failed = np.tile([Status.OK, Status.FAILED], len(HOSTILE))
    return make_facts(counts, path=np.array(names), status=failed, error=np.full(14, b"unreadable: <b>x</b>"))


def page_of(facts: Facts) -> str:
    study, charts = study_shortcuts(facts), draw_all(facts)
    return render(summarise(facts, study, find_all(facts, study), charts), charts)


def test_hostile_names_are_text_in_the_page() -> None:
    page = page_of(hostile_facts())

    assert "<td>&lt;script&gt;alert(1)&lt;/script&gt;</td>" in page
    assert not re.search(r"<script|<b>|\x1b|\udcff", page)
    assert "<td>new\\nline\\x1b[31m</td>" in page
    assert "<td>not\\xffutf8</td>" in page
    page.encode("utf-8")


def test_the_page_stands_alone_and_says_what_the_summary_says() -> None:
    facts = make_facts({"a": 40, "b": 10}, fingerprint="f" * 32, split=make_split({"a": 40, "b": 10}, test=3, val=2))
    page = page_of(facts)

    assert not re.search(r'(src|href)="(?!data:image/png;base64,)|url\(|@import|https?://', page)
    assert page.count('<img src="data:image/png;base64,') == len(draw_all(facts))
    assert "Fingerprint of the cache: " + "f" * 32 in page
    for finding in find_all(facts, study_shortcuts(facts)):
        for text in (finding.title, finding.detail, finding.advice):
            assert text.replace("'", "&#39;") in page
    for chart in draw_all(facts):
        assert f"<figcaption>{chart.sentence}</figcaption>" in page


def test_a_page_without_findings_says_so() -> None:
    page = page_of(make_facts(EVEN, skipped={"hidden": 1200}))

    assert "Nothing odd was found in made." in page
    assert "1,200 left out: hidden." in page
    assert "That was not looked into" in page_of(make_facts({"a": 3, "b": 3}))


def test_no_cell_of_the_table_is_a_formula() -> None:
    rows = list(csv.DictReader(io.StringIO(videos_csv(hostile_facts()))))

    assert 14 == len(rows)
    assert ("'=cmd()/0.mp4", "'=cmd()") == (rows[10]["path"], rows[10]["class"])
    assert "new\\nline\\x1b[31m/0.mp4" == rows[6]["path"]
    assert ("ok", "failed", "") == (rows[0]["status"], rows[1]["status"], rows[1]["effective_fps"])
    assert not any(value.startswith(tuple("=+-@")) for row in rows for value in row.values())


def test_the_table_has_the_facts(tmp_path: Path) -> None:
    with CacheReader(make_cache(tmp_path / "c.h5", {"a": 6, "b": 6}, failed=(3,))) as reader:
        facts = facts_of_cache(reader)

    rows = list(csv.DictReader(io.StringIO(videos_csv(facts))))

    assert [facts.name_of(row) for row in range(12)] == [row["path"] for row in rows]
    assert "" == rows[3]["split"]
    assert {"train", "val", "test"} == {row["split"] for row in rows if row["status"] == "ok"}
    assert {"0"} == {row["still"] for row in rows}
    assert {"4"} == {row["num_real"] for row in rows if row["status"] == "ok"}


# --- the command --------------------------------------------------------------------------------


def test_help_is_instant_and_has_an_example() -> None:
    result = analyze("--help")

    assert 0 == result.exit_code
    assert "\n  vidcache analyze cache.h5\n" in result.stdout


def test_a_folder(tmp_path: Path) -> None:
    raw = make_raw(tmp_path / "raw", {"jump": 4, "run [red]": 2})
    (raw / "jump" / "broken.mp4").write_bytes(b"broken" * 50)
    before = sorted((path, path.stat().st_mtime_ns) for path in raw.rglob("*"))

    result = analyze(f"{raw}/", "--workers", 2)

    assert 0 == result.exit_code, result.stderr
    assert "" == result.stderr
    folder = tmp_path / "raw.analysis"
    assert result.stdout.startswith(f"{raw}: 7 videos of 2 classes; 1 failed, 0 damaged, 6 padded\n")
    assert "\nproblem: 1 video failed\n" in result.stdout
    assert "jump has 4 videos, run [red] 2" in result.stdout
    assert result.stdout.endswith(f"\nPage, charts and tables: {folder}\n")
    charts = (
        "videos_per_class frames_available padding durations effective_fps frame_rates frame_sizes failures".split()
    )
    assert {*(f"{name}.png" for name in charts), "analysis.html", "summary.json", "videos.csv"} == {
        path.name for path in folder.iterdir()
    }
    assert before == sorted((path, path.stat().st_mtime_ns) for path in raw.rglob("*"))
    one = json.loads((folder / "summary.json").read_text())
    said = json.loads(analyze(raw, "--workers", 1, "--json").stdout)
    assert one == said


def test_a_cache_and_json(cache_file: Path, tmp_path: Path) -> None:
    cache = shutil.copy(cache_file, tmp_path / "cache.h5")

    result = analyze(cache, "--json")

    assert 0 == result.exit_code, result.stderr
    said = json.loads(result.stdout)
    assert ("cache", 24, 23, 1, 4) == tuple(
        said[name] for name in ("kind", "num_videos", "num_clips", "num_failed", "num_frames_per_clip")
    )
    with CacheReader(cache) as reader:
        assert reader.fingerprint == said["fingerprint"]
        expected = [len(reader.rows(split)) for split in ("train", "val", "test")]
    assert expected == [sum(row[split] for row in said["classes"]) for split in ("train", "val", "test")]
    assert str(tmp_path / "cache.analysis") == said["out"]
    assert said == json.loads((tmp_path / "cache.analysis" / "summary.json").read_text())
    assert {"no_frames": 1} == said["failures"]["failed"]


def test_num_frames_and_out_change_the_result(raw_dir: Path, tmp_path: Path) -> None:
    padded = [
        json.loads(analyze(raw_dir, "--num-frames", number, "--out", tmp_path / "deep" / "x", "--json").stdout)[
            "num_padded"
        ]
        for number in (24, 25)
    ]

    assert [0, 9] == padded
    assert (tmp_path / "deep" / "x" / "analysis.html").exists()
    assert not (raw_dir.parent / "raw.analysis").exists()


@pytest.mark.parametrize("flag", ["--num-frames=32", "--ffmpeg-dir=."])
def test_options_for_folders_are_refused_for_a_cache(cache_file: Path, flag: str, tmp_path: Path) -> None:
    result = analyze(cache_file, flag, "--out", tmp_path)

    assert 2 == result.exit_code
    assert f"{flag.split('=')[0]}: means nothing for the cache {cache_file}" in result.stderr
    env = {"VIDCACHE_NUM_FRAMES": "32"}  # for `vidcache build`
    assert 0 == analyze(cache_file, "--out", tmp_path / "x", env=env).exit_code


@pytest.mark.parametrize("out", [".", "a/b", "../raw/x"])
def test_nothing_is_written_into_the_folder_of_videos(raw_dir: Path, out: str) -> None:
    result = analyze(raw_dir, "--out", raw_dir / out)

    assert 2 == result.exit_code
    assert re.search(r"raw: is read by this command|lies in .*raw, which is only read\. Choose a place", result.stderr)


def test_the_folder_here_has_a_name_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_raw(tmp_path / "raw.v2", {"a": 1})
    monkeypatch.chdir(tmp_path / "raw.v2")

    result = analyze(".")

    assert 0 == result.exit_code, result.stderr
    assert (tmp_path / "raw.v2.analysis" / "analysis.html").exists()


def test_what_is_neither_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "no.h5").write_bytes(b"nothing")
    (tmp_path / "empty").mkdir()

    missing, foreign, empty = (analyze(tmp_path / name) for name in ("gone", "no.h5", "empty"))

    assert (4, 4, 2) == (missing.exit_code, foreign.exit_code, empty.exit_code)
    assert "gone: not there, expected a cache, or a folder RAW/<class>/<video>. Check the name" in missing.stderr
    assert "no.h5: no vidcache file" in foreign.stderr
    assert "empty: no videos found" in empty.stderr
    assert {"no.h5", "empty"} == {path.name for path in tmp_path.iterdir()}


def test_another_ffprobe_is_used(tmp_path: Path) -> None:
    raw = make_raw(tmp_path / "raw", {"a": 1})
    (tmp_path / "bin").mkdir()
    for name in ("ffmpeg", "ffprobe"):
        (tmp_path / "bin" / name).write_text(
            f'#!/bin/sh\n[ "$1" = -version ] && exec {TOOLS.ffmpeg} -version\nexit 9\n'
        )
        (tmp_path / "bin" / name).chmod(0o755)

    said = json.loads(analyze(raw, "--ffmpeg-dir", tmp_path / "bin", "--json").stdout)
    with pytest.raises(InputError, match="is no working ffmpeg"):
        facts_of_folder(raw, ffmpeg_dir=tmp_path)

    assert ({"unreadable": 1}, 0) == (said["failures"]["failed"], said["num_clips"])


def test_hostile_names_on_the_terminal_and_in_files(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    for number, name in enumerate(HOSTILE):
        folder = os.fsencode(raw) + b"/" + os.fsencode(name.replace("/", "|"))
        os.makedirs(folder)
        video = make_video(tmp_path / f"{number}.mkv", 4)
        shutil.move(video, folder + b"/-i.mkv")

    result = analyze(raw, "--out", tmp_path / "x")

    assert 0 == result.exit_code, result.stderr
    assert (
        "new\\nline\\x1b[31m (0.15)" in result.stdout
        or "new\\nline\\x1b[31m" in (tmp_path / "x/analysis.html").read_text()
    )
    for text in (result.stdout, *((tmp_path / "x" / name).read_text() for name in ("summary.json", "videos.csv"))):
        assert "\x1b" not in text
        assert "\udcff" not in text
    assert "<script>alert" not in (tmp_path / "x" / "analysis.html").read_text()
    assert "7 videos of 7 classes" in result.stdout


def test_nothing_odd_is_said_in_words(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from vidcache.preprocess.analysis.facts import facts as survey

    monkeypatch.setattr(survey, "facts_of_folder", lambda *_, **__: make_facts(EVEN))
    (tmp_path / "raw").mkdir()

    result = analyze(tmp_path / "raw")

    assert 0 == result.exit_code, result.stderr
    assert "Nothing odd was found in made." in result.stdout


def test_a_full_disk_leaves_no_half_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = make_facts(EVEN)
    study, charts = study_shortcuts(facts), draw_all(facts)
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))

    with pytest.raises(OSError, match="No space left"):
        write_analysis(tmp_path / "x", facts, summarise(facts, study, (), charts), charts)

    assert [] == list((tmp_path / "x").iterdir())


@pytest.mark.skipif(not (SHARED / "overhead_home").exists(), reason="../shared/data is not here")
def test_real_videos(tmp_path: Path) -> None:
    result = analyze(SHARED / "overhead_home", "--out", tmp_path / "x", "--json")

    assert 0 == result.exit_code, result.stderr
    said = json.loads(result.stdout)
    assert (277, 7, 0, 30) == (said["num_videos"], len(said["classes"]), said["num_failed"], said["num_padded"])
    titles = [finding["title"] for finding in said["findings"]]
    assert "The largest class is 6.5 times the smallest" in titles
    assert not any("copies" in title for title in titles)
    # What moves takes more bytes: true of these classes, and a note, not a warning.
    told = [(finding["severity"], finding["title"]) for finding in said["findings"] if "guessed" in finding["title"]]
    assert [("note", "The class can be guessed from file size per second, without looking at the pictures")] == told
    assert {"walk": 84, "lie_down": 13}.items() <= {row["class"]: row["num_clips"] for row in said["classes"]}.items()
