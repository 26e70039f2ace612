"""From cached bytes to what the model takes: one affine colour map per clip, on the device.

Normalisation is the case in which every clip has the same map; augmentation composes others.
"""

import contextlib
import math
import mmap
import sys
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch

# Of Kinetics-400, as torchvision's R3D-18 weights were trained with. For RGB in 0 to 1.
MEAN = (0.43216, 0.394666, 0.37645)
STD = (0.22803, 0.22145, 0.216989)

# Steps on less than this find it in the cache of a CPU; on more, they wait for memory.
_CACHED_BYTES = 3 << 20

Maps = npt.NDArray[np.float64]


class Workspace:
    """Memory that is used again for every batch: on a CPU, fresh pages cost more than the arithmetic.

    What a function returns from a workspace is overwritten by the next call with the same one.
    """

    def __init__(self) -> None:
        self._memory: dict[tuple[str, torch.dtype, torch.device, bool], torch.Tensor] = {}

    def take(
        self, name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, *, pinned: bool = False
    ) -> torch.Tensor:
        """Return a tensor with anything in it; the same memory for the same name.

        Args:
            name: Of the memory.
            shape: Of the tensor.
            dtype: Of the tensor.
            device: Where it is.
            pinned: Page-locked, for copies to a GPU that nobody waits for.
        """
        key, size = (name, dtype, device, pinned), math.prod(shape)
        if key not in self._memory or self._memory[key].numel() < size:
            self._memory[key] = _new_memory(size, dtype, device, pinned)
        return self._memory[key][:size].view(shape)


def _new_memory(size: int, dtype: torch.dtype, device: torch.device, pinned: bool) -> torch.Tensor:
    if device.type != "cpu" or pinned:
        return torch.empty(size, dtype=dtype, device=device, pin_memory=pinned)
    # Not by malloc, which keeps what it is given back, in pieces. Huge pages: they are touched much sooner.
    memory = mmap.mmap(-1, max(size * dtype.itemsize, 1))
    if sys.platform == "linux":
        with contextlib.suppress(OSError):  # a kernel without them
            memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype)[:size]


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
    # Whole rows of pixels: with 3 numbers to a row, the loop around them would be what costs.
    rows, results = clips_BTHWC.reshape(-1, width * 3), out.view(-1, width * 3)
    maps = normalisation()
    scale, offset = (to_device(np.tile(values, width), device) for values in (maps[:, :3].diagonal(), maps[:, 3]))
    for part in parts(len(rows), 4 * width * 3, device):
        results[part].copy_(rows[part]).mul_(scale).add_(offset)
    return out.permute(0, 4, 1, 2, 3)


def apply_maps(
    clips_BTHWC: torch.Tensor, maps: Maps, workspace: Workspace, flip: npt.NDArray[np.bool_] | None = None
) -> torch.Tensor:
    """Mirror some clips, apply one affine colour map per clip, bound the result as an image would.

    Args:
        clips_BTHWC: (B, T, H, W, 3) uint8 RGB on any device; not written to.
        maps: (B, 3, 4), including the normalisation.
        workspace: Holds the result.
        flip: (B,) which to mirror; None for none.

    Returns:
        (B, 3, T, H, W) float32 between what the colours 0 and 255 normalise to, contiguous as
        `channels_last_3d` without a copy.
    """
    device, shape = clips_BTHWC.device, tuple(clips_BTHWC.shape)
    num_clips, num_rows, row = shape[0], shape[1] * shape[2], shape[3] * 3
    linear, offsets = maps[:, :, :3], maps[:, :, 3]
    if flip is not None:
        # A row of bytes backwards is the mirrored row with blue for red: the map takes them back.
        linear = np.where(flip[:, None, None], linear[:, :, ::-1], linear)
    # Several pixels to a row of a matrix, the map as many times on the diagonal: four times the
    # arithmetic of a 3 x 3 product, but of a size at which a product is fast (10 times, measured).
    num = math.gcd(shape[3], 4)
    blocks = np.einsum("ij,bcd->bidjc", np.eye(num), linear).reshape(num_clips, num * 3, num * 3)
    block, offset = to_device(blocks, device), to_device(np.tile(offsets, (1, num))[:, None], device)
    low, high = (np.array([(edge - mean) / std for mean, std in zip(MEAN, STD, strict=True)]) for edge in (0, 1))
    bounds = [to_device(np.tile(values, shape[3]), device) for values in (low, high)]
    rows = clips_BTHWC.reshape(num_clips, num_rows, row)
    out = workspace.take("pixels", shape, torch.float32, device)
    results = out.view(num_clips, num_rows, row)
    for part in parts(num_rows, 4 * num_clips * row, device):
        source, result = rows[:, part], results[:, part]
        if flip is not None:
            source = mirror(source, flip)
        pixels = workspace.take("part", tuple(source.shape), torch.float32, device).copy_(source)
        shaped = (num_clips, -1, num * 3)
        torch.baddbmm(offset, pixels.view(shaped), block, out=result.view(shaped))
        torch.clamp(result, *bounds, out=result)
    return out.permute(0, 4, 1, 2, 3)


def mirror(rows: torch.Tensor, flip: npt.NDArray[np.bool_]) -> torch.Tensor:
    """Turn the last dimension of chosen clips around: (B, ..., n) uint8."""
    mask = to_device(np.where(flip, np.uint8(255), np.uint8(0)), rows.device)
    backwards = rows.flip(-1)
    # Bits instead of `torch.where`, which takes five times as long on a CPU.
    return backwards.bitwise_xor_(rows).bitwise_and_(mask.view(-1, *[1] * (rows.dim() - 1))).bitwise_xor_(rows)


def parts(count: int, bytes_of_one: int, device: torch.device) -> Iterator[slice]:
    """Cut a range of rows or frames, of all clips at once, into what stays in a CPU's cache; a GPU takes it whole."""
    step = max(_CACHED_BYTES // bytes_of_one, 1) if device.type == "cpu" else count
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))


def to_device(values: npt.NDArray[np.generic], device: torch.device) -> torch.Tensor:
    """Copy a small array; float64 becomes float32. Never waits for the device."""
    tensor = torch.from_numpy(np.ascontiguousarray(values))
    if tensor.dtype == torch.float64:
        tensor = tensor.to(torch.float32)
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
