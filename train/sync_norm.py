"""BatchNorm over the clips of all processes, on any device: torch's own `SyncBatchNorm` refuses the CPU.

With it, N processes that share a batch normalise as one process with the whole batch does, also where one of them has
fewer clips than the others, or none.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import nn


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
