"""`--compile` changes how a step is computed, not what it computes."""

import dataclasses
from pathlib import Path
from unittest import mock

import pytest
import torch

from tests.helpers import make_cache, tiny_models
from vidcache.cache.reader import CacheReader
from vidcache.train.config import TrainConfig
from vidcache.train.loop import train


def test_compile_hands_the_model_to_torch_compile_and_the_losses_stay(tmp_path: Path) -> None:
    path = make_cache(tmp_path / "c.h5", {"a": 8, "b": 8}, learnable=True)
    config = TrainConfig(weights="none", freeze="none", epochs=1, batch_size=4, amp="off")
    compiled: list[torch.nn.Module] = []

    def record(model: torch.nn.Module) -> torch.nn.Module:
        compiled.append(model)
        return model

    with tiny_models(), CacheReader(path) as reader, mock.patch.object(torch, "compile", record):
        plain = train(reader, config)
        assert [] == compiled
        with_compile = train(reader, dataclasses.replace(config, compile=True))

    assert 2 == len(compiled)  # the frozen stages, and what trains
    assert pytest.approx(plain.epochs[0].train_loss) == with_compile.epochs[0].train_loss
