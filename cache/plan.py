"""The plan of a cache: everything that is known before the first video is opened."""

import dataclasses
from typing import Any

import numpy as np
import xxhash

from vidcache.cache.layout import COLUMNS, Stage, column_dtype
from vidcache.spec import Spec


@dataclasses.dataclass(frozen=True)
class Plan:
    """Everything about a cache that is known before the first video is opened.

    Attributes:
        spec: Shape of the clips.
        classes: Names in label order.
        paths: Relative path of every video, sorted; one row each.
        labels: Index into `classes`, one per video.
        source_bytes: Size of each video file.
        source_mtime_ns: Modification time of each video file.
        attributes: Root attributes of the HDF5 file: str, int, float or lists of them.
    """

    spec: Spec
    classes: tuple[bytes, ...]
    paths: tuple[bytes, ...]
    labels: tuple[int, ...]
    source_bytes: tuple[int, ...]
    source_mtime_ns: tuple[int, ...]
    attributes: dict[str, Any]

    @property
    def num_clips(self) -> int:
        """Rows of the cache (N)."""
        return len(self.paths)

    @property
    def path_bytes(self) -> int:
        """Width of the `path` column."""
        return max(len(path) for path in self.paths)

    def columns(self) -> dict[str, np.ndarray[Any, Any]]:
        """Return the columns that are known now, (N,) each."""
        values = {
            "path": self.paths,
            "label": self.labels,
            "source_bytes": self.source_bytes,
            "source_mtime_ns": self.source_mtime_ns,
        }
        return {
            column.name: np.array(values[column.name], column_dtype(column, self.path_bytes))
            for column in COLUMNS
            if column.stage is Stage.PLAN
        }

    def identity(self) -> str:
        """Hash of the whole plan: a build is resumed in place only under the same one."""
        fields = (
            self.spec.to_dict(),
            self.classes,
            self.paths,
            self.labels,
            self.source_bytes,
            self.source_mtime_ns,
            self.attributes,
        )
        return xxhash.xxh3_128_hexdigest(repr(fields).encode())
