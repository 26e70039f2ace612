"""What is set for the whole process while a run goes on, and what a device says when its memory is full."""

import contextlib
import os
import platform
from collections.abc import Iterator
from pathlib import Path

import torch

from vidcache.errors import VidcacheError


def device_name(device: str) -> str:
    """Return what a GPU or the processor calls itself."""
    if torch.device(device).type == "cuda":
        return str(torch.cuda.get_device_name(device))
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


@contextlib.contextmanager
def backends(*, deterministic: bool) -> Iterator[None]:
    """Set torch's switches for a run, and set them back.

    Float32 matrix products and convolutions use TF32 where a GPU has it (10 bits of mantissa, as in bf16's products
    but with float32's range). Convolutions on a GPU are measured once per shape (cudnn.benchmark), unless the run is to
    be the same again: then only deterministic algorithms are used, and an operation that has none is an error.

    Args:
        deterministic: The same seed gives the same bits on the same GPU. On a CPU it always does.
    """
    before = (
        torch.backends.cudnn.benchmark,
        torch.backends.cuda.matmul.allow_tf32,
        torch.backends.cudnn.allow_tf32,
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it is first used
        torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = not deterministic
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before[0]
        torch.backends.cuda.matmul.allow_tf32 = before[1]
        torch.backends.cudnn.allow_tf32 = before[2]
        torch.use_deterministic_algorithms(before[3], warn_only=before[4])


@contextlib.contextmanager
def memory_advice(batch_size: int, accumulate: int, num_ranks: int, num_frames: int) -> Iterator[None]:
    """Say what to try when the memory of the device is full.

    Args:
        batch_size: Clips per step.
        accumulate: Parts of a step.
        num_ranks: Processes that share a part.
        num_frames: Frames of each clip.

    Raises:
        VidcacheError: Instead of what torch raises.
    """
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "DefaultCPUAllocator" not in str(error):
            raise
        at_once = -(-batch_size // (accumulate * num_ranks))
        if at_once > 1:
            half = at_once // 2 * num_ranks
            advice = (
                f"Try --batch-size {half * accumulate}, or --accumulate {-(-batch_size // half)}, which keeps "
                f"{batch_size} clips to a step"
            )
        else:
            advice = "Try fewer --num-frames-used, or a cache of smaller pictures"
        raise VidcacheError(
            f"train: out of memory with {at_once} clips of {num_frames} frames at once "
            f"({' '.join(str(error).split())[:120]}), expected them to fit. {advice}"
        ) from None
