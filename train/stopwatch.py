"""The pieces of the training loop, each telling a stopwatch how long it took: what is timed is what trains."""

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import torch

from vidcache.cache.stream import Batch
from vidcache.model import R3D18
from vidcache.train.forward import Forward
from vidcache.train.inputs import ClipInputs
from vidcache.train.step import Loss
from vidcache.train.task import Task

TIMED = ("augment", "frozen", "trained", "backward", "optimizer")


class Stopwatch:
    """Adds up how long each stage of a step takes, on the device too.

    Args:
        device: Where the stages compute; it is waited for before and after each of them.

    Attributes:
        is_on: While it is not, nothing is timed and nobody waits.
        steps: Seconds of each stage of `TIMED`, and of everything "other", for each step.
    """

    def __init__(self, device: torch.device) -> None:
        self.is_on = False
        self.steps: list[dict[str, float]] = []
        self._device = device
        self._laps = dict.fromkeys(TIMED, 0.0)
        self._began = 0.0

    def start(self) -> None:
        """Begin the first step."""
        self.is_on = True
        self.steps.clear()
        self._laps = dict.fromkeys(TIMED, 0.0)
        wait_for(self._device)
        self._began = time.perf_counter()

    def stop(self) -> None:
        """Time nothing any more."""
        self.is_on = False

    @contextlib.contextmanager
    def lap(self, stage: str) -> Iterator[None]:
        """Time a stage; several times in a step add up."""
        if not self.is_on:
            yield
            return
        wait_for(self._device)
        start = time.perf_counter()
        yield
        wait_for(self._device)
        self._laps[stage] += time.perf_counter() - start

    def end_step(self) -> None:
        """End a step and begin the next one."""
        wait_for(self._device)
        now = time.perf_counter()
        other = now - self._began - sum(self._laps.values())
        self.steps.append({**self._laps, "other": other})
        self._laps = dict.fromkeys(TIMED, 0.0)
        self._began = now


def wait_for(device: torch.device) -> None:
    """Return when the device has done all that it was asked to do."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


class TimedForward(Forward):
    """A `Forward` whose two parts are timed."""

    def __init__(self, model: R3D18, precision: str, watch: Stopwatch) -> None:
        super().__init__(model, precision)
        self._watch = watch

    def prefix(self, inputs_BCTHW: torch.Tensor) -> torch.Tensor:
        """Run the frozen stages."""
        with self._watch.lap("frozen"):
            return super().prefix(inputs_BCTHW)

    def rest(self, features: torch.Tensor) -> torch.Tensor:
        """Run what trains."""
        with self._watch.lap("trained"):
            return super().rest(features)


class TimedInputs(ClipInputs):
    """A `ClipInputs` whose augmentation is timed."""

    def __init__(self, task: Task, forward: Forward, watch: Stopwatch) -> None:
        super().__init__(task, forward)
        self._watch = watch

    def pixels(self, batch: Batch, epoch: int | None) -> torch.Tensor:
        """Augment and normalise."""
        with self._watch.lap("augment"):
            return super().pixels(batch, epoch)


class TimedLoss(Loss):
    """A `Loss` that is timed with the forward pass of what trains."""

    def __init__(self, class_weights: torch.Tensor | None, label_smoothing: float, watch: Stopwatch) -> None:
        super().__init__(class_weights, label_smoothing)
        self._watch = watch

    def __call__(self, logits: torch.Tensor, labels: torch.Tensor, weight: float) -> torch.Tensor:
        """Return the loss of some clips."""
        with self._watch.lap("trained"):
            return super().__call__(logits, labels, weight)


class TimedScaler(torch.amp.GradScaler):
    """A `GradScaler` that times the backward pass of what it scales, and the optimizer."""

    def __init__(self, device: str, *, enabled: bool, watch: Stopwatch) -> None:
        super().__init__(device, enabled=enabled)
        self._watch = watch

    def scale(self, outputs: Any) -> Any:
        """Return the scaled loss, of which only `backward` can be asked."""
        return _Scaled(super().scale(outputs), self._watch)

    def step(self, optimizer: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> float | None:
        """Update the weights."""
        with self._watch.lap("optimizer"):
            return super().step(optimizer, *args, **kwargs)

    def update(self, new_scale: float | torch.Tensor | None = None) -> None:
        """Adapt the scale."""
        with self._watch.lap("optimizer"):
            super().update(new_scale)


class _Scaled:
    def __init__(self, loss: torch.Tensor, watch: Stopwatch) -> None:
        self._loss, self._watch = loss, watch

    def backward(self) -> None:
        with self._watch.lap("backward"):
            self._loss.backward()  # type: ignore[no-untyped-call]
