"""What `vidcache bench` measures: times as often as they were taken, and their medians. Values only."""

import dataclasses
import statistics

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
