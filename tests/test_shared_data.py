"""Real videos, where they are: 60 odd files and 277 clips of an overhead camera."""

import csv
import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from tests.helpers import SHARED, TOOLS, run_ffmpeg
from vidcache.cache.leakage import find_duplicates, find_leaks
from vidcache.cache.reader import CacheReader
from vidcache.cli import main
from vidcache.spec import sample_indices

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not SHARED.exists(), reason="../shared/data is not here")]

# Where this ffmpeg (8.1) and the one of INDEX.tsv (5.1) differ, and why.
DIFFERENCES: dict[str, int | str] = {
    "ExoPlayer__sample_still_photo.heic": 1,  # FFmpeg 8 reads HEIC: a video of one frame
    "mp4parse-rust__av1-clearkey-cbcs-video.mp4": "encrypted",  # the truth whether or not it decodes AV1
    "torchcodec__nasa_13013.mp4": 390,  # two video streams: the larger picture, as ffmpeg's own choice
}
REASONS = {
    "ExoPlayer__invalid-bitstream.webm": "decode_error",
    "ExoPlayer__sample_with_sdt.ts": "no_frames",
    "mp4parse-rust__invalid_userdata.mp4": "no_frames",
    "mp4parse-rust__short-cenc.mp4": "encrypted",
    "mp4parse-rust__tests_sine-3s-xhe-aac-44khz-mono.mp4": "no_video_stream",  # FFmpeg 8 finds the sound
}


def test_odd_files(tmp_path: Path) -> None:
    folder = tmp_path / "raw" / "odd"
    folder.mkdir(parents=True)
    with (SHARED / "odd" / "INDEX.tsv").open(newline="") as file:
        index = {row["file"]: row for row in csv.DictReader(file, delimiter="\t")}
    for name in index:
        shutil.copy(SHARED / "odd" / name, folder / name)
    arguments = ["build", str(tmp_path / "raw"), str(tmp_path / "odd.h5"), "--size", "32", "--max-failures", "100%"]

    result = CliRunner().invoke(main, [*arguments, "--json"], env={"PATH": "/usr/bin:/bin"})

    assert 0 == result.exit_code, result.stderr
    with CacheReader(tmp_path / "odd.h5") as reader:
        found: dict[str, int | str] = {}
        for row in range(len(reader)):
            name = os.fsdecode(reader.path_of(row)).removeprefix("odd/")
            failed = reader.columns["status"][row] == 2
            reason = reader.columns["error"][row].decode().split(":")[0]
            found[name] = reason if failed else int(reader.columns["num_frames"][row])
    assert set(index) == set(found)
    for name, row in index.items():
        if name in DIFFERENCES:
            assert DIFFERENCES[name] == found[name], name
        elif row["frames_decoded"] != "-":
            assert int(row["frames_decoded"]) == found[name], name
        else:
            no_stream = "no_video_stream" if "audio only" in row["note"] else "unreadable"
            assert REASONS.get(name, no_stream) == found[name], name
    said = json.loads(result.stdout)
    assert (60, sum(isinstance(value, str) for value in found.values())) == (said["num_videos"], said["num_failed"])


def test_overhead_home_equals_an_independent_decode(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["build", str(SHARED / "overhead_home"), str(tmp_path / "home.h5"), "--json"])

    assert 0 == result.exit_code, result.stderr
    said = json.loads(result.stdout)
    assert (277, 0, 0) == (said["num_clips"], said["num_failed"], said["num_damaged"])
    expected = {
        "falling": 27,
        "lie_down": 13,
        "lying_still": 25,
        "sit_down": 32,
        "sitting": 28,
        "stand_up": 68,
        "walk": 84,
    }
    assert expected == said["classes"]
    assert 0 == CliRunner().invoke(main, ["verify", str(tmp_path / "home.h5")]).exit_code
    scale = "scale=112:112:flags=bicubic+accurate_rnd+full_chroma_int+bitexact"
    with CacheReader(tmp_path / "home.h5") as reader:
        for row in range(0, 277, 9):
            path = SHARED / "overhead_home" / os.fsdecode(reader.path_of(row))
            command = [TOOLS.ffmpeg, "-v", "error", "-i", str(path), "-vf", scale, "-fps_mode", "passthrough"]
            raw = subprocess.run(
                [*command, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"], capture_output=True, check=True
            )
            frames = np.frombuffer(raw.stdout, np.uint8).reshape(-1, 112, 112, 3)
            assert len(frames) == reader.columns["num_frames"][row]
            assert (frames[sample_indices(len(frames), 64)] == reader.read([row])[0]).all()


def test_the_leak_guard_finds_copies_of_real_clips(tmp_path: Path) -> None:
    """24 clips of one room, each copied in four ways; those of the recording in the dark are left out."""
    ways = {
        "small": ("-vf", "scale=iw/2:-2", "-crf", "34"),
        "bright": ("-vf", "eq=brightness=0.12:contrast=1.15"),
        "cropped": ("-vf", "hflip,crop=iw*0.9:ih*0.9"),
        "late": ("-ss", "0.3"),
    }
    videos = [path for path in sorted((SHARED / "overhead_home").glob("*/*.mp4")) if "_183032_" not in path.name][::11]
    for video in videos:
        for way, arguments in {"original": (), **ways}.items():
            target = tmp_path / "raw" / way / video.name
            target.parent.mkdir(parents=True, exist_ok=True)
            codec = ("-an", "-c:v", "libx264", "-preset", "ultrafast")
            run_ffmpeg("-i", str(video), *arguments, *codec, str(target))
    result = CliRunner().invoke(main, ["build", str(tmp_path / "raw"), str(tmp_path / "c.h5"), "--num-frames", "64"])
    assert 0 == result.exit_code, result.stderr

    with CacheReader(tmp_path / "c.h5") as reader:
        names = [os.fsdecode(reader.path_of(row)).split("/") for row in range(len(reader))]
        pairs = [(names[first], names[second]) for first, second in find_duplicates(reader.columns).rows.tolist()]
        assert 0 == len(find_leaks(reader).pairs)
    assert len(videos) >= 24
    for way in ways:
        found = [
            first[1] for first, second in pairs if {first[0], second[0]} == {"original", way} and first[1] == second[1]
        ]
        assert len(found) >= 0.95 * len(videos), way
    originals = [(first[1], second[1]) for first, second in pairs if first[0] == second[0] == "original"]
    assert len(originals) <= 0.01 * len(videos) * (len(videos) - 1) / 2
