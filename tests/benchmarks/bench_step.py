"""What streaming and augmentation add to a training step.

    python tests/benchmarks/bench_step.py --cache cache.h5

A step on a batch that is there, and the same step on batches that are streamed and augmented, in turn in
each round; R3D-18 as `vidtrain` trains it. 1.00 means that the data cost nothing.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch

from vidcache.cache.reader import CacheReader
from vidcache.cache.stream import epoch_order, stream_batches
from vidcache.model import build_model
from vidcache.pixels import Workspace
from vidcache.sampling import sample_indices
from vidcache.train.augment import Strength, augment, draw


def bench(reader: CacheReader, num_frames: int, batch_size: int, steps: int, rounds: int, device: str) -> float:
    """Return the speed of real steps beside that of steps on one resident batch."""
    model = build_model(len(reader.classes), "none", "layer2").to(device, memory_format=torch.channels_last_3d)
    model.train()
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 1e-4, fused=True)
    frames = sample_indices(reader.spec.num_frames, num_frames)
    order = epoch_order(reader.rows(), 0, 1)[: batch_size * steps]
    workspace, ring = Workspace(), Workspace()

    def step(inputs: torch.Tensor, labels: torch.Tensor) -> None:
        torch.nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def finish() -> float:
        if device != "cpu":
            torch.cuda.synchronize()
        return time.perf_counter()

    def streamed() -> None:
        for batch in stream_batches(reader, order, batch_size, frames=frames, device=device, workspace=ring):
            draws = draw(batch.rows, Strength(), 0, 1)
            step(augment(batch.clips, draws, "linear", reader.columns["mean_rgb"][batch.rows], workspace), batch.labels)

    first = next(iter(stream_batches(reader, order, batch_size, frames=frames, device=device)))
    draws = draw(first.rows, Strength(), 0, 1)
    resident = augment(first.clips, draws, "linear", reader.columns["mean_rgb"][first.rows]).clone()
    labels = first.labels.clone()
    ratios = []
    for round_ in range(rounds + 1):
        start = finish()
        for _ in range(steps):
            step(resident, labels)
        middle = finish()
        streamed()
        end = finish()
        if round_:  # the first one warms up
            ratios.append((middle - start) / (end - middle))
            print(f"  {(middle - start) / steps:.3f} s and {(end - middle) / steps:.3f} s", flush=True)
    return statistics.median(ratios)


def main() -> None:
    """Print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    with CacheReader(arguments.cache) as reader:
        for num_frames in (16, 64):
            ratio = bench(reader, num_frames, arguments.batch_size, arguments.steps, arguments.rounds, arguments.device)
            print(f"T' = {num_frames}: {ratio:.3f} of the speed of steps on a resident batch", flush=True)


if __name__ == "__main__":
    main()
