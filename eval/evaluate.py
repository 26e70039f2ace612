"""Run a model over clips of a cache: a function in, numbers out."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import numpy.typing as npt
import torch

from vidcache.cache.stream import Batch
from vidcache.pixels import Workspace, normalise


@dataclasses.dataclass(frozen=True)
class Predictions:
    """What a model says of clips, in the order in which they came.

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
    def accuracy(self) -> float:
        """Fraction of clips whose most probable class is the true one."""
        return float((self.probabilities.argmax(axis=1) == self.labels).mean())


def to_input(clips_BTHWC: torch.Tensor, workspace: Workspace | None = None) -> torch.Tensor:
    """Normalise clips without augmentation.

    Args:
        clips_BTHWC: (B, T, H, W, 3) uint8 RGB on any device.
        workspace: Holds the result; None makes a new one.

    Returns:
        (B, 3, T, H, W) float32, contiguous as `channels_last_3d`.
    """
    return normalise(clips_BTHWC, workspace or Workspace())


def predict(
    model: Callable[[torch.Tensor], torch.Tensor],
    batches: Iterable[Batch],
    prepare: Callable[[Batch], torch.Tensor] | None = None,
) -> Predictions:
    """Run a model over batches.

    Args:
        model: From what `prepare` gives to (B, K) logits; in evaluation mode.
        batches: At least one.
        prepare: From a batch to what the model takes; None gives (B, 3, T', H, W) float32, normalised.

    Raises:
        ValueError: There are no batches.
    """
    rows, labels, logits, workspace = [], [], [], Workspace()
    prepare = prepare or (lambda batch: to_input(batch.clips, workspace))
    for batch in batches:
        # Not around the loop, nor around `prepare`: memory that is used again is made there, and what is made in
        # inference mode cannot be written to outside of it.
        with torch.no_grad():
            prepared = prepare(batch)
        with torch.inference_mode():
            logits.append(model(prepared).to(torch.float32))
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
    """Put predictions of different clips together, in the order of their rows.

    Args:
        parts: At least one.
    """
    order = np.concatenate([part.rows for part in parts]).argsort(kind="stable")
    values = {
        field.name: np.concatenate([getattr(part, field.name) for part in parts])[order]
        for field in dataclasses.fields(Predictions)
    }
    return Predictions(**values)
