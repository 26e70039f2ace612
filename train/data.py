"""The training clips: which ones, in which order, in which steps, and how they reach the model."""

import dataclasses
from collections.abc import Callable, Generator, Sequence
from typing import Self, cast

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import WeightedRandomSampler

from vidcache.cache.leakage import mirrored_classes
from vidcache.cache.reader import Reader
from vidcache.cache.stream import Batch, ClipSource, Rows, StreamOptions, epoch_order, rank_slice, stream_chunks
from vidcache.errors import InputError
from vidcache.pixels import normalize
from vidcache.spec import sample_indices
from vidcache.train.augment import augment, draw
from vidcache.train.config import TrainConfig
from vidcache.train.distributed import choose_precision

Batches = Generator[Batch, None, None]  # to be closed
BALANCES = ("both", "sampler", "loss", "none")


@dataclasses.dataclass(frozen=True)
class StepPlan:
    """One optimizer step."""

    parts: tuple[Rows, ...]  # rows of each gradient accumulation step, of this process; a part may be empty
    num_clips: int  # in all parts of all processes
    weight: float  # sum of the loss weights of these clips: the divisor of the summed loss


def class_weights(labels: npt.NDArray[np.int64], num_classes: int) -> npt.NDArray[np.float64]:
    """Weigh every class inversely to its frequency: `n / (K' * n_class)`.

    As scikit-learn's `class_weight="balanced"`: the weights of all clips sum to n.

    Args:
        labels: (n,) of the training clips.
        num_classes: Classes (K), of which K' occur.

    Returns:
        (K,) weights; 0 for a class without clips.
    """
    counts = np.bincount(labels, minlength=num_classes)
    weights = np.zeros(num_classes)
    present = counts > 0
    weights[present] = len(labels) / (present.sum() * counts[present])
    return weights


def epoch_rows(
    rows: npt.NDArray[np.int64], labels: npt.NDArray[np.int64], balance: str, seed: int, epoch: int
) -> npt.NDArray[np.int64]:
    """Choose the (n,) clips of an epoch (from 1), in training order: a function of `(seed, epoch)` only.

    With a sampler, n draws with replacement in which every class is equally likely; without, every clip once.
    """
    if balance not in BALANCES:
        raise ValueError(f"balance {balance!r}, expected one of {', '.join(BALANCES)}")
    if balance in ("loss", "none"):
        return epoch_order(rows, seed, epoch)
    weights = class_weights(labels, int(labels.max()) + 1)[labels]
    state = int(np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)[0] >> np.uint64(1))
    generator = torch.Generator().manual_seed(state)
    sampler = WeightedRandomSampler(weights.tolist(), len(rows), generator=generator)
    return rows[np.fromiter(sampler, np.int64, len(rows))]


@dataclasses.dataclass(frozen=True)
class ClassAudit:
    """The effect of balancing on one class."""

    class_name: str
    num_clips: int
    expected_draws: float  # per epoch
    expected_distinct: float  # different clips among these
    loss_weight: float  # of each of its clips
    effective_weight: float  # share of the total loss weight of an epoch, relative to an equal share


def audit(classes: Sequence[str], labels: npt.NDArray[np.int64], balance: str) -> list[ClassAudit]:
    """Compute the combined effect of sampler and loss weights on each class; (n,) labels are of the training clips."""
    counts = np.bincount(labels, minlength=len(classes))
    present = counts > 0
    draws = distinct = counts.astype(float)
    if balance in ("both", "sampler"):
        draws = np.where(present, len(labels) / present.sum(), 0.0)
        # Each of all draws of an epoch hits a given clip of a class with this probability.
        hit = 1 / (present.sum() * np.maximum(counts, 1))
        distinct = counts * (1 - (1 - hit) ** len(labels))
    weights = class_weights(labels, len(classes)) if balance in ("both", "loss") else present.astype(float)
    shares = draws * weights
    effective = shares / shares.sum() * present.sum()
    return [
        ClassAudit(name, int(counts[k]), float(draws[k]), float(distinct[k]), float(weights[k]), float(effective[k]))
        for k, name in enumerate(classes)
    ]


@dataclasses.dataclass(frozen=True)
class TrainingData:
    """The training clips of a cache, as a config wants them."""

    reader: Reader
    config: TrainConfig
    device: torch.device
    rows: Rows  # (n,) training rows
    labels: Rows  # (N,) of all rows; permuted by `shuffle_labels`
    frames: Rows | None  # (T',) frames of each clip; None for all
    class_weights: npt.NDArray[np.float32] | None  # (K,) weight of each class in the loss; None for 1

    @classmethod
    def of(cls, reader: Reader, config: TrainConfig, device: str) -> Self:
        """Find the training clips of a cache; `InputError` if there are none, or it does not support the config."""
        check_config(reader, config)
        rows = needed_rows(reader, "train")
        labels = reader.labels.copy()
        if config.shuffle_labels:
            known = np.concatenate([rows, reader.rows("val")])
            labels[known] = np.random.default_rng(config.seed).permutation(labels[known])
        num_used, num_frames = config.num_frames_used or reader.spec.num_frames, reader.spec.num_frames
        frames = None if num_used == num_frames else sample_indices(num_frames, num_used)
        is_weighted = config.balance in ("both", "loss")
        weights = class_weights(labels[rows], len(reader.classes)).astype(np.float32) if is_weighted else None
        return cls(reader, config, torch.device(device), rows, labels, frames, weights)

    @property
    def num_frames(self) -> int:
        """Frames of a clip that the model sees (T')."""
        return self.reader.spec.num_frames if self.frames is None else len(self.frames)

    def order(self, epoch: int) -> Rows:
        """Return the (n,) rows of an epoch (from 1), in their order."""
        return epoch_rows(self.rows, self.labels[self.rows], self.config.balance, self.config.seed, epoch)

    def plan(self, order: Rows, rank: int = 0, world_size: int = 1) -> list[StepPlan]:
        """Cut the order of an epoch into steps, a step into parts, and each part among the processes.

        Together the processes take every clip of the order exactly once, and the k-th parts of a step are the same
        clips however many processes there are. Every process has as many parts, so that all wait equally often.
        """
        weights, steps = self.class_weights, []
        for start in range(0, len(order), self.config.batch_size):
            rows = order[start : start + self.config.batch_size]
            parts = np.array_split(rows, min(self.config.accumulate, len(rows)))
            weight = len(rows) if weights is None else float(weights[self.labels[rows]].sum(dtype=np.float64))
            steps.append(StepPlan(tuple(rank_slice(part, rank, world_size) for part in parts), len(rows), weight))
        return steps

    def mirror_warning(self) -> str:
        """Return a warning if the run mirrors clips although mirroring may turn one of its classes into another."""
        config = self.config
        if config.augment == "none" or not config.strength.flip or config.shuffle_labels:
            return ""
        said = mirrored_classes(self.reader)
        return said and (
            f"{said}. This run mirrors {config.strength.flip:.0%} of the clips and keeps their labels. Train with "
            "--flip 0, unless left and right mean nothing here"
        )

    def stream(self, source: ClipSource, chunks: Sequence[Rows], labels: Rows, frames: Rows | None) -> Batches:
        """Read one batch for each chunk of rows ahead of the consumer."""
        config = self.config
        options = StreamOptions(
            frames=frames,
            labels=labels,
            device=self.device,
            num_threads=config.reader_threads,
            verify=config.verify,
        )
        return cast(Batches, stream_chunks(source, chunks, **options))


def needed_rows(reader: Reader, split: str) -> Rows:
    """Return the rows of a split that a run cannot do without; `InputError` if there are none."""
    rows = reader.rows(split)
    if not len(rows):
        raise InputError(f"{reader.name}: no {split} clips. Split it again: vidcache split CACHE --split 70/15/15")
    return rows


def check_config(reader: Reader, config: TrainConfig) -> None:
    """Refuse a config that this cache or device does not support: `InputError`."""
    choose_precision(config.amp, torch.device(config.device))
    options = {"--amp bf16-prefix": config.amp == "bf16-prefix", "--cache-features": config.feature_views is not None}
    for option, is_set in options.items():
        if is_set and config.freeze == "none":
            raise InputError(f"{option}: needs frozen stages. Leave it out, or use --freeze stem or more")
    num_used, num_frames = config.num_frames_used or 1, reader.spec.num_frames
    if not 1 <= num_used <= num_frames:
        raise InputError(f"{reader.name}: --num-frames {num_used}: a clip has {num_frames} frames")


class ClipLoader:
    """Gives batches of clips, and makes of a batch what the part of the model that trains takes.

    Args:
        data: The clips.
        run_frozen: The frozen stages, from (B, 3, T', H, W).
    """

    def __init__(self, data: TrainingData, run_frozen: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self._data, self._run_frozen = data, run_frozen

    def stream(self, chunks: Sequence[Rows], epoch: int | None) -> Batches:  # noqa: ARG002 -- the same in every epoch
        """Read a batch for each chunk of rows ahead, for an epoch (from 1); None: no augmentation."""
        return self._data.stream(self._data.reader, chunks, self._data.labels, self._data.frames)

    def inputs(self, batch: Batch, epoch: int | None) -> torch.Tensor:
        """Return (B, C, T', H', W') on the device: the clips after augmentation and the frozen stages."""
        return self._run_frozen(self.pixels(batch, epoch))

    def pixels(self, batch: Batch, epoch: int | None) -> torch.Tensor:
        """Return (B, 3, T', H, W) float32, augmented (epoch from 1) and normalised."""
        config = self._data.config
        if epoch is None or not len(batch.rows):  # a process may have none of the last clips of an epoch
            return normalize(batch.clips)
        draws = draw(batch.rows, config.strength, config.seed, epoch)
        return augment(batch.clips, draws, config.augment, self._data.reader.columns["mean_rgb"][batch.rows])
