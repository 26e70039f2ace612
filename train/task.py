"""What a run trains on: its clips, and how they become steps. The same for the loop and for who times it."""

import dataclasses

import numpy as np
import numpy.typing as npt
import torch

from vidcache.cache.mirrored import find_mirror_pairs, in_words
from vidcache.cache.reader import Reader
from vidcache.cache.stream import Rows
from vidcache.errors import InputError
from vidcache.sampling import sample_indices
from vidcache.train.balance import epoch_rows, loss_weights
from vidcache.train.batching import StepPlan, plan_steps
from vidcache.train.config import TrainConfig


@dataclasses.dataclass(frozen=True)
class Task:
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
    def of(cls, reader: Reader, config: TrainConfig, device: str) -> "Task":
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


def mirror_warning(task: Task) -> str | None:
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
        ("--feature-cache", config.feature_views is not None),
    ):
        if given and config.freeze == "none":
            raise InputError(f"{option}: nothing is frozen, expected --freeze stem or more. Leave it out")
    used, there = config.num_frames_used or 1, reader.spec.num_frames
    if not 1 <= used <= there:
        raise InputError(
            f"{reader.name}: num_frames_used {used}, expected 1 to {there}, the frames of a clip. "
            "Lower --num-frames-used"
        )
