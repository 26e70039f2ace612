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
import numpy.typing as npt
import torch

from vidcache.cache.reader import Reader
from vidcache.cache.stream import Batch, Rows
from vidcache.cli import num_cpus
from vidcache.errors import InputError
from vidcache.model import build_model
from vidcache.pixels import Workspace
from vidcache.sampling import sample_indices
from vidcache.train.balance import epoch_rows, loss_weights
from vidcache.train.batching import StepPlan, plan_steps
from vidcache.train.bench_reading import Limit, Reading, memory_bytes
from vidcache.train.config import TrainConfig
from vidcache.train.device import backends, memory_advice
from vidcache.train.forward import Forward
from vidcache.train.inputs import ClipInputs
from vidcache.train.loop import check_config
from vidcache.train.measured import Measured, Pair, Times
from vidcache.train.precision import MAX_SLOWDOWN, Choice, choose_precision
from vidcache.train.ranks import Ranks
from vidcache.train.step import EpochSums, Stepper
from vidcache.train.stopwatch import Stopwatch, TimedForward, TimedInputs, TimedLoss, TimedScaler, wait_for

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
    rows = reader.rows("train")
    if not len(rows):
        raise InputError(f"{reader.name}: no train clips, expected at least one. Build it with --split 70/15/15")
    check_config(reader, config)
    config = dataclasses.replace(config, batch_size=min(config.batch_size, len(rows)))
    used = config.num_frames_used or reader.spec.num_frames
    frames = None if used == reader.spec.num_frames else sample_indices(reader.spec.num_frames, used)
    with memory_advice(config.batch_size, config.accumulate, 1, used), backends(deterministic=config.deterministic):
        on_phase("reading")
        reading = Reading(reader, config, frames, limit)
        load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
        warm, (cold, note) = reading.warm(), reading.cold()
        on_phase("the choice of the precision")
        steps = Steps(reader, config, frames, limit, weights)
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
        reader: The cache.
        config: Of the run.
        frames: (T',) frames of each clip; None for all.
        limit: Of each measurement.
        weights: See `measure`.

    Attributes:
        precision: What was chosen.
        model: That is trained.
    """

    def __init__(
        self,
        reader: Reader,
        config: TrainConfig,
        frames: npt.NDArray[np.int64] | None,
        limit: Limit,
        weights: Mapping[str, Any] | None = None,
    ) -> None:
        self._reader, self._config, self._frames, self._limit = reader, config, frames, limit
        self._device = torch.device(config.device)
        self._watch = Stopwatch(self._device)
        rows, labels, num_classes = reader.rows("train"), reader.labels, len(reader.classes)
        self._rows = rows
        torch.manual_seed(config.seed)
        self.model = build_model(num_classes, "none" if weights else config.weights, config.freeze)
        if weights:
            self.model.load_state_dict(weights)
        self.model.to(self._device, memory_format=torch.channels_last_3d)
        balanced = loss_weights(labels[rows], num_classes, config.balance)
        self._class_weights = None if balanced is None else balanced.numpy()
        on_device = None if balanced is None else balanced.to(self._device)
        self._loss = TimedLoss(on_device, config.label_smoothing, self._watch)
        self.precision = self._choose_precision()
        self._forward = TimedForward(self.model, self.precision.name, self._watch)
        if config.compile:
            self._forward.compile()
        self._inputs = TimedInputs(reader, labels, config, self._frames, self._forward, self._device, watch=self._watch)
        trainable = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        fused = self._device.type in ("cpu", "cuda")
        optimizer = torch.optim.Adam(trainable, lr=config.lr, weight_decay=config.weight_decay, fused=fused)
        scaler = TimedScaler(self._device.type, enabled=self.precision.name == "fp16", watch=self._watch)
        self._stepper = Stepper(
            self._forward, self._loss, optimizer, scaler, config, self._inputs, Ranks(device=config.device)
        )
        self.model.train()

    def plans(self, num_steps: int) -> list[StepPlan]:
        """Plan the first steps of a run, of as many epochs as they take, whole batches only."""
        config, labels = self._config, self._reader.labels
        plans: list[StepPlan] = []
        for epoch in itertools.count(1):
            order = epoch_rows(self._rows, labels[self._rows], config.balance, config.seed, epoch)
            order = order[: len(order) // config.batch_size * config.batch_size]
            plans += plan_steps(order, labels, self._class_weights, config.batch_size, accumulate=config.accumulate)
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
        shape = (self._config.batch_size, *self._reader.shape_of(self._frames))
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

        _touch(self._reader, chunks)
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

    def _choose_precision(self) -> Choice:
        config = self._config
        clips = self._clips(config)
        part = self.plans(1)[0].parts[0]
        with contextlib.closing(clips.stream([part], None)) as stream:
            batch = next(stream)
            labels, inputs = batch.labels.clone(), clips.pixels(batch, None)
        weight = plan_steps(part, self._reader.labels, self._class_weights, len(part))[0].weight
        criterion = functools.partial(self._loss, weight=weight)
        return choose_precision(config.amp, self.model, criterion, inputs, labels)

    def _clips(self, config: TrainConfig) -> ClipInputs:
        forward = Forward(self.model, "off")
        return ClipInputs(self._reader, self._reader.labels, config, self._frames, forward, self._device)

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
