"""`vidcache analyze`: the facts, the page and the tables, the command."""

import csv
import dataclasses
import io
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from matplotlib.image import imread

from tests.helpers import SHARED, TOOLS, make_cache, make_plan, make_raw, make_record, make_video, run_ffmpeg
from tests.made_facts import EVEN, SPLIT, make_facts, make_varied_facts, where
from tests.test_decode import make_encrypted
from vidcache.cache.format import Status
from vidcache.cache.reader import CacheReader
from vidcache.cache.writer import CacheWriter
from vidcache.cli import main
from vidcache.errors import InputError
from vidcache.preprocess.analysis.checks import find_copies, run_checks
from vidcache.preprocess.analysis.facts import Facts, facts_of_cache, facts_of_folder
from vidcache.preprocess.analysis.report import draw_all, render, summarise, videos_csv
from vidcache.preprocess.analysis.shortcuts import find_shortcuts
from vidcache.spec import Spec

HOSTILE = ("<script>alert(1)</script>", "[red]", "$x^2$", "new\nline\x1b[31m", "not\udcffutf8", "=cmd()", "名前")
FILES = {"analysis.html", "summary.json", "videos.csv", "videos_per_class.png", "durations.png", "effective_fps.png"}


def analyze(*arguments: object, env: dict[str, str] | None = None) -> Result:
    return CliRunner().invoke(main, ["analyze", *map(str, arguments)], env=env)


# --- the facts --------------------------------------------------------------------------------


def test_a_folder_and_the_cache_of_it_give_the_same_facts(raw_dir: Path, tmp_path: Path) -> None:
    arguments = ["build", str(raw_dir), str(tmp_path / "c.h5"), "--size", "16", "--num-frames", "32"]
    assert 0 == CliRunner().invoke(main, arguments).exit_code

    folder = facts_of_folder(raw_dir, num_frames_per_clip=32, workers=2)
    with CacheReader(tmp_path / "c.h5") as reader:
        cache = facts_of_cache(reader)

    for field in dataclasses.fields(Facts):
        if field.name not in "name fingerprint skipped source_hash clip_hash split group black still".split():
            assert np.array_equal(getattr(folder, field.name), getattr(cache, field.name)), field.name
    assert (None,) * 5 == (folder.split, folder.clip_hash, folder.group, folder.black, folder.still)
    hashed = folder.source_hash != b""
    assert (folder.source_hash[hashed] == cache.source_hash[hashed]).all()
    assert pytest.approx([25.0] * 9) == folder.effective_fps.tolist()


def test_what_cannot_be_probed_is_a_failed_row_with_its_reason(tmp_path: Path) -> None:
    raw = make_raw(tmp_path / "raw", {"a": 1, "b": 1})
    (raw / "a" / "broken.mp4").write_bytes(b"broken" * 50)
    (raw / "a" / "link.mp4").symlink_to(raw / "b" / "b_0.mkv")
    (raw / "a" / "none.y4m").write_bytes(b"YUV4MPEG2 W32 H32 F25:1 Ip A1:1 C420\n")
    make_encrypted(raw / "a" / "locked.mp4")
    (raw / "b" / "notes.txt").write_text("not looked at")
    (raw / "stray.mp4").touch()
    run_ffmpeg("-f", "lavfi", "-i", "sine=d=1", "-c:a", "pcm_s16le", str(raw / "b" / "sound.mkv"))
    make_video(raw / "b" / "cut.avi", 60, codec=("-c:v", "mjpeg"))
    with (raw / "b" / "cut.avi").open("rb+") as file:
        file.truncate((raw / "b" / "cut.avi").stat().st_size // 2)

    calls: list[tuple[int, int, int]] = []
    facts = facts_of_folder(raw, progress=lambda *numbers: calls.append(numbers))

    rows = np.arange(len(facts))
    assert {
        "a/a_0.mkv": (Status.OK, ""),
        "a/broken.mp4": (Status.FAILED, "unreadable"),
        "a/link.mp4": (Status.FAILED, "not_a_regular_file"),
        "a/locked.mp4": (Status.FAILED, "encrypted"),
        "a/none.y4m": (Status.FAILED, "no_frames"),
        "b/b_0.mkv": (Status.OK, ""),
        "b/cut.avi": (Status.DAMAGED, "missing_frames"),
        "b/sound.mkv": (Status.FAILED, "no_video_stream"),
    } == dict(zip(facts.names(rows), zip(facts.status, facts.reasons(rows), strict=True), strict=True))
    assert re.fullmatch(rb"missing_frames: \d+ in the file, the header says 60", bytes(facts.error[6]))
    assert {"outside a class folder": 1, "not a video by its name": 1} == facts.skipped
    assert [(done, 8) for done in range(1, 9)] == [(done, total) for done, total, _ in calls]
    assert 5 == calls[-1][2]
    assert np.isnan(facts.effective_fps[1])


def test_only_files_of_equal_size_are_hashed(tmp_path: Path) -> None:
    raw = make_raw(tmp_path / "raw", {"a": 1, "b": 1})
    shutil.copy(raw / "a" / "a_0.mkv", raw / "b" / "copy.mkv")
    make_video(raw / "a" / "longer.mkv", 40)

    facts = facts_of_folder(raw)

    assert b"" == facts.source_hash[1]
    assert [["a/a_0.mkv", "b/copy.mkv"]] == [facts.names(rows) for rows in find_copies(facts)]


def test_clips_without_motion_and_black_clips_are_seen(tmp_path: Path) -> None:
    levels = (
        (50, 50, 50, 50, 50, 50, 50, 50),
        (50, 50, 52, 55, 58, 60, 60, 60),  # 10 levels: what encoding does
        (50, 50, 52, 55, 58, 61, 61, 61),
        (50, 50, 90, 90, 90, 50, 50, 50),  # the first and the last alone would be the same
        (50, 90, 90, 90, 90, 90, 90, 90),  # padded after two frames
        (50, 50, 50, 50, 50, 50, 50, 50),  # a single frame
        (0, 0, 0, 0, 0, 0, 0, 7),  # mean 0.875
        (0, 0, 0, 0, 0, 0, 0, 40),
    )
    with CacheWriter(tmp_path / "c.h5", make_plan(Spec(8, 16, 16), ["a"], np.zeros(8, int))) as writer:
        for row, num_real in enumerate((8, 8, 8, 8, 2, 1, 8, 8)):
            clip = np.repeat(np.array(levels[row], np.uint8), 16 * 16 * 3).reshape(8, 16, 16, 3)
            writer.write_clip(row, clip)
            writer.mark_done(row, make_record(clip, num_real=num_real))
        writer.finish(np.arange(8, dtype=np.int32), np.zeros(8, np.uint8))
    calls: list[tuple[int, int, int]] = []

    with CacheReader(tmp_path / "c.h5") as reader:
        facts = facts_of_cache(reader, lambda *numbers: calls.append(numbers))

    assert facts.still is not None
    assert facts.black is not None
    assert [True, True, False, False, False, True, True, False] == facts.still.tolist()
    assert [False] * 6 + [True, False] == facts.black.tolist()
    assert (8, 8, 0) == calls[-1]


# --- charts, page and tables ------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.pictures
def test_charts_are_bounded_and_show_what_differs() -> None:
    status, error = where([1], Status.FAILED, SPLIT * 0), where([1], b"timeout: x", np.zeros(120, "S9"))
    many = make_facts({f"class {k:03}": 3 for k in range(400)})
    made = many, make_facts(EVEN), make_facts(EVEN, status=status, error=error), make_facts(EVEN, split=SPLIT)

    large, folder, failed, split = ({chart.name: chart for chart in draw_all(facts)} for facts in made)

    height, width, _ = imread(io.BytesIO(large["videos_per_class"].png)).shape
    assert 700 <= width <= 800
    assert 1000 <= height <= 1700
    assert {"failures"} == set(failed) - set(folder)
    assert folder["videos_per_class"].png != split["videos_per_class"].png
    assert folder["durations"].png == split["durations"].png, "the same facts give the same bytes"


def hostile_facts() -> Facts:
    names = [os.fsencode(name) + f"/{row}.mp4".encode() for name in HOSTILE for row in range(2)]
    failed = np.tile([Status.OK, Status.FAILED], len(HOSTILE))
    error = np.full(14, b"unreadable: <b>x</b>")
    return make_facts(dict.fromkeys(HOSTILE, 2), path=np.array(names), status=failed, error=error)


def page_of(facts: Facts) -> str:
    study, charts = find_shortcuts(facts), draw_all(facts)
    return render(summarise(facts, study, run_checks(facts, study), charts), charts)


def test_hostile_names_are_text_in_the_page_and_the_table() -> None:
    page, table = page_of(hostile_facts()), videos_csv(hostile_facts())

    for text in ("&lt;script&gt;alert(1)&lt;/script&gt;", "new\\nline\\x1b[31m", "not\\xffutf8"):
        assert f"<td>{text}</td>" in page
    assert not re.search(r"<script|<b>|\x1b|\udcff", page + table.replace("<script", "").replace("<b>", ""))
    rows = list(csv.DictReader(io.StringIO(table)))
    assert ("'=cmd()/0.mp4", "'=cmd()", "ok") == (rows[10]["path"], rows[10]["class"], rows[10]["status"])
    assert ("failed", "") == (rows[1]["status"], rows[1]["effective_fps"])
    assert not any(value.startswith(tuple("=+-@")) for row in rows for value in row.values())


def test_the_page_stands_alone_and_says_what_the_summary_says() -> None:
    facts = make_varied_facts({"a": 40, "b": 10}, 0, fingerprint="f" * 32, split=np.zeros(50, np.uint8))
    page = page_of(facts)

    assert not re.search(r'(src|href)="(?!data:image/png;base64,)|url\(|@import|https?://', page)
    assert page.count('<img src="data:image/png;base64,') == len(draw_all(facts)) == 3
    assert "Fingerprint of the cache: " + "f" * 32 in page
    findings = run_checks(facts, find_shortcuts(facts))
    assert len(findings) > 3
    for text in (text for finding in findings for text in (finding.title, finding.detail, finding.advice)):
        assert text.replace("'", "&#39;").replace(">", "&gt;") in page
    page = page_of(make_facts({"a": 7, "b": 40}, skipped={"hidden": 1200}))
    assert "1,200 left out: hidden." in page
    assert "Not tested" in page
    assert "No problems found." in page_of(make_facts(EVEN))


def test_the_table_has_the_facts(tmp_path: Path) -> None:
    with CacheReader(make_cache(tmp_path / "c.h5", {"a": 6, "b": 6}, failed=(3,))) as reader:
        facts = facts_of_cache(reader)

    rows = list(csv.DictReader(io.StringIO(videos_csv(facts))))

    columns = "path class status error split duration_seconds fps width height num_frames num_real source_bytes"
    assert [*columns.split(), "effective_fps", "codec", "pixel_format", "black", "still"] == list(rows[0])
    assert facts.names(np.arange(12)) == [row["path"] for row in rows]
    assert ("", "0") == (rows[3]["split"], rows[3]["still"])
    assert {("train", "4"), ("val", "4"), ("test", "4"), ("", "0")} == {(row["split"], row["num_real"]) for row in rows}


# --- the command --------------------------------------------------------------------------------


def test_a_folder(tmp_path: Path) -> None:
    raw = make_raw(tmp_path / "raw", {"jump": 4, "run [red]": 2})
    (raw / "jump" / "broken.mp4").write_bytes(b"broken" * 50)
    before = sorted((path, path.stat().st_mtime_ns) for path in raw.rglob("*"))

    result = analyze(f"{raw}/", "--workers", 2)

    assert (0, "") == (result.exit_code, result.stderr)
    assert result.stdout.startswith(f"{raw}: 7 videos of 2 classes; 1 failed, 0 damaged, 6 padded\n")
    assert "\nproblem: Failed videos: 1\n" in result.stdout
    assert "jump (4), run [red] (2)" in result.stdout
    folder = tmp_path / "raw.analysis"
    assert result.stdout.endswith(f"\nPage, charts and tables: {folder}\n")
    assert FILES | {"failures.png"} == {path.name for path in folder.iterdir()}
    assert before == sorted((path, path.stat().st_mtime_ns) for path in raw.rglob("*"))
    first = json.loads((folder / "summary.json").read_text())
    assert first == json.loads(analyze(raw, "--workers", 1, "--json").stdout)


def test_a_cache_and_json(cache_file: Path, tmp_path: Path) -> None:
    cache = shutil.copy(cache_file, tmp_path / "cache.h5")

    result = analyze(cache, "--json")

    assert 0 == result.exit_code, result.stderr
    summary = json.loads(result.stdout)
    names = "kind num_videos num_clips num_failed num_frames_per_clip out failures".split()
    out = str(tmp_path / "cache.analysis")
    failures = {"failed": {"no_frames": 1}, "damaged": {}}
    assert ["cache", 24, 23, 1, 4, out, failures] == [summary[name] for name in names]
    with CacheReader(cache) as reader:
        assert reader.fingerprint == summary["fingerprint"]
        expected = [len(reader.rows(split)) for split in ("train", "val", "test")]
    assert expected == [sum(row[split] for row in summary["classes"]) for split in ("train", "val", "test")]
    assert summary == json.loads((tmp_path / "cache.analysis" / "summary.json").read_text())


def test_num_frames_and_out_change_the_result(raw_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "deep" / "x"
    results = [analyze(raw_dir, "--num-frames", number, "--out", out, "--json") for number in (24, 25)]

    assert [0, 9] == [json.loads(result.stdout)["num_padded"] for result in results]
    assert FILES == {path.name for path in out.iterdir()}
    make_raw(tmp_path / "raw.v2", {"a": 1})
    monkeypatch.chdir(tmp_path / "raw.v2")
    assert 0 == analyze(".").exit_code
    assert (tmp_path / "raw.v2.analysis" / "analysis.html").exists()


@pytest.mark.parametrize("flag", ["--num-frames=32", "--ffmpeg-dir=."])
def test_options_for_folders_are_refused_for_a_cache(cache_file: Path, flag: str, tmp_path: Path) -> None:
    result = analyze(cache_file, flag, "--out", tmp_path)

    assert 2 == result.exit_code
    assert f"{flag.split('=')[0]}: means nothing for the cache {cache_file}" in result.stderr
    env = {"VIDCACHE_NUM_FRAMES": "32"}  # for `vidcache build`
    assert 0 == analyze(cache_file, "--out", tmp_path / "x", env=env).exit_code


def test_what_is_neither_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "no.h5").write_bytes(b"nothing")
    (tmp_path / "empty").mkdir()

    missing, foreign, empty = (analyze(tmp_path / name) for name in ("gone", "no.h5", "empty"))

    assert (4, 4, 2) == (missing.exit_code, foreign.exit_code, empty.exit_code)
    assert "gone: not there. Name a cache, or a folder RAW/<class>/<video>" in missing.stderr
    assert {"no.h5", "empty"} == {path.name for path in tmp_path.iterdir()}


def test_another_ffprobe_is_used(tmp_path: Path) -> None:
    raw = make_raw(tmp_path / "raw", {"a": 1})
    (tmp_path / "bin").mkdir()
    for name in ("ffmpeg", "ffprobe"):
        script = f'#!/bin/sh\n[ "$1" = -version ] && exec {TOOLS.ffmpeg} -version\nexit 9\n'
        (tmp_path / "bin" / name).write_text(script)
        (tmp_path / "bin" / name).chmod(0o755)

    summary = json.loads(analyze(raw, "--ffmpeg-dir", tmp_path / "bin", "--json").stdout)

    assert ({"unreadable": 1}, 0) == (summary["failures"]["failed"], summary["num_clips"])
    with pytest.raises(InputError, match="ffmpeg"):
        facts_of_folder(raw, ffmpeg_dir=tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / "overhead_home").exists(), reason="../shared/data is not here")
def test_real_videos(tmp_path: Path) -> None:
    result = analyze(SHARED / "overhead_home", "--out", tmp_path / "x", "--json")

    assert 0 == result.exit_code, result.stderr
    summary = json.loads(result.stdout)
    assert (277, 0, 30) == (summary["num_videos"], summary["num_failed"], summary["num_padded"])
    findings = [(finding["severity"], finding["title"]) for finding in summary["findings"]]
    assert ("warning", "The largest class is 6.5 times the smallest") in findings
    assert not any("copies" in title for _, title in findings)
    # What moves takes more bytes: true of these classes, and a note, not a warning.
    assert ("note", "The class can be guessed from file size per second, without looking at the pictures") in findings
