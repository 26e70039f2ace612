"""`vidcache export`: a checkpoint in, a file that runs elsewhere out."""

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vidcache.cli import Command, choose_device, echo_json, json_option, option, progress_console, verbosity_options
from vidcache.console import Progress, echo
from vidcache.outputs import EXPORT, claim
from vidcache.text import printable

if TYPE_CHECKING:  # torch takes 2 s to import: not for --help
    from vidcache.eval.export import CheckClips, Export

ENDINGS = {"torch-export": ".pt2", "onnx": ".onnx"}


@click.command(cls=Command)
@click.argument("ckpt", type=click.Path(path_type=Path, dir_okay=False))
@option(
    "--format",
    "file_format",
    type=click.Choice(["torch-export", "onnx"]),
    required=True,
    help="torch-export: a .pt2 for torch.export.load; onnx: an .onnx, which takes pip install 'vidcache[onnx]'.",
)
@option(
    "--out",
    envvar="VIDCACHE_EXPORT_OUT",
    type=click.Path(path_type=Path, dir_okay=False),
    default=None,
    show_default="best.pt2 or best.onnx beside best.pt",
    help="The file.",
)
@option(
    "--cache",
    type=click.Path(path_type=Path),
    default=None,
    show_default="what CKPT was trained on, if it is still there, else made clips",
    help="Compare the file with the model on clips of this cache.",
)
@option("--device", default="cpu", help="Where a torch-export file will run: cpu, cuda, cuda:1, ...")
@verbosity_options()
@json_option()
def export(ckpt: Path, file_format: str, out: Path | None, cache: Path | None, device: str, as_json: bool) -> None:
    """Make a file of CKPT that runs without vidcache: uint8 clips (B, T, H, W, 3) in, logits (B, classes) out.

    The normalisation is inside, B is any number; classes, frames and spec are in its metadata. The file is read back
    and compared with the model: where a logit differs by more than 0.001, nothing is written.

    \b
    vidcache export best.pt --format torch-export
    vidcache export best.pt --format onnx --cache cache.h5
    """
    ending = ENDINGS[file_format]
    path, where = out or ckpt.with_suffix(ending), printable(ckpt)
    if path.suffix != ending:  # other tools would not take it for what it is
        raise click.BadParameter(f"{printable(path)}, expected a name that ends in {ending}", param_hint="--out")
    path = claim(path, EXPORT, [ckpt, *([cache] if cache else [])])

    from vidcache.checkpoint import Checkpoint
    from vidcache.eval.export import BATCH_SIZES, TOLERANCE, export_checkpoint, find_clips

    started = time.perf_counter()
    chosen = choose_device(device)
    checkpoint = Checkpoint.load(ckpt)
    clips = find_clips(ckpt, checkpoint, cache)
    path.parent.mkdir(parents=True, exist_ok=True)
    with Progress(progress_console(), "exporting") as shown:
        made = export_checkpoint(
            checkpoint,
            where,
            path,
            file_format,
            clips,
            device=chosen,
            on_step=shown.start_phase,
        )
    if as_json:
        echo_json(
            {
                "checkpoint": where,
                "format": file_format,
                "file": printable(path),
                "num_bytes": made.num_bytes,
                "checked_on": clips.source,
                "checked_on_real_clips": clips.is_real,
                "num_clips": clips.num_clips,
                "batch_sizes": BATCH_SIZES,
                "max_difference": made.max_difference,
                "tolerance": TOLERANCE,
                "max_logit": made.max_logit,
                "seconds": time.perf_counter() - started,
                "metadata": made.metadata,
            }
        )
    else:
        _show(path, made, clips)


def _show(path: Path, made: "Export", clips: "CheckClips") -> None:
    from vidcache.eval.export import BATCH_SIZES, TOLERANCE

    takes, gives = (
        f"{value['name']} {value['dtype']} ({', '.join(map(str, value['shape']))})"
        for value in (made.metadata["input"], made.metadata["output"])
    )
    echo(f"{printable(path)}: {takes} -> {gives}, {made.num_bytes / 1e6:.1f} MB")
    hint = "" if clips.is_real else "; --cache compares on real ones"
    echo(
        f"Compared with the model on {clips.source} in batches of {', '.join(map(str, BATCH_SIZES))}: logits of up to "
        f"{made.max_logit:.3g} differ by at most {made.max_difference:.2g}, allowed {TOLERANCE}{hint}"
    )
