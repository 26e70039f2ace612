"""The training loop, in reading order: draw, step, validate, keep the best, stop.

Knows nothing of terminals and files' names: what happens leaves through callbacks.
"""

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from vidcache.cache.layout import Split
from vidcache.cache.reader import Reader
from vidcache.cache.stream import Batch, stream_batches
from vidcache.checkpoint import Checkpoint
from vidcache.errors import InputError, InterruptedRunError, VidcacheError
from vidcache.eval.evaluate import Predictions, predict
from vidcache.eval.metrics import compute_metrics
from vidcache.model import R3D18, build_model, copy_to_cpu, state_on_cpu
from vidcache.pixels import Workspace
from vidcache.sampling import sample_indices
from vidcache.train.augment import Strength, augment, draw
from vidcache.train.balance import audit, epoch_rows, loss_weights
from vidcache.train.config import TrainConfig
from vidcache.train.early_stopping import EarlyStopping
from vidcache.train.initial import start_from
from vidcache.train.precision import Choice, autocast, choose_precision
from vidcache.train.results import SILENT, EpochResult, Hooks, RunResult
from vidcache.train.step import EpochSums, Stepper


def train(
    reader: Reader,
    config: TrainConfig,
    hooks: Hooks = SILENT,
    *,
    resume: Checkpoint | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> RunResult:
    """Train a model on a cache.

    A run that is stopped and resumed ends with the same weights, bit for bit on a CPU, as one that was not: what
    is drawn is a function of seed, epoch and row, so the place in the order is all that has to be remembered.

    Args:
        reader: The cache; needs training and validation clips.
        config: What to do.
        hooks: Where to report to.
        resume: Of a run of the same config on the same cache: goes on after it.
        should_stop: Asked after every step and every epoch; once it says so, the run is stopped.

    Returns:
        All epochs, and which was the best.

    Raises:
        InputError: The cache has no training or validation clips, or the weights are not usable.
        MismatchError: The checkpoint to start from is not usable.
        InterruptedRunError: It was stopped. `hooks` has been given what a resumed run needs.
        VidcacheError: The loss is not finite. Nothing of that epoch has been reported.
        ValueError: A value of the config is none of those it can have.
    """
    device = torch.device(config.device)
    rows, all_labels = _training_clips(reader, config)
    val_rows = reader.rows("val")
    hooks.on_audit(audit(reader.classes, all_labels[rows], config.balance))
    frames = _used_frames(reader, config)
    torch.manual_seed(config.seed)  # the new fc, or with --weights none everything
    model = build_model(len(reader.classes), "none" if config.init or resume else config.weights, config.freeze)
    if config.init and not resume:
        hooks.on_init(start_from(model, Path(config.init), reader.classes))
    model.to(device, memory_format=torch.channels_last_3d)
    weights = loss_weights(all_labels[rows], len(reader.classes), config.balance)
    criterion = nn.CrossEntropyLoss(
        weight=None if weights is None else weights.to(device), label_smoothing=config.label_smoothing
    )
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    # fused: one kernel for all parameters instead of a dozen for each (42 against 95 ms here).
    fused = device.type in ("cpu", "cuda")
    optimizer = torch.optim.Adam(trainable, lr=config.lr, weight_decay=config.weight_decay, fused=fused)
    stopping = EarlyStopping(config.min_delta, config.patience, config.min_epochs)

    ring = Workspace()

    def batches(chosen: npt.NDArray[np.int64]) -> Generator[Batch, None, None]:
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

    if resume:
        precision = Choice(resume.training["precision"], "as before it was interrupted")
        model.load_state_dict(resume.weights)
    else:
        precision = _try_precision(config, model, criterion, batches, rows, reader)
    hooks.on_start(precision)
    scaler = torch.amp.GradScaler(device.type, enabled=precision.name == "fp16")
    forward: Callable[[torch.Tensor], torch.Tensor] = torch.compile(model) if config.compile else model
    stepper = Stepper(forward, criterion, optimizer, scaler, precision.name, config, reader, device)
    stepper.on_inputs = None if resume else hooks.on_inputs
    results: list[EpochResult] = []
    sums = EpochSums.zero(device)
    if resume:
        optimizer.load_state_dict(copy_to_cpu(resume.training["optimizer"]))
        scaler.load_state_dict(resume.training["scaler"])
        stopping = EarlyStopping(**resume.training["stopping"])
        results = [EpochResult(**fields) for fields in resume.training["results"]]
        sums = EpochSums.of_dict(resume.training["sums"], device)

    def checkpoint(resumable: bool) -> Checkpoint:
        if not resumable:
            return _checkpoint(model, reader, config, results, {})
        state = {
            "optimizer": copy_to_cpu(optimizer.state_dict()),
            "scaler": scaler.state_dict(),
            "stopping": dataclasses.asdict(stopping),
            "precision": precision.name,
            "results": [dataclasses.asdict(result) for result in results],
            "sums": sums.to_dict(),
        }
        return _checkpoint(model, reader, config, results, state)

    if not resume:
        hooks.on_begin(checkpoint(True))
    while not _is_over(len(results), config, stopping):
        epoch = len(results) + 1
        model.train()
        order = epoch_rows(rows, all_labels[rows], config.balance, config.seed, epoch)
        rest = order[sums.num_steps * config.batch_size :]
        with contextlib.closing(batches(rest)) as stream:
            is_complete = stepper.epoch(epoch, len(order), stream, sums, hooks, should_stop)
        if not is_complete:
            hooks.on_interrupt(checkpoint(True))
            raise InterruptedRunError(f"train: stopped in epoch {epoch}, after {sums.num_steps} of its steps")
        lr, start = optimizer.param_groups[0]["lr"], time.perf_counter()
        model.eval()
        with contextlib.closing(batches(val_rows)) as stream:
            validated = predict(_validator(forward, precision.name, device), stream)
        if not math.isfinite(validated.mean_loss):
            raise VidcacheError(
                f"train: validation loss became {validated.mean_loss} in epoch {epoch} (learning rate "
                f"{lr:g}), expected a finite number. Lower --lr"
            )
        is_best = stopping.update(epoch, validated.mean_loss)
        seconds = sums.seconds + time.perf_counter() - start
        results.append(_result(epoch, sums, lr, validated, reader.classes, seconds, is_best))
        sums = EpochSums.zero(device)
        hooks.on_epoch(results[-1], checkpoint)
        if should_stop() and not _is_over(len(results), config, stopping):
            raise InterruptedRunError(f"train: stopped after epoch {epoch}")
    return RunResult(tuple(results), stopping.best_epoch, _why_over(len(results), config, stopping))


def _is_over(num_epochs: int, config: TrainConfig, stopping: EarlyStopping) -> bool:
    return num_epochs >= config.epochs or (num_epochs > 0 and stopping.should_stop(num_epochs))


def _why_over(num_epochs: int, config: TrainConfig, stopping: EarlyStopping) -> str:
    if stopping.should_stop(num_epochs):
        return f"{config.patience} epochs in a row lowered the validation loss by no more than {config.min_delta:g}"
    return f"all {config.epochs} epochs are done"


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
    """Refuse a config that this cache or device cannot serve.

    Raises:
        InputError: More frames than a clip has, or a precision that the device has not.
    """
    if config.amp == "fp16" and config.device.startswith("cpu"):
        raise InputError("--amp fp16: not on a CPU, expected a GPU. Use --amp auto")
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


def _validator(
    forward: Callable[[torch.Tensor], torch.Tensor], precision: str, device: torch.device
) -> Callable[[torch.Tensor], torch.Tensor]:
    def run(inputs: torch.Tensor) -> torch.Tensor:
        with autocast(precision, device):
            return forward(inputs)

    return run


def _result(
    epoch: int,
    sums: EpochSums,
    lr: float,
    validated: Predictions,
    classes: tuple[str, ...],
    seconds: float,
    is_best: bool,
) -> EpochResult:
    metrics = compute_metrics(validated.labels, validated.probabilities, classes)
    return EpochResult(
        epoch=epoch,
        train_loss=float(sums.loss) / sums.num_clips,
        train_accuracy=float(sums.num_correct) / sums.num_clips,
        val_loss=validated.mean_loss,
        val_accuracy=metrics.accuracy,
        val_balanced_accuracy=metrics.balanced_accuracy,
        lr=lr,
        seconds=seconds,
        clips_per_second=sums.num_clips / sums.seconds,
        data_wait_fraction=sums.waited_seconds / sums.seconds,
        is_best=is_best,
    )


def _checkpoint(
    model: R3D18, reader: Reader, config: TrainConfig, results: list[EpochResult], training: dict[str, Any]
) -> Checkpoint:
    metrics = dataclasses.asdict(results[-1]) if results else {}
    return Checkpoint(
        weights=state_on_cpu(model),
        classes=reader.classes,
        spec=reader.spec,
        num_frames_used=config.num_frames_used or reader.spec.num_frames,
        fingerprint=reader.fingerprint,
        split_hash=reader.split_hash,
        config=dataclasses.asdict(config),
        epoch=len(results),
        metrics={name: float(value) for name, value in metrics.items()},
        training=training,
    )
