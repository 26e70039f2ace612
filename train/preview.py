"""A look at the augmentation: clips before and after, as a filmstrip."""

import numpy as np
import numpy.typing as npt
import torch

from vidcache.cache.reader import Reader
from vidcache.cache.stream import Batch
from vidcache.filmstrip import Filmstrip, Pictures
from vidcache.pixels import MEAN, STD
from vidcache.sampling import sample_indices
from vidcache.text import printable
from vidcache.train.augment import Draws, Strength, augment, draw


def augmented_strips(
    reader: Reader,
    rows: npt.NDArray[np.int64],
    method: str,
    strength: Strength,
    *,
    num_frames: int = 8,
    seed: int = 0,
    epoch: int = 1,
) -> list[Filmstrip]:
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
        Filmstrip(
            f"{printable(reader.path_of(row))}: {_in_words(draws, index)}",
            (("before", clips[index, frames]), ("after", after[index])),
        )
        for index, row in enumerate(rows.tolist())
    ]


def batch_strips(reader: Reader, batch: Batch, inputs_BCTHW: torch.Tensor, *, num_frames: int = 8) -> list[Filmstrip]:
    """Show what a model is given: a row of frames of each clip.

    Args:
        reader: The cache that the batch came from.
        batch: Which clips.
        inputs_BCTHW: (B, 3, T', H, W), augmented and normalised.
        num_frames: Frames of each clip to show, at most.
    """
    count = inputs_BCTHW.shape[2]
    frames = sample_indices(count, min(num_frames, count))
    pictures = to_pictures(inputs_BCTHW)[:, frames]
    return [
        Filmstrip(printable(reader.path_of(row)), ((printable(reader.classes[label])[:12], pictures[index]),))
        for index, (row, label) in enumerate(zip(batch.rows.tolist(), batch.labels.tolist(), strict=True))
    ]


def to_pictures(inputs_BCTHW: torch.Tensor) -> Pictures:
    """Undo the normalisation: from (B, 3, T, H, W) to (B, T, H, W, 3) uint8 RGB."""
    values = inputs_BCTHW.permute(0, 2, 3, 4, 1).cpu().numpy() * np.array(STD) + np.array(MEAN)
    return np.asarray((values * 255).round().clip(0, 255), np.uint8)


def _in_words(draws: Draws, index: int) -> str:
    brightness, contrast, saturation, hue = draws.factors[index].tolist()
    mirrored = "mirrored, " if draws.flip[index] else ""
    jitter = f"brightness x{brightness:.2f}, contrast x{contrast:.2f}, saturation x{saturation:.2f}, hue {hue:+.2f}"
    return mirrored + jitter
