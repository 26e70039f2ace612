"""Flip and colour jitter: one draw per clip, the same for all its frames, on the device.

The draws are made on the host from `(seed, epoch, row)`, so they do not depend on batch size,
thread, rank or resume; only a few numbers per clip go to the device, and nothing comes back.
Factors and formulas are those of torchvision's `ColorJitter`.
"""

import dataclasses

import numpy as np
import numpy.typing as npt
import torch

from vidcache.pixels import MEAN, STD, Maps, apply_maps, normalisation

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


def augment(clips_BTHWC: torch.Tensor, draws: Draws, method: str, mean_rgb: npt.NDArray[np.float32]) -> torch.Tensor:
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
    device = clips_BTHWC.device
    if draws.flip.any():
        coin = _to_device(draws.flip, device)[:, None, None, None, None]
        clips_BTHWC = torch.where(coin, clips_BTHWC.flip(3), clips_BTHWC)
    if method == "exact":
        return _jitter_exactly(clips_BTHWC, draws)
    if method == "none":
        return apply_maps(clips_BTHWC, _to_device(normalisation()[None], device))
    return apply_maps(clips_BTHWC, _to_device(jitter_maps(draws, mean_rgb), device), clamp=True)


def jitter_maps(draws: Draws, mean_rgb: npt.NDArray[np.float32]) -> Maps:
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
    norm = normalisation()
    normalised: Maps = norm[:, :3] @ maps
    normalised[:, :, 3] += norm[:, 3]
    return normalised


def _jitter_exactly(clips_BTHWC: torch.Tensor, draws: Draws) -> torch.Tensor:
    """Torchvision's float formulas, for all clips whose next step is the same at once."""
    device = clips_BTHWC.device
    x = clips_BTHWC.to(torch.float32) / 255
    for step in range(NUM_OPS):
        for op in range(NUM_OPS):
            chosen = np.flatnonzero(draws.order[:, step] == op)  # on the host: no synchronisation
            if len(chosen):
                index = _to_device(chosen, device)
                factor = _to_device(draws.factors[chosen, op], device)[:, None, None, None, None]
                x[index] = _OPS[op](x[index], factor)
    mean, std = (torch.tensor(values).to(device, non_blocking=True) for values in (MEAN, STD))
    return ((x - mean) / std).permute(0, 4, 1, 2, 3)


def _grey(x: torch.Tensor) -> torch.Tensor:
    return (x[..., :1] * 0.2989 + x[..., 1:2] * 0.587) + x[..., 2:] * 0.114


def _blend(x: torch.Tensor, other: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    return (factor * x + (1 - factor) * other).clamp(0, 1)


def _brightness(x: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    return (x * factor).clamp(0, 1)


def _contrast(x: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    # torchvision mixes every frame with its own mean; `jitter_maps` uses the mean of the clip.
    return _blend(x, _grey(x).mean(dim=(2, 3, 4), keepdim=True), factor)


def _saturation(x: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    return _blend(x, _grey(x), factor)


def _hue(x: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """Shift the hue by way of HSV (Foley et al., "Computer Graphics", 1990, section 13.3)."""
    value, low = x.amax(-1), x.amin(-1)
    chroma = value - low
    divisor = torch.where(chroma == 0, 1.0, chroma)
    saturation = chroma / torch.where(chroma == 0, 1.0, value)
    red, green, blue = ((value[..., None] - x) / divisor[..., None]).unbind(-1)
    is_red = x[..., 0] == value
    is_green = (x[..., 1] == value) & ~is_red
    sector = torch.where(is_red, blue - green, torch.where(is_green, 2 + red - blue, 4 + green - red))
    hue = (sector / 6 + shift[..., 0]) % 1.0
    # The channel `n` of a colour is value - value * saturation * max(0, min(k, 4 - k, 1)).
    k = (torch.tensor([5.0, 3.0, 1.0]).to(x.device, non_blocking=True) + hue[..., None] * 6) % 6
    fall = torch.minimum(k, 4 - k).clamp(0, 1)
    return (value[..., None] * (1 - saturation[..., None] * fall)).clamp(0, 1)


_OPS = {BRIGHTNESS: _brightness, CONTRAST: _contrast, SATURATION: _saturation, HUE: _hue}


def _to_device(values: npt.NDArray[np.generic], device: torch.device) -> torch.Tensor:
    """Copy a small array; float64 becomes float32. Never waits for the device."""
    tensor = torch.from_numpy(values)
    if tensor.dtype == torch.float64:
        tensor = tensor.to(torch.float32)
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


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
