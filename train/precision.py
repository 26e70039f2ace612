"""Which precision to train in: measured with a real step on the real shapes, gradients compared."""

import contextlib
import copy
import dataclasses
import time
from collections.abc import Callable

import torch
from torch import nn

from vidcache.model import R3D18
from vidcache.train.backbone import PRECISIONS, Forward
from vidcache.train.data import ClipLoader, TrainingData

AMPS = ("auto", *PRECISIONS)
MAX_GRADIENT_ERROR = 0.05
MAX_SLOWDOWN = 2.0
MIN_SPEEDUP = 1.05
_TIMED_STEPS = 2


@dataclasses.dataclass(frozen=True)
class Choice:
    """A precision, and why.

    Attributes:
        name: One of `vidcache.train.backbone.PRECISIONS`.
        reason: One line for people.
    """

    name: str
    reason: str


def try_precision(
    task: TrainingData, model: R3D18, loss: Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor], num_clips: int
) -> Choice:
    """Choose the precision of a run, with its first clips as they are.

    Args:
        task: What it trains on.
        model: On the device; is not changed.
        loss: Of the run: from logits, labels and the loss weights of a step.
        num_clips: That go through the model at once; at most the batch size.

    Raises:
        ValueError: As `choose_precision`.
        CacheError: A clip cannot be read.
    """
    clips, sample = ClipLoader(task, Forward(model, "off")), task.rows[:num_clips]
    with contextlib.closing(clips.stream([sample], None)) as stream:
        batch = next(stream)
        labels, inputs = batch.labels.clone(), clips.pixels(batch, None)
    weight = task.plan(sample)[0].weight
    return choose_precision(task.config.amp, model, lambda logits, right: loss(logits, right, weight), inputs, labels)


def choose_precision(
    amp: str,
    model: R3D18,
    criterion: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    inputs: torch.Tensor,
    labels: torch.Tensor,
) -> Choice:
    """Choose the precision of a run.

    "auto" makes a forward and backward pass in float32 and in bf16 and takes bf16 only if it is
    faster and every parameter's gradient is finite and within 5 % of float32 (by norm): bf16
    convolutions are wrong for some shapes on some CPUs. Where they are, the frozen stages alone are tried in bf16.
    Of weights that have learned nothing, gradients are so sensitive (a thousandth of noise in the clips moves some by
    8 %) that bf16 is refused; of a model that has learned, they are within 4 % (measured on `overhead_home`).

    Args:
        amp: One of `AMPS`; everything but "auto" is taken as it is.
        model: Is not changed: the trial runs on a copy.
        criterion: From logits and labels to the loss.
        inputs: (B, 3, T', H, W) a real batch on the device.
        labels: (B,) on the device.

    Raises:
        ValueError: There is no such precision, or fp16 is asked for on a CPU.
    """
    device = inputs.device
    if amp not in AMPS:
        raise ValueError(f"amp {amp!r}, expected one of {', '.join(AMPS)}")
    if amp == "fp16" and device.type == "cpu":
        raise ValueError("amp 'fp16' needs a GPU, expected auto, off or bf16 on a CPU")
    if amp != "auto":
        return Choice(amp, "as asked")
    if device.type == "cuda" and not torch.cuda.is_bf16_supported():
        return Choice("off", "this GPU has no bf16; --amp fp16 can be tried")
    quick = conv_slowdown(device)
    if quick > MAX_SLOWDOWN:
        return Choice("off", f"one bf16 convolution takes {quick:.0f} times as long here")
    trial = copy.deepcopy(model)
    trial.train()
    full_seconds, full = _timed_step(trial, criterion, inputs, labels, "off")
    refused = []
    for name in ("bf16", "bf16-prefix") if len(model.split()[0]) else ("bf16",):
        seconds, gradients = _timed_step(trial, criterion, inputs, labels, name)
        ratio = full_seconds / seconds
        error, where = max((_error(gradients[name], full[name]), name) for name in full)
        what = "bf16" if name == "bf16" else "bf16 in the frozen stages alone"
        if not error <= MAX_GRADIENT_ERROR:
            refused.append(f"{what}: gradients are off by {error:.0%} in {where}")
        elif ratio <= MIN_SPEEDUP:
            refused.append(f"{what} is not faster here (x{ratio:.2f})")
        else:
            refused.append(f"{what}: measured x{ratio:.2f} faster, gradients within {error:.1%}")
            return Choice(name, "; ".join(refused))
    return Choice("off", "; ".join(refused))


def conv_slowdown(device: torch.device) -> float:
    """Return how many times slower one small bf16 convolution is than in float32.

    Asked first, because without AVX-512 a whole step in bf16 takes 50 times as long (76 s for
    8 clips of 8x48x48 on a Zen 3 CPU): too long to find out by doing it.
    """
    layer = nn.Conv3d(64, 64, 3, padding=1).to(device)
    inputs = torch.rand(1, 64, 4, 28, 28, device=device)
    seconds: dict[str, float] = {}
    for name in ("off", "bf16"):
        for _ in range(3):
            _wait(device)
            start = time.perf_counter()
            with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=name == "bf16"):
                layer(inputs)
            _wait(device)
            seconds[name] = min(time.perf_counter() - start, seconds.get(name, float("inf")))
    return seconds["bf16"] / seconds["off"]


def _timed_step(
    model: R3D18,
    criterion: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    inputs: torch.Tensor,
    labels: torch.Tensor,
    name: str,
) -> tuple[float, dict[str, torch.Tensor]]:
    seconds, forward = [], Forward(model, name)
    for _ in range(_TIMED_STEPS):
        model.zero_grad(set_to_none=True)
        _wait(inputs.device)
        start = time.perf_counter()
        criterion(forward(inputs), labels).backward()  # type: ignore[no-untyped-call]
        _wait(inputs.device)
        seconds.append(time.perf_counter() - start)
    gradients = {k: p.grad.detach().clone() for k, p in model.named_parameters() if p.grad is not None}
    return min(seconds), gradients


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative error by norm; infinite when anything is not finite."""
    if not bool(torch.isfinite(found).all()):
        return float("inf")
    scale = expected.norm().clamp_min(1e-12)
    return float((found - expected).norm() / scale)
