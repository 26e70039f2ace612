"""Observers of a run: the terminal and TensorBoard (`vidcache.train.run` has the files); pictures of what it sees."""

import dataclasses
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from matplotlib.image import imread
from rich.table import Table
from rich.text import Text

from vidcache.cache.reader import Reader
from vidcache.cache.stream import Batch, Rows
from vidcache.checkpoint import Checkpoint
from vidcache.console import Progress, SafeConsole, in_words
from vidcache.errors import InputError
from vidcache.eval.metrics import Metrics
from vidcache.eval.report.plots import confusion_figure
from vidcache.pixels import MEAN, STD
from vidcache.plotting import Filmstrip, Pictures
from vidcache.spec import sample_indices
from vidcache.text import plural, printable
from vidcache.train.augment import augment, draw
from vidcache.train.config import TrainConfig
from vidcache.train.data import ClassAudit, audit
from vidcache.train.distributed import device_name
from vidcache.train.run_dir import TENSORBOARD, TRAIN_BATCH

if TYPE_CHECKING:
    from vidcache.train.loop import Trainer


@dataclasses.dataclass(frozen=True)
class EpochResult:
    """The result of an epoch: one row of metrics.csv.

    Attributes:
        epoch: From 1.
        train_loss: Training loss, averaged over the drawn clips.
        train_accuracy: Accuracy on the drawn, augmented clips, during training.
        val_loss: Cross-entropy, averaged over the validation clips.
        val_accuracy: Accuracy on the validation clips, 0 to 1.
        val_balanced_accuracy: Mean over the classes.
        lr: Learning rate of the last step.
        seconds: Duration of training and validation.
        clips_per_second: Training throughput.
        data_wait_fraction: Fraction of the training time spent waiting for clips.
        is_best: Whether the validation loss is the lowest so far.
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


@dataclasses.dataclass
class RunningMetrics:
    """Sums over the steps of an epoch, over all processes. Field names are those of checkpoints."""

    loss: float = 0.0  # of each step, times its clips
    num_correct: float = 0.0  # correct predictions
    num_steps: int = 0  # that are done
    num_clips: int = 0  # of these steps
    seconds: float = 0.0  # duration of these steps
    waited_seconds: float = 0.0  # of it, waiting for clips

    def __post_init__(self) -> None:
        self.num_read = self.num_clips  # whose loss is known: from a GPU, losses are read now and then

    @property
    def mean_loss(self) -> float:
        """Training loss so far; NaN before the first one is known."""
        return self.loss / self.num_read if self.num_read else math.nan

    @property
    def accuracy(self) -> float:
        """Training accuracy so far; NaN as `mean_loss`."""
        return self.num_correct / self.num_read if self.num_read else math.nan

    @property
    def clips_per_second(self) -> float:
        """Training throughput so far."""
        return self.num_clips / self.seconds

    @property
    def data_wait_fraction(self) -> float:
        """Fraction of the time spent waiting for clips."""
        return self.waited_seconds / self.seconds


@dataclasses.dataclass(frozen=True)
class RunResult:
    """How a run ended.

    Attributes:
        epochs: The result of each epoch.
        best_epoch: The epoch with the lowest validation loss, from 1.
        stopped_because: Why it ended, in words.
    """

    epochs: tuple[EpochResult, ...]
    best_epoch: int
    stopped_because: str

    @property
    def best(self) -> EpochResult:
        """The result of the best epoch."""
        return self.epochs[self.best_epoch - 1]


class Callback:
    """An observer of a run; every method does nothing until it is overridden, or given by name.

    All methods are called in the main process, in the thread of the run (`on_stop` perhaps in another one). An error
    that one raises ends the run.

    >>> losses = []
    >>> callback = Callback(on_step=lambda epoch, num_steps, sums: losses.append(sums.mean_loss))
    """

    def __init__(self, **methods: Callable[..., Any]) -> None:
        for name, method in methods.items():
            if not (name.startswith("on_") and hasattr(Callback, name)):
                raise TypeError(f"a Callback has no method {name}")
            setattr(self, name, method)

    def on_note(self, text: str, is_warning: bool) -> None:
        """Hear something in words: near-duplicates, where the weights come from, what features cost."""

    def on_setup(self, trainer: "Trainer") -> None:
        """See everything that is going to be trained, before the first step."""

    def on_features(self, num_done: int, num_entries: int) -> None:
        """See how much of the feature cache is computed."""

    def on_first_batch(self, inputs_BCTHW: torch.Tensor, batch: Batch) -> None:
        """See the first batch of a new run: (B, 3, T', H, W) as the model sees it, and where it came from."""

    def on_step(self, epoch: int, num_steps: int, sums: RunningMetrics) -> None:
        """See the metrics after a step; the epoch has `num_steps`."""

    def on_epoch(self, result: EpochResult, metrics: Metrics, checkpoint: Callable[[bool], Checkpoint]) -> None:
        """See the result of an epoch; `checkpoint(True)` makes one to resume from, `checkpoint(False)` one to use."""

    def on_stop(self, checkpoint: Checkpoint) -> None:
        """Keep the checkpoint to resume from, as the run is stopped in the middle of an epoch."""

    def on_end(self, result: RunResult) -> None:
        """See how the run ended."""


class Reporter(Callback):
    """Shows a run on stderr: its setup, a progress bar, a line per epoch; a line per step if that is verbose."""

    def __init__(self, console: SafeConsole, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._console = console
        self.progress = Progress(console, "preparing", clock=clock)
        self._phase, self._best = "", ""
        self._num_epochs = 0  # until the estimate of the duration has been shown

    def __enter__(self) -> Self:
        self.progress.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.progress.__exit__(*error)

    def on_note(self, text: str, is_warning: bool = False) -> None:
        """Print it."""
        line = Text(f"Warning: {text}", style="yellow") if is_warning else Text(text)
        self._console.print(line, soft_wrap=True)

    def on_setup(self, trainer: "Trainer") -> None:
        """Print device, data, input and precision, and what class balancing does."""
        data, config, spec = trainer.data, trainer.config, trainer.data.reader.spec
        self._num_epochs = config.epochs
        device, num_processes = str(data.device), trainer.processes.world_size
        together = f", {num_processes} processes" if num_processes > 1 else ""
        clips = ", ".join(f"{len(data.reader.rows(split)):,} {split}" for split in ("train", "val", "test"))
        of_cache = f" of {spec.num_frames}" if data.num_frames < spec.num_frames else ""
        self.on_note(f"device: {device} ({device_name(device)}){together}")
        self.on_note(f"clips: {clips}; {plural(len(data.reader.classes), 'class', 'classes')}")
        self.on_note(
            f"input: {data.num_frames}{of_cache} frames of {spec.width}x{spec.height} pixels (width x height), "
            f"batches of {plural(config.batch_size, 'clip')}, at most {plural(config.epochs, 'epoch')}"
        )
        self.on_note(f"precision: {'float32' if trainer.precision == 'off' else trainer.precision}")
        self._show_audit(audit(data.reader.classes, data.labels[data.rows], config.balance))

    def _show_audit(self, entries: list[ClassAudit]) -> None:
        table = Table("class", "clips", "draws/epoch", "distinct", "loss weight", "effective weight")
        for entry in entries:
            draws = f"{entry.expected_draws:.1f}", f"{entry.expected_distinct:.1f}"
            weights = f"{entry.loss_weight:.2f}", f"{entry.effective_weight:.2f}"
            table.add_row(Text(printable(entry.class_name)), str(entry.num_clips), *draws, *weights)
        self._console.print(table)
        present = sorted((entry for entry in entries if entry.num_clips), key=lambda entry: entry.effective_weight)
        least, most = present[0], present[-1]
        ratio = most.effective_weight / least.effective_weight
        if ratio > 2:
            self.on_note(
                f"{printable(most.class_name)} ({plural(most.num_clips, 'clip')}) weighs {ratio:.1f} times as much "
                f"in training as {printable(least.class_name)} ({plural(least.num_clips, 'clip')}): see --balance"
            )

    def on_features(self, num_done: int, num_entries: int) -> None:
        """Move the bar."""
        self._start_phase("features", "entries")
        self.progress.update(num_done, num_entries)

    def on_step(self, epoch: int, num_steps: int, sums: RunningMetrics) -> None:
        """Move the bar; print a line if verbose."""
        numbers = f"{sums.clips_per_second:.1f} clips/s, data wait {sums.data_wait_fraction:.1%}"
        if sums.num_read:
            numbers = f"loss {sums.mean_loss:.4f}, accuracy {sums.accuracy:.1%}, {numbers}"
        self._start_phase(f"epoch {epoch}", "steps")
        self.progress.update(sums.num_steps, num_steps, note=numbers + self._best)
        self._console.detail(f"epoch {epoch}, step {sums.num_steps} of {num_steps}: {numbers}")
        if sums.num_steps == num_steps:
            self._start_phase(f"epoch {epoch}: validating")

    def _start_phase(self, name: str, unit: str = "") -> None:
        if name != self._phase:
            self._phase = name
            self.progress.start_phase(name, unit)

    def on_epoch(self, result: EpochResult, metrics: Metrics, checkpoint: Callable[[bool], Checkpoint]) -> None:  # noqa: ARG002
        """Print a line, and after the first epoch how long the others may take."""
        if result.is_best:
            self._best = f", best: epoch {result.epoch}, val loss {result.val_loss:.4f}"
        self.on_note(
            f"epoch {result.epoch:3}  train loss {result.train_loss:.4f} acc {result.train_accuracy:6.1%}  "
            f"val loss {result.val_loss:.4f} acc {result.val_accuracy:6.1%}  {result.clips_per_second:.1f} clips/s  "
            f"data wait {result.data_wait_fraction:.1%}  {result.seconds:.1f} s{'  best' if result.is_best else ''}"
        )
        num_left = self._num_epochs - result.epoch
        if num_left > 0:
            seconds = in_words(result.seconds * num_left)
            self.on_note(f"at most {seconds} for the {plural(num_left, 'epoch')} left")
        self._num_epochs = 0


class TensorBoard(Callback):
    """Writes a TensorBoard log below the folder of a run; earlier entries from `first_epoch` on do not count."""

    def __init__(self, folder: Path, first_epoch: int) -> None:
        super().__init__()
        try:
            from torch.utils.tensorboard.writer import SummaryWriter
        except ImportError:
            raise InputError("--tensorboard: not installed. pip install 'vidcache[tensorboard]'") from None
        self._first_batch, self._first_epoch = folder / TRAIN_BATCH, first_epoch
        self._writer = SummaryWriter(str(folder / TENSORBOARD), purge_step=first_epoch)
        self.close = self._writer.close

    def on_epoch(self, result: EpochResult, metrics: Metrics, checkpoint: Callable[[bool], Checkpoint]) -> None:  # noqa: ARG002
        """Write the numbers, the confusion matrix, and once the first batch."""
        title = f"epoch {result.epoch}: {metrics.num_correct} of {metrics.num_clips} validation clips correct"
        self._writer.add_figure("val/confusion", confusion_figure(metrics, title), result.epoch)
        for name, value in dataclasses.asdict(result).items():
            if name not in ("epoch", "is_best"):
                part, _, rest = name.partition("_")
                tag = f"{part}/{rest}" if part in ("train", "val") else f"run/{name}"
                self._writer.add_scalar(tag, value, result.epoch)
        if result.epoch == self._first_epoch and self._first_batch.exists():
            self._writer.add_image("train/batch", imread(self._first_batch), result.epoch, dataformats="HWC")
        self._writer.flush()


def augmented_strips(
    reader: Reader, rows: Rows, config: TrainConfig, *, num_frames: int = 8, epoch: int = 1
) -> list[Filmstrip]:
    """Show clips before and after the augmentation of an epoch (from 1) of a run, `num_frames` of each."""
    draws = draw(rows, config.strength, config.seed, epoch)
    clips = reader.read(rows)
    after = to_pictures(augment(torch.from_numpy(clips), draws, config.augment, reader.columns["mean_rgb"][rows]))
    frames = sample_indices(reader.spec.num_frames, num_frames)
    strips = []
    for index, row in enumerate(rows.tolist()):
        brightness, contrast, saturation, hue = draws.factors[index].tolist()
        title = (
            f"{printable(reader.path_of(row))}: {'mirrored, ' if draws.flip[index] else ''}"
            f"brightness x{brightness:.2f}, contrast x{contrast:.2f}, saturation x{saturation:.2f}, hue {hue:+.2f}"
        )
        strips.append(Filmstrip(title, (("before", clips[index, frames]), ("after", after[index, frames]))))
    return strips


def batch_strips(reader: Reader, batch: Batch, inputs_BCTHW: torch.Tensor, *, num_frames: int = 8) -> list[Filmstrip]:
    """Show the input of a model, (B, 3, T', H, W): some frames of each of the first 16 clips."""
    count = inputs_BCTHW.shape[2]
    pictures = to_pictures(inputs_BCTHW[:16])[:, sample_indices(count, min(num_frames, count))]
    return [
        Filmstrip(printable(reader.path_of(row)), ((printable(reader.classes[label])[:12], shown),))
        for row, label, shown in zip(batch.rows.tolist(), batch.labels.tolist(), pictures, strict=False)
    ]


def to_pictures(inputs_BCTHW: torch.Tensor) -> Pictures:
    """Undo the normalisation: from (B, 3, T, H, W) to (B, T, H, W, 3) uint8 RGB."""
    values = inputs_BCTHW.permute(0, 2, 3, 4, 1).cpu().numpy() * np.array(STD) + np.array(MEAN)
    return np.asarray((values * 255).round().clip(0, 255), np.uint8)
