"""`vidcache bench`: what bounds training here, as a table and in words."""

import dataclasses
import importlib.metadata
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.table import Table
from rich.text import Text

from vidcache.cli import (
    Command,
    FiniteRange,
    choose_device,
    echo_json,
    json_option,
    option,
    progress_console,
    verbosity_options,
)
from vidcache.console import Progress, SafeConsole
from vidcache.errors import MismatchError
from vidcache.text import plural, printable
from vidcache.train.bench import NAMES, Measured, Pair, Times, Verdict, in_time, judge
from vidcache.train.cli import STAGES, check_options

if TYPE_CHECKING:  # torch takes 2 s to import: not for --help
    from vidcache.checkpoint import Checkpoint
    from vidcache.train.config import TrainConfig

_CPU_BATCH, _BATCH = 2, 16
# Options that are fields of the config: what the command line says comes before what the checkpoint says.
_FIELDS = ("weights", "freeze", "num_frames_used", "accumulate", "augment", "amp", "compile", "reader_threads")


@click.command(cls=Command)
@click.argument("caches", metavar="CACHE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@option(
    "--ckpt",
    type=click.Path(path_type=Path, dir_okay=False),
    default=None,
    help="Checkpoint whose model and options are measured; options that are given come first.",
)
@option(
    "--weights",
    default="none",
    help="none (random), kinetics400, or its path: equally fast, but --amp auto may choose otherwise.",
)
@option(
    "--freeze", type=click.Choice(STAGES), default="layer2", help="Freeze everything up to and including this stage."
)
@option(
    "--num-frames",
    "num_frames_used",
    type=click.IntRange(1),
    default=None,
    show_default="all",
    help="Frames of each clip (T').",
)
@option(
    "--batch-size",
    type=click.IntRange(1),
    default=None,
    show_default=f"{_CPU_BATCH} on a CPU, else the checkpoint's, or {_BATCH}",
    help="Clips per step.",
)
@option(
    "--grad-accum-steps",
    "accumulate",
    type=click.IntRange(1),
    default=1,
    help="Put a step's clips through the model in so many parts.",
)
@option("--augment", type=click.Choice(["linear", "exact", "none"]), default="linear", help="Colour jitter.")
@option(
    "--amp",
    type=click.Choice(["auto", "off", "bf16", "fp16", "bf16-prefix"]),
    default="auto",
    help="Precision; auto chooses as vidtrain does: two steps in each that it tries.",
)
@option("--compile", is_flag=True, help="Use torch.compile.")
@option("--num-workers", "reader_threads", type=click.IntRange(1), default=2, help="Threads that read clips.")
@option("--device", default=None, show_default="cuda if there is one, else cpu", help="cpu, cuda, cuda:1, ...")
@option("--repeats", type=click.IntRange(1), default=7, help="Measure everything so often, after a warm-up.")
@option(
    "--seconds",
    type=FiniteRange(0),
    default=20,
    help="Measure no single thing longer than that, once it was measured three times.",
)
@verbosity_options()
@json_option()
@click.pass_context
def bench(
    ctx: click.Context,
    /,
    caches: tuple[Path, ...],
    ckpt: Path | None,
    repeats: int,
    seconds: float,
    as_json: bool,
    **values: Any,
) -> None:
    """Time what a training step on CACHE is made of, and say what bounds it and which knob to turn.

    Reading is timed from memory, and from the disk after this machine was asked to forget the clips; every other stage
    alone, on clips that are there; then the loop of vidtrain as it is, reading while it computes. Nothing is written.

    \b
    vidcache bench cache.h5
    vidcache bench cache.h5 --ckpt best.pt --batch-size 8
    """
    from vidcache.cache.reader import open_caches
    from vidcache.checkpoint import Checkpoint
    from vidcache.eval.inference import check_match, load_model
    from vidcache.train.bench import Limit, measure

    said = (click.core.ParameterSource.COMMANDLINE, click.core.ParameterSource.ENVIRONMENT)
    if ckpt and ctx.get_parameter_source("weights") is click.core.ParameterSource.COMMANDLINE:
        raise click.UsageError("--weights: means nothing with --ckpt; choose one of them")
    values["device"] = choose_device(values["device"])
    given = {name: values[name] for name in _FIELDS if not ckpt or ctx.get_parameter_source(name) in said}
    with open_caches(caches) as reader, Progress(progress_console(), "opening") as shown:
        weights = None
        if ckpt:
            checkpoint = Checkpoint.load(ckpt)
            # Other clips of the same shape take the same time.
            check_match(checkpoint, reader, printable(ckpt), allow_mismatch=True)
            weights = load_model(checkpoint, printable(ckpt), "cpu").state_dict()
            config = _checkpoint_config(checkpoint, printable(ckpt))
        else:
            config = _config({})
        size = values["batch_size"] or (_CPU_BATCH if values["device"] == "cpu" else config.batch_size)
        config = dataclasses.replace(config, **given, batch_size=size, device=values["device"])
        found = measure(
            reader,
            config,
            Limit(repeats, seconds),
            weights=weights,
            on_phase=lambda phase: shown.start_phase(f"measuring {phase}"),
        )
        facts = {
            "cache": reader.name,
            "fingerprint": reader.fingerprint,
            "weights": printable(ckpt or config.weights),
            "num_frames_used": config.num_frames_used or reader.spec.num_frames,
            "size": f"{reader.spec.height}x{reader.spec.width}",
            "compile": config.compile,
            "accumulate": config.accumulate,
            **machine(config.device),
        }
    verdict = judge(found)
    if as_json:
        echo_json({**facts, **to_dict(found, verdict)})
    else:
        show(facts, found, verdict)


def machine(device: str) -> dict[str, Any]:
    """Say where this is measured: devices, threads, versions."""
    import torch

    from vidcache.train.distributed import device_name

    return {
        "device": device,
        "device_name": device_name(device),
        "torch_threads": torch.get_num_threads(),
        "versions": {
            "vidcache": importlib.metadata.version("vidcache"),
            "torch": str(torch.__version__),
            "python": platform.python_version(),
        },
    }


def to_dict(found: Measured, verdict: Verdict) -> dict[str, Any]:
    """Return everything that was measured and said as JSON-ready values."""
    size, shares = found.batch_size, found.shares
    return {
        "batch_size": size,
        "clip_bytes": found.clip_bytes,
        "num_train_clips": found.num_train_clips,
        "freeze": found.freeze,
        "augment": found.augment,
        "amp": found.amp,
        "precision": found.precision,
        "precision_reason": found.reason,
        "reader_threads": found.reader_threads,
        "stages": {name: {**_times(found.times[name], size), "share": shares.get(name)} for name in NAMES},
        "cold_note": found.cold_note,
        "compute_ms": 1000 * found.compute_seconds,
        "loop": {
            **_times(found.step, size),
            "clips_per_second": size / found.step.median,
            "data_wait_fraction": found.waited_fraction,
        },
        "other_ways": {
            "read_cold_twice_the_threads": _pair(found.cold, size),
            "read_warm_twice_the_threads": _pair(found.warm, size),
            "augment": _pair(found.augmented, size),
            "frozen_bf16": _pair(found.frozen, size),
        },
        "bound_by": verdict.bound_by,
        "bottleneck": verdict.bottleneck,
        "knobs": list(verdict.knobs),
        "sentences": list(verdict.sentences),
        "storage": dataclasses.asdict(verdict.storage),
        "epoch_bytes": found.epoch_bytes,
        "memory_bytes": found.memory_bytes,
        "load": found.load,
        "num_cpus": found.num_cpus,
    }


def show(facts: dict[str, Any], found: Measured, verdict: Verdict) -> None:
    """Print the table, and what it means."""
    console = SafeConsole()
    precision = "float32" if found.precision == "off" else found.precision
    versions = facts["versions"]
    place = (
        f"{facts['device_name']}, {plural(found.num_cpus, 'CPU')}, {plural(facts['torch_threads'], 'thread')} of torch"
    )
    lines = [
        f"{facts['cache']}: {plural(found.batch_size, 'clip')} a step, {facts['num_frames_used']} frames of "
        f"{facts['size']}, R3D-18, frozen: {found.freeze}, weights: {facts['weights']}, {precision} ({found.reason})",
        f"{facts['device']}: {place}, {plural(found.reader_threads, 'reader thread')}; "
        f"vidcache {versions['vidcache']}, torch {versions['torch']}, Python {versions['python']}",
    ]
    for line in lines:
        console.print(Text(line), soft_wrap=True)
    table = Table("stage")
    for name in ("a step", "a clip", "share", "min", "max", "n"):
        table.add_column(name, justify="right")
    shares = found.shares
    for name, times in found.times.items():
        share = f"{shares[name]:.1%}" if name in shares and times else "-"
        label = f"{NAMES[name]} ({found.augment})" if name == "augment" else NAMES[name]
        _add_row(table, label, times, found.batch_size, share)
    table.add_section()
    _add_row(table, "the loop itself", found.step, found.batch_size, "-")
    console.print(table)
    for sentence in verdict.sentences:
        console.print(Text(sentence), soft_wrap=True)


def _add_row(table: Table, label: str, times: Times, batch_size: int, share: str) -> None:
    shown = (times.median, times.median / batch_size, times.low, times.high)
    step, clip, low, high = (in_time(seconds) if times else "-" for seconds in shown)
    table.add_row(label, step, clip, share, low, high, str(times.count))


def _times(times: Times, batch_size: int) -> dict[str, Any]:
    if not times:
        return {"ms_per_step": None, "ms_per_clip": None, "min_ms": None, "max_ms": None, "n": 0}
    return {
        "ms_per_step": 1000 * times.median,
        "ms_per_clip": 1000 * times.median / batch_size,
        "min_ms": 1000 * times.low,
        "max_ms": 1000 * times.high,
        "n": times.count,
    }


def _pair(pair: Pair, batch_size: int) -> dict[str, Any]:
    return {**_times(pair.other, batch_size), "speedup": pair.speedup if pair else None}


def _config(fields: dict[str, Any]) -> "TrainConfig":
    from vidcache.train.config import TrainConfig

    return TrainConfig.from_dict(fields) if fields else TrainConfig(weights="none")


def _checkpoint_config(checkpoint: "Checkpoint", where: str) -> "TrainConfig":
    """Return the options of a run; clips are measured, also where it was trained on features."""
    try:
        config = _config(checkpoint.config)
        check_options(config)
    except ValueError as error:
        raise MismatchError(
            f"{where}: options of another version of vidcache ({error}), expected those of this one. Use the vidcache "
            "that made it, or measure without --ckpt"
        ) from None
    return dataclasses.replace(config, num_frames_used=checkpoint.num_frames_used, feature_views=None, verify=False)
