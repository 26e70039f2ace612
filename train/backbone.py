"""How a model is run in training: the frozen stages folded and without gradients, the rest as it trains.

A precision is one of "off" (float32), "bf16", "fp16" (both everywhere, by autocast), and "bf16-prefix": the frozen
stages in bf16, everything that trains in float32.
"""

import contextlib
import copy
import warnings
from collections.abc import Callable, Iterator

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils.fusion import fuse_conv_bn_eval

from vidcache.model import R3D18

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
PRECISIONS = ("off", "bf16", "fp16", "bf16-prefix")


class Forward:
    """A model in two parts: frozen stages, whose result is a constant to the second part, which trains.

    The frozen stages are a copy, made now: load weights before. Their BatchNorms, which never change, are folded into
    the convolutions (faster on every shape measured: `tests/benchmarks/bench_train.py`).

    Args:
        model: In its final place and with its final frozen weights.
        precision: One of `PRECISIONS`.

    Attributes:
        precision: As given.
        prefix_dtype: Of the features that `prefix` gives; float32 where nothing is frozen.

    Raises:
        ValueError: There is no such precision.
    """

    def __init__(self, model: R3D18, precision: str) -> None:
        if precision not in PRECISIONS:
            raise ValueError(f"precision {precision!r}, expected one of {', '.join(PRECISIONS)}")
        self.precision = precision
        frozen, self._rest = model.split()
        low = _DTYPES.get(precision.removesuffix("-prefix"), torch.float32)
        self.prefix_dtype = low if len(frozen) else torch.float32
        self._prefix: Callable[[torch.Tensor], torch.Tensor] = folded(frozen).to(self.prefix_dtype)
        self._train: Callable[[torch.Tensor], torch.Tensor] = self._rest
        self._predict: Callable[[torch.Tensor], torch.Tensor] = self._rest
        self._shared: DistributedDataParallel | None = None

    def share_gradients(self) -> None:
        """Average the gradients of the second part over all processes; `predict` goes without them."""
        # Said of convolutions of 1 x 1 x 1, which have two names for one layout.
        warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
        self._train = self._shared = DistributedDataParallel(self._rest)

    def compile(self) -> None:
        """Let torch.compile make both parts faster."""
        alone = self._train is self._predict
        self._prefix, self._predict = torch.compile(self._prefix), torch.compile(self._rest)
        self._train = self._predict if alone else torch.compile(self._train)

    def buffers(self) -> Iterator[torch.Tensor]:
        """Yield what the second part changes in a forward pass: the statistics of batch norm."""
        return self._rest.buffers()

    def sharing(self, *, is_last: bool) -> contextlib.AbstractContextManager[object]:
        """Return the context of one of several forward and backward passes: only the last one shares gradients."""
        return contextlib.nullcontext() if is_last or self._shared is None else self._shared.no_sync()

    def prefix(self, inputs_BCTHW: torch.Tensor) -> torch.Tensor:
        """Run the frozen stages.

        Args:
            inputs_BCTHW: (B, 3, T, H, W) float32.

        Returns:
            (B, C, T', H', W') of `prefix_dtype`, without gradient.
        """
        with torch.no_grad():
            return self._prefix(inputs_BCTHW.to(self.prefix_dtype))

    def rest(self, features: torch.Tensor) -> torch.Tensor:
        """From what `prefix` gives to float32 logits (B, K), for training."""
        return self._call(self._train, features)

    def predict(self, features: torch.Tensor) -> torch.Tensor:
        """From what `prefix` gives to float32 logits (B, K), in this process alone."""
        return self._call(self._predict, features)

    def __call__(self, inputs_BCTHW: torch.Tensor) -> torch.Tensor:
        """From (B, 3, T, H, W) to float32 logits (B, K), for training."""
        return self.rest(self.prefix(inputs_BCTHW))

    def _call(self, run: Callable[[torch.Tensor], torch.Tensor], features: torch.Tensor) -> torch.Tensor:
        if self.precision in _DTYPES:
            with torch.autocast(features.device.type, dtype=_DTYPES[self.precision]):
                return run(features).to(torch.float32)
        return run(features.to(torch.float32))


def folded(stages: nn.Sequential) -> nn.Sequential:
    """Copy stages in evaluation mode, every BatchNorm behind a convolution made a part of it.

    With y = (x - mean) / sqrt(var + eps) * weight + bias, what a convolution W gives becomes what a convolution
    W * weight / sqrt(var + eps) gives, plus a constant: the same function, rounded otherwise.
    """
    copied = copy.deepcopy(stages).eval().requires_grad_(False)
    for module in copied.modules():
        if isinstance(module, nn.Sequential):
            for index in range(len(module) - 1):
                convolution, norm = module[index], module[index + 1]
                if isinstance(convolution, nn.Conv3d) and isinstance(norm, nn.BatchNorm3d):
                    module[index], module[index + 1] = fuse_conv_bn_eval(convolution, norm), nn.Identity()
    return copied
