"""Clips to compare an exported file with its model on: of a cache where one is at hand, else made."""

from pathlib import Path

import numpy as np

from vidcache.cache.joined import open_caches
from vidcache.cache.reader import CacheReader, Reader
from vidcache.checkpoint import Checkpoint
from vidcache.errors import CacheError, InputError
from vidcache.eval.export import BATCH_SIZES, CheckClips
from vidcache.eval.loading import check_match
from vidcache.files import follow, read_json
from vidcache.sampling import sample_indices
from vidcache.text import plural, printable

NUM_CLIPS = sum(BATCH_SIZES)
_MAX_CACHES = 100
_GRID = 8  # the coarse pattern that moves, in cells along a side


def find_clips(ckpt: Path, checkpoint: Checkpoint, cache: Path | None = None) -> CheckClips:
    """Take clips of a cache: the given one, else what the checkpoint was trained on, if it is there; else make some.

    Args:
        ckpt: File of the checkpoint.
        checkpoint: What it holds.
        cache: May have other content or another split, but not another spec or other classes. None looks into
            best.run/ beside best.pt, where the run has left the names of its caches.

    Raises:
        CacheError: The given cache cannot be read.
        InputError: The given cache has no clips.
        MismatchError: The given cache has another spec or other classes.
    """
    if cache is not None:
        with CacheReader(cache) as reader:
            check_match(checkpoint, reader, printable(ckpt), allow_mismatch=True)
            return _real_clips(reader, checkpoint)
    for paths in _caches_of_run(ckpt):
        try:
            with open_caches(paths) as found:
                if (found.fingerprint, found.spec) == (checkpoint.fingerprint, checkpoint.spec):
                    return _real_clips(found, checkpoint)
        except CacheError:
            continue  # moved or gone since: that others are taken is said
    return made_clips(checkpoint)


def made_clips(checkpoint: Checkpoint) -> CheckClips:
    """Make clips, the same every time: noise, and in every other one a coarse pattern that moves."""
    spec, rng = checkpoint.spec, np.random.default_rng(0)
    shape = (checkpoint.num_frames_used, spec.height, spec.width, 3)
    clips = rng.integers(0, 256, (NUM_CLIPS, *shape), np.uint8)
    for clip in clips[1::2]:
        cells = rng.integers(0, 256, (_GRID, _GRID, 3), np.uint8)
        rows, columns = (np.arange(size) * _GRID // size for size in shape[1:3])
        step = rng.integers(-3, 4, 2)
        for number, frame in enumerate(clip):
            frame[:] = np.roll(cells[rows[:, None], columns], step * number, axis=(0, 1))
    return CheckClips(plural(NUM_CLIPS, "made clip"), clips, NUM_CLIPS, is_real=False)


def _real_clips(reader: Reader, checkpoint: Checkpoint) -> CheckClips:
    """Read clips from all over a cache; where it has too few, the last one again."""
    rows = reader.rows()
    if not len(rows):
        raise InputError(f"{reader.name}: no clips, expected at least one to compare on. Leave --cache out")
    chosen = rows[sample_indices(len(rows), NUM_CLIPS)]
    clips = reader.read(chosen, sample_indices(checkpoint.spec.num_frames, checkpoint.num_frames_used))
    num_clips = len(np.unique(chosen))
    return CheckClips(f"{plural(num_clips, 'clip')} of {reader.name}", clips, num_clips, is_real=True)


def _caches_of_run(ckpt: Path) -> list[list[Path]]:
    """Say where the caches of a run may be: as they were named then, from here or from beside the checkpoint."""
    said = read_json(follow(ckpt).with_suffix(".run") / "config.json").get("caches")
    if (
        type(said) is not list
        or len(said) > _MAX_CACHES
        or not all(type(name) is str and "\0" not in name for name in said)
    ):
        return []
    names = [Path(name) for name in said]
    return [names, [ckpt.parent / name for name in names]] if names else []
