"""From cached bytes to what the model takes: one affine colour map per clip, on the device.

Normalisation is the case in which every clip has the same map; augmentation composes others.
"""

import numpy as np
import numpy.typing as npt
import torch

# Of Kinetics-400, as torchvision's R3D-18 weights were trained with. For RGB in 0 to 1.
MEAN = (0.43216, 0.394666, 0.37645)
STD = (0.22803, 0.22145, 0.216989)

Maps = npt.NDArray[np.float64]


def normalisation() -> Maps:
    """Return the map that normalises: (3, 4), for RGB bytes (r, g, b, 1) to (r, g, b)."""
    mean, std = np.array(MEAN), np.array(STD)
    return np.concatenate([np.diag(1 / (255 * std)), -(mean / std)[:, None]], axis=1)


def apply_maps(clips_BTHWC: torch.Tensor, maps: torch.Tensor, *, clamp: bool = False) -> torch.Tensor:
    """Apply one affine colour map per clip.

    Args:
        clips_BTHWC: (B, T, H, W, 3) uint8 RGB on any device.
        maps: (B, 3, 4) or (1, 3, 4) float32, on the same device; includes the normalisation.
        clamp: Bound the result to what the colours 0 and 255 normalise to, as an image would.

    Returns:
        (B, 3, T, H, W) float32, contiguous as `channels_last_3d` without a copy.
    """
    num_clips, num_frames, height, width, _ = clips_BTHWC.shape
    flat = clips_BTHWC.reshape(num_clips, -1, 3).to(torch.float32)
    maps = maps.expand(num_clips, 3, 4)
    out = torch.baddbmm(maps[:, None, :, 3], flat, maps[:, :, :3].transpose(1, 2))
    if clamp:
        bounds = torch.tensor([[-m / s, (1 - m) / s] for m, s in zip(MEAN, STD, strict=True)])
        low, high = bounds.to(out.device, non_blocking=True).unbind(1)
        out = torch.clamp(out, low, high)
    return out.view(num_clips, num_frames, height, width, 3).permute(0, 4, 1, 2, 3)
