"""`vidtrain` and `vidcache preview`: options in, best.pt and best.run/ or a picture out."""

import dataclasses
import functools
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
    device_option,
    echo_json,
    json_option,
    option,
    progress_console,
    seed_option,
    verbosity_options,
    version_option,
)
from vidcache.console import SafeConsole, echo
from vidcache.errors import InputError, InterruptedRunError, MismatchError
from vidcache.outputs import PICTURE, claim
from vidcache.text import brief, plural, printable
from vidcache.train.run_dir import LAST, claim_run, feature_path, inputs_of, run_folder
from vidcache.train.shutdown import GracefulShutdown

if TYPE_CHECKING:  # torch takes 2 s to import: not for --help
    from vidcache.checkpoint import Checkpoint
    from vidcache.train.callbacks import RunResult
    from vidcache.train.config import TrainConfig

_KEPT = "; a run that had begun can be resumed with --resume"
_RESUME = "Continue with: vidtrain ... --resume"
_AMP_NAMES = {"fp32": "off", "bf16-backbone": "bf16-prefix"}  # as checkpoints name them

_model, _data, _optim, _augmentation, _stopping, _speed = (
    functools.partial(option, group=group)
    for group in ("Model", "Data", "Optimisation", "Augmentation", "Early stopping", "Speed")
)
_COUNT, _FROM_0, _ABOVE_0 = click.IntRange(1), FiniteRange(0), FiniteRange(0, min_open=True)
_FILE, _OUT = click.Path(dir_okay=False), click.Path(dir_okay=False, path_type=Path)
_FRACTION, _CHOICE = FiniteRange(0, 1, max_open=True), click.Choice
_BALANCES, _SCHEDULES = _CHOICE(["both", "sampler", "loss", "none"]), _CHOICE(["none", "cosine"])
_AMPS = _CHOICE(["auto", "fp32", "bf16", "fp16", "bf16-backbone", "off", "bf16-prefix"])
_AUGMENTS, _STAGES = _CHOICE(["linear", "exact", "none"]), _CHOICE("none stem layer1 layer2 layer3 layer4 all".split())
_VIEWS, _THREADS = click.IntRange(1, 10_000), click.IntRange(1, 1024)


def _rename_amp(ctx: click.Context, param: click.Parameter, value: str) -> str:  # noqa: ARG001 -- click's signature
    return _AMP_NAMES.get(value, value)


def _add_all(*decorators: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return one decorator that adds options in this order."""
    return lambda command: functools.reduce(lambda decorated, decorate: decorate(decorated), decorators[::-1], command)


augmentation_options = _add_all(
    _augmentation("--augment", type=_AUGMENTS, default="linear", help="Colour jitter: fast, torchvision's, or none."),
    _augmentation("--flip", type=FiniteRange(0, 1), default=0.5, help="Probability of a mirrored clip."),
    _augmentation("--brightness", type=_FROM_0, default=0.2, help="Brightness jitter."),
    _augmentation("--contrast", type=_FROM_0, default=0.2, help="Contrast jitter."),
    _augmentation("--saturation", type=_FROM_0, default=0.2, help="Saturation jitter."),
    _augmentation("--hue", type=FiniteRange(0, 0.5), default=0.1, help="Hue jitter, in turns of the colour circle."),
)
train_options = _add_all(
    _model("--weights", default="kinetics400", help="kinetics400, none, or the path of a state dict."),
    _model("--init", type=_FILE, help="Checkpoint of another run to start from; other classes get a new head."),
    _model("--freeze", type=_STAGES, show_default="layer2; none with --weights none", help="Last frozen stage."),
    _data("--num-frames", "num_frames_used", type=_COUNT, show_default="all", help="Frames of each clip."),
    _data("--batch-size", type=_COUNT, default=16, help="Clips per optimizer step, over all processes."),
    _data("--balance", type=_BALANCES, default="both", help="Class balancing: sample equally, weight the loss, both."),
    _data("--verify", is_flag=True, help="Check the hash of each clip when it is read."),
    _data("--fail-on-leaks", is_flag=True, envvar=None, help="Stop if different splits share near-duplicate clips."),
    _data("--shuffle-labels", is_flag=True, envvar=None, help="Sanity check: shuffled labels, accuracy at chance."),
    _optim("--epochs", type=_COUNT, default=30, help="Maximum number of epochs."),
    _optim("--lr", type=_ABOVE_0, default=1e-4, help="Peak learning rate of Adam."),
    _optim("--lr-schedule", type=_SCHEDULES, default="none", help="cosine: decay to 0 (raise --patience then)."),
    _optim("--warmup-epochs", type=_FROM_0, default=0, help="Epochs of linear warm-up; may be a fraction."),
    _optim("--weight-decay", type=_FROM_0, default=5e-4, help="Adam weight decay."),
    _optim("--label-smoothing", type=_FRACTION, default=0.0, help="Label smoothing of the training loss."),
    _optim("--clip-grad-norm", "clip_norm", type=_ABOVE_0, show_default="off", help="Maximum norm of the gradients."),
    _optim("--grad-accum-steps", "accumulate", type=_COUNT, default=1, help="Gradient accumulation steps per batch."),
    augmentation_options,
    _stopping("--min-delta", type=_FROM_0, default=1e-2, help="Decrease of the validation loss that counts."),
    _stopping("--patience", type=_COUNT, default=3, help="Epochs without improvement before stopping."),
    _stopping("--min-epochs", type=_COUNT, default=5, help="Never stop early before this epoch."),
    device_option(group="Speed"),
    _speed("--amp", type=_AMPS, default="auto", callback=_rename_amp, help="Precision. auto: bf16 or fp16 on GPUs."),
    _speed("--compile", is_flag=True, help="Use torch.compile."),
    _speed(
        "--cache-features",
        "feature_views",
        metavar="N",
        type=_VIEWS,
        show_default="off",
        help="Cache frozen-backbone features for N augmented views per clip and train on them.",
    ),
    _speed("--feature-file", type=_FILE, show_default="cache.features.h5", help="Path of the feature cache."),
    _speed("--num-workers", "reader_threads", type=_THREADS, default=2, help="Threads that read clips."),
    _speed("--deterministic", is_flag=True, help="Use deterministic algorithms (slower; CPU runs always are)."),
)


@click.command(cls=Command, kept=_KEPT, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("caches", metavar="CACHE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@train_options
@option("--out", type=_OUT, default="best.pt", help="Checkpoint of the best epoch.")
@seed_option()
@click.option("--resume", is_flag=True, help="Continue the run of best.run/last.pt, with its options.")
@click.option("--overwrite", is_flag=True, help="Replace an existing run, once this one is ready to train.")
@click.option("--tensorboard", is_flag=True, help="Write a TensorBoard log to best.run/tensorboard.")
@version_option()
@verbosity_options("every step")
@json_option()
@click.pass_context
def main(ctx: click.Context, /, caches: tuple[Path, ...], out: Path, as_json: bool, **values: Any) -> None:
    """Fine-tune R3D-18 on CACHE; the model of the best epoch goes to best.pt, everything else to best.run/.

    Several caches of the same shape and classes are used as one. A run that was interrupted or killed continues with
    --resume, and ends with the same weights as one that was not. torchrun trains on several GPUs or machines.

    \b
    vidtrain cache.h5
    vidtrain cache.h5 --resume
    torchrun --nproc-per-node 2 -m vidcache.train cache.h5
    """
    options = {name: values.pop(name) for name in ("resume", "overwrite", "fail_on_leaks", "tensorboard")}
    if options["resume"] and options["overwrite"]:
        raise click.UsageError("--overwrite cannot be combined with --resume")
    if values["init"] and ctx.get_parameter_source("weights") is click.core.ParameterSource.COMMANDLINE:
        raise click.UsageError("--weights cannot be combined with --init")
    # Refuse in the first second what `run_training` would refuse after torch has been imported.
    features = None if values["feature_views"] is None else feature_path(caches[0], values["feature_file"])
    place = claim_run(out, inputs_of(caches, values["weights"], values["init"]), features, resume=options["resume"])
    if os.environ.get("RANK", "0") == "0":  # of torchrun: the first process may have begun already
        if place.folder.exists():
            with place.lock():
                pass
        if not options["resume"] and not options["overwrite"]:
            place.check_vacant()

    from vidcache.train.config import TrainConfig

    config = TrainConfig.from_options(values, choose_device(values["device"]))
    if options["resume"]:
        config = _resumed_config(ctx, out, config)
    result = _run(caches, out, config, options)
    if result is None:
        return
    best, num_epochs, name = result.best, len(result.epochs), printable(out)
    SafeConsole(stderr=True).print(  # the result: also of a quiet run
        Text(
            f"{name}: epoch {best.epoch} of {num_epochs}, validation loss {best.val_loss:.4f}, "
            f"accuracy {best.val_accuracy:.1%}; {result.stopped_because}"
        ),
        soft_wrap=True,
    )
    if as_json:
        facts = {"checkpoint": name, "best_epoch": best.epoch, "num_epochs": num_epochs, "val_loss": best.val_loss}
        echo_json({**facts, "val_accuracy": best.val_accuracy, "stopped_because": result.stopped_because})


def _run(caches: tuple[Path, ...], out: Path, config: "TrainConfig", options: dict[str, bool]) -> "RunResult | None":
    """Train, with Ctrl-C and the terminal; the result in the main process, None in the others."""
    from vidcache.train.callbacks import Callback, Reporter
    from vidcache.train.distributed import init_distributed
    from vidcache.train.run import run_training

    with init_distributed(config.device) as processes:
        reporter = Reporter(progress_console() if processes.is_main else SafeConsole(stderr=True, quiet=True))

        def on_request() -> None:
            reporter.on_note("stopping after this step, or in the middle of a long one; Ctrl-C again stops at once")

        def on_exit(saved: "Checkpoint | Exception | None") -> None:
            reporter.progress.stop()
            if processes.is_main:
                echo(f"Error: {_how_saved(saved, run_folder(out) / LAST)}", err=True)

        # torchrun stops the others of one that died: that message comes first.
        grace_seconds = 0.7 if processes.world_size == 1 else 4.0
        try:
            with reporter, GracefulShutdown(on_request, on_exit, grace_seconds) as shutdown:
                if not processes.is_main:
                    shutdown.halt_with(lambda: time.sleep(2))  # the main process saves
                halting = Callback(on_setup=lambda trainer: shutdown.halt_with(trainer.halt))
                stop = {"should_stop": shutdown.is_requested, "command": command_line()}
                result = run_training(caches, out, config, [reporter, halting], processes=processes, **options, **stop)
        except InterruptedRunError as error:
            raise InterruptedRunError(f"{error}. {_RESUME}") from None
        return result if processes.is_main else None


def _how_saved(saved: "Checkpoint | Exception | None", last: Path) -> str:
    """Say what is kept of a run that was halted in the middle of a step."""
    if saved is None:
        return f"interrupted{_KEPT}"
    if isinstance(saved, Exception):
        return f"interrupted; the steps since {printable(last)} was written could not be saved ({saved}). {_RESUME}"
    num_steps = saved.training["sums"]["num_steps"]
    return f"train: stopped in epoch {saved.epoch + 1}, after {num_steps} of its steps. {_RESUME}"


def _resumed_config(ctx: click.Context, out: Path, new: "TrainConfig") -> "TrainConfig":
    """Return the config of the run to resume; the command line must not contradict it."""
    from vidcache.train.run import FREE, resumed_config

    old, where = resumed_config(out), printable(run_folder(out))
    try:
        _check_options(old)
    except click.BadParameter as error:
        reason = error.format_message().removesuffix(".")
        raise MismatchError(f"{where}/{LAST}: {reason}. Train again with another --out") from None
    before, now = (dataclasses.asdict(config) | dataclasses.asdict(config.strength) for config in (old, new))
    sources = (click.core.ParameterSource.COMMANDLINE, click.core.ParameterSource.ENVIRONMENT)
    changes: dict[str, Any] = {"device": old.device}
    for param in ctx.command.params:
        name = param.name or ""
        if name not in now or ctx.get_parameter_source(name) not in sources:
            continue
        if name in FREE:
            changes[name] = now[name]
        elif before[name] != now[name]:
            raise click.UsageError(
                f"{param.opts[0]} {now[name]}: the run in {where} has {before[name]}. Leave it out, or begin a new run "
                "with another --out"
            )
    return dataclasses.replace(old, **{**changes, "device": choose_device(changes["device"])})


def _check_options(config: "TrainConfig") -> None:
    """Raise a `click.BadParameter` if a config has a value that the command does not accept."""
    values = dataclasses.asdict(config) | dataclasses.asdict(config.strength)
    for param in main.params:
        value = values.get(param.name or "")
        if isinstance(param.type, click.IntRange | click.FloatRange | click.Choice) and value is not None:
            param.type.convert(value, param, None)
    if not re.fullmatch(r"(cpu|cuda|mps|xpu)(:\d{1,3})?", config.device):
        raise click.BadParameter(brief(config.device), param_hint="--device")


@click.command(cls=Command)
@click.argument("cache", type=click.Path(path_type=Path))
@augmentation_options
@option(
    "--out",
    envvar="VIDCACHE_PREVIEW_OUT",
    type=_OUT,
    callback=check_png,
    show_default="cache.preview.png beside cache.h5",
    help="PNG to write.",
)
@option("--split", type=click.Choice(["train", "val", "test"]), default="train", help="Which clips.")
@option("--num-clips", type=click.IntRange(1, 32), default=4, help="Number of clips, drawn with the seed.")
@option(
    "--num-frames", envvar="VIDCACHE_PREVIEW_FRAMES", type=click.IntRange(1, 64), default=8, help="Frames of each clip."
)
@option("--epoch", type=_COUNT, default=1, help="Epoch whose augmentation to show.")
@seed_option()
def preview(
    cache: Path, out: Path | None, split: str, num_clips: int, num_frames: int, epoch: int, **values: Any
) -> None:
    """Show clips of CACHE as training sees them: a row of frames before and one after augmentation.

    \b
    vidcache preview cache.h5 --augment exact --hue 0.3
    """
    from vidcache.cache.reader import CacheReader
    from vidcache.cache.stream import epoch_order
    from vidcache.plotting import draw_filmstrips
    from vidcache.train.callbacks import augmented_strips
    from vidcache.train.config import TrainConfig

    path = claim(out or beside(cache, ".preview.png"), PICTURE, [cache])
    config = TrainConfig.from_options(values, "cpu")
    with CacheReader(cache) as reader:
        rows = epoch_order(reader.rows(split), config.seed, epoch)[:num_clips]
        if not len(rows):
            raise InputError(f"{reader.name}: no {split} clips. Choose another --split")
        strips = augmented_strips(reader, rows, config, num_frames=num_frames, epoch=epoch)
    draw_filmstrips(strips, path)
    echo(f"{printable(path)}: {plural(len(strips), 'clip')} before and after --augment {config.augment}")
