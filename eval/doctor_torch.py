"""Checks of torch: versions, GPUs, whether bf16 can be trusted, threads, the Kinetics-400 weights."""

import contextlib
import dataclasses
import os
import time
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
import torchvision
from torch.nn.functional import conv3d

from vidcache import model
from vidcache.cli import num_cpus
from vidcache.eval.doctor import OK, PROBLEM, WARNING, Asked, Check, control_groups, judge_packages, one, requirements
from vidcache.text import one_line, plural, printable

# As in training: what --amp auto accepts.
MAX_GRADIENT_ERROR = 0.05
# An ordinary convolution of R3D-18; and one of layer4 with 2 frames left (16 frames of input, or fewer), whose weight
# gradient is wrong in bf16 on some CPUs.
ORDINARY, DEEP = (2, 64, 4, 28, 28), (2, 512, 2, 4, 4)
DRIVER = Path("/proc/driver/nvidia/version")


def check_torch(asked: Asked) -> Iterator[Check]:  # noqa: ARG001 -- as every check
    """Say which torch and torchvision run, and what they were built for."""
    needed = [requirement for requirement in requirements() if requirement.name in ("torch", "torchvision")]
    built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
    if torch.version.hip:
        built = f"ROCm {torch.version.hip}"
    cudnn = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    floors = ", ".join(f"{entry.name}{entry.wanted}" for entry in needed)
    found = (
        f"torch {torch.__version__}, torchvision {torchvision.__version__} (needed: {floors}), built for {built}, "
        f"{f'cuDNN {cudnn_version(cudnn)}' if cudnn else 'no cuDNN'}; CPU code for "
        f"{torch.backends.cpu.get_cpu_capability()}"
    )
    yield judge_packages("torch", needed, found)


def cudnn_version(number: int) -> str:
    """Read cuDNN's version number.

    >>> cudnn_version(92400), cudnn_version(8902)
    ('9.24.0', '8.9.2')
    """
    major = 10_000 if number >= 90_000 else 1_000
    return f"{number // major}.{number % major // 100}.{number % 100}"


# --- devices -----------------------------------------------------------------------------------


def check_devices(asked: Asked) -> Iterator[Check]:  # noqa: ARG001
    """Name each GPU and try bf16 on it; without one, on the CPU, where training will go on."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not num_gpus:
        yield why_no_gpu([str(warning.message) for warning in said])
    for index in range(num_gpus):
        yield from one(f"gpu {index}", describe_gpu, index)
    for name in [f"cuda:{index}" for index in range(num_gpus)] or ["cpu"]:
        yield from one("bf16", check_bf16, torch.device(name))


def why_no_gpu(said: list[str]) -> Check:
    """Say why torch has none: the build, the driver, a variable, or the machine.

    Args:
        said: What torch warned of when it was asked.
    """
    slow = "a step of R3D-18 takes 1 to 3 s for each clip on 2 CPUs"
    has_device = os.path.exists("/dev/nvidiactl") or os.path.exists("/dev/dxg")  # dxg: Windows Subsystem for Linux
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if not torch.version.cuda and not torch.version.hip:
        advice = "If this machine has an NVIDIA GPU, install a torch that was built for CUDA"
        return Check("gpu", WARNING, f"none for torch {torch.__version__}, which has no CUDA: {slow}", advice)
    if visible is not None and visible.strip() in ("", "-1"):
        found = f"none: CUDA_VISIBLE_DEVICES is '{visible}': {slow}"
        return Check("gpu", WARNING, found, "unset CUDA_VISIBLE_DEVICES, or put the number of a GPU there")
    reason = one_line(said[0], 300) if said else "there is a device file, but CUDA finds no device"
    if said or has_device:
        advice = "Install or update the driver of the GPU; in a container, start it with its GPUs"
        return Check("gpu", WARNING, f"none: {reason}: {slow}", advice)
    advice = "Train on a machine with one, with smaller pictures and fewer frames, or with --feature-cache"
    return Check("gpu", WARNING, f"none in this machine: {slow}", advice)


def describe_gpu(index: int) -> Check:
    """Name a GPU, its memory, its capability and the driver."""
    facts, (free, total) = torch.cuda.get_device_properties(index), torch.cuda.mem_get_info(index)
    driver = one_line(DRIVER.read_text().split("\n")[0], 120) if DRIVER.exists() else ""
    found = (
        f"{facts.name}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free, capability {facts.major}.{facts.minor}"
        f"{f', {driver}' if driver else ''}"
    )
    if free < total / 2:
        return Check(f"gpu {index}", WARNING, found, "Another program holds its memory: see nvidia-smi")
    return Check(f"gpu {index}", OK, found)


@dataclasses.dataclass(frozen=True)
class Trial:
    """One convolution, forward and backward, in bf16 beside float32.

    Attributes:
        speedup: Seconds in float32 over seconds in bf16.
        error: How far the gradients are off, by norm; infinite when one is not finite.
    """

    speedup: float
    error: float


def try_bf16(device: torch.device, shape: tuple[int, ...], repeats: int = 1) -> Trial:
    """Convolve (B, C, T, H, W) with C filters of 3x3x3, forward and backward, in each precision.

    Args:
        device: Where.
        shape: Of the inputs.
        repeats: How often; the fastest counts.
    """
    source = torch.Generator().manual_seed(0)
    channels = shape[1]
    inputs = torch.randn(shape, generator=source).to(device).requires_grad_()
    weight = torch.randn((channels, channels, 3, 3, 3), generator=source) / (27 * channels) ** 0.5
    weight = weight.to(device).requires_grad_()
    wanted = torch.randn(shape, generator=source).to(device)
    seconds: dict[bool, float] = {}
    gradients: dict[bool, list[torch.Tensor]] = {}
    for is_bf16 in (False, True):
        for _ in range(repeats):
            _wait(device)
            start = time.perf_counter()
            with torch.autocast(device.type, torch.bfloat16, enabled=is_bf16):
                outputs = conv3d(inputs, weight, padding=1)
            gradients[is_bf16] = list(torch.autograd.grad((outputs.float() * wanted).sum(), [inputs, weight]))
            _wait(device)
            seconds[is_bf16] = min(time.perf_counter() - start, seconds.get(is_bf16, float("inf")))
    errors = [_error(*pair) for pair in zip(gradients[True], gradients[False], strict=True)]
    return Trial(seconds[False] / seconds[True], max(errors))


def _error(found: torch.Tensor, expected: torch.Tensor) -> float:
    if not bool(torch.isfinite(found).all()):
        return float("inf")
    return float((found - expected).norm() / expected.norm())


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def check_bf16(device: torch.device) -> Check:
    """Try bf16 on a device."""
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        found = f"{device} has no bf16"
        return Check("bf16", WARNING, found, "--amp auto trains in float32; --amp fp16 can be tried")
    return judge_bf16(str(device), try_bf16(device, ORDINARY, 3), try_bf16(device, DEEP))


def judge_bf16(device: str, ordinary: Trial, deep: Trial) -> Check:
    """Say whether bf16 is worth it and right.

    Args:
        device: Its name.
        ordinary: Of `ORDINARY`.
        deep: Of `DEEP`.
    """
    found = (
        f"on {device} one convolution, forward and backward, is {ordinary.speedup:.2g} times as fast as in float32, "
        f"gradients {_off(ordinary)}; with 512 channels and 2 frames {_off(deep)}"
    )
    if not ordinary.error <= MAX_GRADIENT_ERROR:
        return Check("bf16", WARNING, found, "Do not force it with --amp bf16; --amp auto sees it and refuses")
    if not deep.error <= MAX_GRADIENT_ERROR:
        advice = "--amp auto sees it and refuses bf16 there; do not force it with --amp bf16 on 16 frames or fewer"
        return Check("bf16", WARNING, found, advice)
    if ordinary.speedup < 1:
        return Check("bf16", OK, found, "--amp auto will train in float32")
    return Check("bf16", OK, found)


def _off(trial: Trial) -> str:
    if trial.error == float("inf"):
        return "inf or NaN"
    return f"off by {trial.error:.1%}"


# --- CPUs --------------------------------------------------------------------------------------


def check_cpus(asked: Asked) -> Iterator[Check]:  # noqa: ARG001
    """Compare the threads of torch with the CPUs that this process may use."""
    yield judge_cpus(num_cpus(), torch.get_num_threads(), cpu_quota(control_groups("cpu")))


def cpu_quota(groups: Iterable[Path]) -> float | None:
    """Return how many CPUs control groups grant, by time; None: all.

    Args:
        groups: Their folders.
    """
    quotas = []
    for group in groups:
        with contextlib.suppress(OSError, ValueError):  # of the other version, or no limit ("max")
            quota, period = (group / "cpu.max").read_text().split()  # microseconds of CPU in so many of the clock
            quotas.append(int(quota) / int(period))
        with contextlib.suppress(OSError, ValueError):
            quota, period = ((group / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
            quotas.append(int(quota) / int(period))
    return min((quota for quota in quotas if quota > 0), default=None)  # version 1 says -1 for none


def judge_cpus(cpus: int, threads: int, quota: float | None) -> Check:
    """Say whether torch and the workers of a build take as many CPUs as there are.

    Args:
        cpus: That this process may use.
        threads: That torch would start.
        quota: How many of them it gets by time; None: all.
    """
    granted = min(cpus, max(round(quota or cpus), 1))
    found = f"{plural(cpus, 'CPU')}, {plural(threads, 'thread')} of torch"
    if granted < cpus:
        found += f", but the control group (container, job) gets the time of {quota:.2g}"
    if threads > granted or granted < cpus:
        advice = f"export OMP_NUM_THREADS={granted}, and vidcache build --workers {granted}"
        return Check("cpus", WARNING, found, f"{advice}: more get in each other's way")
    if threads < cpus // 2:  # one thread for two hyperthreads is torch's own choice
        return Check("cpus", WARNING, found, "Set OMP_NUM_THREADS to the number of CPUs, unless others need them")
    return Check("cpus", OK, found)


# --- weights -----------------------------------------------------------------------------------


def check_weights(asked: Asked) -> Iterator[Check]:
    """See whether the Kinetics-400 weights are there and are the published ones; download nothing."""
    if asked.weights == "none":
        yield Check("weights", OK, "none are wanted")
        return
    if asked.weights == "kinetics400":
        path = Path(str(torch.hub.get_dir()), "checkpoints", os.path.basename(model.KINETICS_URL))
        if not path.exists():
            advice = (
                "The first vidtrain downloads them, 127 MB; offline, put the file of "
                f"{model.KINETICS_URL} there, or name its place with --weights PATH"
            )
            yield Check("weights", WARNING, f"{printable(path)}: not there", advice)
            return
    else:
        path = Path(asked.weights)
        if not path.exists():
            advice = f"Download {model.KINETICS_URL} and put it there"
            yield Check("weights", PROBLEM, f"{printable(path)}: not there", advice)
            return
    tensors = model.load_kinetics(path)
    yield Check("weights", OK, f"{printable(path)}: the sha256 is right, {len(tensors)} tensors")
