"""The training loop, in reading order: draw, step, validate, keep the best, stop.

Knows nothing of terminals and files' names: what happens leaves through callbacks.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from vidcache.cache.layout import Split
from vidcache.cache.leaks import Leaks
from vidcache.cache.reader import Reader
from vidcache.cache.stream import Batch, stream_batches
from vidcache.checkpoint import Checkpoint
from vidcache.errors import InputError, VidcacheError
from vidcache.eval.evaluate import Predictions, predict
from vidcache.eval.metrics import compute_metrics
from vidcache.model import R3D18, build_model, state_on_cpu
from vidcache.pixels import Workspace
from vidcache.sampling import sample_indices
from vidcache.train.augment import Strength, augment, draw
from vidcache.train.balance import ClassAudit, audit, epoch_rows, loss_weights
from vidcache.train.early_stopping import EarlyStopping
from vidcache.train.precision import Choice, autocast, choose_precision
from vidcache.train.schedule import learning_rate


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """What a run is asked to do; the defaults are those of the command.

    Attributes:
        weights: "kinetics400", "none", or a path.
        freeze: Last frozen stage; see `vidcache.model.R3D18`.
        num_frames_used: Frames of each clip, evenly spaced (T'); None for all.
        epochs: At most so many.
        batch_size: Clips per step (B).
        lr: Highest learning rate of Adam.
        lr_schedule: "none" or "cosine"; see `vidcache.train.schedule`.
        warmup_epochs: Epochs in which the learning rate rises to `lr`; may be a fraction.
        weight_decay: Of Adam.
        balance: "both", "sampler", "loss" or "none".
        augment: "linear", "exact" or "none".
        strength: Of the augmentation.
        min_delta: Validation loss that counts as progress.
        patience: Epochs without progress before stopping.
        min_epochs: The earliest epoch that can be the last.
        amp: "auto", "off", "bf16" or "fp16".
        compile: Use torch.compile.
        seed: Of everything that is random.
        reader_threads: Threads that read clips.
        verify: Compare each clip with its hash whenever it is read.
        device: "cpu", "cuda", "cuda:1", ...
        shuffle_labels: Control run: the labels of the training and validation clips are permuted,
            so that an honest test accuracy must be at chance.
    """

    weights: str = "kinetics400"
    freeze: str = "layer2"
    num_frames_used: int | None = None
    epochs: int = 30
    batch_size: int = 16
    lr: float = 1e-4
    lr_schedule: str = "none"
    warmup_epochs: float = 0
    weight_decay: float = 5e-4
    balance: str = "both"
    augment: str = "linear"
    strength: Strength = Strength()
    min_delta: float = 1e-2
    patience: int = 3
    min_epochs: int = 5
    amp: str = "auto"
    compile: bool = False
    seed: int = 0
    reader_threads: int = 2
    verify: bool = False
    device: str = "cpu"
    shuffle_labels: bool = False


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
        on_audit: With what balancing does to each class, before anything else happens.
        on_start: With the precision that was chosen.
        on_step: With epoch, steps done, steps in all.
        on_epoch: With the result, a function that makes the checkpoint without and one with what a
            resumed run needs. Called before the next epoch begins.
    """

    on_leaks: Callable[[Leaks], None] = lambda _: None
    on_audit: Callable[[list[ClassAudit]], None] = lambda _: None
    on_start: Callable[[Choice], None] = lambda _: None
    on_step: Callable[[int, int, int], None] = lambda *_: None
    on_epoch: Callable[[EpochResult, Callable[[bool], Checkpoint]], None] = lambda *_: None


def train(reader: Reader, config: TrainConfig, hooks: Hooks = Hooks()) -> RunResult:
    """Train a model on a cache.

    Args:
        reader: The cache; needs training and validation clips.
        config: What to do.
        hooks: Where to report to.

    Returns:
        All epochs, and which was the best.

    Raises:
        InputError: The cache has no training or validation clips, or the weights are not usable.
        VidcacheError: The loss is not finite. Nothing of that epoch has been reported.
        ValueError: A value of the config is none of those it can have.
    """
    device = torch.device(config.device)
    rows, all_labels = _training_clips(reader, config)
    val_rows = reader.rows("val")
    hooks.on_audit(audit(reader.classes, all_labels[rows], config.balance))
    frames = _used_frames(reader, config)
    torch.manual_seed(config.seed)  # the new fc, or with --weights none everything
    model = build_model(len(reader.classes), config.weights, config.freeze)
    model.to(device, memory_format=torch.channels_last_3d)
    weights = loss_weights(all_labels[rows], len(reader.classes), config.balance)
    criterion = nn.CrossEntropyLoss(weight=None if weights is None else weights.to(device))
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    # fused: one kernel for all parameters instead of a dozen for each (42 against 95 ms here).
    fused = device.type in ("cpu", "cuda")
    optimizer = torch.optim.Adam(trainable, lr=config.lr, weight_decay=config.weight_decay, fused=fused)
    stopping = EarlyStopping(config.min_delta, config.patience, config.min_epochs)

    ring = Workspace()

    def batches(chosen: npt.NDArray[np.int64]) -> Iterator[Batch]:
        stream = stream_batches(
            reader,
            chosen,
            config.batch_size,
            frames=frames,
            device=device,
            num_threads=config.reader_threads,
            verify=config.verify,
            workspace=ring,
        )
        for batch in stream:
            true = torch.from_numpy(all_labels[batch.rows]).to(device, non_blocking=True)
            yield dataclasses.replace(batch, labels=true)

    precision = _try_precision(config, model, criterion, batches, rows, reader)
    hooks.on_start(precision)
    scaler = torch.amp.GradScaler(device.type, enabled=precision.name == "fp16")
    forward: Callable[[torch.Tensor], torch.Tensor] = torch.compile(model) if config.compile else model
    step = _Step(forward, criterion, optimizer, scaler, precision.name, config, reader, device)
    results: list[EpochResult] = []
    stopped_because = f"all {config.epochs} epochs are done"
    for epoch in range(1, config.epochs + 1):
        start = time.perf_counter()
        model.train()
        order = epoch_rows(rows, all_labels[rows], config.balance, config.seed, epoch)
        trained = step.epoch(epoch, order, batches(order), hooks)
        model.eval()
        validated = predict(_validator(forward, precision.name, device), batches(val_rows))
        if not math.isfinite(validated.mean_loss):
            raise VidcacheError(
                f"train: validation loss became {validated.mean_loss} in epoch {epoch} (learning rate "
                f"{trained.lr:g}), expected a finite number. Lower --lr"
            )
        is_best = stopping.update(epoch, validated.mean_loss)
        result = _result(epoch, trained, validated, reader.classes, time.perf_counter() - start, is_best)
        results.append(result)

        def checkpoint(resumable: bool, result: EpochResult = result) -> Checkpoint:
            state = {"optimizer": optimizer.state_dict(), "stopping": dataclasses.asdict(stopping)}
            return _checkpoint(model, reader, config, result, state if resumable else {})

        hooks.on_epoch(result, checkpoint)
        if stopping.should_stop(epoch):
            stopped_because = (
                f"{config.patience} epochs in a row lowered the validation loss by no more than {config.min_delta:g}"
            )
            break
    return RunResult(tuple(results), stopping.best_epoch, stopped_because)


def _training_clips(reader: Reader, config: TrainConfig) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the training rows, and the labels of all rows, permuted where the config says so."""
    for split in (Split.TRAIN, Split.VAL):
        if not len(reader.rows(split.name.lower())):
            raise InputError(
                f"{reader.name}: no {split.name.lower()} clips, expected at least one. Build it with --split 70/15/15"
            )
    rows, labels = reader.rows("train"), reader.labels.copy()
    if config.shuffle_labels:
        known = np.concatenate([rows, reader.rows("val")])
        labels[known] = np.random.default_rng(config.seed).permutation(labels[known])
    return rows, labels


def check_config(reader: Reader, config: TrainConfig) -> None:
    """Refuse a config that this cache cannot serve.

    Raises:
        InputError: More frames than a clip has.
    """
    used, there = config.num_frames_used or 1, reader.spec.num_frames
    if not 1 <= used <= there:
        raise InputError(
            f"{reader.name}: num_frames_used {used}, expected 1 to {there}, the frames of a clip. "
            "Lower --num-frames-used"
        )


def _used_frames(reader: Reader, config: TrainConfig) -> npt.NDArray[np.int64] | None:
    check_config(reader, config)
    if config.num_frames_used in (None, reader.spec.num_frames):
        return None
    return sample_indices(reader.spec.num_frames, config.num_frames_used or 0)


def _try_precision(
    config: TrainConfig,
    model: R3D18,
    criterion: nn.Module,
    batches: Callable[[npt.NDArray[np.int64]], Iterator[Batch]],
    rows: npt.NDArray[np.int64],
    reader: Reader,
) -> Choice:
    sample = rows[: config.batch_size]
    batch = next(iter(batches(sample)))
    unchanged = draw(sample, Strength(0, 0, 0, 0, 0), 0, 0)
    inputs = augment(batch.clips, unchanged, "none", reader.columns["mean_rgb"][sample])
    return choose_precision(config.amp, model, criterion, inputs, batch.labels)


@dataclasses.dataclass(frozen=True)
class _Trained:
    loss: float
    accuracy: float
    lr: float
    clips_per_second: float
    data_wait_fraction: float


class _Step:
    """Everything that one optimizer step needs."""

    def __init__(
        self,
        forward: Callable[[torch.Tensor], torch.Tensor],
        criterion: nn.Module,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        precision: str,
        config: TrainConfig,
        reader: Reader,
        device: torch.device,
    ) -> None:
        self.forward, self.criterion, self.optimizer, self.scaler = forward, criterion, optimizer, scaler
        self.precision, self.config, self.reader, self.device = precision, config, reader, device
        self._workspace = Workspace()
        # Looking at a loss waits for the device; on a CPU there is nothing to wait for.
        self.check_every = 1 if device.type == "cpu" else 25

    def epoch(self, epoch: int, order: npt.NDArray[np.int64], batches: Iterator[Batch], hooks: Hooks) -> _Trained:
        """Step through one epoch; sums stay on the device."""
        config = self.config
        num_steps = math.ceil(len(order) / config.batch_size)
        losses = torch.zeros(num_steps, device=self.device)
        loss_sum, num_correct = torch.zeros((), device=self.device), torch.zeros((), device=self.device)
        num_clips, waited, lr, start = 0, 0.0, config.lr, time.perf_counter()
        asked = start
        for index, batch in enumerate(batches):
            waited += time.perf_counter() - asked
            lr = self._set_learning_rate((epoch - 1) * num_steps + index, num_steps)
            loss, logits = self._step(batch, epoch)
            losses[index] = loss
            loss_sum += loss * len(batch.rows)
            num_correct += (logits.argmax(1) == batch.labels).sum()
            num_clips += len(batch.rows)
            if (index + 1) % self.check_every == 0 or index + 1 == num_steps:
                self._check(losses[: index + 1], epoch, num_steps)
            hooks.on_step(epoch, index + 1, num_steps)
            asked = time.perf_counter()
        if num_clips != len(order):
            raise VidcacheError(f"train: {num_clips} clips came in epoch {epoch}, expected {len(order)}. Report this")
        seconds = time.perf_counter() - start
        return _Trained(
            float(loss_sum) / num_clips, float(num_correct) / num_clips, lr, num_clips / seconds, waited / seconds
        )

    def _set_learning_rate(self, step: int, num_steps: int) -> float:
        config = self.config
        warmup = round(config.warmup_epochs * num_steps)
        lr = learning_rate(step, config.epochs * num_steps, config.lr, config.lr_schedule, warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        return lr

    def _step(self, batch: Batch, epoch: int) -> tuple[torch.Tensor, torch.Tensor]:
        config = self.config
        draws = draw(batch.rows, config.strength, config.seed, epoch)
        inputs = augment(
            batch.clips, draws, config.augment, self.reader.columns["mean_rgb"][batch.rows], self._workspace
        )
        with autocast(self.precision, self.device):
            logits = self.forward(inputs)
            loss = self.criterion(logits, batch.labels)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss.detach(), logits.detach()

    def _check(self, losses: torch.Tensor, epoch: int, num_steps: int) -> None:
        bad = ~torch.isfinite(losses)
        if bool(bad.any()):
            step = int(bad.nonzero()[0, 0])
            raise VidcacheError(
                f"train: loss became {float(losses[step])} at step {(epoch - 1) * num_steps + step + 1} "
                f"(epoch {epoch}, learning rate {self.optimizer.param_groups[0]['lr']:g}), expected a finite number. "
                "Lower --lr; nothing was saved from it"
            )


def _validator(
    forward: Callable[[torch.Tensor], torch.Tensor], precision: str, device: torch.device
) -> Callable[[torch.Tensor], torch.Tensor]:
    def run(inputs: torch.Tensor) -> torch.Tensor:
        with autocast(precision, device):
            return forward(inputs)

    return run


def _result(
    epoch: int,
    trained: _Trained,
    validated: Predictions,
    classes: tuple[str, ...],
    seconds: float,
    is_best: bool,
) -> EpochResult:
    metrics = compute_metrics(validated.labels, validated.probabilities, classes)
    return EpochResult(
        epoch=epoch,
        train_loss=trained.loss,
        train_accuracy=trained.accuracy,
        val_loss=validated.mean_loss,
        val_accuracy=metrics.accuracy,
        val_balanced_accuracy=metrics.balanced_accuracy,
        lr=trained.lr,
        seconds=seconds,
        clips_per_second=trained.clips_per_second,
        data_wait_fraction=trained.data_wait_fraction,
        is_best=is_best,
    )


def _checkpoint(
    model: R3D18, reader: Reader, config: TrainConfig, result: EpochResult, training: dict[str, Any]
) -> Checkpoint:
    return Checkpoint(
        weights=state_on_cpu(model),
        classes=reader.classes,
        spec=reader.spec,
        num_frames_used=config.num_frames_used or reader.spec.num_frames,
        fingerprint=reader.fingerprint,
        split_hash=reader.split_hash,
        config=dataclasses.asdict(config),
        epoch=result.epoch,
        metrics={name: float(value) for name, value in dataclasses.asdict(result).items()},
        training=training,
    )
