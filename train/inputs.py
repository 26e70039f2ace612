"""What the trained part of the model is given: clips, augmented anew each time, or features that were computed once."""

import abc
import dataclasses
from collections.abc import Generator, Sequence
from typing import cast

import numpy as np
import numpy.typing as npt
import torch

from vidcache.cache.features import FeatureReader
from vidcache.cache.stream import Batch, Rows, Source, stream_chunks
from vidcache.eval.evaluate import to_input
from vidcache.pixels import Workspace
from vidcache.train.augment import augment, draw
from vidcache.train.forward import Forward
from vidcache.train.task import Task


class Inputs(abc.ABC):
    """Where features come from, batch by batch."""

    @abc.abstractmethod
    def stream(self, chunks: Sequence[Rows], epoch: int | None) -> Generator[Batch, None, None]:
        """Read ahead: a batch for each chunk of rows, for an epoch of training (from 1) or as they are (None)."""

    @abc.abstractmethod
    def features(self, batch: Batch, epoch: int | None) -> torch.Tensor:
        """Make of a batch what the trained part takes: (B, C, T', H', W') on the device."""


class ClipInputs(Inputs):
    """Clips of a cache: augmented with the draws of the epoch, then put through the frozen stages.

    Args:
        task: With the clips.
        forward: With the frozen stages.
    """

    def __init__(self, task: Task, forward: Forward) -> None:
        self._task, self._forward = task, forward
        self._ring, self._pixels = Workspace(), Workspace()

    def stream(self, chunks: Sequence[Rows], epoch: int | None) -> Generator[Batch, None, None]:  # noqa: ARG002
        """Read ahead: the same clips in every epoch."""
        task = self._task
        return _stream(task, task.reader, chunks, task.labels, task.frames, self._ring)

    def features(self, batch: Batch, epoch: int | None) -> torch.Tensor:
        """Augment, normalise, and run the frozen stages."""
        return self._forward.prefix(self.pixels(batch, epoch))

    def pixels(self, batch: Batch, epoch: int | None) -> torch.Tensor:
        """Return (B, 3, T', H, W) float32 as the model sees them; overwritten by the next call."""
        config = self._task.config
        if not len(batch.rows):  # a process that has none of the last clips of an epoch
            return to_input(batch.clips.new_zeros((1, *batch.clips.shape[1:])))[:0]
        if epoch is None:
            return to_input(batch.clips, self._pixels)
        draws = draw(batch.rows, config.strength, config.seed, epoch)
        means = self._task.reader.columns["mean_rgb"][batch.rows]
        return augment(batch.clips, draws, config.augment, means, self._pixels)


class FeatureInputs(Inputs):
    """Features from a file: in epoch e, view (e - 1) % K of each clip.

    Args:
        features: The file.
        entries: (N, K + 1) entry of each row and view, the last column without augmentation; -1 where there is none.
        task: Whose clips they were computed of.
    """

    def __init__(self, features: FeatureReader, entries: npt.NDArray[np.int64], task: Task) -> None:
        self._reader, self._entries, self._task = features, entries, task
        self._ring = Workspace()

    def stream(self, chunks: Sequence[Rows], epoch: int | None) -> Generator[Batch, None, None]:
        """Read ahead: the view of this epoch."""
        view = -1 if epoch is None else (epoch - 1) % (self._entries.shape[1] - 1)
        column = self._entries[:, view]
        labels = np.zeros(len(self._reader), np.int64)
        labels[column[column >= 0]] = self._task.labels[column >= 0]
        rows_of = np.zeros(len(self._reader), np.int64)
        rows_of[column[column >= 0]] = np.flatnonzero(column >= 0)
        chosen = [column[chunk] for chunk in chunks]
        for batch in _stream(self._task, self._reader, chosen, labels, None, self._ring):
            yield dataclasses.replace(batch, rows=rows_of[batch.rows])

    def features(self, batch: Batch, epoch: int | None) -> torch.Tensor:  # noqa: ARG002 -- known when it was read
        """See the bytes as bfloat16 numbers; nothing is copied."""
        return batch.clips.view(torch.bfloat16).permute(0, 4, 1, 2, 3)


def _stream(
    task: Task,
    source: Source,
    chunks: Sequence[Rows],
    labels: Rows,
    frames: npt.NDArray[np.int64] | None,
    ring: Workspace,
) -> Generator[Batch, None, None]:
    stream = stream_chunks(
        source,
        chunks,
        frames=frames,
        labels=labels,
        device=task.device,
        num_threads=task.config.reader_threads,
        verify=task.config.verify,
        workspace=ring,
    )
    return cast(Generator[Batch, None, None], stream)
