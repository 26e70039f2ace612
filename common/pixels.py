"""From cached bytes to what the model takes: one affine colour map per clip, on the device.

Normalisation is the case in which every clip has the same map; augmentation composes others.
"""

import math

import numpy as np
import numpy.typing as npt
import torch

# Of Kinetics-400, as torchvision's R3D-18 weights were trained with. For RGB in 0 to 1.
MEAN = (0.43216, 0.394666, 0.37645)
STD = (0.22803, 0.22145, 0.216989)

Maps = npt.NDArray[np.float64]


class Workspace:
    """Memory that is used again for every batch: on a CPU, fresh pages cost more than the arithmetic.

    What a function returns from a workspace is overwritten by the next call with the same one.
    """

    def __init__(self) -> None:
        self._memory: dict[tuple[str, torch.dtype, torch.device], torch.Tensor] = {}

    def take(self, name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """Return a tensor with anything in it; the same memory for the same name."""
        key, size = (name, dtype, device), math.prod(shape)
        if key not in self._memory or self._memory[key].numel() < size:
            self._memory[key] = torch.empty(size, dtype=dtype, device=device)
        return self._memory[key][:size].view(shape)


def normalisation() -> Maps:
    """Return the map that normalises: (3, 4), for RGB bytes (r, g, b, 1) to (r, g, b)."""
    mean, std = np.array(MEAN), np.array(STD)
    return np.concatenate([np.diag(1 / (255 * std)), -(mean / std)[:, None]], axis=1)


def normalise(clips_BTHWC: torch.Tensor, workspace: Workspace) -> torch.Tensor:
    """Turn RGB bytes into what the model takes.

    Args:
        clips_BTHWC: (B, T, H, W, 3) uint8 RGB on any device.
        workspace: Holds the result.

    Returns:
        (B, 3, T, H, W) float32, contiguous as `channels_last_3d` without a copy.
    """
    device, width = clips_BTHWC.device, clips_BTHWC.shape[3]
    out = workspace.take("pixels", tuple(clips_BTHWC.shape), torch.float32, device)
    out.copy_(clips_BTHWC)
    # Whole rows of pixels: with 3 numbers to a row, the loop around them would be what costs.
    maps = normalisation()
    scale, offset = (to_device(np.tile(values, width), device) for values in (maps[:, :3].diagonal(), maps[:, 3]))
    out.view(-1, width * 3).mul_(scale).add_(offset)
    return out.permute(0, 4, 1, 2, 3)


def apply_maps(clips_BTHWC: torch.Tensor, maps: Maps, workspace: Workspace) -> torch.Tensor:
    """Apply one affine colour map per clip, and bound the result as an image would.

    Args:
        clips_BTHWC: (B, T, H, W, 3) uint8 RGB on any device.
        maps: (B, 3, 4), including the normalisation.
        workspace: Holds the result.

    Returns:
        (B, 3, T, H, W) float32 between what the colours 0 and 255 normalise to, contiguous as
        `channels_last_3d` without a copy.
    """
    device, shape = clips_BTHWC.device, tuple(clips_BTHWC.shape)
    num_clips, width = shape[0], shape[3]
    pixels = workspace.take("bytes", shape, torch.float32, device)
    pixels.copy_(clips_BTHWC)
    out = workspace.take("pixels", shape, torch.float32, device)
    # Several pixels to a row, the map as many times on the diagonal: eight times the arithmetic of
    # a 3 x 3 product, but of a size at which a matrix product is fast (9 times, measured).
    num = math.gcd(math.prod(shape[1:4]), 8)
    blocks = np.einsum("ij,bcd->bidjc", np.eye(num), maps[:, :, :3]).reshape(num_clips, num * 3, num * 3)
    offsets = np.tile(maps[:, :, 3], (1, num))[:, None]
    rows = (num_clips, -1, num * 3)
    torch.baddbmm(to_device(offsets, device), pixels.view(rows), to_device(blocks, device), out=out.view(rows))
    low, high = (np.array([(edge - mean) / std for mean, std in zip(MEAN, STD, strict=True)]) for edge in (0, 1))
    bounds = [to_device(np.tile(values, width), device) for values in (low, high)]
    flat = out.view(-1, width * 3)
    torch.clamp(flat, *bounds, out=flat)
    return out.permute(0, 4, 1, 2, 3)


def to_device(values: npt.NDArray[np.generic], device: torch.device) -> torch.Tensor:
    """Copy a small array; float64 becomes float32. Never waits for the device."""
    tensor = torch.from_numpy(np.ascontiguousarray(values))
    if tensor.dtype == torch.float64:
        tensor = tensor.to(torch.float32)
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
