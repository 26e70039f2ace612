"""What flip, four jitters and normalisation of a clip cost on the CPU, beside what users do today.

    python tests/benchmarks/bench_augment.py --batch-size 8

From uint8 (B, T, H, W, 3), as a cache gives it, to what the model takes. All in turn in each round; a
ratio is the median over the rounds. kornia comes with the `bench` extra and is left out without it.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torchvision.transforms import v2

from vidcache.cache.reader import CacheReader
from vidcache.cache.stream import epoch_order
from vidcache.pixels import MEAN, STD, normalize
from vidcache.train.augment import Strength, augment, draw


def torchvision_of(*, float_first: bool) -> Callable[[torch.Tensor], torch.Tensor]:
    """torchvision v2, called per clip: called on the batch, it would draw once for all clips."""
    jitter = v2.ColorJitter(0.2, 0.2, 0.2, 0.1)
    to_float = v2.ToDtype(torch.float32, scale=True)
    steps = [to_float, jitter] if float_first else [jitter, to_float]
    transform = v2.Compose([v2.RandomHorizontalFlip(0.5), *steps, v2.Normalize(list(MEAN), list(STD))])

    def run(clips: torch.Tensor) -> torch.Tensor:
        done = [transform(clip.permute(0, 3, 1, 2)).permute(1, 0, 2, 3) for clip in clips]
        return torch.stack(done).contiguous(memory_format=torch.channels_last_3d)

    return run


def kornia_of() -> Callable[[torch.Tensor], torch.Tensor] | None:
    """kornia, one draw per clip (`VideoSequential`, same on all frames)."""
    try:
        import kornia.augmentation as kornia
    except ImportError:
        return None
    transform = kornia.VideoSequential(
        kornia.RandomHorizontalFlip(p=0.5),
        kornia.ColorJitter(0.2, 0.2, 0.2, 0.1, p=1.0),
        kornia.Normalize(torch.tensor(MEAN), torch.tensor(STD)),
        data_format="BCTHW",
        same_on_frame=True,
    )

    def run(clips: torch.Tensor) -> torch.Tensor:
        done: torch.Tensor = transform(clips.permute(0, 4, 1, 2, 3).float() / 255)
        return done.contiguous(memory_format=torch.channels_last_3d)

    return run


def deviation(cache: Path, num_clips: int = 32) -> str:
    """How far `linear` is from `exact` on real clips, at the default strength."""
    with CacheReader(cache) as reader:
        rows = epoch_order(reader.rows(), 0, 1)[:num_clips]
        clips, means = torch.from_numpy(reader.read(rows)), reader.columns["mean_rgb"][rows]
    draws = draw(rows, Strength(flip=0), 0, 1)
    linear, exact = (augment(clips, draws, method, means) for method in ("linear", "exact"))
    scale = 255 * torch.tensor(STD)[:, None, None, None]
    plain = normalize(clips)
    apart, moved = (((one - exact) * scale).abs().mean().item() for one in (linear, plain))
    return f"on average, linear is {apart:.1f} of 255 from exact, and exact {moved:.1f} from the clip"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=0, help="Of torch; 0 is its own choice.")
    parser.add_argument("--cache", type=Path, help="Real clips, to compare linear with exact.")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    num_clips = arguments.batch_size
    clips = torch.randint(0, 256, (num_clips, 64, 112, 112, 3), dtype=torch.uint8)
    rows, strength, epoch = np.arange(num_clips), Strength(), iter(range(10**9))
    means = clips.reshape(num_clips, -1, 3).float().mean(1).numpy()

    def ours(method: str) -> Callable[[torch.Tensor], torch.Tensor]:
        return lambda clips: augment(clips, draw(rows, strength, 0, next(epoch)), method, means)

    contenders: dict[str, Callable[[torch.Tensor], torch.Tensor] | None] = {
        "torchvision v2, uint8": torchvision_of(float_first=False),
        "torchvision v2, float": torchvision_of(float_first=True),
        "kornia": kornia_of(),
        "exact": ours("exact"),
        "linear": ours("linear"),
        "normalise only": normalize,
        "floor: uint8 to float": lambda clips: clips.to(torch.float32),
    }
    runs: dict[str, list[float]] = {name: [] for name, run in contenders.items() if run}
    for round_ in range(arguments.rounds + 1):
        for name, seconds in runs.items():
            run = contenders[name]
            assert run
            start = time.perf_counter()
            run(clips)
            if round_:  # the first one warms up
                seconds.append(time.perf_counter() - start)
    if arguments.cache:
        print(deviation(arguments.cache))
    base = [min(pair) for pair in zip(runs["torchvision v2, uint8"], runs["torchvision v2, float"], strict=True)]
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {num_clips} clips of 64 x 112 x 112")
    for name, seconds in runs.items():
        ratio = statistics.median(one / other for one, other in zip(base, seconds, strict=True))
        print(f"{name:24} {1000 * statistics.median(seconds) / num_clips:8.2f} ms/clip  {ratio:6.1f} times torchvision")


if __name__ == "__main__":
    main()
