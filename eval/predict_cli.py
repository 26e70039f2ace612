"""`vidpredict`: video files in, their most probable classes out."""

import contextlib
import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from rich.text import Text

from vidcache import cli
from vidcache.cli import option
from vidcache.console import Progress, SafeConsole, echo
from vidcache.errors import TooManyFailuresError
from vidcache.eval.predict import VideoPrediction, find_files, predict
from vidcache.outputs import PICTURE, claim_folder
from vidcache.preprocess.options import follow_links_option
from vidcache.preprocess.video.decode import DecodeLimits
from vidcache.text import plural, printable

_FILE = click.Path(path_type=Path, dir_okay=False)
_FOLDER = click.Path(path_type=Path, file_okay=False)
_BESIDE = "best.predict beside best.pt"
_EXPLAIN = "Draw the Grad-CAM of the most probable class."
_NAME_BYTES = 150  # of the 255 that a file name may have


@click.command(cls=cli.Command, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("videos", metavar="VIDEO...", type=click.Path(path_type=Path), nargs=-1, required=True)
@option("--ckpt", type=_FILE, default="best.pt", help="Checkpoint of vidtrain.")
@option("--batch-size", type=click.IntRange(1), default=16, help="Videos per batch of the model.")
@click.option("--explain", is_flag=True, help=_EXPLAIN)
@option(
    "--out", envvar="VIDCACHE_PREDICT_OUT", type=_FOLDER, show_default=_BESIDE, help="Folder of the --explain drawings."
)
@cli.device_option()
@cli.workers_option()
@cli.decode_options
@follow_links_option
@cli.version_option()
@cli.verbosity_options()
@cli.json_option()
@click.pass_context
def main(
    ctx: click.Context, /, videos: tuple[Path, ...], ckpt: Path, explain: bool, out: Path | None, **options: Any
) -> None:
    """Classify each VIDEO, a file or a folder of them: the five most probable classes.

    \b
    vidpredict clip.mp4 --ckpt best.pt
    """
    if not explain and ctx.get_parameter_source("out") is click.core.ParameterSource.COMMANDLINE:
        raise click.UsageError("--out requires --explain")
    folder = (out or ckpt.with_suffix(".predict")) if explain else None
    files, skipped, notes = find_files(videos, follow_links=options["follow_links"])
    for note in notes:
        echo(f"Note: {note}", err=True)
    names = drawing_names(files)
    if folder:
        earlier = [path.name for path in folder.glob("*.png") if PICTURE.is_at(path)]
        inputs = [ckpt, *(video for video in videos if video.is_dir())]
        folder = claim_folder(folder, dict.fromkeys([*names, *earlier], PICTURE), inputs)
    limits = DecodeLimits(*(options[name] for name in ("timeout", "max_pixels", "keyed", "follow_links")))
    settings = {name: options[name] for name in ("batch_size", "workers", "ffmpeg_dir")}
    device = cli.choose_device(options["device"])
    results = predict(ckpt, files, limits=limits, explain=explain, device=device, **settings)

    stdout, stderr, entries = SafeConsole(), cli.progress_console(), list[dict[str, Any]]()
    if stdout.is_terminal and stderr.is_terminal and not stderr.quiet:
        stdout = stderr  # a bar and lines on one terminal must come from one console, which puts the lines above
    errors = SafeConsole(stderr=True) if stderr.quiet else stderr
    num_failed = 0
    with Progress(stderr, "predicting", "videos") as shown, contextlib.closing(results):
        for number, result in enumerate(results):
            entry, line = _report(result)
            num_failed += bool(result.failure)
            if folder and result.explanation:
                from vidcache.plotting import draw_filmstrips

                folder.mkdir(parents=True, exist_ok=True)
                draw_filmstrips([result.explanation], folder / names[number])
                entry["explanation"] = printable(folder / names[number])
                line += f"  see {entry['explanation']}"
            entries.append(entry)
            if result.failure or not options["as_json"]:
                (errors if result.failure else stdout).print(Text(line), soft_wrap=True)
            shown.update(number + 1, len(files), num_failed)
    if skipped:
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(skipped.items()))
        stderr.print(Text(f"Files left out: {reasons}"), soft_wrap=True)
    if options["as_json"]:
        cli.echo_json({"checkpoint": printable(ckpt), "predictions": entries, "num_failed": num_failed})
    if num_failed:
        raise TooManyFailuresError(f"{num_failed} of {plural(len(files), 'video')} could not be decoded")


def _report(result: VideoPrediction) -> tuple[dict[str, Any], str]:
    """Return a prediction as JSON-ready values and as a line."""
    name = printable(result.video)
    top = [{"class": printable(class_name), "probability": p} for class_name, p in result.top]
    if result.failure:
        return {"video": name, "top": top, "error": result.failure}, f"{name}: {result.failure}"
    classes = "  ".join(f"{entry['class']} {entry['probability']:.1%}" for entry in top)
    return {"video": name, "top": top}, f"{name}: {classes}"


def drawing_names(videos: Sequence[Path]) -> list[str]:
    """Name the drawing of each video: letters, digits and `_.-`, and no name twice, whatever its case."""
    names: dict[str, str] = {}  # some file systems ignore case
    for video in videos:
        safe = re.sub(r"[^\w.-]", "_", printable(video.name)).lstrip(".")
        safe = safe.encode()[:_NAME_BYTES].decode("utf-8", "ignore")
        numbered = (f"{safe}{suffix}.png" for suffix in itertools.chain([""], (f"-{n}" for n in itertools.count(2))))
        name = next(name for name in numbered if name.casefold() not in names)
        names[name.casefold()] = name
    return list(names.values())
