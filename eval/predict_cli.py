"""`vidpredict`: options in, what is in video files out."""

import contextlib
import itertools
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import click
from rich.text import Text

from vidcache.cli import (
    Command,
    FiniteRange,
    choose_device,
    echo_json,
    json_option,
    num_cpus,
    option,
    progress_console,
    verbosity_options,
    version_option,
)
from vidcache.console import Progress, SafeConsole, echo
from vidcache.errors import InputError, TooManyFailuresError
from vidcache.outputs import PICTURE, claim_folder
from vidcache.preprocess.options import follow_links_option
from vidcache.preprocess.video.decode import DecodeLimits
from vidcache.preprocess.video.find import list_videos
from vidcache.text import plural, printable

if TYPE_CHECKING:  # torch takes 2 s to import: not for --help
    from vidcache.eval.predict import VideoPrediction

_NAME_BYTES = 150  # of the 255 that a file name may have


@click.command(cls=Command, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("videos", metavar="VIDEO...", type=click.Path(path_type=Path), nargs=-1, required=True)
@option("--ckpt", type=click.Path(path_type=Path, dir_okay=False), default="best.pt", help="Checkpoint of vidtrain.")
@option(
    "--workers",
    type=click.IntRange(1),
    default=num_cpus,
    show_default="all CPUs",
    help="Videos decoded at a time.",
)
@option("--batch-size", type=click.IntRange(1), default=16, help="Videos at a time for the model.")
@option("--device", default=None, show_default="cuda if there is one, else cpu", help="cpu, cuda, cuda:1, ...")
@click.option("--explain", is_flag=True, help="Draw where in the frames the most probable class was found (Grad-CAM).")
@option(
    "--out",
    envvar="VIDCACHE_PREDICT_OUT",
    type=click.Path(path_type=Path, file_okay=False),
    default=None,
    show_default="best.predict beside best.pt",
    help="Folder of these drawings.",
)
@option("--ffmpeg-dir", type=click.Path(path_type=Path, file_okay=False), help="Folder of ffmpeg and ffprobe.")
@option("--timeout", type=FiniteRange(min=0, min_open=True), default=900.0, help="Seconds for one video.")
@option(
    "--max-pixels", type=click.IntRange(1), default=DecodeLimits.max_pixels, help="Largest width * height of a video."
)
@option(
    "--keyed/--no-keyed",
    default=True,
    help="As in the build of the cache: skip what no sample of a long video needs.",
)
@follow_links_option
@version_option()
@verbosity_options()
@json_option()
@click.pass_context
def main(
    ctx: click.Context,
    /,
    videos: tuple[Path, ...],
    ckpt: Path,
    workers: int,
    batch_size: int,
    device: str | None,
    explain: bool,
    out: Path | None,
    ffmpeg_dir: Path | None,
    timeout: float,
    max_pixels: int,
    keyed: bool,
    follow_links: bool,
    as_json: bool,
) -> None:
    """Say what is in each VIDEO, a file or a folder of them: the five most probable classes.

    \b
    vidpredict clip.mp4 --ckpt best.pt
    """
    if not explain and ctx.get_parameter_source("out") is click.core.ParameterSource.COMMANDLINE:
        raise click.UsageError("--out: means nothing without --explain")
    drawings = (out or ckpt.with_suffix(".predict")) if explain else None
    if drawings:
        check_outside(drawings, videos)
    files, skipped, notes = find_files(videos, follow_links=follow_links)
    for note in notes:
        echo(f"Note: {note}", err=True)
    drawings = _claim_drawings(drawings, files, ckpt) if drawings else None

    from vidcache.checkpoint import Checkpoint
    from vidcache.eval.inference import load_model
    from vidcache.eval.predict import PredictOptions, predict_videos

    checkpoint = Checkpoint.load(ckpt)
    chosen = choose_device(device)
    model = load_model(checkpoint, printable(ckpt), chosen)
    limits = DecodeLimits(timeout, max_pixels, keyed, follow_links)
    options = PredictOptions(batch_size, workers, chosen, limits, ffmpeg_dir, explain, printable(ckpt))
    with (
        _Reporter(len(files), skipped, as_json=as_json, drawings=drawings) as reporter,
        contextlib.closing(predict_videos(files, checkpoint, model, options)) as results,
    ):
        for result in results:
            reporter.add(result)
    if as_json:
        echo_json({"checkpoint": printable(ckpt), "predictions": reporter.said, "num_failed": reporter.num_failed})
    if reporter.num_failed:
        raise TooManyFailuresError(
            f"{reporter.num_failed} of {plural(len(files), 'video')} could not be decoded, expected none"
        )


def find_files(videos: Sequence[Path], *, follow_links: bool = False) -> tuple[list[Path], Counter[str], list[str]]:
    """Put the videos below a folder in its place; what is no folder is tried, whatever it is.

    Returns:
        Files in the order in which they were named; how many were left out of folders, by reason; and what the user
        should know.

    Raises:
        InputError: The only thing that was named is a folder that cannot be read or has no videos.
    """
    files: list[Path] = []
    skipped: Counter[str] = Counter()
    notes: list[str] = []
    for video in videos:
        if not os.path.isdir(video):
            files.append(video)
            continue
        try:
            found, left_out, said = list_videos(video, follow_links=follow_links)
        except InputError:
            if len(videos) == 1:
                raise
            files.append(video)  # fails as what it is; the others are predicted
            continue
        files += found
        skipped.update(left_out)
        notes += [f"{printable(video)}: {note}" for note in said]
    return files, skipped, notes


def check_outside(drawings: Path, videos: Sequence[Path]) -> None:
    """Refuse to draw into a folder that was given, or where a given file is: nothing is written among the videos.

    Raises:
        InputError: Names both folders.
    """
    place = drawings.resolve()
    for video in videos:
        is_folder = os.path.isdir(video)
        if place.is_relative_to(video.resolve()) if is_folder else place == video.resolve().parent:
            folder = video if is_folder else video.parent
            raise InputError(
                f"{printable(drawings)}: lies in {printable(folder)}, whose videos are to be predicted, expected a "
                "folder outside of it. Choose one with --out"
            )


def _claim_drawings(folder: Path, videos: Sequence[Path], ckpt: Path) -> Path:
    """Check that the drawings may be written; nothing is known of the videos yet but their names."""
    taken: set[str] = set()
    names = [drawing_name(video, taken) for video in videos]
    earlier = [path.name for path in folder.glob("*.png") if PICTURE.is_at(path)]
    return claim_folder(folder, dict.fromkeys([*names, *earlier], PICTURE), [ckpt])


class _Reporter:
    """Shows predictions as they come: a line each on stdout, failures and a bar on stderr."""

    def __init__(self, num_videos: int, skipped: Counter[str], *, as_json: bool, drawings: Path | None) -> None:
        self.said: list[dict[str, Any]] = []
        self.num_failed = 0
        self._as_json, self._drawings = as_json, drawings
        self._names: set[str] = set()
        self._num_videos, self._num_done = num_videos, 0
        self._stderr = progress_console()
        stdout = SafeConsole()
        # A bar and lines on one terminal must come from one console, which puts the lines above the bar.
        both = stdout.is_terminal and self._stderr.is_terminal and not self._stderr.quiet
        self._stdout = self._stderr if both else stdout
        self._errors = SafeConsole(stderr=True) if self._stderr.quiet else self._stderr
        self._skipped = skipped
        self._shown = Progress(self._stderr, "predicting", "videos")

    def __enter__(self) -> Self:
        self._shown.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._shown.__exit__(kind, error, trace)
        if self._skipped and not error:
            reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(self._skipped.items()))
            self._print(self._stderr, f"Files left out: {reasons}")

    def add(self, result: "VideoPrediction") -> None:
        """Show a prediction, and draw it if there is something to draw."""
        name = printable(result.video)
        entry: dict[str, Any] = {
            "video": name,
            "top": [{"class": printable(c), "probability": p} for c, p in result.top],
        }
        line = f"{name}: " + "  ".join(f"{printable(c)} {p:.1%}" for c, p in result.top)
        if result.failure:
            self.num_failed += 1
            entry["error"] = result.failure
            self._print(self._errors, f"{name}: {result.failure}")
        elif self._drawings and result.explanation:
            from vidcache.plotting import draw_filmstrips

            self._drawings.mkdir(parents=True, exist_ok=True)
            path = self._drawings / drawing_name(result.video, self._names)
            draw_filmstrips([result.explanation], path)
            entry["explanation"] = printable(path)
            line += f"  see {printable(path)}"
        self.said.append(entry)
        if not self._as_json and not result.failure:
            self._print(self._stdout, line)
        self._num_done += 1
        self._shown.update(self._num_done, self._num_videos, self.num_failed)

    @staticmethod
    def _print(console: SafeConsole, line: str) -> None:
        console.print(Text(line), soft_wrap=True)


def drawing_name(video: Path, taken: set[str]) -> str:
    """Name the drawing of a video: letters, digits and `_.-`, and another one for each.

    Args:
        video: The file.
        taken: Names that were given already; this one is added.
    """
    safe = re.sub(r"[^\w.-]", "_", printable(video.name)).lstrip(".")
    safe = safe.encode()[:_NAME_BYTES].decode("utf-8", "ignore")
    names = (f"{safe}{number}.png" for number in itertools.chain([""], (f"-{n}" for n in itertools.count(2))))
    name = next(name for name in names if name.casefold() not in taken)  # some file systems ignore case
    taken.add(name.casefold())
    return name
