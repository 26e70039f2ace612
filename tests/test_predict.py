"""`vidpredict` and `vidcache.predict`: an entry for each video; bad ones, batches, workers, drawings."""

import dataclasses
import json
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

from tests.helpers import TOOLS, make_raw, tiny_models
from tests.tiny_model import TinyModel
from vidcache.checkpoint import Checkpoint
from vidcache.errors import InputError, MismatchError
from vidcache.eval import inference
from vidcache.eval import predict as predict_module
from vidcache.eval.predict import find_files, predict
from vidcache.eval.predict_cli import drawing_names
from vidcache.eval.predict_cli import main as vidpredict
from vidcache.model import R3D18
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


def save_checkpoint(path: Path, model: torch.nn.Module) -> Path:
    """Of a model with random weights that is shown 4 of 8 frames of 32 x 48."""
    Checkpoint(model.state_dict(), NAMES, Spec(8, 32, 48), 4, "f", "s", {}, 1, {}).save(path)
    return path


@pytest.fixture(scope="module")
def checkpoint(raw: Path) -> Iterator[Path]:
    """Of a `TinyModel`."""
    torch.manual_seed(0)
    with tiny_models():
        yield save_checkpoint(raw.parent / "best.pt", TinyModel(3))


@pytest.fixture
def real(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of an R3D-18."""
    monkeypatch.setattr(inference, "R3D18", R3D18)
    return save_checkpoint(tmp_path / "real.pt", R3D18(3))


def call(*arguments: object) -> Result:
    return CliRunner().invoke(vidpredict, [str(argument) for argument in arguments])


def entries_of(result: Result) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = json.loads(result.stdout)["predictions"]
    return entries


# --- which files ---------------------------------------------------------------------------------


def test_a_folder_stands_for_the_videos_below_it_in_order(raw: Path) -> None:
    files, skipped, notes = find_files([raw / "b" / "b_1.mkv", raw, raw / "a" / "notes.txt"])

    a = [raw / "a" / name for name in ("a_0.mkv", "a_1.mkv", "a_1x.mp4", "a_2.mkv")]
    b = [raw / "b" / name for name in ("b_0.mkv", "b_1.mkv")]
    assert [b[1], *a, *b, raw / "a" / "notes.txt"] == files
    assert {"hidden": 1, "not a video by its name": 1} == dict(skipped)
    assert [] == notes


def test_an_empty_folder_is_an_error(raw: Path, checkpoint: Path, tmp_path: Path) -> None:
    result = call(raw / "b", tmp_path, "--ckpt", checkpoint)

    assert (2, "") == (result.exit_code, result.stdout)
    assert f"{tmp_path}: no videos found" in result.stderr


def test_links_in_a_folder_are_named_or_followed(raw: Path, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "b").symlink_to(raw / "b")
    (tmp_path / "v.mkv").symlink_to(raw / "a" / "a_0.mkv")

    named = call(tmp_path, "--ckpt", checkpoint)
    followed = call(tmp_path, "--ckpt", checkpoint, "--follow-links", "--json")

    assert 3 == named.exit_code
    assert f"Note: {tmp_path}: 2 links were not followed: b -> {raw}/b, v.mkv -> {raw}/a/a_0.mkv. " in named.stderr
    assert "v.mkv: not_a_regular_file: a symbolic link; --follow-links follows it\n" in named.stderr
    assert 0 == followed.exit_code
    names = [str(tmp_path / name) for name in ("b/b_0.mkv", "b/b_1.mkv", "v.mkv")]
    assert names == [entry["video"] for entry in entries_of(followed)]


# --- what is printed -----------------------------------------------------------------------------


def test_every_video_has_an_entry_and_a_bad_one_stops_nothing(raw: Path, checkpoint: Path) -> None:
    result, text = call(raw, "--ckpt", checkpoint, "--json"), call(raw, "--ckpt", checkpoint)

    assert (3, 3) == (result.exit_code, text.exit_code)
    entries = entries_of(result)
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
    assert "Error: 1 of 6 videos could not be decoded\n" in text.stderr
    assert {"checkpoint": str(checkpoint), "num_failed": 1}.items() <= json.loads(result.stdout).items()


def test_the_function_gives_what_the_command_prints(raw: Path, checkpoint: Path, tmp_path: Path) -> None:
    entries = entries_of(call(raw, "--ckpt", checkpoint, "--json"))

    for given, options in ((str(checkpoint), {"batch_size": 1}), (Checkpoint.load(checkpoint), {"workers": 3})):
        found = list(predict(given, raw, device="cpu", **options))
        assert [entry["video"] for entry in entries] == [str(prediction.video) for prediction in found]
        assert [entry.get("error", "") for entry in entries] == [prediction.failure for prediction in found]
        for entry, prediction in zip(entries, found, strict=True):
            expected = {guess["class"]: guess["probability"] for guess in entry["top"]}
            assert pytest.approx(expected, abs=1e-5) == dict(prediction.top)
    with pytest.raises(MismatchError, match=r"nothing\.pt: No such file"):
        predict("nothing.pt", raw)
    with pytest.raises(InputError, match="no videos found"):
        predict(checkpoint, tmp_path)


def test_outputs_that_are_not_finite_are_an_error(raw: Path, checkpoint: Path, tmp_path: Path) -> None:
    loaded = Checkpoint.load(checkpoint)
    weights = {**loaded.weights, "fc.weight": torch.full_like(loaded.weights["fc.weight"], 3e38)}
    dataclasses.replace(loaded, weights=weights).save(tmp_path / "nan.pt")

    result = call(raw / "b", "--ckpt", tmp_path / "nan.pt")

    assert 5 == result.exit_code
    assert f"nan.pt: NaN or inf outputs for {raw}/b/b_0.mkv" in result.stderr


@pytest.mark.parametrize(
    ("options", "error"),
    [(("--max-pixels", 64 * 48 - 1), "too_large: "), (("--timeout", 1e-6), "timeout: "), ((), "")],
)
def test_limits_of_a_video_are_options(raw: Path, checkpoint: Path, options: tuple[object, ...], error: str) -> None:
    result = call(raw / "b" / "b_0.mkv", "--ckpt", checkpoint, "--json", *options)

    assert (3 if error else 0) == result.exit_code
    assert entries_of(result)[0].get("error", "").startswith(error)


def test_the_folder_of_ffmpeg_and_how_to_seek_are_options(
    raw: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits, tools, decode = [], [], predict_module.decode_video

    def spy(video: Path, spec: Spec, binaries: Any, *more: Any) -> Any:
        tools.append(binaries[0].ffmpeg)
        limits.append(more[-1].keyed)
        return decode(video, spec, binaries, *more)

    monkeypatch.setattr(predict_module, "decode_video", spy)
    arguments = raw / "b" / "b_0.mkv", "--ckpt", checkpoint, "--ffmpeg-dir", tmp_path
    missing = call(*arguments)
    for name in ("ffmpeg", "ffprobe"):
        (tmp_path / name).symlink_to(getattr(TOOLS, name))
    for option in ("--keyframe-seek", "--full-decode"):
        assert 0 == call(*arguments, option).exit_code

    assert 2 == missing.exit_code
    assert f"{tmp_path}/ffprobe: is no working ffmpeg (No such file or directory)" in missing.stderr
    assert ([True, False], {str(tmp_path / "ffmpeg")}) == (limits, set(map(str, tools)))


# --- batches and threads -------------------------------------------------------------------------


def test_batches_are_of_consecutive_videos(raw: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load, sizes = inference.load_model, list[int]()

    def load_model(*arguments: Any) -> Any:
        model = load(*arguments)
        model.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
        return model

    monkeypatch.setattr(inference, "load_model", load_model)

    found = list(predict(checkpoint, raw, batch_size=2, workers=2, device="cpu"))

    assert (6, [2, 1, 2]) == (len(found), sizes)  # one of the second two is broken


def test_decoding_goes_on_by_a_batch_and_ends_when_nobody_listens(
    raw: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, decode = list[Path](), predict_module.decode_video

    def decode_video(video: Path, *more: Any) -> Any:
        begun.append(video)
        return decode(video, *more)

    monkeypatch.setattr(predict_module, "decode_video", decode_video)

    results = predict(checkpoint, [raw / "b" / "b_0.mkv"] * 50, batch_size=3, workers=2, device="cpu")
    next(results)
    results.close()

    assert 5 <= len(begun) <= 2 * 3 + 2
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ThreadPoolExecutor")]


# --- drawings ------------------------------------------------------------------------------------


@pytest.mark.pictures
@pytest.mark.slow
def test_explain_draws_each_video_and_says_where(raw: Path, real: Path, tmp_path: Path) -> None:
    plain = call(raw / "a", "--ckpt", real, "--json")
    result = call(raw / "a", "--ckpt", real, "--explain", "--out", tmp_path / "d", "--json")

    assert {"a_0.mkv.png", "a_1.mkv.png", "a_2.mkv.png"} == {file.name for file in (tmp_path / "d").iterdir()}
    for entry, before in zip(entries_of(result), entries_of(plain), strict=True):
        assert [g["class"] for g in before["top"]] == [g["class"] for g in entry["top"]]
        assert ("error" in entry) != ("explanation" in entry)
        assert "explanation" not in before
        if "explanation" in entry:
            pixels = np.asarray(Image.open(entry["explanation"]).convert("RGB")).astype(int)
            assert np.ptp(pixels, axis=-1).max() > 60  # colour on grey frames


def test_out_needs_explain_and_lies_outside_of_the_videos(
    raw: Path, checkpoint: Path, real: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before = sorted(raw.rglob("*"))

    useless = call(raw, "--ckpt", checkpoint, "--out", tmp_path)
    inside = call(raw, "--ckpt", checkpoint, "--explain", "--out", raw / "a" / "drawings")
    beside = call(raw / "a" / "a_0.mkv", "--ckpt", checkpoint, "--explain", "--out", raw / "a")
    monkeypatch.setenv("VIDCACHE_PREDICT_OUT", str(tmp_path / "d"))
    drawn = call(raw / "b" / "b_0.mkv", "--ckpt", real, "--explain")

    assert [2, 2, 2, 0] == [result.exit_code for result in (useless, inside, beside, drawn)]
    assert "--out requires --explain" in useless.stderr
    assert f"{raw}/a/drawings: lies in {raw}" in inside.stderr
    assert f"{raw}/a: is a folder of other things" in beside.stderr
    assert drawn.stdout.endswith(f"  see {tmp_path}/d/b_0.mkv.png\n")
    assert before == sorted(raw.rglob("*"))


def test_drawings_have_safe_names_and_each_another() -> None:
    videos = "x/a b.mp4", "y/a_b.mp4", "A_B.MP4", ".hidden", "名前 🏋.mp4", os.fsdecode(b"\xff.mp4"), "n" * 300

    names = drawing_names([Path(video) for video in videos])

    assert ["a_b.mp4.png", "a_b.mp4-2.png", "A_B.MP4-3.png", "hidden.png"] == names[:4]
    assert len({name.casefold() for name in names}) == len(names)
    for name in names:
        assert re.fullmatch(r"[\w.-]+\.png", name), name
        assert len(os.fsencode(name)) <= 255
