"""A part of a step that is one small clip trains, whatever makes it so."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.helpers import make_cache
from vidcache.cache.reader import CacheReader
from vidcache.checkpoint import Checkpoint
from vidcache.errors import InterruptedRunError
from vidcache.model import R3D18
from vidcache.spec import Spec
from vidcache.train.callbacks import Callback
from vidcache.train.config import TrainConfig
from vidcache.train.loop import train

BASE: dict[str, Any] = {"weights": "none", "freeze": "none", "epochs": 1, "amp": "off", "balance": "none"}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """3 training clips of 4 frames of 16 x 16: one clip leaves layer4 one value per channel."""
    path = make_cache(tmp_path_factory.mktemp("odd") / "c.h5", {"a": 4, "b": 3}, spec=Spec(4, 16, 16))
    with CacheReader(path) as reader:
        assert 3 == len(reader.rows("train"))
    return path


@pytest.mark.parametrize(
    "changed",
    [
        {"batch_size": 3, "accumulate": 3, "num_frames_used": 1, "freeze": "layer3"},
        {"batch_size": 2, "freeze": "layer3", "feature_views": 1},
    ],
    ids=str,
)
def test_it_trains(cache: Path, tmp_path: Path, changed: dict[str, Any]) -> None:
    found: list[Checkpoint] = []
    callback = Callback(on_epoch=lambda _r, _m, checkpoint: found.append(checkpoint(False)))
    config = TrainConfig(**BASE | {"feature_file": str(tmp_path / "f.h5")} | changed)

    with CacheReader(cache) as reader:
        result = train(reader, config, [callback])

    assert math.isfinite(result.best.train_loss)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in found[0].weights.values())
    assert 0 < float(found[0].weights["layer4.1.conv2.1.running_var"].min())


@pytest.mark.slow
def test_a_resumed_run_ends_the_same(cache: Path) -> None:
    config = TrainConfig(**BASE | {"batch_size": 2, "epochs": 1, "freeze": "layer3"})
    ends, kept = [], []
    with CacheReader(cache) as reader:
        whole = [Callback(on_epoch=lambda _r, _m, checkpoint: ends.append(checkpoint(False)))]
        train(reader, config, whole)
        broken = [Callback(on_stop=kept.append)]
        with pytest.raises(InterruptedRunError, match=r"epoch 1, after 1 of its steps"):
            train(reader, config, broken, should_stop=lambda: True)
        train(reader, config, whole, resume=kept[0])

    assert 2 == len(ends)
    assert all(torch.equal(tensor, ends[1].weights[name]) for name, tensor in ends[0].weights.items())


def test_only_a_single_value_per_channel_uses_the_running_statistics(rng: np.random.Generator) -> None:
    norm = R3D18(2).layer4[0].conv1[1].train()
    torchs = torch.nn.BatchNorm3d(norm.num_features)
    values = torch.from_numpy(rng.normal(3, 2, (2, 512, 1, 1, 1)).astype(np.float32))

    assert torch.equal(torchs(values), norm(values))
    assert torch.equal(torchs.running_mean, norm.running_mean)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        torchs(values[:1])
    assert torch.equal(torchs.eval()(values[:1]), norm(values[:1]))
    assert torch.equal(torchs.running_mean, norm.running_mean)  # type: ignore[arg-type]
