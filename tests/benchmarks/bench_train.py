"""What a training step costs, and what the loop adds to it.

    python tests/benchmarks/bench_train.py --cache cache.h5 --scratch DIR

First: the loop of `vidtrain` (read, copy, augment, step, add up, look at the loss) beside a bare forward, backward
and optimizer step on one resident batch; 1.00 means that everything else costs nothing. Second: a step of R3D-18 with
layer3, layer4 and fc trained, one way after the other, beside the plain way: float32, contiguous, the whole model
called as one. Everything in turn in each round; medians. The error is that of the worst gradient, relative to the
plain way; above 5 % `--amp auto` refuses.
"""

import argparse
import contextlib
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from vidcache.cache.reader import CacheReader
from vidcache.cache.stream import Batch, epoch_order
from vidcache.checkpoint import Checkpoint
from vidcache.model import R3D18
from vidcache.train.backbone import Forward
from vidcache.train.config import TrainConfig
from vidcache.train.data import ClipLoader, FeatureLoader, TrainingData, plan_steps
from vidcache.train.distributed import Ranks
from vidcache.train.features import compute_features, open_features, plan_features
from vidcache.train.loop import Loss, RunningMetrics, Stepper
from vidcache.train.precision import MAX_SLOWDOWN, _error, conv_slowdown


def make_model(reader: CacheReader, init: Path | None, device: str, *, channels_last: bool = True) -> R3D18:
    """R3D-18 with everything up to layer2 frozen; random, or from a checkpoint."""
    torch.manual_seed(0)
    model = R3D18(len(reader.classes), "layer2")
    if init:
        weights = Checkpoint.load(init).weights
        model.load_state_dict(
            {k: model.state_dict()[k] if k.startswith("fc.") else tensor for k, tensor in weights.items()}
        )
    model.to(device)
    return (model.to(memory_format=torch.channels_last_3d) if channels_last else model).train()


def make_optimizer(model: nn.Module, *, fused: bool = True) -> torch.optim.Optimizer:
    """Adam, as `vidtrain` has it."""
    return torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 1e-5, fused=fused)


def seconds_of(call: Callable[[], object], device: str) -> float:
    """How long a call takes, on the device too."""
    if device != "cpu":
        torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - start


class Bench:
    """One cache, one number of frames."""

    def __init__(self, reader: CacheReader, arguments: argparse.Namespace, num_frames: int) -> None:
        self.reader, self.arguments, self.device = reader, arguments, arguments.device
        self.num_frames = num_frames
        self.config = TrainConfig(
            weights="none", batch_size=arguments.batch_size, num_frames_used=num_frames, epochs=10**6, feature_views=1
        )
        self.task = TrainingData.of(reader, self.config, arguments.device)
        self.order = epoch_order(reader.rows("train"), 0, 1)[: arguments.batch_size * arguments.steps]

    def clips(self, forward: Forward) -> ClipLoader:
        """The inputs of `vidtrain`."""
        return ClipLoader(self.task, forward)

    def resident(self) -> tuple[torch.Tensor, torch.Tensor]:
        """An augmented batch, and its labels."""
        clips = self.clips(Forward(make_model(self.reader, None, "cpu"), "off"))
        with contextlib.closing(clips.stream([self.order[: self.config.batch_size]], 1)) as stream:
            batch: Batch = next(stream)
            return clips.pixels(batch, 1).clone(), batch.labels.clone()

    def loop(self) -> float:
        """Return the speed of the loop, beside that of bare steps."""
        model = make_model(self.reader, None, self.device)
        forward, optimizer = Forward(model, "off"), make_optimizer(model)
        scaler = torch.amp.GradScaler(self.device, enabled=False)
        inputs, ranks = self.clips(forward), Ranks(device=self.device)
        stepper = Stepper(forward, Loss(None, 0.0), optimizer, scaler, self.config, inputs, ranks)
        plans = plan_steps(self.order, self.reader.labels, None, self.config.batch_size)
        pixels, labels = self.resident()

        def bare() -> None:
            for _ in plans:
                optimizer.zero_grad(set_to_none=True)
                nn.functional.cross_entropy(forward(pixels), labels).backward()  # type: ignore[no-untyped-call]
                optimizer.step()

        def whole() -> None:
            chunks = [part for plan in plans for part in plan.parts]
            with contextlib.closing(inputs.stream(chunks, 1)) as stream:
                stepper.epoch(1, plans, stream, RunningMetrics(), lambda _: None, lambda: False)

        ratios = []
        for round_ in range(self.arguments.rounds + 1):
            first, second = seconds_of(bare, self.device), seconds_of(whole, self.device)
            if round_:  # the first one warms up
                ratios.append(first / second)
        return statistics.median(ratios)

    def steps(self) -> list[tuple[str, float, float]]:
        """Return (way, seconds of a step, error of the worst gradient)."""
        pixels, labels = self.resident()
        calls: dict[str, Callable[[], None]] = {}
        models: dict[str, R3D18] = {}

        def add(name: str, forward: Callable[[], torch.Tensor], model: R3D18, *, fused: bool = True) -> None:
            optimizer = make_optimizer(model, fused=fused)
            models[name] = model

            def step() -> None:
                optimizer.zero_grad(set_to_none=True)
                nn.functional.cross_entropy(forward(), labels).backward()  # type: ignore[no-untyped-call]
                optimizer.step()

            calls[name] = step

        init = self.arguments.init
        plain, contiguous = make_model(self.reader, init, self.device, channels_last=False), pixels.contiguous()
        add("plain: float32, contiguous", lambda: plain(contiguous), plain, fused=False)
        last = make_model(self.reader, init, self.device)
        add("channels_last_3d, fused Adam", lambda: last(pixels), last)
        slowdown = conv_slowdown(torch.device(self.device))
        if slowdown > MAX_SLOWDOWN:
            print(f"bf16 left out: one convolution in it takes {slowdown:.0f} times as long here", flush=True)
        for name, precision, is_stored in (
            ("+ frozen stages folded", "off", False),
            ("feature cache, the rest in float32", "off", True),
            ("+ frozen stages in bf16 (--amp bf16-prefix)", "bf16-prefix", False),
            ("+ everything in bf16 (--amp bf16)", "bf16", False),
            ("feature cache, the rest in bf16", "bf16", True),
        ):
            if precision != "off" and slowdown > MAX_SLOWDOWN:
                continue
            model = make_model(self.reader, init, self.device)
            forward = Forward(model, precision)
            kept = forward.prefix(pixels).to(torch.bfloat16) if is_stored else None
            add(
                name,
                lambda forward=forward, kept=kept: forward(pixels) if kept is None else forward.rest(kept),  # type: ignore[misc]
                model,
            )
        seconds: dict[str, list[float]] = {name: [] for name in calls}
        gradients: dict[str, dict[str, torch.Tensor]] = {}
        for round_ in range(self.arguments.rounds + 1):
            for name, call in calls.items():
                taken = seconds_of(call, self.device)
                if round_:
                    seconds[name].append(taken)
                else:  # of the same weights everywhere
                    gradients[name] = {
                        k: p.grad.clone() for k, p in models[name].named_parameters() if p.grad is not None
                    }
        right = gradients["plain: float32, contiguous"]
        return [
            (name, statistics.median(seconds[name]), max(_error(gradients[name][k], right[k]) for k in right))
            for name in calls
        ]

    def features(self, folder: Path) -> tuple[float, float, float]:
        """Return the seconds a clip of a plain epoch, of one from features, and of computing these."""
        model = make_model(self.reader, None, self.device)
        forward = Forward(model, "off")
        clips = self.clips(forward)
        plan, entries = plan_features(self.task, model.split()[0], clips, forward.prefix_dtype)
        path = folder / "bench.features.h5"
        path.unlink(missing_ok=True)
        computing = seconds_of(
            lambda: compute_features(path, plan, clips, self.config, lambda *_: None, lambda: False), self.device
        )
        found = open_features(path, plan)
        assert found
        inputs = {"plain": clips, "features": FeatureLoader(found, entries, self.task)}
        plans = plan_steps(self.order, self.reader.labels, None, self.config.batch_size)
        optimizer, scaler = make_optimizer(model), torch.amp.GradScaler(self.device, enabled=False)
        seconds: dict[str, list[float]] = {name: [] for name in inputs}
        for round_ in range(self.arguments.rounds + 1):
            for name, source in inputs.items():
                stepper = Stepper(
                    forward, Loss(None, 0.0), optimizer, scaler, self.config, source, Ranks(device=self.device)
                )
                chunks = [part for step in plans for part in step.parts]
                with contextlib.closing(source.stream(chunks, 1)) as stream:
                    arguments = (1, plans, stream, RunningMetrics(), lambda _: None, lambda: False)
                    taken = seconds_of(lambda call=stepper.epoch, given=arguments: call(*given), self.device)  # type: ignore[misc]
                if round_:
                    seconds[name].append(taken)
        found.close()
        path.unlink()
        each = computing / len(plan.rows)
        plain, stored = (statistics.median(values) / len(self.order) for values in seconds.values())
        return plain, stored, each


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--init", type=Path, help="a checkpoint, for gradients of weights that have learned")
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--frames", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    with CacheReader(arguments.cache) as reader:
        for num_frames in arguments.frames:
            bench = Bench(reader, arguments, num_frames)
            print(f"T' = {num_frames}: the loop runs at {bench.loop():.3f} of the speed of bare steps", flush=True)
            rows = bench.steps()
            plain = rows[0][1]
            for name, seconds, error in rows:
                print(f"  {name:45} {seconds:7.3f} s  x{plain / seconds:.2f}  gradients {error:.2%}", flush=True)
            if num_frames == min(arguments.frames):
                epoch, stored, each = bench.features(arguments.scratch)
                print(
                    f"  an epoch: {epoch:.3f} s a clip, from features {stored:.3f} (x{epoch / stored:.2f}); computing "
                    f"these {each:.3f} a clip and view",
                    flush=True,
                )


if __name__ == "__main__":
    main()
