"""Test data is made here, not stored: videos whose brightness is the frame number, caches without ffmpeg."""

import contextlib
import dataclasses
import functools
import io
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import h5py
import numpy as np
import numpy.typing as npt
import pytest

from vidcache.cache import format as layout
from vidcache.cache.builds import Manifest
from vidcache.cache.format import RECORD, Split, Status, clip_hash_of
from vidcache.cache.reader import CacheReader
from vidcache.cache.writer import CacheWriter
from vidcache.near_duplicates import perceptual_hash
from vidcache.preprocess.build import plan_attributes
from vidcache.preprocess.split.assign import assign_splits
from vidcache.preprocess.split.config import SplitConfig
from vidcache.preprocess.video.ffmpeg import find_tools
from vidcache.spec import Spec

TOOLS = find_tools()
CHECKOUT = Path(__file__).parents[1]
SHARED = Path(__file__).parents[2] / "shared" / "data"


def skip_without_checkout() -> None:
    """Skip the test, or the module, that reads more than the package: `make test-wheel` has nothing else."""
    if not (CHECKOUT / "pyproject.toml").exists():
        pytest.skip("reads the checkout, which is not here", allow_module_level=True)


def run_ffmpeg(*arguments: str) -> None:
    """Run the ffmpeg of the tests; its errors are ours."""
    subprocess.run([TOOLS.ffmpeg, "-nostdin", "-v", "error", "-y", *arguments], check=True)


def make_video(
    path: Path,
    num_frames: int = 40,
    *,
    step: int = 4,
    first: int = 0,
    size: str = "64x48",
    rate: int = 25,
    codec: tuple[str, ...] = ("-c:v", "ffv1"),
) -> Path:
    """Render a video whose brightness is `(first + step * frame) % 256`; lossless by default."""
    path.parent.mkdir(parents=True, exist_ok=True)
    source = f"color=c=black:s={size}:r={rate},format=gray,geq=lum='mod({first}+N*{step},256)'"
    run_ffmpeg("-f", "lavfi", "-i", source, "-frames:v", str(num_frames), *codec, str(path))
    return path


def make_raw(folder: Path, counts: dict[str, int], *, num_frames: int = 24) -> Path:
    """Render a labelled folder of small videos, each with another first brightness."""
    number = 0
    for name, count in counts.items():
        for index in range(count):
            make_video(folder / name / f"{name}_{index}.mkv", num_frames, first=number * 5, step=2)
            number += 1
    return folder


def make_record(clip: npt.NDArray[np.uint8], status: Status = Status.OK, error: str = "", **values: Any) -> np.void:
    """A journal record for a clip that no ffmpeg made."""
    record = np.zeros((), RECORD)
    record["status"], record["error"] = status, error.encode()
    if status is not Status.FAILED:
        record["clip_hash"] = clip_hash_of(clip).encode()
        record["source_hash"] = clip_hash_of(clip).encode()
        record["mean_rgb"] = clip.reshape(-1, 3).mean(axis=0)
        record["num_real"] = len(clip)
        record["perceptual_hash"] = perceptual_hash(clip)
    for name, value in values.items():
        record[name] = value
    return record[()]


def make_plan(spec: Spec, classes: list[str], labels: npt.NDArray[np.int64], *, prefix: str = "video") -> Manifest:
    """A plan for made-up clips."""
    paths = sorted(f"{classes[label]}/{prefix}_{row:04}.mp4".encode() for row, label in enumerate(labels.tolist()))
    index = {name.encode(): label for label, name in enumerate(classes)}
    return Manifest(
        spec=spec,
        classes=tuple(name.encode() for name in classes),
        paths=tuple(paths),
        labels=tuple(index[path.split(b"/")[0]] for path in paths),
        source_bytes=tuple(range(len(paths))),
        source_mtime_ns=tuple(range(len(paths))),
        attributes=plan_attributes(spec, 0, SplitConfig(), "none"),
    )


def make_cache(
    path: Path,
    counts: dict[str, int],
    *,
    spec: Spec = Spec(4, 16, 16),
    failed: tuple[int, ...] = (),
    seed: int = 0,
    learnable: bool = False,
    prefix: str = "video",
    make: Callable[..., npt.NDArray[np.uint8]] | None = None,
) -> Path:
    """Write a cache of random clips, without ffmpeg.

    Learnable clips get brighter or darker over time by their class, so that a model can learn it; `make` draws others.
    """
    classes = sorted(counts)
    labels = np.repeat(np.arange(len(classes)), [counts[name] for name in classes])
    plan = make_plan(spec, classes, labels, prefix=prefix)
    with CacheWriter(path, plan) as writer:
        for row in range(plan.num_clips):
            clip = (make or make_clip)(spec, row, seed, plan.labels[row] if learnable else None)
            if row in failed:
                writer.mark_done(row, make_record(clip, Status.FAILED, "no_frames: made to fail"))
                continue
            writer.write_clip(row, clip)
            writer.mark_done(row, make_record(clip))
        good = np.array([row not in failed for row in range(plan.num_clips)])
        split = assign_splits(plan.paths, plan.labels, good, (0.7, 0.15, 0.15), seed)
        writer.finish(np.arange(plan.num_clips, dtype=np.int32), split)
    return path


def make_clip(spec: Spec, row: int, seed: int = 0, label: int | None = None) -> npt.NDArray[np.uint8]:
    """A random clip; with a label, the place of a bright stripe moves by it."""
    rng = np.random.default_rng([seed, row])
    clip = rng.integers(0, 256 if label is None else 60, spec.clip_shape, np.uint8)
    if label is not None:
        for frame in range(spec.num_frames):
            clip[frame, :, (label * 5 + frame) % spec.width] = 255
    return clip


def forge_cache(path: Path, change: Callable[[h5py.File], object], **header: str) -> Path:
    """Alter the structure of a cache and make its header right again, as an attacker would."""
    old = layout.Header.from_bytes(path.read_bytes()[: layout.USER_BLOCK_BYTES], "c.h5")
    with h5py.File(path, "r+") as file:
        change(file)
    size = max(path.stat().st_size, old.file_bytes)
    os.truncate(path, size)
    with path.open("r+b") as raw:
        found = layout.metadata_hash_of(raw.fileno(), old.clips_offset, old.num_clips * old.clip_bytes, size)
        raw.write(dataclasses.replace(old, file_bytes=size, metadata_hash=found, **header).to_bytes())
    return path


@contextlib.contextmanager
def tiny_models() -> Iterator[None]:
    """Train and load `TinyModel` instead of R3D-18."""
    from tests.tiny_model import TinyModel
    from vidcache.eval import inference
    from vidcache.train import loop

    with (
        mock.patch.object(loop, "build_model", lambda num_classes, _, freeze: TinyModel(num_classes, freeze)),
        mock.patch.object(inference, "R3D18", TinyModel),
    ):
        yield


@functools.cache
def blank_png() -> bytes:
    """One white pixel, with the mark of a picture that vidcache drew."""
    from PIL import Image, PngImagePlugin

    mark = PngImagePlugin.PngInfo()
    mark.add_text("Software", "vidcache")
    file = io.BytesIO()
    Image.new("RGB", (1, 1), "white").save(file, "png", pnginfo=mark)
    return file.getvalue()


def read_split(path: Path, split: Split) -> list[bytes]:
    """Paths of the clips of a split."""
    with CacheReader(path) as reader:
        return [reader.path_of(row) for row in reader.rows(split.name.lower()).tolist()]


def damage_clip(path: Path, row: int) -> None:
    """Flip a bit of a clip on disk; twice leaves it as it was."""
    with CacheReader(path) as reader:
        offset = reader.header.clips_offset + row * reader.spec.clip_bytes + 50
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))
