"""`vidtrain`: options in, best.pt and best.run/ out."""

import dataclasses
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.text import Text

from vidcache.cli import (
    Command,
    FiniteRange,
    beside,
    check_png,
    choose_device,
    command_line,
    echo_json,
    json_option,
    option,
    progress_console,
    verbosity_options,
    version_option,
)
from vidcache.console import SafeConsole, echo
from vidcache.errors import InputError, InterruptedRunError, MismatchError
from vidcache.outputs import PICTURE, claim
from vidcache.text import brief, plural, printable
from vidcache.train.callbacks import Reporter
from vidcache.train.run_dir import LAST, claim_place, feature_path, inputs_of, run_folder
from vidcache.train.shutdown import Stop

if TYPE_CHECKING:  # torch takes 2 s to import: not for --help
    from vidcache.checkpoint import Checkpoint
    from vidcache.train.augment import Strength
    from vidcache.train.config import TrainConfig

_KEPT = "; a run that had begun goes on with --resume"
_GO_ON = "Go on with: vidtrain ... --resume"
_SECONDS_FOR_FIRST = 2  # the process that saves, before another one ends
STAGES = ("none", "stem", "layer1", "layer2", "layer3", "layer4", "all")


def strength_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """What is done to a clip, and how strongly; `make_strength` collects it."""
    for decorate in reversed(
        [
            option(
                "--augment",
                type=click.Choice(["linear", "exact", "none"]),
                default="linear",
                help="Colour jitter: one affine map per clip, torchvision's formulas, or none.",
            ),
            option("--flip", type=FiniteRange(0, 1), default=0.5, help="Probability of a mirrored clip."),
            option("--brightness", type=FiniteRange(0), default=0.2, help="Jitter."),
            option("--contrast", type=FiniteRange(0), default=0.2, help="Jitter."),
            option("--saturation", type=FiniteRange(0), default=0.2, help="Jitter."),
            option("--hue", type=FiniteRange(0, 0.5), default=0.1, help="Jitter, in turns of the colour circle."),
        ]
    ):
        command = decorate(command)
    return command


@click.command(
    cls=Command,
    kept=_KEPT,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.argument("caches", metavar="CACHE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), default="best.pt", help="Checkpoint of the best epoch."
)
@option("--weights", default="kinetics400", help="kinetics400, none, or the path of the Kinetics file.")
@option(
    "--init",
    type=click.Path(dir_okay=False),
    default=None,
    help="Checkpoint of another run to start from; with other classes it gets a new head.",
)
@option(
    "--freeze",
    type=click.Choice(STAGES),
    default=None,
    show_default="layer2; none with --weights none",
    help="Freeze everything up to and including this stage.",
)
@option(
    "--num-frames",
    "num_frames_used",
    type=click.IntRange(1),
    default=None,
    show_default="all",
    help="Frames of each clip (T').",
)
@option("--epochs", type=click.IntRange(1), default=30, help="At most so many.")
@option("--batch-size", type=click.IntRange(1), default=16, help="Clips per step, on all processes together.")
@option(
    "--grad-accum-steps",
    "accumulate",
    type=click.IntRange(1),
    default=1,
    help="Put a step's clips through the model in so many parts.",
)
@option("--lr", type=FiniteRange(0, min_open=True), default=1e-4, help="Highest learning rate of Adam.")
@option(
    "--lr-schedule",
    type=click.Choice(["none", "cosine"]),
    default="none",
    help="cosine: fall to 0 over --epochs; give --patience room then.",
)
@option("--warmup-epochs", type=FiniteRange(0), default=0, help="Epochs in which the learning rate rises.")
@option("--weight-decay", type=FiniteRange(0), default=5e-4, help="Of Adam.")
@option("--label-smoothing", type=FiniteRange(0, 1, max_open=True), default=0.0, help="In training only.")
@option(
    "--clip-grad-norm",
    "clip_norm",
    type=FiniteRange(0, min_open=True),
    default=None,
    show_default="off",
    help="Largest norm of all gradients together.",
)
@option(
    "--balance",
    type=click.Choice(["both", "sampler", "loss", "none"]),
    default="both",
    help="Against imbalance: draw classes equally, weigh the loss, or both.",
)
@strength_options
@option("--min-delta", type=FiniteRange(0), default=1e-2, help="Validation loss that counts as progress.")
@option("--patience", type=click.IntRange(1), default=3, help="Epochs without progress before stopping.")
@option("--min-epochs", type=click.IntRange(1), default=5, help="The earliest epoch that can be the last.")
@option(
    "--amp",
    type=click.Choice(["auto", "off", "bf16", "fp16", "bf16-prefix"]),
    default="auto",
    help="Precision; auto measures a real step and compares its gradients; bf16-prefix: of the frozen stages alone.",
)
@option("--compile", is_flag=True, help="Use torch.compile.")
@option(
    "--cache-features",
    "feature_views",
    metavar="VIEWS",
    type=click.IntRange(1, 10_000),
    default=None,
    show_default="off",
    help="Compute what the frozen stages give once, for so many augmentations of each clip, and train on that.",
)
@option(
    "--feature-file",
    type=click.Path(dir_okay=False),
    default=None,
    show_default="cache.features.h5 beside cache.h5",
    help="Where to keep it.",
)
@option("--deterministic", is_flag=True, help="The same bits again on the same GPU; slower. (On a CPU always.)")
@option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, help="Of everything that is random.")
@option("--num-workers", "reader_threads", type=click.IntRange(1, 1024), default=2, help="Threads that read clips.")
@option("--verify", is_flag=True, help="Compare each clip with its hash whenever it is read.")
@option("--device", default=None, show_default="cuda if there is one, else cpu", help="cpu, cuda, cuda:1, ...")
@click.option("--resume", is_flag=True, help="Go on with the run of best.run/last.pt, with its options.")
@click.option("--overwrite", is_flag=True, help="Replace the run that is there, once this one is ready to train.")
@click.option("--tensorboard", is_flag=True, help="Write a TensorBoard log to best.run/tensorboard.")
@click.option(
    "--fail-on-leaks", "strict_splits", is_flag=True, help="Stop when clips look like clips of another split."
)
@click.option("--shuffle-labels", is_flag=True, help="Control run with permuted labels: must end at chance.")
@version_option()
@verbosity_options("every step")
@json_option()
@click.pass_context
def main(
    ctx: click.Context,
    /,
    caches: tuple[Path, ...],
    out: Path,
    resume: bool,
    overwrite: bool,
    strict_splits: bool,
    tensorboard: bool,
    as_json: bool,
    **values: Any,
) -> None:
    """Fine-tune R3D-18 on CACHE; the best epoch's model goes to best.pt, the rest to best.run/.

    Several caches of the same shape and classes are used as one. A run that was interrupted or killed goes on with
    --resume, and ends with the same weights as one that was not. torchrun trains on several GPUs or machines.

    \b
    vidtrain cache.h5
    vidtrain cache.h5 --resume
    torchrun --nproc-per-node 2 -m vidcache.train cache.h5
    """
    if resume and overwrite:
        raise click.UsageError("--overwrite: means nothing with --resume; choose one of them")
    given = ctx.get_parameter_source("weights") is click.core.ParameterSource.COMMANDLINE
    if values["init"] and given:
        raise click.UsageError("--weights: means nothing with --init; choose one of them")
    _check_place(caches, out, values, resume=resume, overwrite=overwrite)

    from vidcache.train.distributed import init_distributed
    from vidcache.train.run import run_training

    config = _resumed_config(ctx, out, values) if resume else make_config(values)
    with init_distributed(config.device) as ranks:
        stderr = progress_console() if ranks.is_first else SafeConsole(stderr=True, quiet=True)
        reporter = Reporter(stderr)

        def show_exit(found: "Checkpoint | Exception | None") -> None:
            reporter.progress.stop()
            if ranks.is_first:
                echo(f"Error: {_kept(found, run_folder(out) / LAST)}", err=True)

        try:
            with reporter, Stop(reporter.show_stop, show_exit) as stop:
                if ranks.count > 1:  # torchrun stops the others of one that has died: that is to be said first
                    stop.grace_seconds = 4.0
                if not ranks.is_first:
                    stop.halt_with(lambda: time.sleep(_SECONDS_FOR_FIRST))
                result = run_training(
                    caches,
                    out,
                    config,
                    dataclasses.replace(reporter.hooks(), on_haltable=stop.halt_with),
                    strict_splits=strict_splits,
                    resume=resume,
                    overwrite=overwrite,
                    should_stop=lambda: stop.asked,
                    ranks=ranks,
                    tensorboard=tensorboard,
                    command=command_line(),
                )
        except InterruptedRunError as error:
            raise InterruptedRunError(f"{error}. {_GO_ON}") from None
    if not ranks.is_first:
        return
    best = result.best
    SafeConsole(stderr=True).print(  # the result: also of a quiet run
        Text(
            f"{printable(out)}: epoch {result.best_epoch} of {len(result.epochs)}, "
            f"validation loss {best.val_loss:.4f}, accuracy {best.val_accuracy:.1%}; "
            f"stopped because {result.stopped_because}"
        ),
        soft_wrap=True,
    )
    if as_json:
        echo_json(
            {
                "checkpoint": printable(out),
                "best_epoch": result.best_epoch,
                "num_epochs": len(result.epochs),
                "val_loss": best.val_loss,
                "val_accuracy": best.val_accuracy,
                "stopped_because": result.stopped_because,
            }
        )


def _kept(found: "Checkpoint | Exception | None", last: Path) -> str:
    """Say what is kept of a run that was halted in the middle of a step."""
    if found is None:
        return f"interrupted{_KEPT}"
    if isinstance(found, Exception):
        return f"interrupted; the steps since {printable(last)} was written could not be saved ({found}). {_GO_ON}"
    done = found.training["sums"]["num_steps"]
    return f"train: stopped in epoch {found.epoch + 1}, after {done} of its steps. {_GO_ON}"


@click.command(cls=Command)
@click.argument("cache", type=click.Path(path_type=Path))
@strength_options
@option(
    "--out",
    envvar="VIDCACHE_PREVIEW_OUT",
    type=click.Path(path_type=Path, dir_okay=False),
    callback=check_png,
    default=None,
    show_default="cache.preview.png beside cache.h5",
    help="PNG to write.",
)
@option("--split", type=click.Choice(["train", "val", "test"]), default="train", help="Which clips.")
@option("--num-clips", type=click.IntRange(1, 32), default=4, help="So many, drawn with the seed.")
@option(
    "--num-frames",
    envvar="VIDCACHE_PREVIEW_FRAMES",
    type=click.IntRange(1, 64),
    default=8,
    help="Frames of each to show.",
)
@option("--epoch", type=click.IntRange(1), default=1, help="Of the run whose draws to show.")
@option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, help="Of the run whose draws to show.")
def preview(cache: Path, out: Path | None, split: str, num_clips: int, num_frames: int, **values: Any) -> None:
    """Show clips of CACHE as training sees them: a row of frames before and one after augmentation.

    \b
    vidcache preview cache.h5 --augment exact --hue 0.3
    """
    from vidcache.cache.reader import CacheReader
    from vidcache.cache.stream import epoch_order
    from vidcache.plotting import draw_filmstrips
    from vidcache.train.callbacks import augmented_strips

    path = claim(out or beside(cache, ".preview.png"), PICTURE, [cache])
    method, seed, epoch, strength = values["augment"], values["seed"], values["epoch"], make_strength(values)
    with CacheReader(cache) as reader:
        rows = epoch_order(reader.rows(split), seed, epoch)[:num_clips]
        if not len(rows):
            raise InputError(f"{reader.name}: no {split} clips, expected at least one. Choose another --split")
        strips = augmented_strips(reader, rows, method, strength, num_frames=num_frames, seed=seed, epoch=epoch)
    draw_filmstrips(strips, path)
    echo(f"{printable(path)}: {plural(len(strips), 'clip')} before and after --augment {method}")


def make_strength(values: dict[str, Any]) -> "Strength":
    """Take the options of the augmentation out of all options."""
    from vidcache.train.augment import Strength

    return Strength(**{name: values.pop(name) for name in ("flip", "brightness", "contrast", "saturation", "hue")})


def make_config(values: dict[str, Any]) -> "TrainConfig":
    """Turn the options of the command into a config."""
    from vidcache.train.config import TrainConfig

    strength = make_strength(values)
    if values["freeze"] is None:
        values["freeze"] = "none" if values["weights"] == "none" and not values.get("init") else "layer2"
    values["device"] = choose_device(values["device"])
    for name in ("init", "weights", "feature_file"):  # a run may be resumed from another folder
        if values.get(name) and values[name] not in ("kinetics400", "none"):
            values[name] = os.path.abspath(values[name])
    return TrainConfig(strength=strength, **values)


def check_options(config: "TrainConfig") -> None:
    """Refuse a config with a value that the command does not take.

    Raises:
        ValueError: Names the option.
    """
    values = dataclasses.asdict(config) | dataclasses.asdict(config.strength)
    for param in main.params:
        value = values.get(param.name or "")
        if isinstance(param.type, click.IntRange | click.FloatRange | click.Choice) and value is not None:
            try:
                param.type.convert(value, param, None)
            except click.BadParameter as error:
                raise ValueError(f"{param.name}: {error.message}") from None
    if not re.fullmatch(r"(cpu|cuda|mps|xpu)(:\d{1,3})?", config.device):
        raise ValueError(f"device: {brief(config.device)}")


def _check_place(caches: tuple[Path, ...], out: Path, values: dict[str, Any], *, resume: bool, overwrite: bool) -> None:
    """Refuse in the first second what `run_training` would refuse after torch was imported."""
    features = None if values["feature_views"] is None else feature_path(caches[0], values["feature_file"])
    place = claim_place(out, inputs_of(caches, values["weights"], values["init"]), features, resume=resume)
    if os.environ.get("RANK", "0") == "0":  # of torchrun: the first process may have begun already
        place.check_alone()
        if not resume and not overwrite:
            place.check_vacant()


def _resumed_config(ctx: click.Context, out: Path, values: dict[str, Any]) -> "TrainConfig":
    """Return the config of the run to resume; what the command line says must not contradict it."""
    from vidcache.train.run import FREE, resumed_config

    old, new = resumed_config(out), make_config(dict(values))
    try:
        check_options(old)
    except ValueError as error:
        where = printable(run_folder(out) / LAST)
        raise MismatchError(f"{where}: an option that no run has ({error}). Train again with another --out") from None
    there, here = (dataclasses.asdict(config) | dataclasses.asdict(config.strength) for config in (old, new))
    said = (click.core.ParameterSource.COMMANDLINE, click.core.ParameterSource.ENVIRONMENT)
    flags = {parameter.name: parameter.opts[0] for parameter in ctx.command.params}
    names = [name for name in values if ctx.get_parameter_source(name) in said]
    free = {name: getattr(new, name) for name in names if name in FREE}
    for name in sorted(set(names) - FREE):
        if there[name] != here[name]:
            raise click.UsageError(
                f"{flags[name]} {here[name]}: the run in {printable(run_folder(out))} has "
                f"{there[name]}, expected the same. Leave it out, or train anew with another --out"
            )
    return dataclasses.replace(old, **{**free, "device": choose_device(free.get("device", old.device))})
