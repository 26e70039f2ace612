"""`vidpredict`: options in, what is in video files out."""

from pathlib import Path

import click
from rich.console import Console
from rich.text import Text

from vidcache.cli import Command, choose_device, echo_json, json_option, option
from vidcache.errors import TooManyFailuresError
from vidcache.text import plural, printable


@click.command(cls=Command, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("videos", type=click.Path(path_type=Path), nargs=-1, required=True)
@option("--ckpt", type=click.Path(path_type=Path, dir_okay=False), default="best.pt", help="Checkpoint of vidtrain.")
@option("--ffmpeg-dir", type=click.Path(path_type=Path, file_okay=False), help="Folder of ffmpeg and ffprobe.")
@option("--timeout", type=click.FloatRange(min=0, min_open=True), default=900.0, help="Seconds for one video.")
@option("--device", default=None, show_default="cuda if there is one, else cpu", help="cpu, cuda, cuda:1, ...")
@json_option()
def main(
    videos: tuple[Path, ...], ckpt: Path, ffmpeg_dir: Path | None, timeout: float, device: str | None, as_json: bool
) -> None:
    """Say what is in each VIDEO: the five most probable classes.

    \b
    vidpredict clip.mp4 --ckpt best.pt
    """
    from vidcache.checkpoint import Checkpoint
    from vidcache.eval.loading import load_model
    from vidcache.eval.predict import predict_videos
    from vidcache.preprocess.decode import Limits

    checkpoint = Checkpoint.load(ckpt)
    chosen = choose_device(device)
    model = load_model(checkpoint, printable(ckpt), chosen)
    console, failed = Console(), 0
    predictions = []
    for result in predict_videos(videos, checkpoint, model, Limits(timeout_seconds=timeout), ffmpeg_dir, chosen):
        name = printable(result.video)
        if result.failure:
            failed += 1
            click.echo(f"{name}: {result.failure}", err=True)
        predictions.append(
            {
                "video": name,
                "top": [{"class": printable(c), "probability": p} for c, p in result.top],
                **({"error": result.failure} if result.failure else {}),
            }
        )
        if not as_json and not result.failure:
            said = "  ".join(f"{printable(c)} {p:.1%}" for c, p in result.top)
            console.print(Text(f"{name}: {said}"), soft_wrap=True)
    if as_json:
        echo_json({"predictions": predictions})
    if failed:
        raise TooManyFailuresError(f"{failed} of {plural(len(videos), 'video')} could not be decoded, expected none")
