"""From cached bytes to what the model takes, without augmentation."""

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


def to_device(values: npt.NDArray[np.float64], device: torch.device) -> torch.Tensor:
    """Copy a small array as float32, without waiting for the device."""
    tensor = torch.from_numpy(values.astype(np.float32))
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)
