"""Where a run computes: the processes that torchrun started, their devices, torch's flags and the precision."""

import contextlib
import dataclasses
import datetime
import os
import platform
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from vidcache.errors import InputError, MismatchError, VidcacheError

_TIMEOUT = datetime.timedelta(hours=24)  # others wait while the main process works alone; a dead one is noticed at once
_AMP_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
# As checkpoints name them: float32, everything in bf16 or fp16, only the frozen stages in bf16.
PRECISIONS = ("off", "bf16", "fp16", "bf16-prefix")


@dataclasses.dataclass(frozen=True)
class Processes:
    """This process among those that train one model. All processes have to call its methods, in the same order."""

    rank: int = 0
    world_size: int = 1
    device: str = "cpu"
    _control: Any = None  # a gloo group for flags and objects, which never waits for a GPU

    @property
    def is_main(self) -> bool:
        """Whether this process writes and reports."""
        return self.rank == 0

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
        if self.world_size == 1:
            return flag
        value = torch.tensor([int(flag)])
        dist.all_reduce(value, dist.ReduceOp.MAX, group=self._control)
        return bool(value)

    def all_reduce_sum(self, values: torch.Tensor) -> torch.Tensor:
        """Sum a tensor on `device` over all processes, in place."""
        if self.world_size > 1:
            dist.all_reduce(values)
        return values

    def gather(self, value: Any) -> list[Any]:
        """Return the value of each process, in the order of their ranks."""
        values = [value] * self.world_size
        if self.world_size > 1:
            dist.all_gather_object(values, value, group=self._control)
        return values

    def run_on_main(self, make: Callable[[], Any]) -> Any:
        """Call a function in the main process; all processes get its result, or raise its error."""
        if self.world_size == 1:
            return make()
        box: list[Any] = [None, None]
        if self.is_main:
            try:
                box[0] = make()
            except Exception as error:
                box[1] = error
        dist.broadcast_object_list(box, 0, group=self._control)
        if box[1] is not None:
            raise box[1]
        return box[0]

    def check_equal(self, **facts: Any) -> None:
        """Refuse processes that were given different files or options: `MismatchError`."""
        everyone = self.gather(facts)
        for name, expected in everyone[0].items():
            for number, other in enumerate(everyone):
                if other[name] != expected:
                    raise MismatchError(
                        f"train: {name} of process {number} is {other[name]}, but {expected} of process 0. Give all "
                        "processes the same files and options"
                    )

    def share_buffers(self, module: nn.Module) -> None:
        """Give all processes the batch norm statistics of the main one; with `SyncBatchNorm` they are equal anyway."""
        if self.world_size > 1:
            for buffer in module.buffers():
                dist.broadcast(buffer, 0)

    @contextlib.contextmanager
    def watch(self) -> Iterator[None]:
        """Turn the error of a lost connection into a `VidcacheError`: another process has died."""
        try:
            yield
        except RuntimeError as error:
            words = ("onnection closed", "onnection reset", "Broken pipe", "gloo", "NCCL", "timed out")
            is_lost = isinstance(error, dist.DistError) or any(word in str(error) for word in words)
            if self.world_size == 1 or not is_lost:
                raise
            raise VidcacheError(
                f"train: one of the {self.world_size} processes died; see its log. Restart all of them with --resume"
            ) from error


@contextlib.contextmanager
def init_distributed(device: str) -> Iterator[Processes]:
    """Join the processes that torchrun started, each with the GPU of its local rank; without it, be the only one."""
    if not dist.is_torchelastic_launched():
        yield Processes(device=device)
        return
    local = torch.device(device)
    if local.type == "cuda":
        local = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(local)
    dist.init_process_group("nccl" if local.type == "cuda" else "gloo")
    try:
        control = dist.new_group(backend="gloo", timeout=_TIMEOUT)
        yield Processes(dist.get_rank(), dist.get_world_size(), str(local), control)
    finally:
        dist.destroy_process_group()


def sync_batch_norm(model: nn.Module) -> None:
    """Let the batch norms that train share their statistics over all processes, in place; parameters keep their names.

    On CUDA only: torch has no `SyncBatchNorm` for CPUs, where each process uses the statistics of its own clips.
    """
    for name, child in model.named_children():
        if any(parameter.requires_grad for parameter in child.parameters()):
            setattr(model, name, nn.SyncBatchNorm.convert_sync_batchnorm(child))  # type: ignore[no-untyped-call]


def choose_precision(amp: str, device: torch.device) -> str:
    """Return the precision of a run, one of `PRECISIONS`.

    "auto" is bf16 on CUDA devices that compute in it natively, fp16 with loss scaling on other CUDA devices, and
    float32 everywhere else: bf16 convolutions are slow or wrong on many CPUs.

    Raises:
        InputError: fp16 without a CUDA device.
        ValueError: The precision is unknown.
    """
    if amp not in ("auto", *PRECISIONS):
        raise ValueError(f"amp {amp!r}, expected one of auto, {', '.join(PRECISIONS)}")
    if amp == "fp16" and device.type != "cuda":
        raise InputError(f"--amp fp16: not available on {device.type}. Use --amp auto")
    if amp != "auto":
        return amp
    if device.type != "cuda":
        return "off"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[object]:
    """Return torch's autocast for "bf16" and "fp16"; nothing for any other precision."""
    dtype = _AMP_DTYPES.get(precision)
    return torch.autocast(device.type, dtype=dtype) if dtype else contextlib.nullcontext()


def device_name(device: str) -> str:
    """Return the model name of a GPU or of the processor."""
    if torch.device(device).type == "cuda":
        return str(torch.cuda.get_device_name(device))
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


@contextlib.contextmanager
def torch_flags(*, deterministic: bool) -> Iterator[None]:
    """Set torch's global flags for a run, and restore them.

    Float32 matrix products and convolutions use TF32 where a GPU has it. Convolutions on a GPU are tuned once per
    shape (cudnn.benchmark), unless the run is deterministic: then an operation without a deterministic algorithm is an
    error. A CPU is always deterministic.
    """
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32
    deterministic_before = torch.get_deterministic_debug_mode()
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it is first used
        torch.use_deterministic_algorithms(True)
    cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32 = not deterministic, True, True
    try:
        yield
    finally:
        cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32 = before
        torch.set_deterministic_debug_mode(deterministic_before)


@contextlib.contextmanager
def oom_hint(batch_size: int, accumulate: int, world_size: int, num_frames: int) -> Iterator[None]:
    """Turn torch's out-of-memory errors into a `VidcacheError` with a smaller batch size to try."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "DefaultCPUAllocator" not in str(error):
            raise
        at_once = -(-batch_size // (accumulate * world_size))
        advice = "Try fewer --num-frames, or a cache of smaller frames"
        if at_once > 1:
            half = at_once // 2 * world_size
            parts = -(-batch_size // half)
            advice = f"Try --batch-size {half * accumulate}, or the same with --grad-accum-steps {parts}"
        reason = " ".join(str(error).split())[:120]
        raise VidcacheError(
            f"train: out of memory with {at_once} clips of {num_frames} frames at once ({reason}). {advice}"
        ) from None
