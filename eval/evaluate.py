"""Everything that is known of a checkpoint on one split of a cache."""

import dataclasses
import time
from collections.abc import Callable

import numpy as np
import torch

from vidcache.cache.format import Split
from vidcache.cache.leakage import find_leaks
from vidcache.cache.reader import Reader
from vidcache.cache.stream import Batch, stream_batches
from vidcache.checkpoint import Checkpoint
from vidcache.errors import InputError, MismatchError
from vidcache.eval.inference import Predictions, Views, predict, view_frames
from vidcache.eval.intervals import bootstrap_intervals, wilson_interval
from vidcache.eval.metrics import Calibration, Metrics, calibrate, compute_metrics
from vidcache.text import plural


@dataclasses.dataclass(frozen=True)
class LeakageReport:
    """What the leak guard says of the evaluated split.

    Attributes:
        num_leaked: Evaluated clips that look like a clip of another split.
        num_clean: The others.
        num_clean_correct: Of these, how many were recognised.
        clean_accuracy: Their ratio; None without clean clips.
        clean_low: Lower end of its 95 % Wilson interval; None without clean clips.
        clean_high: Upper end.
    """

    num_leaked: int
    num_clean: int
    num_clean_correct: int
    clean_accuracy: float | None
    clean_low: float | None
    clean_high: float | None

    @property
    def in_words(self) -> str:
        """One line."""
        if not self.num_leaked:
            return "none: no evaluated clip looks like a clip of another split"
        verb = "looks" if self.num_leaked == 1 else "look"
        said = f"{plural(self.num_leaked, 'clip')} {verb} like clips of another split (vidcache leaks)"
        if self.clean_accuracy is None:
            return f"{said}, and no clip is left without them"
        return (
            f"{said}; without them {self.num_clean_correct} of {self.num_clean} right = {self.clean_accuracy:.1%} "
            f"({self.clean_low:.1%} to {self.clean_high:.1%})"
        )


def check_split(reader: Reader, split: str, predictions: Predictions) -> LeakageReport:
    """Look for evaluated clips that the model may have seen in another guise.

    Args:
        reader: The cache.
        split: The evaluated one.
        predictions: Of its clips.
    """
    clean = ~np.isin(predictions.rows, find_leaks(reader).rows_of(Split[split.upper()]))
    right = predictions.probabilities.argmax(axis=1) == predictions.labels
    num_clean, num_right = int(clean.sum()), int((right & clean).sum())
    low, high = wilson_interval(num_right, num_clean) if num_clean else (None, None)
    return LeakageReport(
        num_leaked=len(clean) - num_clean,
        num_clean=num_clean,
        num_clean_correct=num_right,
        clean_accuracy=num_right / num_clean if num_clean else None,
        clean_low=low,
        clean_high=high,
    )


@dataclasses.dataclass(frozen=True)
class EvalOptions:
    """How clips are shown to a model.

    Attributes:
        split: "train", "val" or "test".
        device: Where the model is.
        batch_size: Clips at a time.
        num_views: Choices of frames of each clip to average.
        flip: Average each with its mirror image.
        verify: Compare each clip with its hash.
        seed: Of the bootstrap and of the simulation behind the calibration.
    """

    split: str = "test"
    device: str = "cpu"
    batch_size: int = 16
    num_views: int = 1
    flip: bool = False
    verify: bool = False
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What a model makes of the clips of a split, and what that is worth.

    Attributes:
        options: How it was asked.
        predictions: Clip by clip.
        metrics: Of them.
        balanced_interval: 95 % interval of the balanced accuracy.
        macro_f1_interval: 95 % interval of the macro F1.
        calibration: Whether the model is as often right as it says.
        cleanliness: Whether clips look like clips of another split.
        seconds: What reading and predicting all clips took.
    """

    options: EvalOptions
    predictions: Predictions
    metrics: Metrics
    balanced_interval: tuple[float, float]
    macro_f1_interval: tuple[float, float]
    calibration: Calibration
    cleanliness: LeakageReport
    seconds: float


def predict_split(
    reader: Reader,
    checkpoint: Checkpoint,
    model: Callable[[torch.Tensor], torch.Tensor],
    options: EvalOptions,
    where: str = "checkpoint",
    progress: Callable[[int, int], None] = lambda *_: None,
) -> Predictions:
    """Predict all clips of a split.

    Args:
        reader: The cache.
        checkpoint: Says how many frames the model is shown.
        model: Of the checkpoint, in evaluation mode, on the device.
        options: Which clips, and how.
        where: Name of the checkpoint, for messages.
        progress: Called before every batch and in the end, with clips done and in all.

    Raises:
        InputError: There are no such clips, or not so many different views.
        CacheError: A clip is not what it was, with `verify`.
        MismatchError: A prediction is not finite.
    """
    rows = reader.rows(options.split)
    if not len(rows):
        raise InputError(f"{reader.name}: no {options.split} clips, expected at least one. Choose another --split")
    check_views(checkpoint, options, where)
    views = Views(
        model, reader.spec.num_frames, checkpoint.num_frames_used, num_views=options.num_views, flip=options.flip
    )
    batches = stream_batches(
        reader, rows, options.batch_size, frames=views.frames, device=options.device, verify=options.verify
    )
    done = 0

    def show(batch: Batch) -> torch.Tensor:
        nonlocal done
        progress(done, len(rows))
        done += len(batch.rows)
        return batch.clips

    predictions = predict(views, batches, show)
    progress(done, len(rows))
    wrong = int((~np.isfinite(predictions.probabilities)).any(axis=1).sum())
    if wrong:  # argmax would call them the first class
        raise MismatchError(
            f"{where}: says nothing finite of {wrong} of {plural(len(rows), 'clip')}, expected probabilities. Its "
            "weights have diverged or are damaged: train again"
        )
    return predictions


def check_views(checkpoint: Checkpoint, options: EvalOptions, where: str = "checkpoint") -> None:
    """Refuse more views than there are different ones, before any work is done.

    Raises:
        InputError: Names the checkpoint.
    """
    try:
        view_frames(checkpoint.spec.num_frames, checkpoint.num_frames_used, options.num_views)
    except ValueError as error:
        raise InputError(f"--views: {error} ({where}). Lower it, or train with a lower vidtrain --num-frames") from None


def evaluate(
    reader: Reader,
    checkpoint: Checkpoint,
    model: Callable[[torch.Tensor], torch.Tensor],
    options: EvalOptions,
    where: str = "checkpoint",
    progress: Callable[[int, int], None] = lambda *_: None,
) -> Evaluation:
    """Predict all clips of a split and say what that is worth; arguments and errors of `predict_split`."""
    start = time.perf_counter()
    predictions = predict_split(reader, checkpoint, model, options, where, progress)
    seconds = time.perf_counter() - start
    metrics = compute_metrics(predictions.labels, predictions.probabilities, reader.classes)
    balanced, macro_f1 = bootstrap_intervals(metrics.confusion, seed=options.seed)
    return Evaluation(
        options=options,
        predictions=predictions,
        metrics=metrics,
        balanced_interval=balanced,
        macro_f1_interval=macro_f1,
        calibration=calibrate(predictions.labels, predictions.probabilities, seed=options.seed),
        cleanliness=check_split(reader, options.split, predictions),
        seconds=seconds,
    )
