"""What a run tells: while it happens, and in the end."""

import contextlib
import dataclasses
import io
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.image import imread
from rich.table import Table
from rich.text import Text
from torch import nn

from vidcache.cache.leakage import Leaks
from vidcache.cache.reader import Reader
from vidcache.cache.stream import Batch
from vidcache.checkpoint import Checkpoint
from vidcache.console import Progress, SafeConsole, in_words
from vidcache.errors import InputError
from vidcache.eval.metrics import Metrics
from vidcache.eval.report.plots import confusion_figure
from vidcache.pixels import MEAN, STD
from vidcache.plotting import Filmstrip, Pictures, to_png
from vidcache.sampling import sample_indices
from vidcache.text import plural, printable
from vidcache.train.augment import Draws, Strength, augment, draw
from vidcache.train.data import ClassAudit
from vidcache.train.precision import Choice
from vidcache.train.run_dir import TRAIN_BATCH

if TYPE_CHECKING:
    from vidcache.cache.leakage import Leaks
    from vidcache.checkpoint import Checkpoint
    from vidcache.train.data import ClassAudit
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
class EpochProgress:
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
class Callbacks:
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
    on_step: Callable[[EpochProgress], None] = lambda _: None
    on_validation: Callable[[int, Metrics], None] = lambda *_: None
    on_epoch: Callable[[EpochResult, Callable[[bool], Checkpoint]], None] = lambda *_: None
    on_interrupt: Callable[[Checkpoint], None] = lambda _: None
    on_haltable: Callable[[Callable[[], Checkpoint]], None] = lambda _: None


SILENT = Callbacks()  # reports to nobody


_STEPS_OF_ESTIMATE = 3  # after the first one, which warms up


class Reporter:
    """Shows a run on stderr: what it works on, how far it is, a line per epoch; a line per step if that is verbose.

    Args:
        console: That of stderr.
        clock: Seconds.
    """

    def __init__(self, console: SafeConsole, clock: Callable[[], float] = time.monotonic) -> None:
        self._console, self._clock = console, clock
        self.progress = Progress(console, "preparing", clock=clock)
        self._epoch = 0
        self._best = ""
        self._setup: Setup | None = None
        self._first_step: tuple[float, int] | None = None

    def __enter__(self) -> Self:
        self.progress.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.__exit__(kind, error, trace)

    def hooks(self) -> "Callbacks":
        """Return what a run calls."""
        from vidcache.train.callbacks import Callbacks

        return Callbacks(
            on_leaks=self._show_leaks,
            on_setup=self._show_setup,
            on_audit=self._show_audit,
            on_mirror=self._show_mirror,
            on_init=self._say,
            on_start=self._show_start,
            on_features=self._show_features,
            on_feature=self.progress.update,
            on_step=self._show_step,
            on_epoch=self._show_epoch,
        )

    def show_stop(self) -> None:
        """Say that the wish to stop was heard."""
        self._say("stopping after this step, or in the middle of a long one; another Ctrl-C or SIGTERM stops at once")

    def _say(self, line: str) -> None:
        self._console.print(Text(line), soft_wrap=True)

    def _show_leaks(self, leaks: "Leaks") -> None:
        advice = ": see vidcache leaks" if len(leaks.pairs) else ""
        self._say(f"leak guard: {leaks.in_words}{advice}")

    def _show_setup(self, setup: "Setup") -> None:
        self._setup = setup
        together = f", {setup.num_processes} processes" if setup.num_processes > 1 else ""
        self._say(f"device: {setup.device} ({setup.device_name}){together}")
        clips = ", ".join(f"{count:,} {split}" for split, count in setup.num_clips.items())
        self._say(f"clips: {clips}; {plural(setup.num_classes, 'class', 'classes')}")
        of_cache = f" of {setup.num_frames_in_cache}" if setup.num_frames < setup.num_frames_in_cache else ""
        self._say(
            f"input: {setup.num_frames}{of_cache} frames of {setup.width}x{setup.height} pixels (width x height), "
            f"batches of {plural(setup.batch_size, 'clip')}, at most {plural(setup.num_epochs, 'epoch')}"
        )

    def _show_audit(self, audit: "list[ClassAudit]") -> None:
        table = Table("class", "clips", "draws/epoch", "distinct", "loss weight", "influence")
        for entry in audit:
            table.add_row(
                Text(printable(entry.class_name)),
                str(entry.num_clips),
                f"{entry.expected_draws:.1f}",
                f"{entry.expected_distinct:.1f}",
                f"{entry.loss_weight:.2f}",
                f"{entry.influence:.2f}",
            )
        self._console.print(table)
        present = sorted((entry for entry in audit if entry.num_clips), key=lambda entry: entry.influence)
        least, most = present[0], present[-1]
        ratio = most.influence / least.influence
        if ratio > 2:
            self._say(
                f"{printable(most.class_name)} ({plural(most.num_clips, 'clip')}) weighs {ratio:.1f} times as much "
                f"in training as {printable(least.class_name)} ({plural(least.num_clips, 'clip')}): see --balance"
            )

    def _show_mirror(self, sentence: str) -> None:
        self._console.print(Text(f"Warning: {sentence}", style="yellow"), soft_wrap=True)

    def _show_start(self, precision: "Choice") -> None:
        self._say(f"precision: {'float32' if precision.name == 'off' else precision.name} ({precision.reason})")

    def _show_features(self, sentence: str) -> None:
        self._say(sentence)
        self.progress.start_phase("features", "entries")

    def _show_step(self, step: "EpochProgress") -> None:
        if step.epoch != self._epoch:
            self._epoch, self._first_step = step.epoch, (self._clock(), step.num_done)
            self.progress.start_phase(f"epoch {step.epoch}", "steps")
        numbers = f"{step.clips_per_second:.1f} clips/s, waiting {step.data_wait_fraction:.1%}"
        if not math.isnan(step.loss):
            numbers = f"loss {step.loss:.4f}, accuracy {step.accuracy:.1%}, {numbers}"
        self.progress.update(step.num_done, step.num_steps, note=numbers + self._best)
        self._console.detail(f"epoch {step.epoch}, step {step.num_done} of {step.num_steps}: {numbers}")
        if self._setup and self._first_step and step.num_done - self._first_step[1] >= _STEPS_OF_ESTIMATE:
            started, first = self._first_step
            seconds_per_step = (self._clock() - started) / (step.num_done - first)
            validating = -(-self._setup.num_clips["val"] // self._setup.batch_size) / 2  # no backward pass
            self._show_estimate(self._setup, step.epoch, seconds_per_step * (step.num_steps + validating))
        if step.num_done == step.num_steps:
            self.progress.start_phase(f"epoch {step.epoch}: validating")

    def _show_estimate(self, setup: "Setup", epoch: int, seconds: float) -> None:
        """Say once how long it will take; an epoch that is resumed takes no longer than another."""
        left = setup.num_epochs - epoch + 1
        self._say(
            f"about {in_words(seconds)} an epoch, at most {in_words(seconds * left)} for the {plural(left, 'epoch')} "
            f"left{'; early stopping can end it sooner' if left > 1 else ''}"
        )
        self._setup = None

    def _show_epoch(self, result: "EpochResult", checkpoint: "Callable[[bool], Checkpoint]") -> None:  # noqa: ARG002
        if result.is_best:
            self._best = f", best: epoch {result.epoch}, val loss {result.val_loss:.4f}"
        self._say(
            f"epoch {result.epoch:3}  train loss {result.train_loss:.4f} acc {result.train_accuracy:6.1%}  "
            f"val loss {result.val_loss:.4f} acc {result.val_accuracy:6.1%}  "
            f"{result.clips_per_second:.1f} clips/s  "
            f"waiting {result.data_wait_fraction:.1%}  {result.seconds:.1f} s{'  best' if result.is_best else ''}"
        )
        if self._setup and result.epoch < self._setup.num_epochs:  # its steps were too few to tell
            self._show_estimate(self._setup, result.epoch + 1, result.seconds)


FOLDER = "tensorboard"


@contextlib.contextmanager
def board(hooks: Callbacks, folder: Path, first_epoch: int) -> Iterator[Callbacks]:
    """Write what is reported to a TensorBoard log as well.

    Args:
        hooks: Where else to report to.
        folder: Of the run; the log goes into `tensorboard` below it.
        first_epoch: Epochs from this one on that an earlier log has, of a run that was stopped, do not count.

    Yields:
        The hooks to call instead.

    Raises:
        InputError: TensorBoard is not installed.
    """
    try:
        from torch.utils.tensorboard.writer import SummaryWriter
    except ImportError:
        raise InputError(
            "--tensorboard: it is not installed, expected tensorboard. pip install 'vidcache[tensorboard]'"
        ) from None
    with contextlib.closing(SummaryWriter(str(folder / FOLDER), purge_step=first_epoch)) as writer:

        def on_validation(epoch: int, metrics: Metrics) -> None:
            title = f"epoch {epoch}: {metrics.num_correct} of {metrics.num_clips} validation clips right"
            drawn = io.BytesIO(to_png(confusion_figure(metrics, title), 90))
            writer.add_image("val/confusion", _pixels(drawn), epoch, dataformats="HWC")
            hooks.on_validation(epoch, metrics)

        def on_epoch(result: EpochResult, checkpoint: Callable[[bool], Checkpoint]) -> None:
            hooks.on_epoch(result, checkpoint)
            for name, value in dataclasses.asdict(result).items():
                if name not in ("epoch", "is_best"):
                    part, _, rest = name.partition("_")
                    tag = f"{part}/{rest}" if part in ("train", "val") else f"run/{name}"
                    writer.add_scalar(tag, value, result.epoch)
            if result.epoch == first_epoch and (folder / TRAIN_BATCH).exists():
                picture = _pixels(folder / TRAIN_BATCH)
                writer.add_image("train/batch", picture, result.epoch, dataformats="HWC")
            writer.flush()

        yield dataclasses.replace(hooks, on_validation=on_validation, on_epoch=on_epoch)


def _pixels(png: Path | io.BytesIO) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.asarray(imread(png)[:, :, :3] * 255, np.uint8)


def augmented_strips(
    reader: Reader,
    rows: npt.NDArray[np.int64],
    method: str,
    strength: Strength,
    *,
    num_frames: int = 8,
    seed: int = 0,
    epoch: int = 1,
) -> list[Filmstrip]:
    """Augment clips as training does.

    Args:
        reader: The cache.
        rows: (B,) clips to show.
        method: "linear", "exact" or "none".
        strength: Of the augmentation.
        num_frames: Frames of each clip to show (F).
        seed: Of the run.
        epoch: Of the run, from 1.
    """
    draws = draw(rows, strength, seed, epoch)
    clips = reader.read(rows)
    inputs = augment(torch.from_numpy(clips), draws, method, reader.columns["mean_rgb"][rows])
    frames = sample_indices(reader.spec.num_frames, num_frames)
    after = to_pictures(inputs)[:, frames]
    return [
        Filmstrip(
            f"{printable(reader.path_of(row))}: {_in_words(draws, index)}",
            (("before", clips[index, frames]), ("after", after[index])),
        )
        for index, row in enumerate(rows.tolist())
    ]


def batch_strips(reader: Reader, batch: Batch, inputs_BCTHW: torch.Tensor, *, num_frames: int = 8) -> list[Filmstrip]:
    """Show what a model is given: a row of frames of each clip.

    Args:
        reader: The cache that the batch came from.
        batch: Which clips.
        inputs_BCTHW: (B, 3, T', H, W), augmented and normalised.
        num_frames: Frames of each clip to show, at most.
    """
    count = inputs_BCTHW.shape[2]
    frames = sample_indices(count, min(num_frames, count))
    pictures = to_pictures(inputs_BCTHW)[:, frames]
    return [
        Filmstrip(printable(reader.path_of(row)), ((printable(reader.classes[label])[:12], pictures[index]),))
        for index, (row, label) in enumerate(zip(batch.rows.tolist(), batch.labels.tolist(), strict=True))
    ]


def to_pictures(inputs_BCTHW: torch.Tensor) -> Pictures:
    """Undo the normalisation: from (B, 3, T, H, W) to (B, T, H, W, 3) uint8 RGB."""
    values = inputs_BCTHW.permute(0, 2, 3, 4, 1).cpu().numpy() * np.array(STD) + np.array(MEAN)
    return np.asarray((values * 255).round().clip(0, 255), np.uint8)


def _in_words(draws: Draws, index: int) -> str:
    brightness, contrast, saturation, hue = draws.factors[index].tolist()
    mirrored = "mirrored, " if draws.flip[index] else ""
    jitter = f"brightness x{brightness:.2f}, contrast x{contrast:.2f}, saturation x{saturation:.2f}, hue {hue:+.2f}"
    return mirrored + jitter
