"""`vidpredict`: files and folders in, a line or an entry for each out; bad ones, batches, workers, drawings."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

from tests.helpers import TOOLS, make_raw, make_video, run_ffmpeg
from vidcache.checkpoint import Checkpoint
from vidcache.errors import InputError
from vidcache.eval.inference import load_model
from vidcache.eval.predict import PredictOptions, predict_videos
from vidcache.eval.predict_cli import check_outside, drawing_name, find_files
from vidcache.eval.predict_cli import main as vidpredict
from vidcache.model import R3D18
from vidcache.preprocess.video.decode import DecodeLimits
from vidcache.preprocess.video.find import list_videos
from vidcache.spec import Spec

NAMES = ("fall", "jump", "rise <b>[red]")


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """5 videos in 2 folders, a broken one, a text file, a hidden file."""
    folder = make_raw(tmp_path_factory.mktemp("p") / "raw", {"a": 3, "b": 2})
    (folder / "a" / "a_1x.mp4").write_bytes(b"broken" * 50)
    (folder / "a" / "notes.txt").write_text("no video")
    (folder / ".hidden.mkv").write_bytes(b"")
    return folder


@pytest.fixture(scope="module")
def checkpoint(raw: Path) -> Path:
    """Of an R3D-18 with random weights that is shown 4 of 8 frames of 32 x 48."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        weights = R3D18(3).state_dict()
    path = raw.parent / "best.pt"
    Checkpoint(weights, NAMES, Spec(8, 32, 48), 4, "f", "s", {}, 1, {}).save(path)
    return path


def call(*arguments: object) -> Result:
    return CliRunner().invoke(vidpredict, [str(argument) for argument in arguments])


def said(result: Result) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = json.loads(result.stdout)["predictions"]
    return entries


# --- which files ---------------------------------------------------------------------------------


def test_a_folder_stands_for_the_videos_below_it_in_order(raw: Path) -> None:
    files, skipped, notes = find_files([raw / "b" / "b_1.mkv", raw, raw / "a"])

    a = [raw / "a" / name for name in ("a_0.mkv", "a_1.mkv", "a_1x.mp4", "a_2.mkv")]
    b = [raw / "b" / name for name in ("b_0.mkv", "b_1.mkv")]
    assert [b[1], *a, *b, *a] == files
    assert {"hidden": 1, "not a video by its name": 2} == dict(skipped)
    assert [] == notes


def test_a_file_is_tried_whatever_it_is(raw: Path) -> None:
    assert ([raw / "a" / "notes.txt"], {}, []) == find_files([raw / "a" / "notes.txt"])


def test_a_folder_without_videos_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    with pytest.raises(InputError, match=r"/x: no videos found"):
        list_videos(tmp_path / "x")
    (tmp_path / "x" / "a.txt").write_text("")
    with pytest.raises(InputError, match=r"/x: no videos found, 1 not a video by its name"):
        list_videos(tmp_path / "x")
    with pytest.raises(InputError, match=r"/y: No such file or directory. Name a folder of videos"):
        list_videos(tmp_path / "y")


def test_an_empty_folder_among_others_fails_and_stops_nothing(raw: Path, checkpoint: Path, tmp_path: Path) -> None:
    result = call(tmp_path, raw / "b", "--ckpt", checkpoint, "--json")

    assert 3 == result.exit_code
    empty, *others = said(result)
    assert (str(tmp_path), []) == (empty["video"], empty["top"])
    assert empty["error"].startswith("not_a_regular_file")
    assert all(entry["top"] for entry in others)
    assert 2 == len(others)


def test_a_model_that_says_nothing_finite_is_an_error(raw: Path, checkpoint: Path, tmp_path: Path) -> None:
    loaded = Checkpoint.load(checkpoint)
    weights = {**loaded.weights, "fc.weight": torch.full_like(loaded.weights["fc.weight"], 3e38)}
    dataclasses.replace(loaded, weights=weights).save(tmp_path / "nan.pt")

    result = call(raw / "b", "--ckpt", tmp_path / "nan.pt")

    assert 5 == result.exit_code
    assert f"nan.pt: says nothing finite of {raw}/b/b_0.mkv, expected probabilities" in result.stderr


# --- what is said --------------------------------------------------------------------------------


def test_every_video_has_an_entry_and_a_bad_one_stops_nothing(raw: Path, checkpoint: Path) -> None:
    result = call(raw, "--ckpt", checkpoint, "--json")
    text = call(raw, "--ckpt", checkpoint)

    assert (3, 3) == (result.exit_code, text.exit_code)
    entries = said(result)
    assert 6 == len(entries)
    bad = entries.pop(2)
    assert ([], str(raw / "a" / "a_1x.mp4")) == (bad["top"], bad["video"])
    assert bad["error"].startswith("unreadable: ")
    for entry in entries:
        assert set(NAMES) == {guess["class"] for guess in entry["top"]}
        probabilities = [guess["probability"] for guess in entry["top"]]
        assert sorted(probabilities, reverse=True) == probabilities
        assert pytest.approx(1) == sum(probabilities)
        line = "  ".join(f"{guess['class']} {guess['probability']:.1%}" for guess in entry["top"])
        assert f"{entry['video']}: {line}\n" in text.stdout
    assert 5 == text.stdout.count("\n")
    assert f"{bad['video']}: {bad['error']}\n" in text.stderr
    assert "Files left out: 1 hidden, 1 not a video by its name\n" in text.stderr
    assert "Error: 1 of 6 videos could not be decoded, expected none\n" in text.stderr
    assert {"checkpoint": str(checkpoint), "num_failed": 1}.items() <= json.loads(result.stdout).items()


def test_links_in_a_folder_are_named_or_followed(raw: Path, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "b").symlink_to(raw / "b")
    (tmp_path / "videos" / "v.mkv").symlink_to(raw / "a" / "a_0.mkv")

    named = call(tmp_path / "videos", "--ckpt", checkpoint)
    followed = call(tmp_path / "videos", "--ckpt", checkpoint, "--follow-links", "--json")

    assert 3 == named.exit_code
    assert (
        f"Note: {tmp_path}/videos: 2 links were not followed: b -> {raw}/b, v.mkv -> {raw}/a/a_0.mkv. " in named.stderr
    )
    assert "v.mkv: not_a_regular_file: a symbolic link; --follow-links follows it\n" in named.stderr
    assert 0 == followed.exit_code
    names = [str(tmp_path / "videos" / name) for name in ("b/b_0.mkv", "b/b_1.mkv", "v.mkv")]
    assert names == [entry["video"] for entry in said(followed)]


@pytest.mark.parametrize("options", [("--batch-size", 1), ("--batch-size", 2, "--workers", 3), ("--workers", 1)])
def test_batches_and_workers_change_no_answer(raw: Path, checkpoint: Path, options: tuple[object, ...]) -> None:
    expected = said(call(raw, "--ckpt", checkpoint, "--json"))

    found = said(call(raw, "--ckpt", checkpoint, "--json", *options))

    assert [entry["video"] for entry in expected] == [entry["video"] for entry in found]
    for one, other in zip(expected, found, strict=True):
        assert pytest.approx({g["class"]: g["probability"] for g in one["top"]}, abs=1e-5) == {
            g["class"]: g["probability"] for g in other["top"]
        }


class Watched(torch.nn.Module):
    """Counts the clips of each call, and remembers how many decoders were at work."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner, self.calls = inner, list[int]()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        self.calls.append(len(inputs))
        answer: torch.Tensor = self.inner(inputs)
        return answer


@pytest.fixture
def watched(checkpoint: Path) -> tuple[Checkpoint, Any]:
    loaded = Checkpoint.load(checkpoint)
    return loaded, Watched(load_model(loaded, "best.pt", "cpu"))


def test_the_model_gets_whole_batches(raw: Path, watched: tuple[Checkpoint, Any]) -> None:
    """Of consecutive videos, so a failed one leaves its batch smaller."""
    videos = find_files([raw])[0]

    found = list(predict_videos(videos, *watched, PredictOptions(batch_size=2, workers=2)))

    assert [2, 1, 2] == watched[1].calls
    assert videos == [prediction.video for prediction in found]


def test_decoding_is_ahead_by_two_batches_at_most_and_ends_when_nobody_listens(
    raw: Path, watched: tuple[Checkpoint, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from vidcache.eval import predict

    begun, inner = [], predict.decode_video
    monkeypatch.setattr(predict, "decode_video", lambda video, *more: begun.append(video) or inner(video, *more))
    videos = [raw / "b" / "b_0.mkv"] * 50

    results = predict_videos(videos, *watched, PredictOptions(batch_size=3, workers=2))
    next(results)
    results.close()

    assert len(begun) <= 3 + 3 + 2
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ThreadPoolExecutor")]


def test_on_a_cpu_decoders_rest_while_the_model_works_elsewhere_they_go_on(
    raw: Path, watched: tuple[Checkpoint, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from vidcache.eval import predict

    inner, model, lock, state = predict.decode_video, watched[1], threading.Lock(), {"begun": 0, "ended": 0}

    def decode(*arguments: Any) -> Any:
        with lock:
            state["begun"] += 1
        try:
            return inner(*arguments)
        finally:
            with lock:
                state["ended"] += 1

    monkeypatch.setattr(predict, "decode_video", decode)
    begun: list[int] = []
    model.register_forward_pre_hook(lambda *_: begun.append(state["begun"]) or assert_at_rest(state))
    videos = [raw / "b" / "b_0.mkv"] * 9

    assert 9 == len(list(predict_videos(videos, *watched, PredictOptions(batch_size=4, workers=2))))
    assert [4, 8, 9] == begun

    state.update(begun=0, ended=0)
    options, tools = PredictOptions(batch_size=4, workers=2, device="cuda"), predict.find_all_tools(None)
    outcomes = predict._decode_ahead(videos, np.arange(4), watched[0].spec, tools, options)
    for _ in range(4):
        next(outcomes)
    assert wait_for(lambda: state["ended"] >= 6)  # of the next batch, which nobody has asked for
    outcomes.close()


def assert_at_rest(state: dict[str, int]) -> None:
    assert state["begun"] == state["ended"]


def test_limits_and_the_place_of_ffmpeg_are_options(raw: Path, checkpoint: Path, tmp_path: Path) -> None:
    video = raw / "a" / "a_0.mkv"
    for options, reason in (
        (("--max-pixels", 64 * 48 - 1), r"too_large: \d+"),
        (("--timeout", 1e-6), "timeout: "),
    ):
        result = call(video, "--ckpt", checkpoint, "--json", *options)
        assert 3 == result.exit_code
        assert re.match(reason, said(result)[0]["error"]), said(result)
    missing = call(video, "--ckpt", checkpoint, "--ffmpeg-dir", tmp_path)
    assert 2 == missing.exit_code
    assert f"{tmp_path}/ffprobe: is no working ffmpeg (No such file or directory)" in missing.stderr
    (tmp_path / "ffmpeg").symlink_to(TOOLS.ffmpeg)
    (tmp_path / "ffprobe").symlink_to(TOOLS.ffprobe)
    assert 0 == call(video, "--ckpt", checkpoint, "--ffmpeg-dir", tmp_path).exit_code


def test_a_broken_part_that_no_sample_needs_is_seen_without_keyed(
    tmp_path: Path, watched: tuple[Checkpoint, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from vidcache.eval import predict

    asked: list[bool] = []
    inner = predict.decode_video

    def decode(video: Path, spec: Spec, tools: Any, children: Any, limits: DecodeLimits) -> Any:
        asked.append(limits.keyed)
        return inner(video, spec, tools, children, limits)

    monkeypatch.setattr(predict, "decode_video", decode)
    video = make_video(tmp_path / "x.mkv", 10)
    checkpoint = tmp_path / "best.pt"
    watched[0].save(checkpoint)

    for option in ("--keyed", "--no-keyed"):
        assert 0 == call(video, "--ckpt", checkpoint, option).exit_code

    assert [True, False] == asked


# --- drawings ------------------------------------------------------------------------------------


def test_explain_draws_each_video_and_says_where(raw: Path, checkpoint: Path, tmp_path: Path) -> None:
    plain = call(raw / "a", "--ckpt", checkpoint, "--json")
    result = call(raw / "a", "--ckpt", checkpoint, "--explain", "--out", tmp_path / "d", "--json")
    text = call(raw / "a" / "a_0.mkv", "--ckpt", checkpoint, "--explain")

    entries = said(result)
    assert {"a_0.mkv.png", "a_1.mkv.png", "a_2.mkv.png"} == {file.name for file in (tmp_path / "d").iterdir()}
    for entry, before in zip(entries, said(plain), strict=True):
        assert [g["class"] for g in before["top"]] == [g["class"] for g in entry["top"]]
        assert pytest.approx([g["probability"] for g in before["top"]], abs=1e-5) == [
            g["probability"] for g in entry["top"]
        ]
        assert ("error" in entry) != ("explanation" in entry)
        if "explanation" in entry:
            pixels = np.asarray(Image.open(entry["explanation"]).convert("RGB")).astype(int)
            assert np.ptp(pixels, axis=-1).max() > 60  # colour on grey frames
    assert "explanation" not in said(plain)[0]
    drawing = checkpoint.with_suffix(".predict") / "a_0.mkv.png"
    assert text.stdout.endswith(f"  see {drawing}\n")
    assert drawing.exists()


def test_nothing_is_drawn_among_the_videos(raw: Path, checkpoint: Path) -> None:
    before = sorted(raw.rglob("*"))

    result = call(raw, "--ckpt", checkpoint, "--explain", "--out", raw / "a" / "drawings")

    assert 2 == result.exit_code
    assert (
        f"drawings: lies in {raw}, whose videos are to be predicted, expected a folder outside of it" in result.stderr
    )
    beside = call(raw / "a" / "a_0.mkv", "--ckpt", checkpoint, "--explain", "--out", raw / "a")
    assert 2 == beside.exit_code
    assert f"{raw}/a: lies in {raw}/a, whose videos are to be predicted" in beside.stderr
    assert before == sorted(raw.rglob("*"))
    check_outside(raw / "a" / "drawings", [raw / "b", raw / "a" / "a_0.mkv"])


def test_out_needs_explain(raw: Path, checkpoint: Path, tmp_path: Path) -> None:
    result = call(raw, "--ckpt", checkpoint, "--out", tmp_path)
    with mock.patch.dict(os.environ, {"VIDCACHE_PREDICT_OUT": str(tmp_path / "d")}):  # for when it is drawn
        assert 0 == call(raw / "b", "--ckpt", checkpoint).exit_code
        assert not (tmp_path / "d").exists()
        assert 0 == call(raw / "b", "--ckpt", checkpoint, "--explain").exit_code
        assert 2 == len(list((tmp_path / "d").iterdir()))

    assert 2 == result.exit_code
    assert "--out: means nothing without --explain" in result.stderr


def test_drawings_have_safe_names_and_each_another() -> None:
    taken: set[str] = set()

    names = [
        drawing_name(Path(name), taken)
        for name in ("x/a b.mp4", "y/a_b.mp4", "A_B.MP4", ".hidden", "名前 🏋.mp4", os.fsdecode(b"\xff.mp4"), "n" * 300)
    ]

    assert ["a_b.mp4.png", "a_b.mp4-2.png", "A_B.MP4-3.png", "hidden.png"] == names[:4]
    assert len({name.casefold() for name in names}) == len(names)
    for name in names:
        assert re.fullmatch(r"[\w.-]+\.png", name), name
        assert len(os.fsencode(name)) <= 255


# --- stopped -------------------------------------------------------------------------------------


def test_a_stopped_command_leaves_no_decoder(raw: Path, checkpoint: Path, tmp_path: Path) -> None:
    """The command as a process, stopped while it decodes a video that takes long."""
    slow = tmp_path / "slow.mkv"
    run_ffmpeg("-f", "lavfi", "-i", "testsrc=s=640x480:r=25", "-frames:v", "1500", "-c:v", "mpeg4", str(slow))
    code = "import sys; from vidcache.eval.predict_cli import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, *[str(slow)] * 40, "--ckpt", str(checkpoint), "--workers", "2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[1],
    )
    try:
        decoders = wait_for(lambda: children_of(process.pid))
        assert decoders
        process.send_signal(signal.SIGTERM)  # SIGINT may be ignored where the tests run in the background
        _, stderr = process.communicate(timeout=100)
    finally:
        process.kill()
        process.communicate()

    assert 130 == process.returncode, stderr
    assert "Error: interrupted\n" in stderr  # nothing is kept
    assert wait_for(lambda: not [pid for pid in decoders if is_alive(pid)])


def children_of(pid: int) -> list[int]:
    """Running ffmpegs below a process."""
    table = subprocess.run(["ps", "-eo", "pid,ppid,comm"], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 2) for line in table.splitlines()[1:]]
    below, names = {pid}, {int(row[0]): row[2] for row in rows}
    for _ in range(4):
        below |= {int(row[0]) for row in rows if int(row[1]) in below}
    return [child for child in below if "ffmpeg" in names.get(child, "")]


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def wait_for(condition: Any, seconds: float = 150) -> Any:
    end = time.monotonic() + seconds
    while not (found := condition()) and time.monotonic() < end:
        time.sleep(0.02)
    return found
