"""Measures what a training step of a cache is made of on this machine: each stage alone, then the loop as it trains.

All work is done by the loop's own pieces (`vidcache.train.stopwatch`). Nothing is written; weights change in memory.
"""

import contextlib
import dataclasses
import functools
import itertools
import os
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from vidcache.cache.reader import Reader
from vidcache.cache.stream import Batch, Rows
from vidcache.cli import num_cpus
from vidcache.model import build_model
from vidcache.pixels import Workspace
from vidcache.train.batching import StepPlan
from vidcache.train.bench_reading import Limit, Reading, memory_bytes
from vidcache.train.config import TrainConfig
from vidcache.train.device import backends, memory_advice
from vidcache.train.forward import Forward
from vidcache.train.inputs import ClipInputs
from vidcache.train.measured import Measured, Pair, Times
from vidcache.train.precision import MAX_SLOWDOWN, try_precision
from vidcache.train.ranks import Ranks
from vidcache.train.step import EpochSums, Stepper, make_optimizer
from vidcache.train.stopwatch import Stopwatch, TimedForward, TimedInputs, TimedLoss, TimedScaler, wait_for
from vidcache.train.task import Task, needed_rows

_TOGETHER = 5  # steps between two looks at a device that runs ahead of the loop


def measure(
    reader: Reader,
    config: TrainConfig,
    limit: Limit,
    *,
    weights: Mapping[str, Any] | None = None,
    on_phase: Callable[[str], None] = lambda _: None,
) -> Measured:
    """Time what a training step is made of.

    Args:
        reader: The cache; needs training clips. Where it has fewer than a batch, a batch is all of them.
        config: Of the run that is to be measured; its feature cache is not.
        limit: Of each single measurement.
        weights: State dict of an R3D-18 with these classes; None: as the config says.
        on_phase: Told what is measured next.

    Raises:
        InputError: The cache has no training clips, or cannot serve the config.
        CacheError: A clip cannot be read.
        VidcacheError: The memory of the device is full, or a loss is not finite.
    """
    rows = needed_rows(reader, "train")
    config = dataclasses.replace(config, batch_size=min(config.batch_size, len(rows)))
    task = Task.of(reader, config, config.device)
    with (
        memory_advice(config.batch_size, config.accumulate, 1, task.num_frames),
        backends(deterministic=config.deterministic),
    ):
        on_phase("reading")
        reading = Reading(task, limit)
        load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
        warm, (cold, note) = reading.warm(), reading.cold()
        on_phase("the choice of the precision")
        steps = Steps(task, limit, weights)
        on_phase("the stages of a step")
        resident = steps.resident()
        stages = {"copy": steps.copy(), **steps.stages(resident)}
        on_phase("other ways")
        augmented = steps.other_augment(resident)
        frozen, no_bf16 = steps.frozen_bf16(resident)
        on_phase("the loop as it trains")
        step, waited = steps.loop()
    num_val = len(reader.rows("val"))
    return Measured(
        batch_size=config.batch_size,
        clip_bytes=reading.clip_bytes,
        num_train_clips=len(rows),
        epoch_bytes=(len(rows) + num_val) * reading.clip_bytes,
        memory_bytes=memory_bytes(),
        load=load,
        num_cpus=num_cpus(),
        reader_threads=config.reader_threads,
        freeze=config.freeze,
        augment=config.augment,
        amp=config.amp,
        precision=steps.precision.name,
        reason=steps.precision.reason,
        is_untrained=weights is None and config.weights == "none",
        warm=warm,
        cold=cold,
        cold_note=note,
        stages=stages,
        step=step,
        waited_fraction=waited,
        augmented=augmented,
        frozen=frozen,
        no_bf16=no_bf16,
    )


class Steps:
    """The pieces of a run on one process, put together as `vidcache.train.loop` does, with a stopwatch.

    Args:
        task: What is trained on.
        limit: Of each measurement.
        weights: See `measure`.

    Attributes:
        precision: What was chosen.
        model: That is trained.
    """

    def __init__(self, task: Task, limit: Limit, weights: Mapping[str, Any] | None = None) -> None:
        self._task, self._config, self._device, self._limit = task, task.config, task.device, limit
        self._watch, config = Stopwatch(self._device), task.config
        torch.manual_seed(config.seed)
        self.model = build_model(len(task.reader.classes), "none" if weights else config.weights, config.freeze)
        if weights:
            self.model.load_state_dict(weights)
        self.model.to(self._device, memory_format=torch.channels_last_3d)
        loss = TimedLoss(task.weights_on_device(), config.label_smoothing, self._watch)
        self.precision = try_precision(task, self.model, loss, len(self.plans(1)[0].parts[0]))
        self._forward = TimedForward(self.model, self.precision.name, self._watch)
        if config.compile:
            self._forward.compile()
        self._inputs = TimedInputs(task, self._forward, self._watch)
        optimizer = make_optimizer(self.model, config)
        scaler = TimedScaler(self._device.type, enabled=self.precision.name == "fp16", watch=self._watch)
        ranks = Ranks(device=config.device)
        self._stepper = Stepper(self._forward, loss, optimizer, scaler, config, self._inputs, ranks)
        self.model.train()

    def plans(self, num_steps: int) -> list[StepPlan]:
        """Plan the first steps of a run, of as many epochs as they take, whole batches only."""
        size = self._config.batch_size
        plans: list[StepPlan] = []
        for epoch in itertools.count(1):
            order = self._task.order(epoch)
            plans += self._task.plan(order[: len(order) // size * size])
            if len(plans) >= num_steps:
                break
        return plans[:num_steps]

    def resident(self) -> list[Batch]:
        """Bring the clips of a step to the device, to stay there."""
        with contextlib.closing(self._inputs.stream(list(self.plans(1)[0].parts), 1)) as stream:
            return [dataclasses.replace(one, clips=one.clips.clone(), labels=one.labels.clone()) for one in stream]

    def copy(self) -> Times:
        """Copy the clips of a step from where they are read to, to the device; none on a CPU, where they stay."""
        if self._device.type == "cpu":
            return Times()
        shape = (self._config.batch_size, *self._task.reader.shape_of(self._task.frames))
        pinned, host = self._device.type == "cuda", torch.device("cpu")
        clips = Workspace().take("clips", shape, torch.uint8, host, pinned=pinned)
        return self._in_turn(lambda: clips.to(self._device, non_blocking=True))[0]

    def stages(self, resident: list[Batch]) -> dict[str, Times]:
        """Do steps on clips that are there, one stage after the other; the first step warms up."""
        watch, sums = self._watch, EpochSums()
        plans = self.plans(1) * (self._limit.repeats + 1)
        start = time.perf_counter()
        watch.start()
        self._stepper.epoch(
            1,
            plans,
            itertools.cycle(resident),
            sums,
            lambda _: watch.end_step(),
            lambda: self._limit.is_over(sums.num_steps - 1, start),
        )
        watch.stop()
        steps = watch.steps[1:]
        return {name: Times(tuple(step[name] for step in steps)) for name in steps[0]}

    def loop(self) -> tuple[Times, float]:
        """Train on streamed clips; the first step, whose clips nobody has read ahead, warms up.

        Returns:
            A step, and the share of all of them that was spent waiting for clips.
        """
        together = 1 if self._device.type == "cpu" else _TOGETHER
        plans, sums = self.plans(1 + self._limit.repeats * together), EpochSums()
        chunks = [part for plan in plans for part in plan.parts]
        ends: list[float] = []
        waited: list[float] = []

        def on_step(_: object) -> None:
            if (sums.num_steps - 1) % together == 0:
                wait_for(self._device)
                ends.append(time.perf_counter())
                waited.append(sums.waited_seconds)

        _touch(self._task.reader, chunks)
        start = time.perf_counter()
        with contextlib.closing(self._inputs.stream(chunks, 1)) as stream:
            self._stepper.epoch(
                1,
                plans,
                stream,
                sums,
                on_step,
                lambda: self._limit.is_over((sums.num_steps - 1) // together, start),
            )
        seconds = tuple((end - begin) / together for begin, end in itertools.pairwise(ends))
        return Times(seconds), (waited[-1] - waited[0]) / (ends[-1] - ends[0])

    def other_augment(self, resident: list[Batch]) -> Pair:
        """Augment the clips of a step the other way: exactly instead of linearly, or linearly instead of exactly."""
        other = {"linear": "exact", "exact": "linear"}.get(self._config.augment)
        if other is None:
            return Pair()
        ways = [self._clips(dataclasses.replace(self._config, augment=name)) for name in (self._config.augment, other)]
        return Pair(*self._in_turn(*(functools.partial(_augment, way, resident) for way in ways)))

    def frozen_bf16(self, resident: list[Batch]) -> tuple[Pair, str]:
        """Run the frozen stages of a step in bf16 where they are not; and say why that makes no sense."""
        if self._forward.prefix_dtype != torch.float32 or self._config.freeze == "none":
            return Pair(), ""
        ways = [Forward(self.model, name) for name in ("off", "bf16-prefix")]
        pixels = [self._inputs.pixels(batch, 1).clone() for batch in resident]
        # Where a CPU has no instructions for it, a whole step in bf16 takes minutes: ask a little first.
        little = [part[:1, :, :2] for part in pixels[:1]]
        full, low = self._in_turn(*(functools.partial(_run_frozen, way, little) for way in ways))
        if low.low > MAX_SLOWDOWN * full.low:
            return Pair(), f"2 frames of a clip take {low.low / full.low:.0f} times as long in it"
        return Pair(*self._in_turn(*(functools.partial(_run_frozen, way, pixels) for way in ways))), ""

    def _clips(self, config: TrainConfig) -> ClipInputs:
        return ClipInputs(dataclasses.replace(self._task, config=config), Forward(self.model, "off"))

    def _in_turn(self, *calls: Callable[[], object]) -> list[Times]:
        """Time calls, one after the other in each round; the first round warms up."""
        rounds: list[list[float]] = []
        start = time.perf_counter()
        while not self._limit.is_over(len(rounds) - 1, start):
            rounds.append([])
            for call in calls:
                wait_for(self._device)
                began = time.perf_counter()
                call()
                wait_for(self._device)
                rounds[-1].append(time.perf_counter() - began)
        return [Times(seconds) for seconds in zip(*rounds[1:], strict=True)]


def _augment(clips: ClipInputs, batches: list[Batch]) -> None:
    for batch in batches:
        clips.pixels(batch, 1)


def _run_frozen(forward: Forward, parts: list[torch.Tensor]) -> None:
    for part in parts:
        forward.prefix(part)


def _touch(reader: Reader, chunks: list[Rows]) -> None:
    for row in np.unique(np.concatenate(chunks)).tolist():
        reader.read([row])
