"""The feature cache: what the frozen stages make of every clip, computed once into a file beside the cache.

Frozen stages compute the same thing for the same input, and of a clip there are only as many inputs as views. View v
is the augmentation of epoch v + 1, so that the first epochs of a run with and of one without this file see the same.
"""

import contextlib
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import xxhash
from torch import nn

from vidcache.errors import CacheError, InputError
from vidcache.files import free_bytes
from vidcache.text import plural, printable
from vidcache.train.config import TrainConfig
from vidcache.train.data import ClipLoader, TrainingData
from vidcache.train.feature_cache import FeaturePlan, FeatureReader, FeatureWriter, is_feature_file


def plan_features(
    task: TrainingData, frozen: nn.Sequential, clips: ClipLoader, computed_in: torch.dtype
) -> tuple[FeaturePlan, npt.NDArray[np.int64]]:
    """Say what a file of features has to hold.

    Args:
        task: Of the run; the `feature_views` of its config are the views of each training clip (K).
        frozen: The frozen stages, with their final weights.
        clips: Gives the clips to compute the features of.
        computed_in: What the frozen stages compute in.

    Returns:
        The plan, and (N, K + 1) the entry of each row and view, the last column without augmentation, -1 for none.
    """
    reader, config = task.reader, task.config
    views = config.feature_views or 0
    train, others = task.rows, np.concatenate([reader.rows("val"), reader.rows("test")])
    # View by view: an epoch reads one part of the file, and a batch that is computed is of one view.
    rows = np.concatenate([np.tile(train, views), others])
    which = np.concatenate([np.repeat(np.arange(views), len(train)), np.full(len(others), -1)]).astype(np.int32)
    with contextlib.closing(clips.stream([train[:1]], None)) as stream:
        channels, *shape = clips.features(next(stream), None).shape[1:]
    digest = xxhash.xxh3_128()
    for name, tensor in sorted(frozen.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    facts: dict[str, str | int | float] = {
        "fingerprint": reader.fingerprint,
        "split_hash": reader.split_hash,
        "frozen_weights": digest.hexdigest(),
        "freeze": config.freeze,
        "num_frames_used": config.num_frames_used or reader.spec.num_frames,
        "views": views,
        "augment": config.augment,
        "strength": json.dumps(dataclasses.asdict(config.strength), sort_keys=True),
        "seed": config.seed,
        "computed_in": str(computed_in).removeprefix("torch."),
        "torch": str(torch.__version__),
    }
    entries = np.full((len(reader), views + 1), -1)
    entries[rows, which] = np.arange(len(rows))
    return FeaturePlan(facts, rows, which, (shape[0], shape[1], shape[2], channels)), entries


def open_features(path: Path, plan: FeaturePlan) -> FeatureReader | None:
    """Open a file of features if it is there, whole, and of this plan.

    Raises:
        InputError: The path is that of another kind of file.
    """
    if path.exists() and not is_feature_file(path):
        raise InputError(f"{printable(path)}: no file of features, expected one or nothing. Choose another place")
    try:
        reader = FeatureReader(path)
    except CacheError:
        return None
    if (reader.key, len(reader), reader.shape) == (plan.key, len(plan.rows), plan.shape):
        return reader
    reader.close()
    return None


def compute_features(
    path: Path,
    plan: FeaturePlan,
    clips: ClipLoader,
    config: TrainConfig,
    on_done: Callable[[int, int], None],
    should_stop: Callable[[], bool],
) -> bool:
    """Compute what is missing of a file of features, and publish it.

    Args:
        path: The file; what was there is replaced in the end.
        plan: What it is to hold.
        clips: Gives the clips, and runs the frozen stages.
        config: Of the run.
        on_done: Told how many entries are there, of how many.
        should_stop: Asked after every batch; what is done by then is kept.

    Returns:
        Whether all is there.

    Raises:
        LockedError: Another process computes them.
        VidcacheError: The disk has no room for them.
        OSError: The disk is full or broken.
    """
    with FeatureWriter(path, plan) as writer:
        size = -(-config.batch_size // config.accumulate)
        parts = np.split(np.arange(len(plan.rows)), np.flatnonzero(np.diff(plan.views)) + 1)
        left = [part[part >= writer.num_done] for part in parts]
        chunks = [part[start : start + size] for part in left for start in range(0, len(part), size)]
        with contextlib.closing(clips.stream([plan.rows[chunk] for chunk in chunks], None)) as stream:
            for chunk, batch in zip(chunks, stream, strict=True):
                view = int(plan.views[chunk[0]])
                writer.write(to_bytes(clips.features(batch, None if view < 0 else view + 1)))
                on_done(writer.num_done, len(plan.rows))
                if should_stop():
                    return False
        writer.finish()
    return True


def to_bytes(features: torch.Tensor) -> npt.NDArray[np.uint8]:
    """Round (B, C, T', H', W') to bfloat16 and return the bytes: (B, T', H', W', 2 C) uint8."""
    low = features.to(torch.bfloat16).permute(0, 2, 3, 4, 1).contiguous()
    return np.asarray(low.view(torch.uint8).cpu().numpy(), np.uint8)


def in_words(path: Path, plan: FeaturePlan, *, is_there: bool) -> str:
    """Say what a file of features is, and costs."""
    count, size = len(plan.rows), plan.entry_bytes
    what = f"{plural(count, 'entry', 'entries')} of {size / 1e6:.2f} MB = {count * size / 1e9:.2f} GB"
    if is_there:
        return f"features: {what} in {printable(path)}, as they were computed before"
    free = free_bytes(path.parent) / 1e9
    return (
        f"features: computing {what} into {printable(path)} ({free:.1f} GB free there): "
        f"{plural(int(plan.facts['views']), 'view')} of each training clip, every other clip once"
    )
