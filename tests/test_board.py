"""`--tensorboard`: read back with TensorBoard's own reader."""

import dataclasses
import io
import sys
from pathlib import Path
from typing import Any

import pytest
from matplotlib.image import imread

from tests.helpers import make_cache, tiny_models
from vidcache.errors import InputError, InterruptedRunError
from vidcache.spec import Spec
from vidcache.train.callbacks import Callbacks, EpochResult
from vidcache.train.config import TrainConfig
from vidcache.train.run import run_training

pytestmark = pytest.mark.pictures

CONFIG = TrainConfig(weights="none", freeze="none", epochs=3, batch_size=6, amp="off", patience=9)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_cache(tmp_path_factory.mktemp("c") / "c.h5", {"a": 16, "b": 16}, spec=Spec(4, 16, 16), learnable=True)


def read(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"images": 0, "scalars": 0})
    events.Reload()
    return events


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_scalars_and_pictures_are_those_of_the_run(cache: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="needs the extra `tensorboard`")
    seen: list[EpochResult] = []
    calls = iter([False] * 5 + [True])
    out = tmp_path / "best.pt"
    with tiny_models():
        with pytest.raises(InterruptedRunError):
            run_training([cache], out, CONFIG, Callbacks(), tensorboard=True, should_stop=lambda: next(calls))
        run_training(
            [cache],
            out,
            CONFIG,
            Callbacks(on_epoch=lambda result, _: seen.append(result)),
            tensorboard=True,
            resume=True,
        )

    events = read(tmp_path / "best.run" / "tensorboard")
    for tag, name in (
        ("train/loss", "train_loss"),
        ("train/accuracy", "train_accuracy"),
        ("val/loss", "val_loss"),
        ("val/balanced_accuracy", "val_balanced_accuracy"),
        ("run/lr", "lr"),
        ("run/clips_per_second", "clips_per_second"),
    ):
        scalars = events.Scalars(tag)
        assert [1, 2, 3] == [scalar.step for scalar in scalars]
        said = [getattr(result, name) for result in seen]
        assert pytest.approx(said, rel=1e-5) == [scalar.value for scalar in scalars[-len(said) :]]
    assert [1, 2, 3] == [image.step for image in events.Images("val/confusion")]
    (image, *_) = events.Images("train/batch")
    expected = imread(tmp_path / "best.run" / "train_batch.png")
    assert expected.shape[:2] == imread(io.BytesIO(image.encoded_image_string)).shape[:2]


def test_without_tensorboard_it_is_said_and_nothing_is_written(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard.writer", None)

    with tiny_models(), pytest.raises(InputError, match=r"--tensorboard: it is not installed, expected .* pip install"):
        run_training([cache], tmp_path / "best.pt", dataclasses.replace(CONFIG), Callbacks(), tensorboard=True)
    assert not (tmp_path / "best.run" / "last.pt").exists()


def test_without_the_option_there_is_no_log(cache: Path, tmp_path: Path) -> None:
    with tiny_models():
        run_training([cache], tmp_path / "best.pt", dataclasses.replace(CONFIG, epochs=1), Callbacks())

    assert not (tmp_path / "best.run" / "tensorboard").exists()
