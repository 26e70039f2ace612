"""Flip and colour jitter: one draw per clip, the same for all its frames, on the device.

The draws are made on the host from `(seed, epoch, row)`, so they do not depend on batch size, thread, rank or resume;
only a few numbers per clip go to the device, and nothing comes back. Factors and formulas are those of torchvision's
`ColorJitter`.
"""

import dataclasses
import math

import numpy as np
import numpy.typing as npt
import torch

from vidcache.pixels import MEAN, STD, normalize, to_device

METHODS = ("linear", "exact", "none")
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
NUM_OPS = 4
_LUMA = np.array([0.2989, 0.587, 0.114])  # as torchvision's rgb_to_grayscale
# The NTSC standard: luminance first, then the plane that a change of hue rotates.
_TO_YIQ = np.array([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
_FROM_YIQ = np.linalg.inv(_TO_YIQ)


@dataclasses.dataclass(frozen=True)
class Strength:
    """Strength of the augmentation.

    Attributes:
        flip: Probability of a mirrored clip, 0 to 1.
        brightness: The factor is uniform in [max(0, 1 - b), 1 + b].
        contrast: As brightness.
        saturation: As brightness.
        hue: The shift is uniform in [-h, h], in turns of the colour circle; 0 to 0.5.
    """

    flip: float = 0.5
    brightness: float = 0.2
    contrast: float = 0.2
    saturation: float = 0.2
    hue: float = 0.1


@dataclasses.dataclass(frozen=True)
class Draws:
    """The augmentation of each clip of a batch.

    Attributes:
        flip: (B,) bool.
        factors: (B, 4) float64: brightness, contrast, saturation (1 changes nothing), hue (0 does).
        order: (B, 4) int64: which of the four is done first, second, ...
    """

    flip: npt.NDArray[np.bool_]
    factors: npt.NDArray[np.float64]
    order: npt.NDArray[np.int64]


def draw(rows: npt.NDArray[np.int64], strength: Strength, seed: int, epoch: int) -> Draws:
    """Draw the augmentation of each clip: a function of `(seed, epoch, row)` only.

    Args:
        rows: (B,) rows of the clips.
        strength: Strength of the augmentation.
        seed: Random seed of the run.
        epoch: From 1.
    """
    uniform = _uniform(rows, seed, epoch, 1 + 2 * NUM_OPS)
    spread = np.array([strength.brightness, strength.contrast, strength.saturation, strength.hue])
    centre = np.array([1.0, 1.0, 1.0, 0.0])
    low = np.where(centre == 1, np.maximum(centre - spread, 0), -spread)
    factors = low + uniform[:, 1 : 1 + NUM_OPS] * (centre + spread - low)
    return Draws(uniform[:, 0] < strength.flip, factors, uniform[:, 1 + NUM_OPS :].argsort(axis=1))


def augment(clips_BTHWC: torch.Tensor, draws: Draws, method: str, mean_rgb: npt.NDArray[np.float32]) -> torch.Tensor:
    """Mirror, jitter and normalise a batch.

    Args:
        clips_BTHWC: (B, T, H, W, 3) uint8 RGB on any device; not written to.
        draws: The result of `draw`.
        method: "linear" composes the jitter into one affine colour map per clip and clips colours once;
            "exact" is torchvision's functions step by step; "none" only mirrors.
        mean_rgb: (B, 3) mean colour of each clip, 0 to 255, as stored in the cache.

    Returns:
        (B, 3, T, H, W) float32, normalised, contiguous as `channels_last_3d`.

    Raises:
        ValueError: The method is unknown.

    >>> draws = draw(np.array([7, 9]), Strength(), seed=0, epoch=1)
    >>> clips = torch.zeros(2, 4, 8, 8, 3, dtype=torch.uint8)
    >>> augment(clips, draws, "linear", np.zeros((2, 3), np.float32)).shape
    torch.Size([2, 3, 4, 8, 8])
    """
    if method not in METHODS:
        raise ValueError(f"augment {method!r}, expected one of {', '.join(METHODS)}")
    flips = draws.flip.tolist()
    if method == "none":
        if any(flips):
            clips_BTHWC = torch.stack(
                [clip.flip(2) if flip else clip for clip, flip in zip(clips_BTHWC, flips, strict=True)]
            )
        return normalize(clips_BTHWC)
    out = torch.empty(clips_BTHWC.shape, dtype=torch.float32, device=clips_BTHWC.device)
    maps = jitter_maps(draws, mean_rgb) if method == "linear" else None
    # Clip by clip: a CPU finds what it has just written in its cache, and a GPU has enough to do with one.
    for index, flip in enumerate(flips):
        clip = clips_BTHWC[index].flip(2) if flip else clips_BTHWC[index]
        if maps is not None:
            _apply_map(clip, maps[index], out[index])
        else:
            _jitter_exactly(clip, draws.factors[index].tolist(), draws.order[index].tolist(), out[index])
    return out.permute(0, 4, 1, 2, 3)


def jitter_maps(draws: Draws, mean_rgb: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Compose jitter and normalisation into (B, 3, 4), one map per clip from RGB bytes (r, g, b, 1) to normalised RGB.

    Brightness scales, contrast mixes with the clip's mean grey, saturation with each pixel's grey, hue rotates the IQ
    plane; the mean grey is that of the clip after the steps before.
    """
    num_clips = len(draws.factors)
    brightness, contrast, saturation, hue = draws.factors.T
    eye = np.eye(3)
    linear = np.empty((num_clips, NUM_OPS, 3, 3))
    linear[:, BRIGHTNESS] = brightness[:, None, None] * eye
    linear[:, CONTRAST] = contrast[:, None, None] * eye
    linear[:, SATURATION] = saturation[:, None, None] * eye + (1 - saturation)[:, None, None] * _LUMA
    angle = 2 * np.pi * hue
    rotation = np.zeros((num_clips, 3, 3))
    rotation[:, 0, 0] = 1
    rotation[:, 1, 1] = rotation[:, 2, 2] = np.cos(angle)
    rotation[:, 1, 2], rotation[:, 2, 1] = -np.sin(angle), np.sin(angle)
    linear[:, HUE] = _FROM_YIQ @ rotation @ _TO_YIQ
    maps = np.broadcast_to(np.concatenate([eye, np.zeros((3, 1))], axis=1), (num_clips, 3, 4))
    mean = np.concatenate([mean_rgb, np.ones((num_clips, 1))], axis=1)[:, :, None]
    clip = np.arange(num_clips)
    for step in range(NUM_OPS):
        op = draws.order[:, step]
        grey = (_LUMA @ (maps @ mean))[:, 0]
        maps = linear[clip, op] @ maps
        maps[:, :, 3] += np.where(op == CONTRAST, (1 - contrast) * grey, 0.0)[:, None]
    normalised = maps / (255 * np.array(STD))[:, None]
    normalised[:, :, 3] -= np.array(MEAN) / np.array(STD)
    return np.asarray(normalised)


_ROWS = 1 << 12  # 4 pixels each: what the cache of a core holds (a fifth faster than all at once, measured)


def _apply_map(clip_THWC: torch.Tensor, colour_map: npt.NDArray[np.float64], out: torch.Tensor) -> None:
    """Apply a (3, 4) colour map to a uint8 clip, and bound the result as an image would."""
    # Four pixels to a row of the matrix, the map as often on its diagonal: more arithmetic than a product with a 3 x 3
    # matrix, but of a size at which products are fast (4 times, measured).
    num = math.gcd(clip_THWC.numel() // 3, 4)
    black, white = (np.array([(level - mean) / std for mean, std in zip(MEAN, STD, strict=True)]) for level in (0, 1))
    block = np.kron(np.eye(num), colour_map[:, :3].T)
    rows = np.stack([np.tile(row, num) for row in (colour_map[:, 3], black, white)])
    numbers = to_device(np.concatenate([block, rows]), clip_THWC.device)
    pixels, result = clip_THWC.reshape(-1, 3 * num), out.view(-1, 3 * num)
    num_rows = len(pixels) if clip_THWC.is_cuda else _ROWS
    for source, target in zip(torch.split(pixels, num_rows), torch.split(result, num_rows), strict=True):
        torch.addmm(numbers[-3], source.to(torch.float32), numbers[:-3], out=target)
        target.clamp_(numbers[-2], numbers[-1])


def _jitter_exactly(clip_THWC: torch.Tensor, factors: list[float], order: list[int], out: torch.Tensor) -> None:
    """Apply torchvision's functions to a uint8 clip, and normalise."""
    from torchvision.transforms.v2 import functional  # here: it takes half a second to import

    names = ("adjust_brightness", "adjust_contrast", "adjust_saturation", "adjust_hue")
    video = clip_THWC.permute(0, 3, 1, 2).to(torch.float32) / 255
    for op in order:
        video = getattr(functional, names[op])(video, factors[op])
    out.copy_(functional.normalize(video, list(MEAN), list(STD)).permute(0, 2, 3, 1))


def _uniform(rows: npt.NDArray[np.int64], seed: int, epoch: int, count: int) -> npt.NDArray[np.float64]:
    """Return numbers in [0, 1) from a counter: (B, count), for all rows at once.

    splitmix64 (Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators", 2014) of a counter that starts
    elsewhere for every `(seed, epoch, row)`: a torch or NumPy generator for each row takes 20 us to seed.
    """
    key = np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)[0]
    start = _mix(rows.astype(np.uint64) ^ key)
    with np.errstate(over="ignore"):
        counter = start[:, None] + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return np.asarray((_mix(counter) >> np.uint64(11)) * 2.0**-53, np.float64)


def _mix(z: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    with np.errstate(over="ignore"):
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
