"""What a run trains on: its clips, and how they become steps. The same for the loop and for who times it."""

import abc
import dataclasses
from collections.abc import Generator, Sequence
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import WeightedRandomSampler

from vidcache.cache.mirrored import find_mirror_pairs, in_words
from vidcache.cache.reader import Reader
from vidcache.cache.stream import Batch, ClipSource, Rows, epoch_order, rank_slice, stream_chunks
from vidcache.errors import InputError
from vidcache.eval.inference import to_input
from vidcache.sampling import sample_indices
from vidcache.train.augment import augment, draw
from vidcache.train.backbone import Forward
from vidcache.train.config import TrainConfig
from vidcache.train.feature_cache import FeatureReader


@dataclasses.dataclass(frozen=True)
class StepPlan:
    """One optimizer step.

    Attributes:
        parts: What this process puts through the model, one part after the other; a part may be empty.
        num_clips: Of the step, in all parts of all processes.
        weight: Sum of the loss weights of these clips: what the summed loss is divided by.
    """

    parts: tuple[Rows, ...]
    num_clips: int
    weight: float


def plan_steps(
    order: Rows,
    labels: Rows,
    class_weights: npt.NDArray[np.float32] | None,
    batch_size: int,
    *,
    accumulate: int = 1,
    rank: int = 0,
    num_ranks: int = 1,
) -> list[StepPlan]:
    """Cut the order of an epoch into steps, a step into parts, and each part among the processes.

    Together the processes take every clip of the order exactly once, and the k-th parts of a step are the same clips
    however many processes there are. Every process has as many parts, so that all wait for each other equally often.

    Args:
        order: (n,) rows of an epoch.
        labels: (N,) of all rows.
        class_weights: (K,) of the loss; None for 1.
        batch_size: Clips of a step, on all processes together (B); the last step has the rest. >= 1.
        accumulate: Parts of a step; no more than B are made. >= 1.
        rank: Of this process.
        num_ranks: Processes.
    """
    steps = []
    for start in range(0, len(order), batch_size):
        clips = order[start : start + batch_size]
        parts = np.array_split(clips, min(accumulate, len(clips)))
        weight = len(clips) if class_weights is None else float(class_weights[labels[clips]].sum(dtype=np.float64))
        steps.append(StepPlan(tuple(rank_slice(part, rank, num_ranks) for part in parts), len(clips), weight))
    return steps


BALANCES = ("both", "sampler", "loss", "none")


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
    """Choose the clips of one epoch: a function of `(seed, epoch)` only.

    With a sampler, n draws with replacement in which every class is equally likely; without, every
    clip once.

    Args:
        rows: (n,) training rows.
        labels: (n,) their classes.
        balance: One of `BALANCES`.
        seed: Of the run.
        epoch: From 1.

    Returns:
        (n,) of `rows`, in the order in which they are to be shown.

    Raises:
        ValueError: There is no such balance.
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


def loss_weights(labels: npt.NDArray[np.int64], num_classes: int, balance: str) -> npt.NDArray[np.float32] | None:
    """Return the (K,) class weights of the loss, or None when it is not weighted."""
    if balance not in ("both", "loss"):
        return None
    return class_weights(labels, num_classes).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class ClassAudit:
    """What balancing does to one class.

    Attributes:
        class_name: The class.
        num_clips: Training clips.
        expected_draws: Per epoch.
        expected_distinct: Different clips among these.
        loss_weight: Of each of its clips in the loss.
        influence: Share of the total loss weight of an epoch, divided by an equal share.
    """

    class_name: str
    num_clips: int
    expected_draws: float
    expected_distinct: float
    loss_weight: float
    influence: float


def audit(classes: Sequence[str], labels: npt.NDArray[np.int64], balance: str) -> list[ClassAudit]:
    """Work out what sampler and loss weights together do to each class.

    Args:
        classes: Names (K).
        labels: (n,) of the training clips.
        balance: One of `BALANCES`.
    """
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
    influence = shares / shares.sum() * present.sum()
    return [
        ClassAudit(name, int(counts[k]), float(draws[k]), float(distinct[k]), float(weights[k]), float(influence[k]))
        for k, name in enumerate(classes)
    ]


@dataclasses.dataclass(frozen=True)
class TrainingData:
    """The training clips of a cache, as a config wants them.

    Attributes:
        reader: The cache.
        config: Of the run.
        device: Where it trains.
        rows: (n,) training rows.
        labels: (N,) of all rows, permuted where the config says so.
        frames: (T',) frames of each clip; None for all.
        class_weights: (K,) float32 of each class in the loss; None for 1.
    """

    reader: Reader
    config: TrainConfig
    device: torch.device
    rows: Rows
    labels: Rows
    frames: npt.NDArray[np.int64] | None
    class_weights: npt.NDArray[np.float32] | None

    @classmethod
    def of(cls, reader: Reader, config: TrainConfig, device: str) -> "TrainingData":
        """Find the training clips of a cache.

        Raises:
            InputError: There are none, or this cache or device cannot serve the config.
        """
        check_config(reader, config)
        rows = needed_rows(reader, "train")
        labels = reader.labels.copy()
        if config.shuffle_labels:
            known = np.concatenate([rows, reader.rows("val")])
            labels[known] = np.random.default_rng(config.seed).permutation(labels[known])
        used, there = config.num_frames_used or reader.spec.num_frames, reader.spec.num_frames
        frames = None if used == there else sample_indices(there, used)
        weights = loss_weights(labels[rows], len(reader.classes), config.balance)
        return cls(reader, config, torch.device(device), rows, labels, frames, weights)

    @property
    def num_frames(self) -> int:
        """Frames of a clip that the model is shown (T')."""
        return self.reader.spec.num_frames if self.frames is None else len(self.frames)

    def weights_on_device(self) -> torch.Tensor | None:
        """Return the class weights where the loss is computed."""
        return None if self.class_weights is None else torch.from_numpy(self.class_weights).to(self.device)

    def order(self, epoch: int) -> Rows:
        """Return the (n,) rows of an epoch (from 1), in their order."""
        return epoch_rows(self.rows, self.labels[self.rows], self.config.balance, self.config.seed, epoch)

    def plan(self, order: Rows, rank: int = 0, num_ranks: int = 1) -> list[StepPlan]:
        """Cut the order of an epoch into the steps of one process."""
        config = self.config
        return plan_steps(
            order,
            self.labels,
            self.class_weights,
            config.batch_size,
            accumulate=config.accumulate,
            rank=rank,
            num_ranks=num_ranks,
        )


def needed_rows(reader: Reader, split: str) -> Rows:
    """Return the rows of a split that a run cannot do without.

    Raises:
        InputError: There are none.
    """
    rows = reader.rows(split)
    if not len(rows):
        raise InputError(f"{reader.name}: no {split} clips, expected at least one. Build it with --split 70/15/15")
    return rows


def mirror_warning(task: TrainingData) -> str | None:
    """Say so if the run mirrors clips although mirroring turns one of its classes into another; else None."""
    config = task.config
    if config.augment == "none" or not config.strength.flip or config.shuffle_labels:
        return None
    pairs = find_mirror_pairs(task.reader)
    if not pairs:
        return None
    return (
        f"{in_words(pairs, task.reader.classes)}. This run mirrors {config.strength.flip:.0%} of the clips and keeps "
        "their labels. Train with --flip 0, unless left and right mean nothing here"
    )


def check_config(reader: Reader, config: TrainConfig) -> None:
    """Refuse a config that this cache or device cannot serve.

    Raises:
        InputError: More frames than a clip has, a precision that the device has not, or what needs frozen stages
            where nothing is frozen.
    """
    if config.amp == "fp16" and config.device.startswith("cpu"):
        raise InputError("--amp fp16: not on a CPU, expected a GPU. Use --amp auto")
    for option, given in (
        ("--amp bf16-prefix", config.amp == "bf16-prefix"),
        ("--cache-features", config.feature_views is not None),
    ):
        if given and config.freeze == "none":
            raise InputError(f"{option}: nothing is frozen, expected --freeze stem or more. Leave it out")
    used, there = config.num_frames_used or 1, reader.spec.num_frames
    if not 1 <= used <= there:
        raise InputError(
            f"{reader.name}: num_frames_used {used}, expected 1 to {there}, the frames of a clip. Lower --num-frames"
        )


class Loader(abc.ABC):
    """Where features come from, batch by batch."""

    @abc.abstractmethod
    def stream(self, chunks: Sequence[Rows], epoch: int | None) -> Generator[Batch, None, None]:
        """Read ahead: a batch for each chunk of rows, for an epoch of training (from 1) or as they are (None)."""

    @abc.abstractmethod
    def features(self, batch: Batch, epoch: int | None) -> torch.Tensor:
        """Make of a batch what the trained part takes: (B, C, T', H', W') on the device."""


class ClipLoader(Loader):
    """Clips of a cache: augmented with the draws of the epoch, then put through the frozen stages.

    Args:
        task: With the clips.
        forward: With the frozen stages.
    """

    def __init__(self, task: TrainingData, forward: Forward) -> None:
        self._task, self._forward = task, forward

    def stream(self, chunks: Sequence[Rows], epoch: int | None) -> Generator[Batch, None, None]:  # noqa: ARG002
        """Read ahead: the same clips in every epoch."""
        task = self._task
        return _stream(task, task.reader, chunks, task.labels, task.frames)

    def features(self, batch: Batch, epoch: int | None) -> torch.Tensor:
        """Augment, normalise, and run the frozen stages."""
        return self._forward.prefix(self.pixels(batch, epoch))

    def pixels(self, batch: Batch, epoch: int | None) -> torch.Tensor:
        """Return (B, 3, T', H, W) float32 as the model sees them; overwritten by the next call."""
        config = self._task.config
        if not len(batch.rows):  # a process that has none of the last clips of an epoch
            return to_input(batch.clips.new_zeros((1, *batch.clips.shape[1:])))[:0]
        if epoch is None:
            return to_input(batch.clips)
        draws = draw(batch.rows, config.strength, config.seed, epoch)
        means = self._task.reader.columns["mean_rgb"][batch.rows]
        return augment(batch.clips, draws, config.augment, means)


class FeatureLoader(Loader):
    """Features from a file: in epoch e, view (e - 1) % K of each clip.

    Args:
        features: The file.
        entries: (N, K + 1) entry of each row and view, the last column without augmentation; -1 where there is none.
        task: Whose clips they were computed of.
    """

    def __init__(self, features: FeatureReader, entries: npt.NDArray[np.int64], task: TrainingData) -> None:
        self._reader, self._entries, self._task = features, entries, task

    def stream(self, chunks: Sequence[Rows], epoch: int | None) -> Generator[Batch, None, None]:
        """Read ahead: the view of this epoch."""
        view = -1 if epoch is None else (epoch - 1) % (self._entries.shape[1] - 1)
        column = self._entries[:, view]
        labels = np.zeros(len(self._reader), np.int64)
        labels[column[column >= 0]] = self._task.labels[column >= 0]
        rows_of = np.zeros(len(self._reader), np.int64)
        rows_of[column[column >= 0]] = np.flatnonzero(column >= 0)
        chosen = [column[chunk] for chunk in chunks]
        for batch in _stream(self._task, self._reader, chosen, labels, None):
            yield dataclasses.replace(batch, rows=rows_of[batch.rows])

    def features(self, batch: Batch, epoch: int | None) -> torch.Tensor:  # noqa: ARG002 -- known when it was read
        """See the bytes as bfloat16 numbers; nothing is copied."""
        return batch.clips.view(torch.bfloat16).permute(0, 4, 1, 2, 3)


def _stream(
    task: TrainingData,
    source: ClipSource,
    chunks: Sequence[Rows],
    labels: Rows,
    frames: npt.NDArray[np.int64] | None,
) -> Generator[Batch, None, None]:
    stream = stream_chunks(
        source,
        chunks,
        frames=frames,
        labels=labels,
        device=task.device,
        num_threads=task.config.reader_threads,
        verify=task.config.verify,
    )
    return cast(Generator[Batch, None, None], stream)
