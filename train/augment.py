"""Flip and colour jitter: one draw per clip, the same for all its frames, on the device.

The draws are made on the host from `(seed, epoch, row)`, so they do not depend on batch size,
thread, rank or resume; only a few numbers per clip go to the device, and nothing comes back.
Factors and formulas are those of torchvision's `ColorJitter`.
"""

import dataclasses

import numpy as np
import numpy.typing as npt
import torch

from vidcache.pixels import MEAN, STD, ColorMatrix, apply_color_matrix, normalization, normalize, to_device

METHODS = ("linear", "exact", "none")
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
NUM_OPS = 4
_LUMA = np.array([0.2989, 0.587, 0.114])  # as torchvision's rgb_to_grayscale
# Of the NTSC standard: luminance first, then the plane that a change of hue turns.
_TO_YIQ = np.array([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
_FROM_YIQ = np.linalg.inv(_TO_YIQ)


@dataclasses.dataclass(frozen=True)
class Strength:
    """How strong the augmentation is.

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
    """What happens to each clip of a batch.

    Attributes:
        flip: (B,) bool.
        factors: (B, 4) float64: brightness, contrast, saturation (1 changes nothing), hue (0 does).
        order: (B, 4) int64: which of the four is done first, second, ...
    """

    flip: npt.NDArray[np.bool_]
    factors: npt.NDArray[np.float64]
    order: npt.NDArray[np.int64]


def draw(rows: npt.NDArray[np.int64], strength: Strength, seed: int, epoch: int) -> Draws:
    """Draw what happens to each clip: a function of `(seed, epoch, row)` only.

    Args:
        rows: (B,) rows of the clips.
        strength: How much.
        seed: Of the run.
        epoch: From 1.
    """
    uniform = _uniform(rows, seed, epoch, 1 + 2 * NUM_OPS)
    spread = np.array([strength.brightness, strength.contrast, strength.saturation, strength.hue])
    centre = np.array([1.0, 1.0, 1.0, 0.0])
    low = np.where(centre == 1, np.maximum(centre - spread, 0), -spread)
    factors = low + uniform[:, 1 : 1 + NUM_OPS] * (centre + spread - low)
    return Draws(uniform[:, 0] < strength.flip, factors, uniform[:, 1 + NUM_OPS :].argsort(axis=1))


def augment(
    clips_BTHWC: torch.Tensor,
    draws: Draws,
    method: str,
    mean_rgb: npt.NDArray[np.float32],
) -> torch.Tensor:
    """Mirror, jitter and normalise a batch.

    Args:
        clips_BTHWC: (B, T, H, W, 3) uint8 RGB on any device; not written to.
        draws: From `draw`.
        method: "linear" composes the jitter into one affine map per clip and clips colours once;
            "exact" is torchvision's formulas step by step; "none" only mirrors.
        mean_rgb: (B, 3) mean colour of each clip, 0 to 255, as stored in the cache.

    Returns:
        (B, 3, T, H, W) float32, normalised, contiguous as `channels_last_3d`.

    Raises:
        ValueError: There is no such method.
    """
    if method not in METHODS:
        raise ValueError(f"augment {method!r}, expected one of {', '.join(METHODS)}")
    if method == "exact":
        return _jitter_exactly(clips_BTHWC, draws)
    if method == "none" and not draws.flip.any():
        return normalize(clips_BTHWC)
    if method == "linear":
        maps = jitter_maps(draws, mean_rgb)
    else:
        maps = np.broadcast_to(normalization(), (len(draws.flip), 3, 4))
    return apply_color_matrix(clips_BTHWC, maps, draws.flip)


def jitter_maps(draws: Draws, mean_rgb: npt.NDArray[np.float32]) -> ColorMatrix:
    """Compose jitter and normalisation into one affine map per clip.

    Brightness scales, contrast mixes with the clip's mean grey, saturation with each pixel's grey,
    hue turns the IQ plane; the mean grey is that of the clip as the steps before have made it.

    Args:
        draws: B draws.
        mean_rgb: (B, 3) mean colour of each clip, 0 to 255.

    Returns:
        (B, 3, 4), from RGB bytes to normalised RGB.
    """
    num_clips = len(draws.factors)
    brightness, contrast, saturation, hue = draws.factors.T
    eye = np.eye(3)
    linear = np.empty((num_clips, NUM_OPS, 3, 3))
    linear[:, BRIGHTNESS] = brightness[:, None, None] * eye
    linear[:, CONTRAST] = contrast[:, None, None] * eye
    linear[:, SATURATION] = saturation[:, None, None] * eye + (1 - saturation)[:, None, None] * _LUMA
    angle = 2 * np.pi * hue
    turn = np.zeros((num_clips, 3, 3))
    turn[:, 0, 0] = 1
    turn[:, 1, 1] = turn[:, 2, 2] = np.cos(angle)
    turn[:, 1, 2], turn[:, 2, 1] = -np.sin(angle), np.sin(angle)
    linear[:, HUE] = _FROM_YIQ @ turn @ _TO_YIQ
    maps = np.broadcast_to(np.concatenate([eye, np.zeros((3, 1))], axis=1), (num_clips, 3, 4))
    mean = np.concatenate([mean_rgb, np.ones((num_clips, 1))], axis=1)[:, :, None]
    clip = np.arange(num_clips)
    for step in range(NUM_OPS):
        op = draws.order[:, step]
        grey = (_LUMA @ (maps @ mean))[:, 0]
        maps = linear[clip, op] @ maps
        maps[:, :, 3] += np.where(op == CONTRAST, (1 - contrast) * grey, 0.0)[:, None]
    norm = normalization()
    normalised: ColorMatrix = norm[:, :3] @ maps
    normalised[:, :, 3] += norm[:, 3]
    return normalised


def _jitter_exactly(clips_BTHWC: torch.Tensor, draws: Draws) -> torch.Tensor:
    """Torchvision's float formulas, colour plane by colour plane, for all clips at once.

    At each step, every clip has another operation. Brightness, contrast and saturation are all
    `a * x + b * grey(x) + c * mean grey`, and with 1, 0, 0 nothing happens: that is done to all
    clips. Only hue is done to the clips whose turn it is.
    """
    device = clips_BTHWC.device
    num_clips, num_frames, height, width, _ = clips_BTHWC.shape
    clip = np.arange(num_clips)
    steps: list[list[torch.Tensor]] = []
    for op in draws.order.T:
        factor = draws.factors[clip, op]
        whose_turn = np.flatnonzero(op == HUE)  # on the host: no synchronisation
        numbers = (
            np.where(op == HUE, 1.0, factor),
            np.where(op == SATURATION, 1 - factor, 0.0),
            np.where(op == CONTRAST, 1 - factor, 0.0),
            6 * factor[whose_turn],
        )
        steps.append([*(to_device(values[:, None, None], device) for values in numbers), to_device(whose_turn, device)])
    mean, std = (to_device(np.array(values)[:, None, None, None, None], device) for values in (MEAN, STD))
    flip = to_device(draws.flip, device)[:, None, None, None, None]
    mirrored = torch.where(flip, clips_BTHWC.flip(3), clips_BTHWC)
    x = mirrored.permute(4, 0, 1, 2, 3).reshape(3, num_clips, num_frames, height * width).to(torch.float32).div_(255)
    for scale, with_grey, with_mean, shift, turned in steps:
        grey = torch.mul(x[0], _LUMA[0]).add_(x[1], alpha=_LUMA[1]).add_(x[2], alpha=_LUMA[2])
        # torchvision mixes every frame with its own mean; `jitter_maps` uses the mean of the clip.
        other = grey.mean(dim=2, keepdim=True).mul_(with_mean)
        x.mul_(scale).add_(grey.mul_(with_grey).add_(other)).clamp_(0, 1)
        if len(turned):
            planes = x.index_select(1, turned)
            _turn_hue(planes, shift)
            x.index_copy_(1, turned, planes)
    shown = x.view(3, num_clips, num_frames, height, width).sub_(mean).div_(std)
    return shown.transpose(0, 1).contiguous(memory_format=torch.channels_last_3d)


def _turn_hue(planes: torch.Tensor, shift: torch.Tensor) -> None:
    """Shift the hue in place, by way of HSV (Foley et al., "Computer Graphics", 1990, section 13.3).

    Args:
        planes: (3, B, T, n) red, green, blue, 0 to 1.
        shift: (B, 1, 1) in sixths of the colour circle.
    """
    red, green, blue = planes
    value, low, chroma, divisor, hue, other = (torch.empty_like(red) for _ in range(6))
    torch.maximum(torch.maximum(red, green, out=value), blue, out=value)
    torch.minimum(torch.minimum(red, green, out=low), blue, out=low)
    torch.sub(value, low, out=chroma)
    # The sector of the largest colour; where two are as large, both give the same hue.
    torch.sub(red, green, out=hue)
    torch.clamp(chroma, min=1e-30, out=divisor)
    hue.div_(divisor).add_(4)
    torch.sub(blue, red, out=other).div_(divisor).add_(2)
    torch.where(green == value, other, hue, out=hue)
    torch.sub(green, blue, out=other).div_(divisor)
    torch.where(red == value, other, hue, out=hue)
    hue.add_(shift)
    hue.sub_(torch.div(hue, 6, out=other).floor_(), alpha=6)
    # How much of the chroma a colour has: red |h - 3| - 1, green 2 - |h - 2|, blue 2 - |h - 4|, in 0 to 1.
    for plane, centre, sign, height in ((red, 3, 1, -1), (green, 2, -1, 2), (blue, 4, -1, 2)):
        torch.sub(hue, centre, out=other).abs_().mul_(sign).add_(height).clamp_(0, 1).mul_(chroma)
        torch.add(low, other, out=plane)


def _uniform(rows: npt.NDArray[np.int64], seed: int, epoch: int, count: int) -> npt.NDArray[np.float64]:
    """Numbers in [0, 1) from a counter: (B, count), for all rows at once.

    splitmix64 (Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators", 2014) of a
    counter that starts elsewhere for every `(seed, epoch, row)`.
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
