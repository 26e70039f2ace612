"""Observers of a run: what the terminal shows, the TensorBoard log, pictures of clips, `vidcache preview`."""

import dataclasses
import io
import math
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from tests.helpers import make_cache, tiny_models
from vidcache.cache.reader import CacheReader
from vidcache.cli import main
from vidcache.console import SafeConsole
from vidcache.errors import InputError, InterruptedRunError
from vidcache.pixels import normalize
from vidcache.spec import Spec
from vidcache.train.augment import Strength
from vidcache.train.callbacks import Callback, EpochResult, Reporter, RunningMetrics, augmented_strips, to_pictures
from vidcache.train.config import TrainConfig
from vidcache.train.data import TrainingData
from vidcache.train.distributed import Processes
from vidcache.train.run import run_training

CONFIG = TrainConfig(weights="none", freeze="none", epochs=3, batch_size=6, amp="off", patience=9)

# --- the terminal ----------------------------------------------------------------------------------------


def sums(num_steps: int, loss: float = math.nan, accuracy: float = math.nan) -> RunningMetrics:
    """20.25 clips/s, of which 1.2 % is waiting."""
    metrics = RunningMetrics(num_steps=num_steps, num_clips=81, seconds=4.0, waited_seconds=0.048)
    metrics.num_read = 0 if math.isnan(loss) else 81
    metrics.loss, metrics.num_correct = loss * 81, accuracy * 81
    return metrics


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def reporter(clock: Clock) -> Reporter:
    return Reporter(SafeConsole(stderr=True, width=200, is_verbose=True), clock)


def finish(reporter: Reporter, epoch: int, loss: float, *, is_best: bool) -> None:
    result = EpochResult(epoch, 0.5, 0.75, loss, 0.625, 0.5, 1e-4, 12.0, 20.5, 0.015, is_best)
    reporter.on_epoch(result, None, None)  # type: ignore[arg-type]


def test_the_bar_and_the_lines_of_a_run(reporter: Reporter, clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    reporter.on_features(30, 1568)
    assert "features: 30 of 1,568 entries" == reporter.progress.line()
    reporter.on_step(1, 8, sums(3))
    assert "epoch 1: 3 of 8 steps, 20.2 clips/s, data wait 1.2%" == reporter.progress.line()
    clock.now = 4
    reporter.on_step(1, 8, sums(5, 0.4321, 0.875))
    numbers = "loss 0.4321, accuracy 87.5%, 20.2 clips/s, data wait 1.2%"
    assert f"epoch 1: 5 of 8 steps, 0.5 steps/s, 6.0 s left, {numbers}" == reporter.progress.line()
    reporter.on_step(1, 8, sums(8, 0.4321, 0.875))
    clock.now = 154
    assert "epoch 1: validating for 2.5 min" == reporter.progress.line()
    finish(reporter, 1, 0.9, is_best=True)
    finish(reporter, 2, 1.5, is_best=False)
    reporter.on_step(3, 8, sums(1, 0.3, 0.9))
    assert reporter.progress.line().endswith(", best: epoch 1, val loss 0.9000")

    lines = capsys.readouterr().err.splitlines()
    first, second = (line for line in lines if "train loss" in line)
    assert first == (
        "epoch   1  train loss 0.5000 acc  75.0%  val loss 0.9000 acc  62.5%  20.5 clips/s  data wait 1.5%  12.0 s  best"
    )
    assert "best" not in second
    assert f"epoch 1, step 5 of 8: {numbers}" in lines  # a verbose run
    assert "epoch 1: 8 steps in 4.0 s" in lines


def test_the_first_lines_are_the_setup(reporter: Reporter, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with CacheReader(make_cache(tmp_path / "c.h5", {"a": 40, "b": 8})) as reader:
        config = dataclasses.replace(CONFIG, num_frames_used=2)
        data, processes = TrainingData.of(reader, config, "cpu"), Processes(world_size=2)
        reporter.on_setup(SimpleNamespace(data=data, config=config, precision="off", processes=processes))  # type: ignore[arg-type]

    lines = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"device: cpu \(.+\), 2 processes", lines[0])
    assert lines[1:4] == [
        "clips: 34 train, 7 val, 7 test; 2 classes",
        "input: 2 of 4 frames of 16x16 pixels (width x height), batches of 6 clips, at most 3 epochs",
        "precision: float32",
    ]
    assert "effective weight" in "".join(lines)
    assert "b (6 clips) weighs 4.7 times as much in training as a (28 clips): see --balance" == lines[-1]
    finish(reporter, 1, 0.9, is_best=True)
    assert "at most 24 s for the 2 epochs left" == capsys.readouterr().err.splitlines()[1]


# --- TensorBoard -----------------------------------------------------------------------------------------


def read(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"images": 0, "scalars": 0})
    events.Reload()
    return events


@pytest.mark.slow
@pytest.mark.pictures
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_scalars_and_pictures_are_those_of_the_run(learnable_cache: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="needs the extra `tensorboard`")
    seen: list[EpochResult] = []
    calls = iter([False] * 5 + [True])
    out = tmp_path / "best.pt"
    log = Callback(on_epoch=lambda result, *_: seen.append(result))
    with tiny_models():
        with pytest.raises(InterruptedRunError):
            run_training([learnable_cache], out, CONFIG, tensorboard=True, should_stop=lambda: next(calls))
        run_training([learnable_cache], out, CONFIG, [log], tensorboard=True, resume=True)

    from matplotlib.image import imread

    events = read(tmp_path / "best.run" / "tensorboard")
    for tag, name in (
        ("train/loss", "train_loss"), ("train/accuracy", "train_accuracy"), ("val/loss", "val_loss"),
        ("val/balanced_accuracy", "val_balanced_accuracy"), ("run/lr", "lr"), ("run/seconds", "seconds"),
    ):  # fmt: skip
        scalars = events.Scalars(tag)
        assert [1, 2, 3] == [scalar.step for scalar in scalars]
        values = [getattr(result, name) for result in seen]
        assert pytest.approx(values, rel=1e-5) == [scalar.value for scalar in scalars[-len(values) :]]
    assert [1, 2, 3] == [image.step for image in events.Images("val/confusion")]
    (image, *_) = events.Images("train/batch")
    expected = imread(tmp_path / "best.run" / "train_batch.png")
    assert expected.shape[:2] == imread(io.BytesIO(image.encoded_image_string)).shape[:2]


def test_without_tensorboard_it_is_said_and_nothing_is_written(
    learnable_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard.writer", None)

    with tiny_models(), pytest.raises(InputError, match="--tensorboard: not installed. pip install"):
        run_training([learnable_cache], tmp_path / "best.pt", CONFIG, tensorboard=True)
    assert not (tmp_path / "best.run" / "last.pt").exists()


# --- vidcache preview ------------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return make_cache(tmp_path / "c.h5", {"a": 8, "b": 8}, spec=Spec(6, 24, 32), learnable=True)


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["preview", *map(str, arguments)])


def test_pictures_are_the_clips_again() -> None:
    clips = torch.randint(0, 256, (2, 3, 8, 8, 3), dtype=torch.uint8)

    assert (clips.numpy() == to_pictures(normalize(clips))).all()


def test_strips_show_what_training_does(cache: Path) -> None:
    with CacheReader(cache) as reader:
        rows = reader.rows("train")[:3]
        config = dataclasses.replace(CONFIG, strength=Strength(flip=1, brightness=0, contrast=0, saturation=0, hue=0))
        strips = augmented_strips(reader, rows, config)
        clips = reader.read(rows)

    for strip, clip in zip(strips, clips, strict=True):
        (first, before), (second, after) = strip.lines
        assert ("before", "after") == (first, second)
        assert (8, 24, 32, 3) == before.shape
        assert (clip[[0, 5]] == before[[0, 7]]).all()
        assert (np.abs(before[:, :, ::-1].astype(int) - after) <= 1).all()
        assert "mirrored, brightness x1.00, contrast x1.00, saturation x1.00, hue +0.00" in strip.title


@pytest.mark.pictures
def test_the_command_writes_a_picture(cache: Path) -> None:
    from matplotlib.image import imread

    result = call(cache, "--num-clips", 2, "--num-frames", 5)

    assert 0 == result.exit_code, result.stderr
    path = cache.with_name("c.preview.png")
    assert f"{path}: 2 clips before and after --augment linear\n" == result.stdout
    height, width, _ = imread(path).shape
    assert 600 < width < 900
    assert 350 < height < 700


@pytest.mark.slow
@pytest.mark.pictures
def test_every_option_changes_the_picture(cache: Path, tmp_path: Path) -> None:
    def picture(*arguments: object) -> bytes:
        assert 0 == call(cache, "--out", tmp_path / "x.png", "--num-clips", 2, *arguments).exit_code
        return (tmp_path / "x.png").read_bytes()

    plain = picture()
    assert plain == picture()
    for arguments in (
        ("--augment", "exact"), ("--augment", "none"), ("--flip", 0), ("--brightness", 0.9), ("--contrast", 0.9),
        ("--saturation", 0.9), ("--hue", 0.5), ("--split", "val"), ("--num-frames", 3), ("--num-clips", 1),
        ("--seed", 5), ("--epoch", 2),
    ):  # fmt: skip
        assert plain != picture(*arguments), arguments


def test_a_split_without_clips_is_an_error(tmp_path: Path) -> None:
    cache = make_cache(tmp_path / "c.h5", {"a": 2, "b": 2}, spec=Spec(4, 16, 16))
    result = call(cache, "--split", "val")

    assert 2 == result.exit_code
    assert f"{cache}: no val clips. Choose another --split" in result.stderr
