"""What a run tells: while it happens, and in the end."""

import dataclasses
from collections.abc import Callable

import torch
from torch import nn

from vidcache.cache.leaks import Leaks
from vidcache.cache.stream import Batch
from vidcache.checkpoint import Checkpoint
from vidcache.eval.metrics import Metrics
from vidcache.train.balance import ClassAudit
from vidcache.train.precision import Choice


@dataclasses.dataclass(frozen=True)
class EpochResult:
    """One row of metrics.csv.

    Attributes:
        epoch: From 1.
        train_loss: The loss that was minimised, averaged over the drawn clips.
        train_accuracy: Over the drawn, augmented clips, while the weights still moved.
        val_loss: Plain cross-entropy, averaged over the validation clips.
        val_accuracy: Fraction of validation clips.
        val_balanced_accuracy: Mean over classes.
        lr: Learning rate of the last step.
        seconds: Of training and validation.
        clips_per_second: Of training.
        data_wait_fraction: Share of training time spent waiting for clips.
        is_best: The lowest validation loss so far.
    """

    epoch: int
    train_loss: float
    train_accuracy: float
    val_loss: float
    val_accuracy: float
    val_balanced_accuracy: float
    lr: float
    seconds: float
    clips_per_second: float
    data_wait_fraction: float
    is_best: bool

    def as_numbers(self) -> dict[str, float]:
        """Return the fields as a checkpoint keeps them."""
        return {name: float(value) for name, value in dataclasses.asdict(self).items()}


@dataclasses.dataclass(frozen=True)
class Setup:
    """What a run works on, and with what.

    Attributes:
        device: "cpu", "cuda:1", ...
        device_name: Of the processor or the GPU.
        num_processes: That train together.
        num_clips: Clips of each split: "train", "val", "test".
        num_classes: Classes.
        num_frames: Frames of each clip that the model is shown (T').
        num_frames_in_cache: Frames of each clip (T).
        height: Of a frame.
        width: Of a frame.
        batch_size: Clips per step, of all processes together.
        num_epochs: Largest number of epochs.
        num_epochs_done: Of these, before the run was resumed.
    """

    device: str
    device_name: str
    num_processes: int
    num_clips: dict[str, int]
    num_classes: int
    num_frames: int
    num_frames_in_cache: int
    height: int
    width: int
    batch_size: int
    num_epochs: int
    num_epochs_done: int


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far an epoch is.

    Attributes:
        epoch: From 1.
        num_done: Steps that are done.
        num_steps: Steps of the epoch.
        loss: Mean over the clips so far, as minimised; NaN before it is known. On a GPU it is looked at now and then.
        accuracy: Of the clips so far, augmented; NaN before it is known.
        clips_per_second: So far.
        data_wait_fraction: Share of the time so far that was spent waiting for clips.
    """

    epoch: int
    num_done: int
    num_steps: int
    loss: float
    accuracy: float
    clips_per_second: float
    data_wait_fraction: float


@dataclasses.dataclass(frozen=True)
class RunResult:
    """How a run ended.

    Attributes:
        epochs: One result each.
        best_epoch: The epoch with the lowest validation loss.
        stopped_because: For people.
    """

    epochs: tuple[EpochResult, ...]
    best_epoch: int
    stopped_because: str

    @property
    def best(self) -> EpochResult:
        """The result of the best epoch."""
        return self.epochs[self.best_epoch - 1]


@dataclasses.dataclass(frozen=True)
class Hooks:
    """Where a run reports to. All are called in the thread of the run.

    Attributes:
        on_leaks: With the clips that look like clips of another split, first of all.
        on_setup: With what the run works on, before it is measured or computed.
        on_audit: With what balancing does to each class, before anything else happens.
        on_mirror: With a warning, if the run mirrors clips of classes that are told apart by left and right.
        on_init: With a sentence on the checkpoint that the run starts from, if there is one.
        on_model: With the model that is going to be trained, before anything is written.
        on_start: With the precision that was chosen.
        on_begin: With what a run needs that is resumed before its first epoch is done.
        on_inputs: With the first batch that a new run gives to the model, (B, 3, T', H, W), and where it came from.
        on_features: With what the feature cache is and costs, in words, before it is computed.
        on_feature: With how many of its entries are there, of how many.
        on_step: After every step.
        on_validation: With epoch, and all numbers of its validation.
        on_epoch: With the result, a function that makes the checkpoint without and one with what a
            resumed run needs. Called before the next epoch begins.
        on_interrupt: With what a resumed run needs, when the run is stopped in the middle of an epoch.
        on_haltable: With a function that waits until the state of the run is whole (a step takes seconds, its update
            milliseconds), keeps it so for good, and returns what a resumed run needs. It is for who ends the process in
            the middle of a step, from another thread; the run never goes on.
    """

    on_leaks: Callable[[Leaks], None] = lambda _: None
    on_setup: Callable[[Setup], None] = lambda _: None
    on_audit: Callable[[list[ClassAudit]], None] = lambda _: None
    on_mirror: Callable[[str], None] = lambda _: None
    on_init: Callable[[str], None] = lambda _: None
    on_model: Callable[[nn.Module], None] = lambda _: None
    on_start: Callable[[Choice], None] = lambda _: None
    on_begin: Callable[[Checkpoint], None] = lambda _: None
    on_inputs: Callable[[torch.Tensor, Batch], None] = lambda *_: None
    on_features: Callable[[str], None] = lambda _: None
    on_feature: Callable[[int, int], None] = lambda *_: None
    on_step: Callable[[Progress], None] = lambda _: None
    on_validation: Callable[[int, Metrics], None] = lambda *_: None
    on_epoch: Callable[[EpochResult, Callable[[bool], Checkpoint]], None] = lambda *_: None
    on_interrupt: Callable[[Checkpoint], None] = lambda _: None
    on_haltable: Callable[[Callable[[], Checkpoint]], None] = lambda _: None


SILENT = Hooks()  # reports to nobody
