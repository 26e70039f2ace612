"""A cache as a torch data set, for DataLoader, Lightning, the Hugging Face Trainer or Accelerate."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from vidcache.cache.reader import open_caches
from vidcache.spec import sample_indices

PathLike = str | os.PathLike[str]


class ClipDataset(Dataset[tuple[Any, int]]):
    """The clips of one split, as (clip, label): (T', H, W, 3) uint8 RGB and an int.

    A DataLoader fetches whole batches (`__getitems__`). Workers may be forked or spawned: they read with a plain
    descriptor, and a pickled data set opens its files again. Normalize and augment on the device, with
    `vidcache.normalize` and `vidcache.train.augment`.

    Args:
        cache: A cache file, or several that are used as one.
        split: "train", "val" or "test"; None for all clips.
        transform: Applied to every clip, a uint8 tensor; None for nothing.
        channels_first: Give (3, T', H, W) instead, what torch's 3-D convolutions take.
        num_frames_used: Frames of each clip (T'), evenly spaced; None for all.
        verify: Compare each clip with its hash.

    Attributes:
        rows: (n,) int64, rows of the cache.
        labels: (n,) int64, index into `classes`.
        paths: Of the videos, below the raw folder; as long as the data set.
        classes: Class names, in the order of the labels.

    Raises:
        CacheError: A cache cannot be read, the caches do not belong together, or a clip differs from its hash.
        ValueError: There is no such split, or a clip has fewer frames.

    Example:
        >>> dataset = ClipDataset("cache.h5", "train", channels_first=True)  # doctest: +SKIP
        >>> clip, label = dataset[0]  # (3, 64, 112, 112) uint8, int  # doctest: +SKIP
    """

    def __init__(
        self,
        cache: PathLike | Sequence[PathLike],
        split: str | None = None,
        transform: Callable[[torch.Tensor], Any] | None = None,
        *,
        channels_first: bool = False,
        num_frames_used: int | None = None,
        verify: bool = False,
    ) -> None:
        caches = [cache] if isinstance(cache, str | os.PathLike) else cache
        self._reader = open_caches([Path(path) for path in caches])
        num_frames = self._reader.spec.num_frames
        if num_frames_used is not None and not 1 <= num_frames_used <= num_frames:
            raise ValueError(f"num_frames_used {num_frames_used}, expected 1 to {num_frames}, the frames of a clip")
        self._frames = None if num_frames_used is None else sample_indices(num_frames, num_frames_used)
        self._split, self._transform = split, transform
        self._channels_first, self._verify = channels_first, verify
        self.rows = self._reader.rows(split)
        self.labels = self._reader.labels[self.rows]
        self.paths = [os.fsdecode(self._reader.path_of(row)) for row in self.rows]
        self.classes = self._reader.classes

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        *shape, _ = self._reader.shape_of(self._frames)
        shape = [3, *shape] if self._channels_first else [*shape, 3]
        split = f"{self._split} of " if self._split else ""
        return f"ClipDataset({split}{self._reader.name}: {len(self)} clips {tuple(shape)}, {len(self.classes)} classes)"

    def __getitem__(self, index: int) -> tuple[Any, int]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"clip {index} of {len(self)}")  # also what ends a plain `for`
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Any, int]]:
        """Read a batch: what a DataLoader calls."""
        chosen = np.asarray(indices)
        clips = torch.from_numpy(self._reader.read(self.rows[chosen], self._frames, verify=self._verify))
        if self._channels_first:
            clips = clips.permute(0, 4, 1, 2, 3)
        prepared = map(self._transform, clips) if self._transform else clips
        return list(zip(prepared, self.labels[chosen].tolist(), strict=True))
