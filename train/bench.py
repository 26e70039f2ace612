"""`vidcache bench`: is a training step bound by data or by compute? Steps with real data beside steps on a fixed batch.

All work is done by `vidcache.train.loop.Trainer`. Nothing is written. Torch, which takes 2 s to import, is imported
inside functions: `--help` is instant.
"""

import contextlib
import dataclasses
import importlib.metadata
import itertools
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.table import Table

from vidcache.cli import (
    Command,
    FiniteRange,
    choose_device,
    device_option,
    echo_json,
    json_option,
    num_cpus,
    option,
    progress_console,
    verbosity_options,
)
from vidcache.console import Progress, SafeConsole, echo
from vidcache.text import plural
from vidcache.train.cli import main as vidtrain

if TYPE_CHECKING:
    from vidcache.cache.reader import Reader
    from vidcache.train.config import TrainConfig

ROWS = {
    "loop": "step, real data",
    "fixed": "step, fixed batch",
    "read_warm": "reading, from memory",
    "augment": "augmentation",
}
DATA_BOUND = 1.1  # real data makes a step longer by this factor: more than noise
# Options of vidtrain that change the time of a step, and fields of its config.
FIELDS = ("freeze", "num_frames_used", "batch_size", "accumulate", "augment", "amp", "compile", "reader_threads")


@click.command(cls=Command)
@click.argument("caches", metavar="CACHE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@option(
    "--ckpt", type=click.Path(path_type=Path, dir_okay=False), help="Take the options of its run, unless given here."
)
@device_option()
@option("--repeats", type=click.IntRange(1), default=7, help="Number of measurements, after a warm-up.")
@option("--seconds", type=FiniteRange(0), default=20, help="Time limit of each thing, once it was measured 3 times.")
@verbosity_options()
@json_option()
@click.pass_context
def bench(
    ctx: click.Context,
    /,
    caches: tuple[Path, ...],
    ckpt: Path | None,
    device: str | None,
    repeats: int,
    seconds: float,
    as_json: bool,
    **options: Any,
) -> None:
    """Time a training step on CACHE with real data and on a fixed batch: is it bound by data or by compute?

    Clips come from memory (the page cache), as in all epochs but the first if the cache fits. On a CPU a step has 2
    clips unless --batch-size is given. Nothing is written.

    \b
    vidcache bench cache.h5
    vidcache bench cache.h5 --ckpt best.pt --batch-size 8
    """
    from vidcache.cache.reader import open_caches
    from vidcache.train.config import TrainConfig
    from vidcache.train.run import load_run

    chosen, config = choose_device(device), TrainConfig()
    with open_caches(caches) as reader, Progress(progress_console(), "measuring") as shown:
        if ckpt:
            config = load_run(ckpt)[1]
        if chosen == "cpu":
            config = dataclasses.replace(config, batch_size=2)
        default = click.core.ParameterSource.DEFAULT
        given = {name: value for name, value in options.items() if ctx.get_parameter_source(name) is not default}
        config = dataclasses.replace(config, **given, device=chosen)
        result = measure(reader, config, repeats, seconds, on_phase=shown.start_phase)
    if as_json:
        echo_json(result)
        return
    echo(
        f"{result['cache']}: {plural(result['batch_size'], 'clip')} per step, {result['num_frames_used']} frames of "
        f"{result['size']}, frozen: {result['freeze']}, precision: {result['precision']}; {result['device_name']}, "
        f"{plural(result['torch_threads'], 'thread')}, torch {result['versions']['torch']}"
    )
    table = Table("", "a step", "a clip", "min", "max", "n")
    for name, label in ROWS.items():
        times = result["loop"] if name == "loop" else result["stages"][name]
        cells = (f"{times[key]:,.4g} ms" for key in ("ms_per_step", "ms_per_clip", "min_ms", "max_ms"))
        table.add_row(label, *cells, str(times["n"]))
    SafeConsole().print(table)
    echo(result["sentences"][0])


bench.params[1:1] = [param for param in vidtrain.params if param.name in FIELDS]


def measure(
    reader: "Reader",
    config: "TrainConfig",
    repeats: int,
    limit_seconds: float,
    on_phase: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Time a training step with real data and on a fixed batch, reading alone and augmentation alone.

    A cache with fewer training clips than a batch is measured with all of them. Weights are random: as fast as others.
    Returns JSON-ready values. Raises InputError if the cache has no training clips or does not support the config.
    """
    import torch

    from vidcache.train.callbacks import RunningMetrics
    from vidcache.train.data import TrainingData, needed_rows
    from vidcache.train.distributed import device_name, oom_hint, torch_flags
    from vidcache.train.loop import Trainer

    size = min(config.batch_size, len(needed_rows(reader, "train")))
    config = dataclasses.replace(config, batch_size=size, weights="none", init=None, feature_views=None)
    data = TrainingData.of(reader, config, config.device)
    synchronize: Callable[[], object] = (lambda: None) if data.device.type == "cpu" else torch.accelerator.synchronize

    def clock(phase: str, run: Callable[[int], object]) -> dict[str, float]:
        """Time `run(0)`, which warms up and is left out, `run(1)`, ..., with all that they let the device do."""
        on_phase(phase)
        times: list[float] = []
        while len(times) <= min(repeats, 3) or (len(times) <= repeats and sum(times) < 1000 * limit_seconds):
            synchronize()
            start = time.perf_counter()
            run(len(times))
            synchronize()
            times.append(1000 * (time.perf_counter() - start))
        median, low, high = statistics.median(times[1:]), min(times[1:]), max(times[1:])
        return {"ms_per_step": median, "ms_per_clip": median / size, "min_ms": low, "max_ms": high, "n": len(times) - 1}

    with oom_hint(size, config.accumulate, 1, data.num_frames), torch_flags(deterministic=config.deterministic):
        trainer = Trainer(data)
        trainer.model.train()
        orders = (data.order(epoch) for epoch in itertools.count(1))
        steps = itertools.chain.from_iterable(data.plan(order[: len(order) // size * size]) for order in orders)
        plans = list(itertools.islice(steps, repeats + 1))
        parts = [rows for plan in plans for rows in plan.parts]
        for rows in parts:
            reader.read(rows, data.frames)  # brings them into memory
        with contextlib.closing(trainer.clips.stream(parts, 1)) as batches:
            reading = clock("reading", lambda number: [next(batches) for _ in plans[number].parts])
        with contextlib.closing(trainer.clips.stream(list(plans[0].parts), 1)) as batches:
            fixed = [dataclasses.replace(batch, clips=batch.clips.clone()) for batch in batches]
        augment = clock("augmentation", lambda _: [trainer.clips.pixels(batch, 1) for batch in fixed])
        compute = clock("steps on a fixed batch", lambda _: trainer.train_step(plans[0], iter(fixed), 1))
        trainer.sums = RunningMetrics()
        with contextlib.closing(trainer.clips.stream(parts, 1)) as batches:
            loop = clock("steps with real data", lambda number: trainer.train_step(plans[number], batches, 1))
        waited = trainer.sums.data_wait_fraction
    ratio = loop["ms_per_step"] / compute["ms_per_step"]
    bound_by, advice = "compute", "Fewer frames, more frozen stages or --cache-features make it faster"
    if ratio > DATA_BOUND:
        bound_by, advice = "reading", "Try more --num-workers, fewer --num-frames, or a faster disk"
    bound = "Data bound" if bound_by == "reading" else "Compute bound"
    return {
        "cache": reader.name,
        "fingerprint": reader.fingerprint,
        "num_train_clips": len(data.rows),
        "clip_bytes": math.prod(reader.shape_of(data.frames)),
        **{name: getattr(config, name) for name in ("device", *FIELDS)},
        "num_frames_used": data.num_frames,
        "size": f"{reader.spec.height}x{reader.spec.width}",
        "precision": trainer.precision,
        "device_name": device_name(config.device),
        "torch_threads": torch.get_num_threads(),
        "num_cpus": num_cpus(),
        "versions": {name: importlib.metadata.version(name) for name in ("vidcache", "torch")},
        "loop": {**loop, "clips_per_second": 1000 * size / loop["ms_per_step"], "data_wait_fraction": waited},
        "compute_ms": compute["ms_per_step"],
        "stages": {"fixed": compute, "read_warm": reading, "augment": augment},
        "bound_by": bound_by,
        "sentences": [f"{bound}: a step with real data takes x{ratio:.2f} as long as one on a fixed batch. {advice}."],
    }
