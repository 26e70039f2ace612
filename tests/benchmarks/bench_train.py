"""What a training step costs, and what the loop adds to it.

    python tests/benchmarks/bench_train.py --cache cache.h5 --scratch DIR

First: the loop of `vidtrain` (read, copy, augment, step, log) beside a bare forward, backward and optimizer step on
one resident batch; 1.00 means that everything else costs nothing. Second: a step of R3D-18 with layer3, layer4 and fc
trained in each precision and with the feature cache, beside float32. Everything in turn in each round; medians.
"""

import argparse
import contextlib
import dataclasses
import itertools
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from vidcache.cache.reader import CacheReader
from vidcache.train.config import TrainConfig
from vidcache.train.data import TrainingData
from vidcache.train.feature_cache import FeatureLoader
from vidcache.train.loop import Trainer


def seconds_of(call: Callable[[], object], device: str) -> float:
    """How long a call takes, on the device too."""
    wait = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
    wait()
    start = time.perf_counter()
    call()
    wait()
    return time.perf_counter() - start


class Run:
    """Some steps of a trainer: its own, or on one batch that stays on the device."""

    def __init__(self, reader: CacheReader, config: TrainConfig, num_steps: int) -> None:
        self.trainer = Trainer(TrainingData.of(reader, config, config.device))
        if config.feature_views:
            self.trainer.loader = FeatureLoader(self.trainer)
        self.trainer.model.train()
        self.plans = self.trainer.data.plan(self.trainer.data.order(1))[:num_steps]
        with contextlib.closing(self.trainer.loader.stream(self.plans[0].parts, 1)) as batches:
            batch = next(batches)
            self.batch = dataclasses.replace(batch, clips=batch.clips.clone(), labels=batch.labels.clone())
        self.inputs = self.trainer.clips.pixels(self.batch, 1) if not config.feature_views else None

    def whole(self) -> None:
        """The loop, with its data."""
        with contextlib.closing(self.trainer.loader.stream([plan.parts[0] for plan in self.plans], 1)) as batches:
            for plan in self.plans:
                self.trainer.train_step(plan, batches, 1)

    def resident(self) -> None:
        """The loop on one batch."""
        for _ in self.plans:
            self.trainer.train_step(self.plans[0], itertools.repeat(self.batch), 1)

    def bare(self) -> None:
        """Nothing but the step."""
        trainer = self.trainer
        assert self.inputs is not None
        for _ in self.plans:
            trainer.optimizer.zero_grad(set_to_none=True)
            logits = trainer.head(trainer.run_frozen(self.inputs))
            nn.functional.cross_entropy(logits, self.batch.labels).backward()  # type: ignore[no-untyped-call]
            trainer.optimizer.step()


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--init", type=Path, help="a checkpoint to start from")
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--frames", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--precisions", nargs="+", default=["off", "bf16-prefix", "bf16"])
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    base = TrainConfig(
        weights="none", init=str(arguments.init) if arguments.init else None, batch_size=arguments.batch_size,
        amp="off", device=arguments.device, lr=1e-9, feature_file=str(arguments.scratch / "bench.features.h5"),
    )  # fmt: skip
    with CacheReader(arguments.cache) as reader:
        for num_frames in arguments.frames:
            config = dataclasses.replace(base, num_frames_used=num_frames)
            plain = Run(reader, config, arguments.steps)
            rounds = [
                (seconds_of(plain.bare, arguments.device), seconds_of(plain.whole, arguments.device))
                for _ in range(arguments.rounds + 1)
            ][1:]  # the first one warms up
            ratio = statistics.median(bare / whole for bare, whole in rounds)
            print(f"T' = {num_frames}: the loop runs at {ratio:.3f} of the speed of bare steps", flush=True)
            runs = {amp: Run(reader, dataclasses.replace(config, amp=amp), 1) for amp in arguments.precisions}
            runs["feature cache, off"] = Run(reader, dataclasses.replace(config, feature_views=1), 1)
            seconds: dict[str, list[float]] = {name: [] for name in runs}
            for _ in range(arguments.rounds + 1):
                for name, run in runs.items():
                    seconds[name].append(seconds_of(run.resident, arguments.device))
            medians = {name: statistics.median(values[1:]) for name, values in seconds.items()}
            for name, median in medians.items():
                print(f"  --amp {name:20} {median:7.3f} s  x{medians['off'] / median:.2f}", flush=True)


if __name__ == "__main__":
    main()
