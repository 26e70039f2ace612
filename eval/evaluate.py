"""Evaluate a checkpoint on one split of a cache."""

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from vidcache.cache.format import Split
from vidcache.cache.leakage import find_leaks
from vidcache.cache.reader import Reader, open_caches
from vidcache.cache.stream import Batch, stream_batches
from vidcache.checkpoint import Checkpoint
from vidcache.errors import InputError, MismatchError
from vidcache.eval.inference import Predictions, average_views, check_match, load_model, predict, view_frames
from vidcache.eval.intervals import bootstrap_intervals, wilson_interval
from vidcache.eval.metrics import TOP, Metrics, calibrate, compute_metrics
from vidcache.text import plural, printable

TOP_MISTAKES = 10


@dataclasses.dataclass(frozen=True)
class EvalOptions:
    """How clips are shown to a model.

    Attributes:
        split: "train", "val" or "test".
        device: Device of the model, as torch names it.
        batch_size: Clips per batch.
        num_views: Temporal views of each clip to average.
        flip: Average each view with its mirror image.
        verify: Compare each clip with its hash.
        seed: Seed of the bootstrap and of the simulation behind the calibration.
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
    """The result of an evaluation.

    Attributes:
        options: How it was done.
        predictions: Clip by clip.
        metrics: Computed from them.
        summary: All numbers, JSON-ready, as metrics.json has them.
        seconds: Time to read and predict all clips.
    """

    options: EvalOptions
    predictions: Predictions
    metrics: Metrics
    summary: dict[str, Any]
    seconds: float


def evaluate(
    cache: Reader | str | Path,
    checkpoint: Checkpoint | str | Path,
    options: EvalOptions = EvalOptions(),
    model: Callable[[torch.Tensor], torch.Tensor] | None = None,
    where: str = "",
    progress: Callable[[int, int], None] = lambda *_: None,
) -> Evaluation:
    """Evaluate a checkpoint on a split of the cache that it was trained on.

    Args:
        cache: Path of a cache, or an open reader.
        checkpoint: Path of a checkpoint, or a loaded one.
        options: Which clips, and how.
        model: (B, 3, T', H, W) float32, normalised, to (B, K) logits, in evaluation mode on the device; by default the
            checkpoint's, which then has to be of this cache and split.
        where: Name of the checkpoint, for messages.
        progress: Called before every batch and at the end, with the clips done and their total.

    Raises:
        InputError: There are no clips in the split, or fewer different views.
        CacheError: The cache cannot be read, or a clip is damaged, with `verify`.
        MismatchError: The checkpoint does not belong to the cache, or a prediction is not finite.

    >>> from vidcache import evaluate
    >>> evaluate("cache.h5", "best.pt").metrics.accuracy  # doctest: +SKIP
    0.9489795918367347
    """
    with contextlib.ExitStack() as stack:
        reader = cache if isinstance(cache, Reader) else stack.enter_context(open_caches([Path(cache)]))
        if not isinstance(checkpoint, Checkpoint):
            where = where or printable(checkpoint)
            checkpoint = Checkpoint.load(Path(checkpoint))
        where = where or "checkpoint"
        if model is None:
            check_match(checkpoint, reader, where)
            model = load_model(checkpoint, where, options.device)
        start = time.perf_counter()
        predictions = predict_split(reader, checkpoint, model, options, where, progress)
        seconds = time.perf_counter() - start
        metrics = compute_metrics(predictions.labels, predictions.probabilities, reader.classes)
        summary = _summarise(reader, options, predictions, metrics, seconds)
        return Evaluation(options, predictions, metrics, summary, seconds)


def predict_split(
    reader: Reader,
    checkpoint: Checkpoint,
    model: Callable[[torch.Tensor], torch.Tensor],
    options: EvalOptions,
    where: str = "checkpoint",
    progress: Callable[[int, int], None] = lambda *_: None,
) -> Predictions:
    """Predict all clips of a split; arguments and errors as of `evaluate`."""
    rows = reader.rows(options.split)
    if not len(rows):
        raise InputError(f"{reader.name}: no {options.split} clips. Choose another --split")
    views = choose_views(checkpoint, options, where)
    frames = np.unique(views)
    places = torch.from_numpy(np.searchsorted(frames, views)).to(options.device)
    settings: dict[str, Any] = {"frames": frames, "device": options.device, "verify": options.verify}
    batches = stream_batches(reader, rows, options.batch_size, **settings)
    num_done = 0

    def show(batch: Batch) -> torch.Tensor:
        nonlocal num_done
        progress(num_done, len(rows))
        num_done += len(batch.rows)
        return batch.clips

    average = functools.partial(average_views, model, places_VT=places, flip=options.flip)
    predictions = predict(average, batches, show)
    progress(num_done, len(rows))
    num_bad = int((~np.isfinite(predictions.probabilities)).any(axis=1).sum())
    if num_bad:  # argmax would call them the first class
        raise MismatchError(
            f"{where}: NaN or inf outputs for {num_bad} of {plural(len(rows), 'clip')}. Its weights have diverged or "
            "are damaged: train again"
        )
    return predictions


def choose_views(checkpoint: Checkpoint, options: EvalOptions, where: str = "checkpoint") -> npt.NDArray[np.int64]:
    """Return the frames of each view, (V, T'); raises InputError if there are fewer different views."""
    try:
        return view_frames(checkpoint.spec.num_frames, checkpoint.num_frames_used, options.num_views)
    except ValueError as error:
        raise InputError(f"--views: {error} ({where}). Lower it, or train with a lower vidtrain --num-frames") from None


def describe_leaks(summary: dict[str, Any]) -> str:
    """Return one line about evaluated clips with a near-duplicate in another split."""
    num_leaked = summary["num_leaked"]
    if not num_leaked:
        return "none: no evaluated clip has a near-duplicate in another split"
    verb = "has" if num_leaked == 1 else "have"
    text = f"{plural(num_leaked, 'clip')} {verb} a near-duplicate in another split (vidcache leaks)"
    if summary["clean_accuracy"] is None:
        return f"{text}: all evaluated clips"
    return (
        f"{text}; without them {summary['num_clean_correct']:,} of {summary['num_clean']:,} correct = "
        f"{summary['clean_accuracy']:.1%} ({summary['clean_low']:.1%} to {summary['clean_high']:.1%})"
    )


def _summarise(
    reader: Reader, options: EvalOptions, predictions: Predictions, metrics: Metrics, seconds: float
) -> dict[str, Any]:
    """Return all numbers as JSON-ready values; those of a class without clips are None."""
    # Among 5 of 5 classes every clip is correct by definition: nothing is uncertain.
    has_top5 = len(metrics.per_class) > TOP
    top5_low, top5_high = wilson_interval(metrics.num_top5, metrics.num_clips) if has_top5 else (None, None)
    balanced, macro_f1 = bootstrap_intervals(metrics.confusion, seed=options.seed)
    unleaked = ~np.isin(predictions.rows, find_leaks(reader).rows_of(Split[options.split.upper()]))
    num_clean, num_clean_correct = int(unleaked.sum()), int((predictions.correct & unleaked).sum())
    clean_low, clean_high = wilson_interval(num_clean_correct, num_clean) if num_clean else (None, None)
    scores = {name: value for name, value in vars(metrics).items() if name not in ("num_top5", "confusion")}
    return {
        "split": options.split,
        "num_views": options.num_views,
        "flip": options.flip,
        **scores,
        "top5_low": top5_low,
        "top5_high": top5_high,
        "balanced_low": balanced[0],
        "balanced_high": balanced[1],
        "macro_f1_low": macro_f1[0],
        "macro_f1_high": macro_f1[1],
        "mean_loss": predictions.mean_loss,
        "calibration": calibrate(predictions.labels, predictions.probabilities, seed=options.seed),
        "top_mistakes": metrics.top_confusions(TOP_MISTAKES),
        "num_leaked": len(unleaked) - num_clean,
        "num_clean": num_clean,
        "num_clean_correct": num_clean_correct,
        "clean_accuracy": num_clean_correct / num_clean if num_clean else None,
        "clean_low": clean_low,
        "clean_high": clean_high,
        "clips_per_second": metrics.num_clips / seconds,
    }
