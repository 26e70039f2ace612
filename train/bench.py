# mypy: ignore-errors
"""Measures what a training step of a cache is made of on this machine: each stage alone, then the loop as it trains.

All work is done by the loop's own pieces (`vidcache.train.stopwatch`). Nothing is written; weights change in memory.
"""

import contextlib
import dataclasses
import functools
import itertools
import math
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vidcache.cache.reader import CacheReader, ConcatReader, Reader
from vidcache.cache.stream import Batch, Rows, epoch_order, stream_chunks
from vidcache.cli import num_cpus
from vidcache.model import R3D18, build_model
from vidcache.text import plural
from vidcache.train.callbacks import RunningMetrics
from vidcache.train.config import TrainConfig
from vidcache.train.data import ClipLoader, StepPlan, TrainingData, needed_rows
from vidcache.train.distributed import Processes as Ranks
from vidcache.train.distributed import oom_hint
from vidcache.train.distributed import torch_flags as backends

Forward = Loss = Stepper = object  # until this file is rewritten around `vidcache.train.loop.Trainer`
make_optimizer = try_precision = MAX_SLOWDOWN = None

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


class TimedInputs(ClipLoader):
    """A `ClipLoader` whose augmentation is timed."""

    def __init__(self, task: TrainingData, forward: Forward, watch: Stopwatch) -> None:
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


# What the device does in a step, in this order, while the clips of the next one are read.
COMPUTE = ("copy", "augment", "frozen", "trained", "backward", "optimizer", "other")
# In the words of people; reading first.
NAMES = {
    "read_cold": "read from the disk",
    "read_warm": "read from memory",
    "copy": "copy to the device",
    "augment": "augmentation",
    "frozen": "forward, frozen stages",
    "trained": "forward, the rest",
    "backward": "backward",
    "optimizer": "optimizer",
    "other": "everything else",
}
WORTH = 1.05  # a gain below is noise


@dataclasses.dataclass(frozen=True)
class Times:
    """How long one thing took, each time that it was measured.

    Attributes:
        seconds: (n,) of a step each; none where it was not, or does not happen.
    """

    seconds: tuple[float, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.seconds)

    @property
    def count(self) -> int:
        """Measurements (n)."""
        return len(self.seconds)

    @property
    def median(self) -> float:
        """Seconds; 0 where there are none."""
        return statistics.median(self.seconds) if self.seconds else 0.0

    @property
    def low(self) -> float:
        """The shortest."""
        return min(self.seconds, default=0.0)

    @property
    def high(self) -> float:
        """The longest."""
        return max(self.seconds, default=0.0)


@dataclasses.dataclass(frozen=True)
class Pair:
    """One thing as it is, and done another way, measured in turn.

    Attributes:
        now: As it is.
        other: The other way, as often; neither where there is no other way.
    """

    now: Times = Times()
    other: Times = Times()

    def __bool__(self) -> bool:
        return bool(self.other)

    @property
    def speedup(self) -> float:
        """How many times as fast the other way is: the median of the rounds; 1 where there is none."""
        ratios = [now / other for now, other in zip(self.now.seconds, self.other.seconds, strict=True)]
        return statistics.median(ratios) if ratios else 1.0

    @property
    def is_worth_it(self) -> bool:
        """Whether the other way is faster by more than noise."""
        return self.speedup > WORTH


@dataclasses.dataclass(frozen=True)
class Measured:
    """What was measured of one cache on one machine; all times are those of a step.

    Attributes:
        batch_size: Clips of a step.
        clip_bytes: That are read of a clip.
        num_train_clips: Of the cache.
        epoch_bytes: Of all clips that an epoch reads once.
        memory_bytes: That this machine can give; None is not known.
        load: Programs that wanted a CPU in the minute before; None is not known.
        num_cpus: That this process may use.
        reader_threads: Threads that read.
        freeze: Last frozen stage.
        augment: How clips are augmented.
        amp: The precision that was asked for.
        precision: The one that was measured.
        reason: Why that one.
        is_untrained: The weights are random.
        warm: Reading from the page cache; the other way has twice as many threads.
        cold: Reading after the pages were dropped, as `warm`; nothing where that is not possible.
        cold_note: What is to be known of `cold`.
        stages: Of `COMPUTE`, each alone, on clips that are there.
        step: The loop as it trains, clips being read meanwhile.
        waited_fraction: Of `step`, waiting for clips.
        augmented: The other way is "exact" where `augment` is "linear", and "linear" where it is "exact".
        frozen: The frozen stages in float32; the other way is bf16.
        no_bf16: Why `frozen` was not measured in bf16.
    """

    batch_size: int
    clip_bytes: int
    num_train_clips: int
    epoch_bytes: int
    memory_bytes: int | None
    load: float | None
    num_cpus: int
    reader_threads: int
    freeze: str
    augment: str
    amp: str
    precision: str
    reason: str
    is_untrained: bool
    warm: Pair
    cold: Pair
    cold_note: str
    stages: dict[str, Times]
    step: Times
    waited_fraction: float
    augmented: Pair
    frozen: Pair
    no_bf16: str

    @property
    def times(self) -> dict[str, Times]:
        """The times of everything in `NAMES`."""
        return {"read_cold": self.cold.now, "read_warm": self.warm.now, **self.stages}

    @property
    def compute_seconds(self) -> float:
        """What the device needs for a step: the medians of its stages, added up."""
        return sum(self.stages[name].median for name in COMPUTE)

    @property
    def fits_memory(self) -> bool | None:
        """Whether all clips of an epoch can stay in the page cache; None is not known."""
        return None if self.memory_bytes is None else self.epoch_bytes < self.memory_bytes

    @property
    def shares(self) -> dict[str, float]:
        """Share of each stage in a step that does one thing after the other, read from memory; they sum to 1."""
        medians = {name: times.median for name, times in self.times.items() if name != "read_cold"}
        total = sum(medians.values())
        return {name: median / total for name, median in medians.items()}


MIN_REPEATS = 3
CONTAINER_LIMIT = Path("/sys/fs/cgroup/memory.max")
_FROM_DISK = 0.9  # share of the bytes that has to come from the disk


@dataclasses.dataclass(frozen=True)
class Limit:
    """When something has been measured often enough.

    Attributes:
        repeats: So often at most.
        seconds: And no longer than this, once it was done `MIN_REPEATS` times.
    """

    repeats: int = 7
    seconds: float = 20.0

    def is_over(self, count: int, start: float) -> bool:
        """Whether `count` measurements, begun at `start` of `time.perf_counter`, are enough."""
        late = time.perf_counter() - start >= self.seconds
        return count >= self.repeats or (late and count >= MIN_REPEATS)


class Reading:
    """Reads batches as the loop does, and does nothing with them; in turn with twice as many threads.

    Args:
        task: With at least a batch of training clips.
        limit: Of each measurement.

    Attributes:
        clip_bytes: That are read of a clip.
    """

    def __init__(self, task: TrainingData, limit: Limit) -> None:
        self._reader, self._frames, self._limit = task.reader, task.frames, limit
        config = task.config
        self._threads, self._verify = config.reader_threads, config.verify
        self.clip_bytes = math.prod(task.reader.shape_of(self._frames))
        size, order = config.batch_size, epoch_order(task.rows, config.seed, 1)
        # Whole batches of different clips: one that comes twice would come from memory the second time.
        count = min(len(order) // size, limit.repeats)
        self._chunks = [order[start * size : (start + 1) * size] for start in range(count)]

    def warm(self) -> Pair:
        """Read clips that have been read before."""
        self._through(self._threads)
        return self._in_turn()

    def cold(self) -> tuple[Pair, str]:
        """Read clips after their pages were dropped; and say why that was not possible, or is not certain."""
        if not drop_pages(self._reader, self._chunks[0]):
            return Pair(), "the system cannot drop a file's pages from memory"
        before = bytes_from_disk()
        pair = self._in_turn(lambda: [drop_pages(self._reader, chunk) for chunk in self._chunks])
        after = bytes_from_disk()
        if before is None or after is None:
            return pair, "whether the clips had been dropped from memory cannot be seen here"
        share = (after - before) / (2 * pair.now.count * len(self._chunks[0]) * self.clip_bytes)
        if share < _FROM_DISK:
            return Pair(), f"{max(1 - share, 0):.0%} of it still came from memory, after it was asked to drop the clips"
        return pair, ""

    def _in_turn(self, prepare: Callable[[], object] = lambda: None) -> Pair:
        now: list[float] = []
        other: list[float] = []
        start = time.perf_counter()
        while not self._limit.is_over(len(now), start):
            for seconds, num_threads in ((now, self._threads), (other, 2 * self._threads)):
                prepare()
                seconds += self._through(num_threads)
        return Pair(Times(tuple(now)), Times(tuple(other)))

    def _through(self, num_threads: int) -> list[float]:
        """Read all batches once; return the seconds of each."""
        seconds = []
        stream = stream_chunks(
            self._reader,
            self._chunks,
            frames=self._frames,
            num_threads=num_threads,
            verify=self._verify,
        )
        asked = time.perf_counter()
        for _ in stream:
            seconds.append(time.perf_counter() - asked)
            asked = time.perf_counter()
        return seconds


def drop_pages(reader: Reader, rows: Rows) -> bool:
    """Ask the system to forget the pages of some clips, so that they come from the disk again.

    What a disk, or the host of a virtual machine, keeps in its own memory stays there.

    Returns:
        Whether the system can be asked.
    """
    if not hasattr(os, "posix_fadvise"):
        return False
    readers = reader.readers if isinstance(reader, ConcatReader) else [reader]
    first = 0
    for one in readers:
        if not isinstance(one, CacheReader):
            return False
        size, page = one.spec.clip_bytes, os.sysconf("SC_PAGE_SIZE")
        for row in (rows[(rows >= first) & (rows < first + len(one))] - first).tolist():
            start = one.header.clips_offset + row * size
            begin, end = start // page * page, -(-(start + size) // page) * page
            os.posix_fadvise(one.fileno(), begin, end - begin, os.POSIX_FADV_DONTNEED)
        first += len(one)
    return True


def memory_bytes() -> int | None:
    """Return the memory that can still be had, or be taken from the page cache; None is not known."""
    try:
        fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        available = int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None
    with contextlib.suppress(OSError, ValueError):  # a container may have less than the machine; "max" is no number
        available = min(available, int(CONTAINER_LIMIT.read_text()))
    return available


def bytes_from_disk() -> int | None:
    """Return what this process has read from disks so far; None is not known."""
    try:
        fields = dict(line.split(": ", 1) for line in Path("/proc/self/io").read_text().splitlines())
        return int(fields["read_bytes"])
    except (OSError, KeyError, ValueError):
        return None


FREEZABLE = ("none", "stem", "layer1", "layer2", "layer3", "layer4")
STEADY = 1.25  # how far the slowest of equal steps is from the fastest on a machine that has nothing else to do
LARGE = 0.1  # share of a step from which a stage's own spread counts


@dataclasses.dataclass(frozen=True)
class Storage:
    """What the device asks of the storage; MB are millions of bytes of clips.

    Attributes:
        clips_per_second: That the device takes when it never waits.
        needed_mb_per_second: These, in bytes.
        warm_mb_per_second: From memory.
        cold_mb_per_second: From the disk; None where it was not measured.
        is_enough: The disk alone is fast enough; None is not known.
        is_enough_from_memory: The page cache is, and the clips of an epoch fit into it, as far as is known.
    """

    clips_per_second: float
    needed_mb_per_second: float
    warm_mb_per_second: float
    cold_mb_per_second: float | None
    is_enough: bool | None
    is_enough_from_memory: bool


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What the times mean.

    Attributes:
        bound_by: "compute" or "reading".
        bottleneck: A key of `NAMES`.
        knobs: What to turn, a sentence each.
        sentences: All that is to be said, the knobs among them.
        storage: What the device asks of the storage.
    """

    bound_by: str
    bottleneck: str
    knobs: tuple[str, ...]
    sentences: tuple[str, ...]
    storage: Storage


def judge(found: Measured) -> Verdict:
    """Say what bounds a step and what to do about it.

    Reading goes on while the device computes, so the slower of the two bounds a step. Clips that fit into memory come
    from the disk in the first epoch only.
    """
    compute, clips = found.compute_seconds, plural(found.batch_size, "clip")
    reading = "read_cold" if found.fits_memory is False and found.cold else "read_warm"
    seconds = found.times[reading].median
    if seconds > compute:
        bound_by, bottleneck = "reading", reading
        knobs = _reading_knobs(found, reading)
        said = [
            f"Bound by reading: the {clips} of a step take {in_time(seconds)} to be {NAMES[reading]}, the work on them "
            f"{in_time(compute)}.",
            f"Bottleneck: {NAMES[reading]}.",
        ]
    else:
        bound_by, bottleneck = "compute", max(COMPUTE, key=lambda name: found.stages[name].median)
        knobs = _compute_knobs(found, bottleneck)
        said = [
            f"Bound by compute: the work of a step takes {in_time(compute)}; its {clips} are {NAMES[reading]} in "
            f"{in_time(seconds)} meanwhile.",
            f"Bottleneck: {NAMES[bottleneck]}, {found.stages[bottleneck].median / compute:.0%} of that work.",
        ]
    storage = _storage(found)
    said += [*knobs, *_first_epoch(found, bound_by), _loop(found), *_noise(found), _storage_in_words(found, storage)]
    return Verdict(bound_by, bottleneck, tuple(knobs), tuple(said), storage)


def in_time(seconds: float) -> str:
    """Return a duration with three digits and its unit.

    >>> in_time(12.34), in_time(0.9999), in_time(0.0123), in_time(0.00004)
    ('12.3 s', '1.00 s', '12.3 ms', '0.04 ms')
    """
    value, unit = (seconds, "s") if seconds >= 0.9995 else (1000 * seconds, "ms")
    digits = 0 if value >= 99.95 else 1 if value >= 9.995 else 2
    return f"{value:.{digits}f} {unit}"


def in_mb(rate: float) -> str:
    """Return MB/s with as many digits as mean something.

    >>> in_mb(7123.4), in_mb(0.456)
    ('7,123 MB/s', '0.46 MB/s')
    """
    return f"{rate:,.0f} MB/s" if rate >= 10 else f"{rate:.2g} MB/s"


def _measured(pair: Pair) -> str:
    """Say what another way gave."""
    return (
        f"measured x{pair.speedup:.2f} as fast ({in_time(pair.other.median)} instead of {in_time(pair.now.median)}, "
        f"n = {pair.other.count})"
    )


def _reading_knobs(found: Measured, reading: str) -> list[str]:
    pair, knobs = found.cold if reading == "read_cold" else found.warm, []
    threads = 2 * found.reader_threads
    if pair.is_worth_it:
        knobs.append(f"Turn --num-workers {threads}: {_measured(pair)}.")
    else:
        knobs.append(f"More --num-workers do not help: with {threads}, {_measured(pair)}.")
    cold, warm = found.cold.now, found.warm.now
    if reading == "read_cold" and cold.median > WORTH * warm.median:
        knobs.append(
            f"Give it more memory, or put the cache on a faster disk: from memory, measured "
            f"x{cold.median / warm.median:.1f} as fast ({in_time(warm.median)}, n = {warm.count}). The clips of an "
            f"epoch need {_gb(found.epoch_bytes)}, {_gb(found.memory_bytes or 0)} are there."
        )
    return [*knobs, "Try fewer --num-frames (not measured): less of each clip is read."]


def _compute_knobs(found: Measured, bottleneck: str) -> list[str]:
    if bottleneck == "copy":
        return [
            "Try fewer --num-frames, or a cache of smaller pictures (vidcache build --size), both not measured: "
            "there is less to copy. Copies are made from pinned memory, while the device computes."
        ]
    if bottleneck in ("optimizer", "other"):
        times, size = found.stages[bottleneck], found.batch_size
        return [
            f"Turn --batch-size {2 * size}: {NAMES[bottleneck]} is done once a step, measured {in_time(times.median)} "
            f"(n = {times.count}), {in_time(times.median / size)} a clip; with twice the clips half of that."
        ]
    knobs = []
    if bottleneck == "augment" and found.augment == "exact" and found.augmented.is_worth_it:
        knobs.append(f"Turn --augment linear: {_measured(found.augmented)}.")
    if bottleneck != "augment":
        knobs += _precision_knobs(found)
    knobs += _feature_knobs(found)
    more = FREEZABLE[FREEZABLE.index(found.freeze) + 1 :][:1] if found.freeze in FREEZABLE else ()
    freeze = f", or --freeze {more[0]}" if more and bottleneck in ("trained", "backward") else ""
    return [*knobs, f"Try fewer --num-frames{freeze} (not measured): less is computed, and less can be learned."]


def _precision_knobs(found: Measured) -> list[str]:
    if found.precision not in ("off", "bf16-prefix"):
        return []
    if found.precision == "bf16-prefix" or found.freeze == "none":
        gain = ""
    elif found.frozen.is_worth_it:
        after = found.compute_seconds - found.stages["frozen"].median * (1 - 1 / found.frozen.speedup)
        gain = (
            f"the frozen stages in bf16 were {_measured(found.frozen)}, which would make the work of a step "
            f"x{found.compute_seconds / after:.2f} as fast"
        )
    elif found.frozen:
        return [f"bf16 does not help: the frozen stages in it were {_measured(found.frozen)}."]
    else:
        return [f"bf16 does not help: {found.no_bf16}."]
    if found.amp == "auto":
        said = f"--amp auto chose {'float32' if found.precision == 'off' else found.precision}: {found.reason}."
        if gain:
            said = f"To gain by bf16: {gain}; but {said}"
        if found.is_untrained:
            said += " These weights are random: ask again with --ckpt, or --weights kinetics400."
        return [said]
    if gain:
        return [f"Turn --amp auto, which takes bf16 where gradients stay right: {gain}."]
    return ["Try --amp auto (not measured): it times steps in bf16 and compares their gradients."]


def _feature_knobs(found: Measured) -> list[str]:
    """What is saved by what is computed once; how long it takes to read that is not known."""
    once, compute = found.stages["augment"].median + found.stages["frozen"].median, found.compute_seconds
    if found.freeze == "none" or compute <= WORTH * (compute - once):
        return []
    computing = once / found.batch_size * found.num_train_clips
    return [
        f"Give vidtrain --cache-features K: augmentation and frozen stages, measured {in_time(once)} of "
        f"{in_time(compute)}, are computed once for K views of each clip and not in every epoch; without them a step "
        f"is x{compute / (compute - once):.2f} as fast, less what reading their result costs. Each view of the "
        f"{plural(found.num_train_clips, 'training clip')} takes {in_time(computing)} to compute."
    ]


def _first_epoch(found: Measured, bound_by: str) -> list[str]:
    """What is to be said of clips that come from the disk once, and from memory later."""
    if bound_by == "reading" or found.fits_memory is False or found.cold.now.median <= found.compute_seconds:
        return []
    size, there = _gb(found.epoch_bytes), found.memory_bytes
    return [
        f"The first epoch is bound by reading: the clips of a step take {in_time(found.cold.now.median)} to be read "
        f"from the disk. Later ones are not, {'as' if there else 'if'} the {size} of an epoch fit into memory"
        f"{f' ({_gb(there)} are there)' if there else ''}."
    ]


def _loop(found: Measured) -> str:
    step, total = found.step, found.compute_seconds + found.warm.now.median
    return (
        f"The loop as it trains took {in_time(step.median)} a step ({in_time(step.low)} to {in_time(step.high)}, "
        f"n = {step.count}), {found.waited_fraction:.1%} of it waiting for clips; its stages, one after the other, "
        f"take {in_time(total)}."
    )


def _noise(found: Measured) -> list[str]:
    """Name what makes these numbers doubtful."""
    large = [times for name, times in found.stages.items() if found.shares[name] > LARGE]
    varied = max(times.high / times.low for times in (found.step, *large))
    apart = found.step.median * (1 - found.waited_fraction) / found.compute_seconds
    if max(varied, apart) <= STEADY:
        return []
    what = (
        f"Equal work took up to x{varied:.1f} as long"
        if varied >= apart
        else f"Without waiting, the loop took x{apart:.1f} as long as its stages"
    )
    load = (
        "" if found.load is None else f" (load {found.load:.1f} on {plural(found.num_cpus, 'CPU')} before this began)"
    )
    return [f"{what}: something else takes the machine's time{load}. Measure again when it is idle."]


def _storage(found: Measured) -> Storage:
    # The loop can be faster than its stages, which are waited for one by one.
    seconds = min(found.compute_seconds, found.step.median)
    megabytes = found.batch_size * found.clip_bytes / 1e6
    needed, warm = megabytes / seconds, megabytes / found.warm.now.median
    cold = megabytes / found.cold.now.median if found.cold else None
    return Storage(
        clips_per_second=found.batch_size / seconds,
        needed_mb_per_second=needed,
        warm_mb_per_second=warm,
        cold_mb_per_second=cold,
        is_enough=None if cold is None else cold >= needed,
        is_enough_from_memory=warm >= needed and found.fits_memory is not False,
    )


def _storage_in_words(found: Measured, storage: Storage) -> str:
    cold, warm = storage.cold_mb_per_second, in_mb(storage.warm_mb_per_second)
    gave = "was not measured" if cold is None else f"gave {in_mb(cold)}"
    unknown = "" if found.fits_memory else ", if the clips of an epoch fit there"
    if storage.is_enough:
        verdict = "enough"
    elif storage.is_enough_from_memory:
        verdict = f"{'enough' if cold is None else 'not enough for the first epoch, enough'} from memory{unknown}"
    else:
        verdict = "not enough"
    note = f" ({found.cold_note})" if found.cold_note else ""
    return (
        f"The device takes {storage.clips_per_second:.3g} clips/s, which needs "
        f"{in_mb(storage.needed_mb_per_second)} of storage; this disk {gave} cold{note}, memory {warm}: {verdict}."
    )


def _gb(size: int) -> str:
    return f"{size / 1e9:.2f} GB"


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
    task = TrainingData.of(reader, config, config.device)
    with (
        oom_hint(config.batch_size, config.accumulate, 1, task.num_frames),
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

    def __init__(self, task: TrainingData, limit: Limit, weights: Mapping[str, Any] | None = None) -> None:
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
        pinned = self._device.type == "cuda"
        clips = torch.empty(shape, dtype=torch.uint8, pin_memory=pinned)
        return self._in_turn(lambda: clips.to(self._device, non_blocking=True))[0]

    def stages(self, resident: list[Batch]) -> dict[str, Times]:
        """Do steps on clips that are there, one stage after the other; the first step warms up."""
        watch, sums = self._watch, RunningMetrics()
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
        plans, sums = self.plans(1 + self._limit.repeats * together), RunningMetrics()
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

    def _clips(self, config: TrainConfig) -> ClipLoader:
        return ClipLoader(dataclasses.replace(self._task, config=config), Forward(self.model, "off"))

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


def _augment(clips: ClipLoader, batches: list[Batch]) -> None:
    for batch in batches:
        clips.pixels(batch, 1)


def _run_frozen(forward: Forward, parts: list[torch.Tensor]) -> None:
    for part in parts:
        forward.prefix(part)


def _touch(reader: Reader, chunks: list[Rows]) -> None:
    for row in np.unique(np.concatenate(chunks)).tolist():
        reader.read([row])
