"""Run a model over clips of a cache: a function in, numbers out."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import numpy.typing as npt
import torch

from vidcache.cache.reader import Reader
from vidcache.cache.stream import Batch
from vidcache.checkpoint import Checkpoint
from vidcache.errors import MismatchError
from vidcache.model import R3D18, load_weights
from vidcache.pixels import MEAN, STD, normalize
from vidcache.text import difference


def check_match(
    checkpoint: Checkpoint, reader: Reader, where: str, *, allow_mismatch: bool = False, advice: str = ""
) -> None:
    """Refuse a checkpoint that does not belong to a cache.

    Args:
        checkpoint: The checkpoint of a run.
        reader: The cache to use it on.
        where: Name of the checkpoint's file, for messages.
        allow_mismatch: Accept other content or another split; never another spec or class list.
        advice: What to do instead; empty gives the advice for an evaluation.

    Raises:
        MismatchError: Names both sides.
    """
    own, problem = "Evaluate with its own cache", ""
    if checkpoint.spec != reader.spec:
        show = repr if str(checkpoint.spec) == str(reader.spec) else str  # `repr` shows all fields
        problem = f"{show(checkpoint.spec)}, but {reader.name} has {show(reader.spec)}"
        advice = advice or f"{own}, or build one with the same options"
    elif checkpoint.classes != reader.classes:
        names = difference(reader.classes, checkpoint.classes)
        problem = f"{len(checkpoint.classes)} classes, but {reader.name} has {len(reader.classes)} ({names})"
        advice = advice or f"{own}, or train again"
    elif not allow_mismatch and not is_of(checkpoint, reader):
        noun, trained, current = "cache", checkpoint.fingerprint, reader.fingerprint
        if trained == current:
            noun, trained, current = "split", checkpoint.split_hash, reader.split_hash
        problem = f"{noun} {trained}, but {reader.name} is {current}: clips of its test split may have been trained on"
        advice = advice or f"{own}, or accept it with --allow-mismatch"
    if problem:
        raise MismatchError(f"{where}: trained on {problem}. {advice}")


def is_of(checkpoint: Checkpoint, reader: Reader) -> bool:
    """Whether a checkpoint was trained on this cache with this split."""
    return (checkpoint.fingerprint, checkpoint.split_hash) == (reader.fingerprint, reader.split_hash)


def load_model(checkpoint: Checkpoint, where: str, device: str | torch.device) -> R3D18:
    """Build the model of a checkpoint, in evaluation mode.

    Raises:
        MismatchError: Its weights are not those of an R3D-18 with these classes, or it normalises otherwise.
    """
    if (checkpoint.mean, checkpoint.std) != (MEAN, STD):
        raise MismatchError(
            f"{where}: trained on clips with mean {checkpoint.mean} and deviation {checkpoint.std}, but this vidcache "
            f"normalises with {MEAN} and {STD}. Use the vidcache that made it, or train again"
        )
    bias = checkpoint.weights.get("fc.bias")
    num_outputs = len(bias) if bias is not None and bias.dim() == 1 else 0
    if num_outputs != len(checkpoint.classes):  # before a model with that many outputs is made
        raise MismatchError(f"{where}: {num_outputs} outputs for {len(checkpoint.classes)} classes. Train again")
    model = R3D18(num_outputs)
    try:
        load_weights(model, checkpoint.weights)
    except ValueError as error:
        raise MismatchError(f"{where}: weights do not fit an R3D-18 ({error}). Train again") from None
    model.to(device, memory_format=torch.channels_last_3d)
    model.eval()
    return model


@dataclasses.dataclass(frozen=True)
class Predictions:
    """A model's output for clips, in the order in which they came.

    Attributes:
        rows: (n,) rows of the cache.
        labels: (n,) true classes.
        probabilities: (n, K) float32; each row sums to 1.
        losses: (n,) float32, cross-entropy of each clip.
    """

    rows: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    probabilities: npt.NDArray[np.float32]
    losses: npt.NDArray[np.float32]

    @property
    def mean_loss(self) -> float:
        """Cross-entropy, averaged over the clips: exact, not a mean of batch means."""
        return float(self.losses.mean(dtype=np.float64))

    @property
    def correct(self) -> npt.NDArray[np.bool_]:
        """(n,) whether the most probable class is the true one."""
        return np.asarray(self.probabilities.argmax(axis=1) == self.labels)

    @property
    def accuracy(self) -> float:
        """Fraction of clips whose most probable class is the true one."""
        return float(self.correct.mean())


def predict(
    model: Callable[[torch.Tensor], torch.Tensor],
    batches: Iterable[Batch],
    prepare: Callable[[Batch], torch.Tensor] = lambda batch: normalize(batch.clips),
) -> Predictions:
    """Run a model over batches.

    Args:
        model: From what `prepare` returns to (B, K) logits; in evaluation mode.
        batches: At least one.
        prepare: From a batch to the model's input; by default (B, 3, T', H, W) float32, normalised.

    Raises:
        ValueError: There are no batches.
    """
    rows, labels, logits = [], [], []
    for batch in batches:
        with torch.inference_mode():  # not around the loop: the stream's buffers are made there and used elsewhere
            logits.append(model(prepare(batch)).to(torch.float32))
        labels.append(batch.labels.clone())
        rows.append(batch.rows)
    if not rows:
        raise ValueError("no clips to evaluate, expected at least one")
    all_logits, all_labels = torch.cat(logits), torch.cat(labels)
    losses = torch.nn.functional.cross_entropy(all_logits, all_labels, reduction="none")
    return Predictions(
        rows=np.concatenate(rows),
        labels=all_labels.cpu().numpy(),
        probabilities=all_logits.softmax(1).cpu().numpy(),
        losses=losses.cpu().numpy(),
    )


def join_predictions(parts: Sequence[Predictions]) -> Predictions:
    """Put predictions of different clips together, in the order of their rows; at least one part."""
    order = np.concatenate([part.rows for part in parts]).argsort(kind="stable")
    names = [field.name for field in dataclasses.fields(Predictions)]
    return Predictions(**{name: np.concatenate([getattr(part, name) for part in parts])[order] for name in names})


def average_views(
    model: Callable[[torch.Tensor], torch.Tensor], clips_BTHWC: torch.Tensor, places_VT: torch.Tensor, *, flip: bool
) -> torch.Tensor:
    """Return the logarithm of the mean probability over the views of each clip, (B, K) float32; of one view, logits.

    Args:
        model: (B, 3, T', H, W) float32 to logits (B, K), in evaluation mode.
        clips_BTHWC: uint8 RGB, on any device.
        places_VT: (V, T') frames of each view.
        flip: Show each view mirrored as well.
    """
    logits = []
    for places in places_VT:
        inputs = normalize(clips_BTHWC[:, places])
        logits += [model(inputs), model(inputs.flip(-1))] if flip else [model(inputs)]
    if len(logits) == 1:
        return logits[0].to(torch.float32)
    # In logarithms, since a probability can be too small for a float.
    log_probabilities = torch.stack([values.to(torch.float32).log_softmax(1) for values in logits])
    return log_probabilities.logsumexp(0) - math.log(len(logits))


def view_frames(num_frames: int, num_used: int, num_views: int) -> npt.NDArray[np.int64]:
    """Choose frames for each view: the first is what the model was trained on, the others are shifted evenly.

    With the distance s = (T - 1) / (T' - 1) between two frames, frame i of view v is floor((i + v / V) * s), in exact
    integers, or the last frame where that is beyond it.

    Returns:
        (V, T') frame numbers, no view twice.

    Raises:
        ValueError: More views than there are different ones.

    >>> view_frames(9, 3, 2).tolist()
    [[0, 4, 8], [2, 6, 8]]
    """
    views = _shifted(num_frames, num_used, num_views)
    if len(np.unique(views, axis=0)) < num_views:
        fewer = (_shifted(num_frames, num_used, n) for n in range(min(num_views, 2 * num_frames), 0, -1))
        most = next(len(views) for views in fewer if len(np.unique(views, axis=0)) == len(views))
        raise ValueError(
            f"{num_views} views of {num_used} of {num_frames} frames, expected at most {most}: the others are the same"
        )
    return views


def _shifted(num_frames: int, num_used: int, num_views: int) -> npt.NDArray[np.int64]:
    slot, view = np.arange(num_used), np.arange(num_views)[:, None]
    if num_used == 1:
        return np.asarray(view * num_frames // num_views)
    shifted = (slot * num_views + view) * (num_frames - 1) // (num_views * (num_used - 1))
    return np.asarray(np.minimum(shifted, num_frames - 1))
