"""`vidcache doctor`: whether this machine can do the work, one line for each check, with what to do.

Each check imports what it needs: a package that is missing or broken is one of the things to find.
"""

import fcntl
import importlib.metadata
import itertools
import os
import platform
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import click
from rich.text import Text

from vidcache.cli import Command, echo_json, json_option, option
from vidcache.console import SafeConsole, echo
from vidcache.errors import VidcacheError
from vidcache.files import free_bytes
from vidcache.text import one_line, plural, printable

OK, WARNING, PROBLEM = "ok", "warning", "problem"
_PIXELS = "1559c339ecd42715f2de82c43e8fced1"  # hash of a test video's clip, by FFmpeg 5.1 to 9.0
STYLES = {OK: "green", WARNING: "yellow", PROBLEM: "bold red"}


class Check(NamedTuple):
    """The result of a check: `status` is "ok", "warning" (works, with limits) or "problem" (does not work)."""

    name: str
    status: str
    found: str
    advice: str = ""


@click.command(cls=Command)
@click.argument("path", default=".", type=click.Path(path_type=Path))
@option("--ffmpeg-dir", type=click.Path(path_type=Path), help="Folder of ffmpeg and ffprobe, as for build.")
@option("--weights", default="kinetics400", help="As for vidtrain: kinetics400, none, or the path of the file.")
@option("--clips", type=click.IntRange(1), show_default="1000, or those of the cache", help="Clips to find space for.")
@click.option("--verbose", "-v", is_flag=True, help="Add PyTorch's description of the machine, for bug reports.")
@json_option()
def doctor(path: Path, ffmpeg_dir: Path | None, weights: str, clips: int | None, verbose: bool, as_json: bool) -> None:
    """Check this machine, and PATH: a cache, or the folder where one will be built (default: the current folder).

    Prints a line for each check: ok, warning or problem, what was found, what to do. Exit code 1 if there is a problem.

    \b
    vidcache doctor cache.h5
    """
    console, checks = SafeConsole(), list[Check]()
    for check in itertools.chain(
        guarded("packages", check_packages()),
        guarded("torch", check_torch(verbose)),
        guarded("weights", check_weights(weights)),
        guarded("ffmpeg", check_ffmpeg(ffmpeg_dir)),
        guarded("path", check_path(path, clips)),
    ):
        checks.append(check)
        line = f"{check.name:9} {check.found}{f'. {check.advice}' if check.advice else ''}"
        if not as_json:
            console.print(Text.assemble((f"{check.status:8}", STYLES[check.status]), line), soft_wrap=True)
    good, warned, bad = (sum(check.status == status for check in checks) for status in (OK, WARNING, PROBLEM))
    if as_json:
        echo_json({"checks": [check._asdict() for check in checks], "num_problems": bad, "num_warnings": warned})
    else:
        echo(f"{plural(len(checks), 'check')}: {good} ok, {plural(warned, 'warning')}, {plural(bad, 'problem')}")
    if bad:
        raise VidcacheError(f"doctor: {plural(bad, 'problem')}. Follow the advice above, then run it again")


def guarded(name: str, checks: Iterator[Check]) -> Iterator[Check]:
    """Yield checks; any exception becomes a problem of this name."""
    try:
        yield from checks
    except VidcacheError as error:  # "<where>: <what is wrong>. <what to do>"
        found, _, advice = one_line(str(error), 1000).partition(". ")
        yield Check(name, PROBLEM, found, advice)
    except Exception as error:
        found = one_line(f"{type(error).__name__}: {error}", 1000)
        yield Check(name, PROBLEM, found, "Check permissions, or install vidcache again; otherwise please report it")


def check_packages() -> Iterator[Check]:
    """Report Python and vidcache; compare the installed packages with the requirements of vidcache, without extras."""
    from packaging.requirements import Requirement

    version, folder = importlib.metadata.version("vidcache"), Path(__file__).resolve().parents[1]
    python = f"Python {platform.python_version()} ({printable(sys.executable)}) on {platform.platform()}"
    yield Check("python", OK, f"{python}, vidcache {version} from {printable(folder)}")
    needs = [Requirement(text) for text in importlib.metadata.requires("vidcache") or []]
    needs = [need for need in needs if not need.marker or need.marker.evaluate({"extra": ""})]
    versions = {need: [dist.version for dist in importlib.metadata.distributions(name=need.name)] for need in needs}
    unmet = [need for need in needs if not any(need.specifier.contains(v, prereleases=True) for v in versions[need])]
    found = ", ".join(f"{need.name} {[*versions[need], 'is missing'][0]}" for need in unmet or needs)
    install = " ".join(f"'{need.name}{need.specifier}'" for need in unmet)
    advice = f"{printable(sys.executable)} -m pip install {install}" if unmet else ""
    yield Check("packages", PROBLEM if unmet else OK, found, advice)


def check_torch(verbose: bool) -> Iterator[Check]:
    """Import torch and torchvision; report each GPU with its free memory, or why there is none."""
    import torch
    import torchvision

    build = f"ROCm {torch.version.hip}" if torch.version.hip else f"CUDA {torch.version.cuda or 'none'}"
    yield Check("torch", OK, f"torch {torch.__version__} ({build}), torchvision {torchvision.__version__}")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for index in range(num_gpus):
        gpu, (free, total) = torch.cuda.get_device_properties(index), torch.cuda.mem_get_info(index)
        found = f"{gpu.name}, capability {gpu.major}.{gpu.minor}, {_gb(free)} of {_gb(total)} free"
        yield Check(f"gpu {index}", OK if free > total / 2 else WARNING, found)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "all").strip()
    warning = one_line(" ".join(str(warning.message) for warning in caught), 300)
    reason = warning or "torch finds none"
    advice = "Install its driver, give containers their GPUs; without one, use fewer frames or --cache-features"
    if build == "CUDA none":
        reason, advice = "torch is built for CPUs only", "If there is a GPU, install torch for CUDA or ROCm"
    elif visible in ("", "-1"):
        reason, advice = f"CUDA_VISIBLE_DEVICES is '{visible}'", "unset CUDA_VISIBLE_DEVICES to use all GPUs"
    if not num_gpus:
        yield Check("gpu", WARNING, f"no GPU: {reason}", advice)
    if verbose:
        from torch.utils.collect_env import get_pretty_env_info

        yield Check("environment", OK, f"\n{get_pretty_env_info()}")  # type: ignore[no-untyped-call]


def check_weights(weights: str) -> Iterator[Check]:
    """Check that the Kinetics-400 weights are there and are the published ones; download nothing."""
    if weights == "none":
        return
    from torch import hub

    from vidcache.model import KINETICS_URL, load_kinetics

    downloaded = Path(str(hub.get_dir()), "checkpoints", os.path.basename(KINETICS_URL))
    path = downloaded if weights == "kinetics400" else Path(weights)
    if path.exists():
        yield Check("weights", OK, f"{printable(path)}: sha256 is correct, {len(load_kinetics(path))} tensors")
    elif path == downloaded:
        advice = f"vidtrain downloads it (127 MB); offline, copy {KINETICS_URL} to it, or use --weights PATH"
        yield Check("weights", WARNING, f"{printable(path)}: not downloaded", advice)
    else:
        yield Check("weights", PROBLEM, f"{printable(path)}: no such file", f"Download {KINETICS_URL} to it")


def check_ffmpeg(ffmpeg_dir: Path | None) -> Iterator[Check]:
    """Decode two test videos with each ffmpeg that a build would use.

    The brightness of one is the number of its frame: the right frames are there. The other one has detail: its pixels
    are those that the ffmpeg of other machines gives.
    """
    import numpy as np
    import xxhash

    from vidcache.preprocess.video.decode import DecodeLimits, decode_video
    from vidcache.preprocess.video.ffmpeg import SubprocessGroup, find_all_tools
    from vidcache.preprocess.video.source_file import Failure
    from vidcache.spec import Spec, sample_indices

    expected = 2 * sample_indices(100, Spec().num_frames)[:, None, None, None] * 255 / 219  # 16 is black, 235 white
    binaries = find_all_tools(ffmpeg_dir)
    with tempfile.TemporaryDirectory(prefix="vidcache-doctor-") as folder, SubprocessGroup() as children:
        numbers, detail = Path(folder, "numbers.y4m"), Path(folder, "detail.y4m")
        _write_y4m(numbers, np.arange(100)[:, None] * 2 + 16)
        _write_y4m(detail, (np.arange(100)[:, None] + 1) * np.arange(64 * 48) ** 2 // 64 % 220 + 16)
        for tools in binaries:
            found, error = f"{tools.version} from {tools.origin} ({printable(tools.ffmpeg)})", ""
            pixels = ""
            try:
                decoded, pictures = (
                    decode_video(video, Spec(), [tools], children, DecodeLimits(timeout_seconds=20))
                    for video in (numbers, detail)
                )
                pixels = xxhash.xxh3_128_hexdigest(pictures.clip.data)
                if decoded.damage or (np.abs(decoded.clip - expected) > 2).any():
                    error = f"gives wrong frames of a test video {decoded.damage}"
            except Failure as failure:
                error = f"cannot decode a test video: {failure}"
            if error:  # the others are only fallbacks
                status = PROBLEM if tools is binaries[0] else WARNING
                yield Check("ffmpeg", status, f"{found} {error}", "Use another ffmpeg, 5.1 or newer: --ffmpeg-dir")
            elif pixels != _PIXELS:
                advice = "Build on one machine what is to be compared byte by byte"
                yield Check("ffmpeg", WARNING, f"{found} scales a test video to other pixels than elsewhere", advice)
            else:
                yield Check("ffmpeg", OK, f"{found} decodes test videos correctly")


def _write_y4m(path: Path, brightness: Any) -> None:
    """Write 100 grey frames of 64x48; `brightness` can be broadcast to (100, 64 * 48)."""
    import numpy as np

    frames = np.full((100, 64 * 48 * 3 // 2), 128, np.uint8)
    frames[:, : 64 * 48] = brightness
    path.write_bytes(
        b"YUV4MPEG2 W64 H48 F25:1 Ip A1:1 C420jpeg\n" + b"".join(b"FRAME\n" + frame.tobytes() for frame in frames)
    )


def check_path(path: Path, num_clips: int | None) -> Iterator[Check]:
    """Open a cache; check free space, and that files can be made and locked in the folder."""
    from vidcache.cache.reader import CacheReader
    from vidcache.spec import Spec

    spec, where, folder = Spec(), printable(path), path.absolute()
    if not path.is_dir():
        with CacheReader(path) as reader:
            spec, folder, num_clips = reader.spec, folder.parent, num_clips or len(reader.rows())
            found = f"{where}: {plural(len(reader.rows()), 'clip')} of {spec}"
        yield Check("cache", OK, found, f"To check every clip: vidcache verify {where}")
    num_clips, free = num_clips or 1000, free_bytes(folder)
    needed = num_clips * spec.clip_bytes
    found = f"{printable(folder)}: {_gb(free)} free, {plural(num_clips, 'clip')} of {spec} need {_gb(needed)}"
    advice = "Free some space, or use another disk: a build writes a new file" if needed > free else ""
    yield Check("space", WARNING if advice else OK, found, advice)
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield Check("locks", OK, f"{printable(folder)}: files can be made and locked")
    except OSError as error:
        found = f"{printable(folder)}: no file can be made and locked ({error.strerror})"
        yield Check("locks", WARNING, found, "Caches can be read here, not built: choose a writable local folder")


def _gb(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.3g} GB"
