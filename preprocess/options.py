"""How to build a cache; and what is refused before anything is decoded."""

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import click

from vidcache.cache.builds import Skeleton
from vidcache.cache.reader import CacheReader
from vidcache.cli import option
from vidcache.errors import InputError
from vidcache.preprocess.split.assign import MIN_CLASS_CLIPS
from vidcache.preprocess.split.config import SplitConfig, SplitOverrides
from vidcache.preprocess.split.groups import GroupBy
from vidcache.preprocess.video.classes import LAYOUTS, LISTED
from vidcache.preprocess.video.decode import DecodeLimits
from vidcache.preprocess.video.find import Sources
from vidcache.spec import Spec
from vidcache.text import printable

BACKENDS = ("threads", "dask", "ray")


@dataclasses.dataclass(frozen=True)
class BuildOptions:
    """How to build; the defaults are those of the command, which has a worker for each CPU.

    Attributes:
        spec: Shape of the clips.
        workers: Videos decoded in parallel by this machine.
        backend: "threads" of this process, or the workers of a "dask" or "ray" cluster.
        scheduler: Address of the cluster; for ray, None starts one here.
        layout: "classes" (`RAW/<class>/`), "splits" (`RAW/{train,val,test}/<class>/`) or "auto".
        labels: CSV that names the videos and their classes, instead of folders.
        split: How to split; the rest is as in an existing cache, or the default.
        allow_tiny_classes: Accept classes with fewer than 3 clips.
        ffmpeg_dir: Folder of the ffmpeg to use; None finds one.
        limits: Bounds for one video.
        check_contents: Compare hashes of videos and clips, not sizes and times.
        retry_failed: Decode videos again that failed before.
        overwrite: Ignore an existing cache; it may have another spec, or be damaged.
    """

    spec: Spec = Spec()
    workers: int = 1
    backend: str = "threads"
    scheduler: str | None = None
    layout: str = "auto"
    labels: Path | None = None
    split: SplitOverrides = dataclasses.field(default_factory=SplitOverrides)
    allow_tiny_classes: bool = False
    ffmpeg_dir: Path | None = None
    limits: DecodeLimits = DecodeLimits()
    check_contents: bool = False
    retry_failed: bool = False
    overwrite: bool = False


follow_links_option = option(
    "--follow-links", is_flag=True, show_default=False, group="Videos", help="Follow links to folders and videos."
)


def source_options(command: Any) -> Any:
    """Add the options that say what the classes are, and whether links are followed."""
    layout_help = "RAW/<class>/ (classes) or RAW/{train,val,test}/<class>/ (splits); auto goes by the folders' names."
    labels_help = "CSV with the columns path,label[,split][,group]: the videos below RAW and their classes."
    labels_type = click.Path(path_type=Path, dir_okay=False)
    command = follow_links_option(command)
    command = option("--labels", envvar=None, type=labels_type, group="Videos", help=labels_help)(command)
    return option("--layout", type=click.Choice(LAYOUTS), default="auto", group="Videos", help=layout_help)(command)


def check_source_options(layout: str, labels: Path | None) -> None:
    """Refuse options that contradict each other; raises click.UsageError."""
    if labels and layout != "auto":
        raise click.UsageError(f"--layout {layout} cannot be combined with --labels")


def check_class_sizes(counts: Counter[bytes], noun: str) -> None:
    """Refuse classes that cannot be in train, val and test; raises InputError with their names."""
    tiny = [f"{printable(name)} ({count})" for name, count in sorted(counts.items()) if count < MIN_CLASS_CLIPS]
    if tiny:
        raise InputError(
            f"classes with fewer than {MIN_CLASS_CLIPS} {noun}, one each for train, val and test: {', '.join(tiny)}. "
            "Add videos, or accept it with --allow-tiny-classes"
        )


def choose_split(finished: CacheReader | None, sources: Sources, overrides: SplitOverrides) -> SplitConfig:
    """Split as asked for; else as in the finished cache; else as lists or folders say, or by default."""
    config = SplitConfig(source="folders" if sources.class_depth == 1 else "fractions")
    is_kept = finished is not None and int(finished.attributes["class_depth"]) == sources.class_depth
    if finished and is_kept:
        config = SplitConfig.from_attributes(finished.attributes)
    labels = sources.labels
    # A cache keeps no lists: what it was split by is named again with the labels.
    if labels and labels.has_split and "source" not in overrides and (not is_kept or config.source == "files"):
        overrides = {**overrides, "source": "files", "files": (labels.file,)}
    if labels and labels.has_group and "group_by" not in overrides and (not is_kept or config.group_by.by == "file"):
        overrides = {**overrides, "group_by": GroupBy("file", labels.file)}
    return config.override(overrides)


def unused_columns(config: SplitConfig, sources: Sources, overrides: SplitOverrides) -> tuple[str, ...]:
    """Name the columns of the labels that do not split the cache, as it was split before or since, and nobody chose."""
    labels = sources.labels
    if labels is None:
        return ()
    file, notes = printable(labels.file), []
    unused = f"of {file} is not used: the cache is"
    if labels.has_split and "source" not in overrides and config.source != "files":
        notes.append(f"the column split {unused} split by {config.source}. Use it with --split-file {file}")
    if labels.has_group and "group_by" not in overrides and config.group_by.by != "file":
        notes.append(f"the column group {unused} grouped by {config.group_by.by}. Use it with --group-by file:{file}")
    return tuple(notes)


def check_reading(output: Path, attributes: dict[str, Any], sources: Sources, options: BuildOptions) -> None:
    """Refuse to read the folders in another way than before: videos would get other classes, or linked ones be lost."""
    depth, where = int(attributes["class_depth"]), printable(output)
    if depth != sources.class_depth and options.layout == "auto" and not options.labels:
        origin = {LISTED: "a list", 0: "RAW/<class>/"}.get(depth, "RAW/<split>/<class>/")
        raise InputError(
            f"{where}: has its classes from {origin}, but the folders now read in another way. Name --labels or "
            "--layout again, or choose another name for the cache"
        )
    if attributes.get("follow_links") and not options.limits.follow_links:
        raise InputError(
            f"{where}: was built with --follow-links, and without it linked videos would be lost. Name the option "
            "again, or choose another name for the cache"
        )


def check_spec(output: Path, spec: Spec, finished: CacheReader | None, partial: list[Skeleton]) -> None:
    """Refuse earlier builds of this cache with other clips."""
    builds: list[Skeleton | CacheReader] = [*partial, *([finished] if finished else [])]
    for build in builds:
        if build.spec != spec:
            state = "holds" if build is finished else "is half built with"
            is_same_size = str(build.spec) == str(spec)  # then the rules differ, with the version of vidcache
            present, wanted = (repr(build.spec), repr(spec)) if is_same_size else (str(build.spec), str(spec))
            raise InputError(f"{printable(output)}: {state} clips of {present}, not of {wanted}. Use another name")
