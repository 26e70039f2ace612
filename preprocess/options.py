"""How to build a cache."""

import dataclasses
from pathlib import Path

from vidcache.preprocess.split.config import SplitOverrides
from vidcache.preprocess.video.decode import DecodeLimits
from vidcache.spec import Spec

BACKENDS = ("threads", "dask", "ray")


@dataclasses.dataclass(frozen=True)
class BuildOptions:
    """How to build; the defaults are those of the command, which has a worker for each CPU.

    Attributes:
        spec: Shape of the clips.
        workers: Videos decoded at a time by this machine.
        backend: "threads" of this process, or the workers of a "dask" or "ray" cluster.
        scheduler: Address of the cluster; for ray, None starts one here.
        layout: "classes" (RAW/<class>/), "splits" (RAW/{train,val,test}/<class>/) or "auto".
        labels: CSV that names the videos and their classes, instead of folders.
        split: What is asked for of the split; the rest is as in the cache, or the default.
        allow_tiny_classes: Accept classes with fewer than 3 clips.
        ffmpeg_dir: Folder of the ffmpeg to use; None finds one.
        limits: Bounds for one video.
        check_contents: Believe hashes of videos and clips only, not sizes and times.
        retry_failed: Decode videos again that failed before.
        overwrite: Use nothing of an earlier cache; it may have another spec, or be damaged.
    """

    spec: Spec = Spec()
    workers: int = 1
    backend: str = "threads"
    scheduler: str | None = None
    layout: str = "auto"
    labels: Path | None = None
    split: SplitOverrides = SplitOverrides()
    allow_tiny_classes: bool = False
    ffmpeg_dir: Path | None = None
    limits: DecodeLimits = DecodeLimits()
    check_contents: bool = False
    retry_failed: bool = False
    overwrite: bool = False
