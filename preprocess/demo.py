"""A small labelled set of motion videos, rendered here: a smoke test of an installation.

The classes differ only in how things move. Every video shows the same kind of object, with random
colours, place, size and angle on a random background, so one frame says nothing about the class;
most classes are another one played backwards. The files differ as real ones do: containers, codecs,
frame sizes and rates, lengths below and above 64 frames, one of them stored on its side.
"""

import itertools
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ffmpeg
import joblib
import numpy as np
import numpy.typing as npt

from vidcache.errors import InputError, VidcacheError
from vidcache.files import follow
from vidcache.preprocess.video.ffmpeg import FFmpegBinaries, bound_workers
from vidcache.text import one_line, printable

Motion = dict[str, npt.NDArray[np.float64]]  # by frame: y, angle, scale, light; lengths are in picture heights
Progress = Callable[[int, int], None]  # videos done, videos in all

# Videos per class, imbalanced on purpose.
CLASSES = {"bounce": 60, "fall": 44, "grow": 40, "lights_off": 28, "lights_on": 34, "rise": 52}
CLASSES |= {"shrink": 36, "spin": 46}
ENCODINGS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("mp4", {"vcodec": "libx264", "pix_fmt": "yuv420p", "crf": 20, "preset": "veryfast"}),
    ("mkv", {"vcodec": "libx264", "pix_fmt": "yuv444p", "crf": 22, "preset": "veryfast"}),
    ("avi", {"vcodec": "mpeg4", "qscale": 4}),
    # Negative: a fixed speed. A positive one is a bound, below which libvpx goes as the machine has time.
    ("webm", {"vcodec": "vp8", "b:v": "600k", "deadline": "realtime", "cpu-used": -8}),
    ("ts", {"vcodec": "mpeg2video", "qscale": 4, "bf": 2}),
    ("mov", {"vcodec": "mjpeg", "qscale": 5, "pix_fmt": "yuvj420p"}),
)
SIZES = ((96, 96), (128, 96), (96, 128), (160, 90), (144, 112))  # width, height
RATES = (10, 15, 24, 25, 30)
LENGTHS = (20, 36, 48, 64, 72, 100)


def render_demo(
    folder: Path, tools: FFmpegBinaries, *, seed: int = 0, workers: int = 1, progress: Progress = lambda *_: None
) -> list[Path]:
    """Render the videos into `folder/<class>/`: the same pictures every time, however busy the machine is.

    `folder` is created, or is an earlier demo whose files are replaced. Returns the files, sorted; raises InputError if
    other things are in it, and VidcacheError if ffmpeg cannot encode one of them.
    """
    folder = follow(folder)
    _refuse_others(folder)
    jobs, (workers, _) = [], bound_workers(workers)
    for label, (name, count) in enumerate(CLASSES.items()):
        (folder / name).mkdir(parents=True, exist_ok=True)
        jobs += [(label, name, number) for number in range(count)]
    rendered = itertools.count(1)

    def render(*arguments: Any) -> Path:
        path = _render(*arguments)
        progress(next(rendered), len(jobs))
        return path

    paths: list[Path] = joblib.Parallel(n_jobs=workers, backend="threading")(
        joblib.delayed(render)(folder / name, name, number, tools, np.random.default_rng([seed, label, number]))
        for label, name, number in jobs
    )
    return sorted(paths)


def _refuse_others(folder: Path) -> None:
    """Refuse a folder in which anything is that `render_demo` has not made."""
    made = {folder / name for name in CLASSES}
    made |= {folder / name / _file_name(name, number) for name, count in CLASSES.items() for number in range(count)}
    made |= {path.with_name(f".{path.name}") for path in made}
    if os.path.lexists(folder) and not folder.is_dir():
        raise InputError(f"{printable(folder)}: is no folder, and is not replaced. Choose another name")
    others = [path for path in folder.rglob("*") if path not in made or path.is_symlink()]
    if others:
        what = f"a folder of other things ({printable(others[0])})"
        raise InputError(f"{printable(folder)}: is {what}. Choose another, or a new one")


def _file_name(name: str, number: int) -> str:
    return f"{name}_{number:03}.{ENCODINGS[number % len(ENCODINGS)][0]}"


def motion(name: str, num_frames: int, rng: np.random.Generator) -> Motion:
    """Draw one motion of a class."""
    t = np.linspace(0, 1, num_frames)
    still, angle = np.zeros(num_frames), rng.uniform(0, 2 * np.pi)
    place, size = rng.uniform(0.35, 0.65), rng.uniform(0.8, 1.2)
    moved = {"y": still + place, "angle": still + angle, "scale": still + size, "light": still + 1}
    low, high = rng.uniform(0.15, 0.3), rng.uniform(0.7, 0.85)
    if name in ("rise", "fall"):
        path = high + (low - high) * t
        moved["y"] = path if name == "rise" else path[::-1]
    elif name == "bounce":
        hops = rng.uniform(1.2, 1.7)
        moved["y"] = high + (low - high) * np.abs(np.sin(np.pi * hops * t + rng.uniform(0, 3)))
    elif name in ("grow", "shrink"):
        zoom = size * np.geomspace(0.4, 1.6, num_frames)
        moved["scale"] = zoom if name == "grow" else zoom[::-1]
    elif name == "spin":
        moved["angle"] = angle + rng.choice((-2, 2)) * np.pi * rng.uniform(0.6, 0.9) * t
    else:
        lit = np.where(t > rng.uniform(0.35, 0.65), 1.0, 0.25)
        moved["light"] = lit if name == "lights_on" else lit[::-1]
    return moved


def draw_frames(moved: Motion, width: int, height: int, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Draw the frames of a motion: (n, height, width, 3) uint8, RGB."""
    y, x = np.meshgrid((np.arange(height) + 0.5) / height, (np.arange(width) + 0.5) / height, indexing="ij")
    corners = rng.uniform(0.1, 0.55, (2, 2, 3))
    across, down = x[..., None] * height / width, y[..., None]
    above = corners[0, 0] * (1 - across) + corners[0, 1] * across
    below = corners[1, 0] * (1 - across) + corners[1, 1] * across
    background = above * (1 - down) + below * down + rng.normal(0, 0.02, (height, width, 1))
    colour = rng.uniform(0.65, 1.0, 3)
    centre = width / height * rng.uniform(0.4, 0.6)
    frames = np.empty((len(moved["y"]), height, width, 3), np.uint8)
    for index in range(len(frames)):
        scale = moved["scale"][index] * 0.2
        dx, dy = (x - centre) / scale, (y - moved["y"][index]) / scale
        cos, sin = np.cos(moved["angle"][index]), np.sin(moved["angle"][index])
        along, aside = dx * cos + dy * sin, dy * cos - dx * sin
        # A disc with one arm, so that every angle looks different; distances in units of its radius.
        disc = np.hypot(dx, dy) - 0.75
        arm = np.maximum(np.abs(along - 1.0) - 1.0, np.abs(aside) - 0.4)
        cover = np.clip(0.5 - np.minimum(disc, arm) * scale * height, 0, 1)[..., None]
        picture = (background * (1 - cover) + colour * cover) * moved["light"][index]
        frames[index] = np.clip(picture * 255, 0, 255).astype(np.uint8)
    return frames


def _render(folder: Path, name: str, number: int, tools: FFmpegBinaries, rng: np.random.Generator) -> Path:
    _, encoding = ENCODINGS[number % len(ENCODINGS)]
    width, height = SIZES[rng.integers(len(SIZES))]
    rate, length = int(rng.choice(RATES)), int(rng.choice(LENGTHS))
    frames = draw_frames(motion(name, length, rng), width, height, rng)
    path = folder / _file_name(name, number)
    on_its_side = name == "rise" and number == 0  # as phones do: with a note to turn it
    if on_its_side:
        frames = np.rot90(frames, axes=(1, 2))
    size = f"{frames.shape[2]}x{frames.shape[1]}"
    source = ffmpeg.input("pipe:0", format="rawvideo", pix_fmt="rgb24", framerate=rate, s=size)
    flat = path.with_name(f".{path.name}") if on_its_side else path
    _encode(source.output(f"file:{flat.absolute()}", **encoding, threads=1), path, tools, frames.tobytes())
    if on_its_side:  # ffmpeg keeps the note only when it copies the stream
        turned = ffmpeg.input(f"file:{flat.absolute()}", display_rotation=-90)
        _encode(turned.output(f"file:{path.absolute()}", c="copy"), path, tools, b"")
        flat.unlink()
    return path


def _encode(stream: Any, path: Path, tools: FFmpegBinaries, frames: bytes) -> None:
    command = stream.global_args("-nostats", "-v", "error", "-y").compile(cmd=tools.ffmpeg)
    result = subprocess.run(command, input=frames, capture_output=True, check=False)
    if result.returncode != 0:
        last = one_line(result.stderr.decode("utf-8", "replace"), 300)
        raise VidcacheError(f"{printable(path)}: ffmpeg {tools.version} cannot encode it ({last}). Use --ffmpeg-dir")
