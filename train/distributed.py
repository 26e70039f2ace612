"""Several processes that train one model, started by torchrun; or one, which is all the same to the loop."""

import contextlib
import dataclasses
import datetime
import os
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from vidcache.errors import VidcacheError

# How long the others wait for what only the first one does. A process that dies is noticed by its closed connection.
_PATIENCE = datetime.timedelta(hours=24)


@dataclasses.dataclass(frozen=True)
class Ranks:
    """This process among those that train one model.

    What is asked of all (`any`, `gather`, ...) must be asked by all, in the same order.

    Attributes:
        rank: Of this process, from 0; only the first one writes and reports.
        count: Processes.
        device: Where this one computes: "cpu", "cuda:1", ...
    """

    rank: int = 0
    count: int = 1
    device: str = "cpu"
    _control: Any = None  # a group for flags and objects that never waits for a GPU

    @property
    def is_first(self) -> bool:
        """Whether this process writes and reports."""
        return self.rank == 0

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
        if self.count == 1:
            return flag
        value = torch.tensor([int(flag)])
        dist.all_reduce(value, dist.ReduceOp.MAX, group=self._control)
        return bool(value)

    def add_up(self, values: torch.Tensor) -> torch.Tensor:
        """Add a tensor on `device` up over all processes, in place; nobody waits for the device."""
        if self.count > 1:
            dist.all_reduce(values)
        return values

    def gather(self, value: Any) -> list[Any]:
        """Return what each process has, in the order of their ranks."""
        values = [value] * self.count
        if self.count > 1:
            dist.all_gather_object(values, value, group=self._control)
        return values

    def of_first(self, make: Callable[[], Any]) -> Any:
        """Return to all what the first process makes.

        Raises:
            Exception: What `make` raised there; in all processes.
        """
        if self.count == 1:
            return make()
        box: list[Any] = [None]
        if self.is_first:
            try:
                box = [make()]
            except Exception as error:
                box = [_Failed(error)]
        dist.broadcast_object_list(box, 0, group=self._control)
        if isinstance(box[0], _Failed):
            raise box[0].error
        return box[0]

    @contextlib.contextmanager
    def watch(self) -> Iterator[None]:
        """Say it when another process has died: until then, all wait for it.

        Raises:
            VidcacheError: Instead of what torch raises.
        """
        try:
            yield
        except RuntimeError as error:
            if self.count == 1 or not _is_lost_connection(error):
                raise
            raise VidcacheError(
                f"train: another of the {self.count} processes of this run has ended, expected all to go on. "
                "Look at what it said; start all of them again with --resume"
            ) from error


@dataclasses.dataclass(frozen=True)
class _Failed:
    error: Exception


def _is_lost_connection(error: RuntimeError) -> bool:
    said = str(error)
    return isinstance(error, dist.DistError) or any(
        word in said for word in ("onnection closed", "onnection reset", "Broken pipe", "gloo", "NCCL", "timed out")
    )


@contextlib.contextmanager
def init_distributed(device: str) -> Iterator[Ranks]:
    """Meet the other processes that torchrun has started; without torchrun, this process is the only one.

    Args:
        device: "cpu" or "cuda"; of several GPUs, each process takes the one of its place on the machine.
    """
    if not dist.is_torchelastic_launched():
        yield Ranks(device=device)
        return
    own = torch.device(device)
    if own.type == "cuda":
        own = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(own)
    dist.init_process_group("nccl" if own.type == "cuda" else "gloo")
    try:
        control = dist.new_group(backend="gloo", timeout=_PATIENCE)
        yield Ranks(dist.get_rank(), dist.get_world_size(), str(own), control)
    finally:
        dist.destroy_process_group()


class SyncedBatchNorm3d(nn.BatchNorm3d):
    """`BatchNorm3d` whose statistics in training are those of the batches of all processes together.

    As in `vidcache.model.BatchNorm3d`, a single value per channel is normalised by the running statistics.
    """

    running_mean: torch.Tensor
    running_var: torch.Tensor
    num_batches_tracked: torch.Tensor
    momentum: float

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Normalise (B, C, T, H, W); B may differ from process to process, and be 0."""
        if not self.training:
            return super().forward(inputs)
        normalised: torch.Tensor
        normalised, mean, variance, count = _Normalise.apply(
            inputs, self.weight, self.bias, self.running_mean, self.running_var, self.eps
        )
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (count / (count - 1).clamp_min(1)), self.momentum)
        return normalised


def synchronise_norms(module: nn.Module) -> None:
    """Replace, in place, each BatchNorm that learns: its statistics are those of all processes from now on.

    Parameters, buffers and names stay the same.
    """
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm3d) and child.weight.requires_grad:
            synced = SyncedBatchNorm3d(child.num_features, child.eps, child.momentum)
            synced.weight, synced.bias = child.weight, child.bias
            for buffer, values in child.named_buffers(recurse=False):
                setattr(synced, buffer, values)
            setattr(module, name, synced.train(child.training))
        else:
            synchronise_norms(child)


class _Normalise(torch.autograd.Function):
    """Ioffe and Szegedy, "Batch Normalization", ICML 2015, algorithm 1 and the gradients of section 3."""

    @staticmethod
    def forward(
        ctx: Any,
        inputs: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor,
        running_mean: torch.Tensor,
        running_var: torch.Tensor,
        eps: float,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        x = inputs.to(torch.float32)
        over = (0, 2, 3, 4)
        totals = torch.cat([x.sum(over), x.new_full((1,), x.numel() // x.shape[1])])
        dist.all_reduce(totals)
        mean, count = totals[:-1] / totals[-1], totals[-1]
        is_alone = count <= 1  # stays on the device: nobody waits to know
        mean = torch.where(is_alone, running_mean, mean)
        # About the mean of all: the difference of two large sums of squares would lose the variance in rounding.
        squares = (x - _per_channel(mean)).square_().sum(over)
        dist.all_reduce(squares)
        variance = torch.where(is_alone, running_var, squares / count)
        scale = torch.rsqrt(variance + eps)
        ctx.save_for_backward(inputs, mean, scale, weight, count)
        ctx.mark_non_differentiable(mean, variance, count)
        factor = scale * weight
        outputs = torch.addcmul(_per_channel(bias - mean * factor), x, _per_channel(factor))
        return outputs.to(inputs.dtype), mean, variance, count

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        inputs, mean, scale, weight, count = ctx.saved_tensors
        given = gradients[0].to(torch.float32)
        standard = (inputs.to(torch.float32) - _per_channel(mean)).mul_(_per_channel(scale))
        over = (0, 2, 3, 4)
        # Of this process: DistributedDataParallel adds up gradients of parameters itself.
        of_bias, of_weight = given.sum(over), (given * standard).sum(over)
        totals = torch.cat([of_bias, of_weight])
        dist.all_reduce(totals)
        # Running statistics do not depend on the inputs.
        bias_share, weight_share = torch.where(count > 1, totals / count, 0).chunk(2)
        through = given - _per_channel(bias_share) - standard.mul_(_per_channel(weight_share))
        of_inputs = through.mul_(_per_channel(scale * weight)).to(inputs.dtype)
        return of_inputs, of_weight, of_bias, None, None, None


def _per_channel(values: torch.Tensor) -> torch.Tensor:
    """From (C,) to what goes with (B, C, T, H, W)."""
    return values[:, None, None, None]
