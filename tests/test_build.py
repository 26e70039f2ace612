"""From a folder to a cache: what is found, what is stored, what is reported."""

import csv
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.helpers import TOOLS, make_raw, make_video, run_ffmpeg
from tests.videos import H264, SPEC, decode
from vidcache.cache.format import Status, clip_hash_of
from vidcache.cache.reader import CacheReader
from vidcache.errors import InputError
from vidcache.near_duplicates import NEAR, clip_distance, perceptual_hash
from vidcache.preprocess.build import build_cache
from vidcache.preprocess.options import BuildOptions
from vidcache.preprocess.split.config import SplitOverrides
from vidcache.preprocess.video.decode import DecodeLimits
from vidcache.spec import Spec, sample_indices

OPTIONS = BuildOptions(spec=SPEC, workers=2)


def test_every_column_says_what_is_true(raw_dir: Path, tmp_path: Path) -> None:
    report = build_cache(raw_dir, tmp_path / "c.h5", OPTIONS)

    with CacheReader(tmp_path / "c.h5") as reader:
        columns = reader.columns
        assert ("jump", "run") == reader.classes
        assert [f"jump/jump_{k}.mkv".encode() for k in range(4)] == columns["path"][:4].tolist()
        assert [0] * 4 + [1] * 5 == columns["label"].tolist()
        for row in range(9):
            file = raw_dir / os.fsdecode(reader.path_of(row))
            assert file.stat().st_size == columns["source_bytes"][row]
            assert file.stat().st_mtime_ns == columns["source_mtime_ns"][row]
            clip = reader.read([row])[0]
            assert [row * 5 + n * 2 for n in sample_indices(24, 8)] == clip[:, 0, 0, 0].tolist()
            assert clip_hash_of(clip).encode() == columns["clip_hash"][row]
            assert pytest.approx(clip.reshape(-1, 3).mean(axis=0)) == columns["mean_rgb"][row]
            assert (perceptual_hash(clip) == columns["perceptual_hash"][row]).all()
        expected = {
            "status": Status.OK,
            "error": b"",
            "width": 64,
            "height": 48,
            "rotation": 0,
            "num_frames": 24,
            "num_frames_from_header": -1,
            "num_real": 8,
            "codec": b"ffv1",
            "pixel_format": b"gray",
        }
        for name, value in expected.items():
            assert (columns[name] == value).all(), name
        assert pytest.approx(np.full(9, 24 / 25)) == columns["duration_seconds"]
        assert pytest.approx(np.full(9, 25.0)) == columns["fps"]
        assert list(range(9)) == columns["group"].tolist()
        assert {0, 1, 2} == set(columns["split"].tolist())
        assert len(set(columns["source_hash"].tolist())) == 9
        assert TOOLS.version == reader.attributes["ffmpeg_version"]
        assert [0.7, 0.15, 0.15] == reader.attributes["split_fractions"]
        assert report.fingerprint == reader.fingerprint
    assert (9, 9, 0) == (report.num_videos, report.num_decoded, report.num_reused)
    assert (0, 0) == (report.num_failed, report.num_damaged)
    assert {"jump": 4, "run": 5} == report.class_counts
    assert 9 == sum(report.split_counts)


def test_a_notebook_needs_one_line_and_the_bytes_do_not_depend_on_the_workers(raw_dir: Path, tmp_path: Path) -> None:
    for workers in (1, 3):
        build_cache(str(raw_dir), str(tmp_path / f"{workers}.h5"), spec=SPEC, workers=workers)

    assert (tmp_path / "1.h5").read_bytes() == (tmp_path / "3.h5").read_bytes()
    assert {f"{n}{end}" for n in (1, 3) for end in (".h5", ".h5.lock", ".failures.csv")} == set(os.listdir(tmp_path))
    header = "path,class,status,reason,num_frames,num_frames_from_header,detail\n"
    assert header == (tmp_path / "1.failures.csv").read_text()


def test_the_clips_are_those_of_a_decode_without_sampling(tmp_path: Path) -> None:
    """All frames by another command, scaled the same, indexed by numpy."""
    (tmp_path / "raw" / "a").mkdir(parents=True)
    for index in range(3):
        source = ("-f", "lavfi", "-i", f"testsrc2=s=160x120:r=30,rotate={index}*t", "-frames:v", "70")
        run_ffmpeg(*source, *H264, "-bf", "2", str(tmp_path / "raw" / "a" / f"{index}.mp4"))
    build_cache(tmp_path / "raw", tmp_path / "c.h5", OPTIONS)

    with CacheReader(tmp_path / "c.h5") as reader:
        for row in range(3):
            path = tmp_path / "raw" / os.fsdecode(reader.path_of(row))
            scale = "scale=64:48:flags=bicubic+accurate_rnd+full_chroma_int+bitexact"
            command = [TOOLS.ffmpeg, "-v", "error", "-i", str(path), "-vf", scale, "-fps_mode", "passthrough"]
            raw = subprocess.run(
                [*command, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"], capture_output=True, check=True
            )
            frames = np.frombuffer(raw.stdout, np.uint8).reshape(-1, 48, 64, 3)
            assert (frames[sample_indices(70, 8)] == reader.read([row])[0]).all()


def test_failures_are_rows_and_a_list_and_do_not_stop_the_rest(tmp_path: Path) -> None:
    raw = make_raw(tmp_path / "raw", {"a": 3, "b": 4})
    (raw / "a" / "bad,\n.mp4").write_bytes(b"no video" * 99)
    cut = make_video(raw / "b" / "cut.avi", 60)
    data = cut.read_bytes()
    starts = [at for at in range(data.index(b"movi"), len(data)) if data[at : at + 4] == b"00dc"]
    cut.write_bytes(data[: starts[20]])

    report = build_cache(raw, tmp_path / "c.h5", OPTIONS)

    assert [("unreadable", Status.FAILED, 0), ("missing_frames", Status.DAMAGED, 20)] == [
        (problem.reason, problem.status, problem.num_frames) for problem in report.problems
    ]
    assert (9, 1, 1) == (report.num_videos, report.num_failed, report.num_damaged)
    with (tmp_path / "c.failures.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [r"a/bad,\n.mp4", "b/cut.avi"] == [row["path"] for row in rows]
    assert {
        "path": "b/cut.avi",
        "class": "b",
        "status": "damaged",
        "reason": "missing_frames",
        "num_frames": "20",
        "num_frames_from_header": "60",
        "detail": "20 decoded, the header says 60",
    } == rows[1]
    with CacheReader(tmp_path / "c.h5") as reader:
        assert 8 == len(reader.rows())
        assert b"missing_frames: 20 decoded, the header says 60" == reader.columns["error"][-1]
        assert 20 == reader.columns["num_frames"][-1]


def test_tiny_classes_are_refused_by_name_before_anything_is_decoded(tmp_path: Path) -> None:
    raw = make_raw(tmp_path / "raw", {"a": 3, "b": 2})
    with pytest.raises(InputError, match=r"classes with fewer than 3 videos, .*: b \(2\)\. .*--allow-tiny-classes"):
        build_cache(raw, tmp_path / "c.h5", OPTIONS)
    assert not (tmp_path / "c.h5.lock").exists()

    (raw / "b" / "bad.mp4").write_bytes(b"no video")
    with pytest.raises(InputError, match=r"classes with fewer than 3 videos that decode, .*: b \(2\)"):
        build_cache(raw, tmp_path / "c.h5", OPTIONS)

    report = build_cache(raw, tmp_path / "c.h5", OPTIONS, allow_tiny_classes=True)
    assert (0, 6, {"a": 3, "b": 2}) == (report.num_decoded, report.num_reused, report.class_counts)


def test_a_folder_in_which_nothing_decodes_gives_no_cache(tmp_path: Path) -> None:
    (tmp_path / "raw" / "a").mkdir(parents=True)
    for index in range(3):
        (tmp_path / "raw" / "a" / f"{index}.mp4").write_bytes(b"no video")

    with pytest.raises(InputError, match=r"c\.h5: none of 3 videos gave a clip \(unreadable: .*See .*c\.failures\.csv"):
        build_cache(tmp_path / "raw", tmp_path / "c.h5", OPTIONS)

    assert not (tmp_path / "c.h5").exists()
    assert 4 == len((tmp_path / "c.failures.csv").read_text().splitlines())


def test_options_change_the_result(raw_dir: Path, tmp_path: Path) -> None:
    def build(name: str, **settings: object) -> CacheReader:
        build_cache(raw_dir, tmp_path / name, OPTIONS, **settings)
        return CacheReader(tmp_path / name)

    plain = build("plain.h5")
    assert plain.split_hash != build("seed.h5", split=SplitOverrides(seed=1)).split_hash
    assert plain.fingerprint == build("seed2.h5", split=SplitOverrides(seed=1)).fingerprint
    no_test = build("split.h5", split=SplitOverrides(fractions=(0.5, 0.5, 0.0)))
    assert 0 == len(no_test.rows("test"))
    assert (4, 32, 16) == build("spec.h5", spec=Spec(4, 32, 16)).spec.clip_shape[:3]
    with pytest.raises(InputError, match="timeout: .* after 1e-06 s; raise --timeout"):
        build("timeout.h5", limits=DecodeLimits(timeout_seconds=1e-6))


def test_a_video_that_was_encoded_again_looks_alike_and_another_does_not(tmp_path: Path) -> None:
    def hash_of(name: str, *arguments: str) -> np.ndarray[object, np.dtype[np.uint8]]:
        run_ffmpeg("-f", "lavfi", "-i", *arguments, str(tmp_path / name))
        return perceptual_hash(decode(tmp_path / name, Spec(16, 64, 64)).clip)

    length = ("-frames:v", "40", *H264)
    original = hash_of("a.mp4", "testsrc2=s=160x120:r=25", *length)
    copy = hash_of("b.mp4", "testsrc2=s=160x120:r=25,scale=96:80,eq=brightness=0.06", *length, "-crf", "32")
    other = hash_of("c.mp4", "mandelbrot=s=160x120:r=25", *length)

    assert clip_distance(original, copy) <= NEAR
    assert clip_distance(original, other) > 10 * NEAR
