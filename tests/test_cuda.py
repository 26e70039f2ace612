"""The CUDA path where there is no GPU: fake CUDA tensors, and the hand-over between streams call by call.

On a fake CUDA tensor, shapes, dtypes and devices are real; a host/device mix-up or an `.item()` raises.
"""

import contextlib
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from tests.helpers import make_cache
from vidcache.cache.reader import CacheReader
from vidcache.cache.stream import stream_batches
from vidcache.model import R3D18
from vidcache.pixels import normalize
from vidcache.train.augment import METHODS, Strength, augment, draw


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """CUDA tensors without CUDA."""
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self)
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


@pytest.mark.usefixtures("fake")
def test_the_fakes_notice_mistakes() -> None:
    fake = torch.zeros(3, device="cuda")
    with pytest.raises(RuntimeError, match=r"[dD]evice"):
        _ = fake + torch.zeros(3)
    with pytest.raises(DataDependentOutputException):
        fake.sum().item()


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize("method", METHODS)
def test_a_training_forward_stays_on_the_device(method: str) -> None:
    device = torch.device("cuda")
    with device:  # a fake parameter cannot be moved
        model = R3D18(5, "layer2")
    model.train()
    criterion = torch.nn.CrossEntropyLoss(weight=torch.ones(5).to(device))
    clips = torch.empty(3, 8, 32, 48, 3, dtype=torch.uint8, device=device)
    labels = torch.zeros(3, dtype=torch.int64, device=device)
    draws = draw(np.arange(3), Strength(), 0, 1)

    inputs = augment(clips, draws, method, np.full((3, 3), 100, np.float32))
    logits = model(inputs)
    loss = criterion(logits, labels)  # its backward needs a real device: the engine asks the driver

    assert ("cuda", torch.float32, (3, 3, 8, 32, 48)) == (inputs.device.type, inputs.dtype, tuple(inputs.shape))
    assert inputs.is_contiguous(memory_format=torch.channels_last_3d)
    assert ("cuda", (3, 5)) == (logits.device.type, tuple(logits.shape))
    assert ("cuda", ()) == (loss.device.type, tuple(loss.shape))


@pytest.mark.usefixtures("fake")
def test_evaluation_stays_on_the_device() -> None:
    with torch.device("cuda"):
        model = R3D18(5).eval()
    with torch.inference_mode():
        logits = model(normalize(torch.empty(2, 4, 32, 32, 3, dtype=torch.uint8, device="cuda")))
    assert ("cuda", (2, 5)) == (logits.device.type, tuple(logits.shape))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What the streams and events of a GPU are asked, in its order."""
    calls: list[tuple[Any, ...]] = []
    mode, numbers = FakeTensorMode(allow_non_fake_inputs=True), itertools.count(1)
    real_to, real_empty = torch.Tensor.to, torch.empty

    class Stream:
        def __init__(self, _: object = None, name: str = "copier") -> None:
            self.name = name

        def wait_stream(self, other: "Stream") -> None:
            calls.append(("wait", self.name, other.name))

    class Event:
        def __init__(self) -> None:
            self.number = next(numbers)

        def record(self, recorded: Stream) -> None:
            calls.append(("record", self.number, recorded.name))

        def synchronize(self) -> None:
            calls.append(("synchronize", self.number))

    @contextlib.contextmanager
    def inside(stream: Stream) -> Iterator[None]:
        calls.append(("enter", stream.name))
        yield
        calls.append(("leave", stream.name))

    def to(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if kwargs.get("non_blocking"):
            calls.append(("copy", tensor.dtype))
        with mode:
            return real_to(tensor, *args, **kwargs)

    def empty(*args: Any, pin_memory: bool = False, **kwargs: Any) -> torch.Tensor:
        calls.append(("allocate", pin_memory))
        return real_empty(*args, **kwargs)

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "stream", inside)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: Stream(name="consumer"))
    monkeypatch.setattr(torch.Tensor, "to", to)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda self, used: calls.append(("used", self.dtype, used.name)))
    monkeypatch.setattr(torch, "empty", empty)
    return calls


def test_the_hand_over_between_streams(tmp_path: Path, calls: list[tuple[Any, ...]]) -> None:
    with CacheReader(make_cache(tmp_path / "c.h5", {"a": 6, "b": 6})) as reader:
        for batch in stream_batches(reader, reader.rows(), 3, device="cuda", num_threads=1, prefetch=1):
            assert ("cuda", "cuda") == (batch.clips.device.type, batch.labels.device.type)

    waits = [call for call in calls if call[0] == "synchronize"]
    others = [call for call in calls if call not in waits]
    assert [("allocate", True)] * 4 == others[:4]  # clips and labels of two buffers, pinned
    # Both copies on the side stream, then the event; the consumer waits; the allocator is told.
    assert others[4:] == [
        call
        for number in range(1, 5)
        for call in (
            ("enter", "copier"),
            ("copy", torch.uint8),
            ("copy", torch.int64),
            ("record", number, "copier"),
            ("leave", "copier"),
            ("wait", "consumer", "copier"),
            ("used", torch.uint8, "consumer"),
            ("used", torch.int64, "consumer"),
        )
    ]
    # A buffer is written to again only after the copy out of it: the third batch waits for the first.
    # At the end, the last copies are waited for: the next stream may use the same memory.
    assert [("synchronize", number) for number in (1, 2, 3, 4)] == waits
    assert waits[2:] == calls[-2:]
    assert calls.index(waits[0]) > calls.index(("record", 1, "copier"))
