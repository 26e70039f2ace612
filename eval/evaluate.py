"""Run a model over clips of a cache: a function in, numbers out."""

import dataclasses
from collections.abc import Callable, Iterable

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
        mean_loss: Cross-entropy, averaged over the clips: exact, not a mean of batch means.
    """

    rows: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    probabilities: npt.NDArray[np.float32]
    mean_loss: float

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


def predict(model: Callable[[torch.Tensor], torch.Tensor], batches: Iterable[Batch]) -> Predictions:
    """Run a model over batches.

    Args:
        model: From (B, 3, T', H, W) float32 to (B, K) logits; in evaluation mode.
        batches: At least one.

    Raises:
        ValueError: There are no batches.
    """
    rows, labels, logits, workspace = [], [], [], Workspace()
    for batch in batches:
        with torch.inference_mode():  # not around the loop: the stream's buffers are made in it
            logits.append(model(to_input(batch.clips, workspace)).to(torch.float32))
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
        mean_loss=float(losses.to(torch.float64).mean() if losses.device.type != "mps" else losses.mean()),
    )
