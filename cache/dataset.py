"""A cache for those who bring their own loop: a torch data set, for DataLoader, Lightning or Accelerate."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from vidcache.cache.reader import open_caches
from vidcache.sampling import sample_indices


class ClipDataset(Dataset[tuple[torch.Tensor, int]]):
    """The clips of one split, as (clip, label): (T', H, W, 3) uint8 RGB and an int.

    A DataLoader fetches whole batches (`__getitems__`). Workers may be forked or spawned: they read
    with a plain descriptor, and a pickled data set opens its files again. Normalise and augment on
    the device, with `vidcache.train.augment` and `vidcache.pixels`.

    Args:
        caches: One cache file, or several that are used as one.
        split: "train", "val" or "test"; None for all clips.
        num_frames_used: Frames of each clip (T'), evenly spaced; None for all.
        verify: Compare each clip with its hash.

    Attributes:
        rows: (n,) rows of the cache.
        labels: (n,) index into `classes`.
        classes: Class names.

    Raises:
        CacheError: A cache cannot be read, or they do not belong together.
        ValueError: There is no such split, or a clip has fewer frames.
    """

    def __init__(
        self,
        caches: str | Path | Sequence[str | Path],
        split: str | None = None,
        *,
        num_frames_used: int | None = None,
        verify: bool = False,
    ) -> None:
        paths = [caches] if isinstance(caches, str | Path) else caches
        self._reader = open_caches([Path(path) for path in paths])
        num_frames = self._reader.spec.num_frames
        if num_frames_used is not None and not 1 <= num_frames_used <= num_frames:
            raise ValueError(f"num_frames_used {num_frames_used}, expected 1 to {num_frames}, the frames of a clip")
        self._frames = None if num_frames_used is None else sample_indices(num_frames, num_frames_used)
        self._verify = verify
        self.rows = self._reader.rows(split)
        self.labels = self._reader.labels[self.rows]
        self.classes = self._reader.classes

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[tuple[torch.Tensor, int]]:
        """Read a batch: what a DataLoader calls."""
        clips = torch.from_numpy(self._reader.read(self.rows[np.asarray(indices)], self._frames, verify=self._verify))
        return list(zip(clips, self.labels[np.asarray(indices)].tolist(), strict=True))
