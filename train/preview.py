"""A look at the augmentation: clips before and after, as a filmstrip."""

import dataclasses
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.figure import Figure

from vidcache.cache.reader import Reader
from vidcache.files import write_atomically
from vidcache.pixels import MEAN, STD
from vidcache.sampling import sample_indices
from vidcache.text import printable
from vidcache.train.augment import Draws, Strength, augment, draw

Pictures = npt.NDArray[np.uint8]


@dataclasses.dataclass(frozen=True)
class Strip:
    """One clip, before and after.

    Attributes:
        title: Which clip, and what was drawn for it.
        before: (F, H, W, 3) uint8 RGB.
        after: The same frames, augmented.
    """

    title: str
    before: Pictures
    after: Pictures


def augmented_strips(
    reader: Reader,
    rows: npt.NDArray[np.int64],
    method: str,
    strength: Strength,
    *,
    num_frames: int = 8,
    seed: int = 0,
    epoch: int = 1,
) -> list[Strip]:
    """Augment clips as training does.

    Args:
        reader: The cache.
        rows: (B,) clips to show.
        method: "linear", "exact" or "none".
        strength: Of the augmentation.
        num_frames: Frames of each clip to show (F).
        seed: Of the run.
        epoch: Of the run, from 1.
    """
    draws = draw(rows, strength, seed, epoch)
    clips = reader.read(rows)
    inputs = augment(torch.from_numpy(clips), draws, method, reader.columns["mean_rgb"][rows])
    frames = sample_indices(reader.spec.num_frames, num_frames)
    after = to_pictures(inputs)[:, frames]
    return [
        Strip(f"{printable(reader.path_of(row))}: {_in_words(draws, index)}", clips[index, frames], after[index])
        for index, row in enumerate(rows.tolist())
    ]


def to_pictures(inputs_BCTHW: torch.Tensor) -> Pictures:
    """Undo the normalisation: from (B, 3, T, H, W) to (B, T, H, W, 3) uint8 RGB."""
    values = inputs_BCTHW.permute(0, 2, 3, 4, 1).cpu().numpy() * np.array(STD) + np.array(MEAN)
    return np.asarray((values * 255).round().clip(0, 255), np.uint8)


def draw_strips(strips: list[Strip], path: Path) -> None:
    """Write strips as a PNG, two rows of frames to each."""
    num_frames, height, width = strips[0].before.shape[:3]
    frame_inches = 1.1
    size = (num_frames * frame_inches, len(strips) * (2 * frame_inches * height / width + 0.35))
    figure = Figure(figsize=size, dpi=130, layout="constrained")
    for part, strip in zip(np.atleast_1d(np.array(figure.subfigures(len(strips), 1))), strips, strict=True):
        part.suptitle(strip.title, fontsize=7, x=0.01, ha="left")
        axes = part.subplots(2, num_frames, squeeze=False)
        for name, pictures, line in zip(("before", "after"), (strip.before, strip.after), axes, strict=True):
            for picture, axis in zip(pictures, line, strict=True):
                axis.imshow(picture, interpolation="nearest")
                axis.set(xticks=[], yticks=[])
            line[0].set_ylabel(name, fontsize=7)
    write_atomically(path, lambda file: figure.savefig(file, format="png"))


def _in_words(draws: Draws, index: int) -> str:
    brightness, contrast, saturation, hue = draws.factors[index].tolist()
    mirrored = "mirrored, " if draws.flip[index] else ""
    jitter = f"brightness x{brightness:.2f}, contrast x{contrast:.2f}, saturation x{saturation:.2f}, hue {hue:+.2f}"
    return mirrored + jitter
