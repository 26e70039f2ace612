"""From cached bytes to what the model takes: one affine colour map per clip, on the device.

Normalization is the case in which every clip has the same map; augmentation composes others.
"""

import math

import numpy as np
import numpy.typing as npt
import torch

# Of Kinetics-400, as torchvision's R3D-18 weights were trained with. For RGB in 0 to 1.
MEAN = (0.43216, 0.394666, 0.37645)
STD = (0.22803, 0.22145, 0.216989)

ColorMatrix = npt.NDArray[np.float64]


def normalization() -> ColorMatrix:
    """Return the map that normalizes: (3, 4), for RGB bytes (r, g, b, 1) to (r, g, b)."""
    mean, std = np.array(MEAN), np.array(STD)
    return np.concatenate([np.diag(1 / (255 * std)), -(mean / std)[:, None]], axis=1)


def normalize(clips_BTHWC: torch.Tensor) -> torch.Tensor:
    """Turn RGB bytes into what a model takes: (value / 255 - mean) / std, with the mean and std of Kinetics-400.

    Args:
        clips_BTHWC: (B, T, H, W, 3) uint8 RGB on any device; not written to.

    Returns:
        (B, 3, T, H, W) float32 on the same device, contiguous as `channels_last_3d` without a copy.

    Raises:
        ValueError: The clips have another shape or dtype.

    >>> normalize(torch.zeros(2, 4, 16, 16, 3, dtype=torch.uint8)).shape
    torch.Size([2, 3, 4, 16, 16])
    """
    if clips_BTHWC.dim() != 5 or clips_BTHWC.shape[-1] != 3 or clips_BTHWC.dtype != torch.uint8:
        shape, dtype = tuple(clips_BTHWC.shape), str(clips_BTHWC.dtype).removeprefix("torch.")
        raise ValueError(f"clips have shape {shape} and dtype {dtype}, not (B, T, H, W, 3) and uint8")
    device, width = clips_BTHWC.device, clips_BTHWC.shape[3]
    matrix = normalization()
    # Whole rows of pixels: with 3 numbers to a row, a CPU would spend its time in the loop around them.
    scale, offset = (to_device(np.tile(values, width), device) for values in (matrix[:, :3].diagonal(), matrix[:, 3]))
    pixels = clips_BTHWC.reshape(-1, width * 3).to(torch.float32).mul_(scale).add_(offset)
    return pixels.view(clips_BTHWC.shape).permute(0, 4, 1, 2, 3)


def apply_color_matrix(
    clips_BTHWC: torch.Tensor, matrices: ColorMatrix, flip: npt.NDArray[np.bool_] | None = None
) -> torch.Tensor:
    """Mirror some clips, apply one affine colour map per clip, clamp the result as an image would.

    Args:
        clips_BTHWC: (B, T, H, W, 3) uint8 RGB on any device; not written to.
        matrices: (B, 3, 4), including the normalization.
        flip: (B,) which to mirror; None for none.

    Returns:
        (B, 3, T, H, W) float32 between what the colours 0 and 255 normalize to, contiguous as
        `channels_last_3d` without a copy.
    """
    device, shape = clips_BTHWC.device, clips_BTHWC.shape
    num_clips, width = shape[0], shape[3]
    linear, offsets = matrices[:, :, :3], matrices[:, :, 3]
    rows = clips_BTHWC.reshape(num_clips, -1, width * 3)
    if flip is not None and flip.any():
        # A row of bytes backwards is the mirrored row with blue for red: the matrix takes them back.
        rows = torch.where(to_device(flip, device)[:, None, None], rows.flip(-1), rows)
        linear = np.where(flip[:, None, None], linear[:, :, ::-1], linear)
    # Several pixels to a row, the map as many times on the diagonal: four times the arithmetic of a 3 x 3 product,
    # but of a size at which a product is fast (10 times, measured).
    num = math.gcd(width, 4)
    blocks = np.einsum("ij,bcd->bidjc", np.eye(num), linear).reshape(num_clips, num * 3, num * 3)
    offset, block = to_device(np.tile(offsets, (1, num))[:, None], device), to_device(blocks, device)
    pixels = torch.baddbmm(offset, rows.reshape(num_clips, -1, num * 3).to(torch.float32), block)
    low, high = (np.tile([(edge - mean) / std for mean, std in zip(MEAN, STD, strict=True)], num) for edge in (0, 1))
    torch.clamp(pixels, to_device(low, device), to_device(high, device), out=pixels)
    return pixels.view(shape).permute(0, 4, 1, 2, 3)


def to_device(values: npt.NDArray[np.generic], device: torch.device) -> torch.Tensor:
    """Copy a small array; float64 becomes float32. Never waits for the device."""
    tensor = torch.from_numpy(np.ascontiguousarray(values))
    if tensor.dtype == torch.float64:
        tensor = tensor.to(torch.float32)
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
