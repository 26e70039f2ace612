"""The videos that failed or are damaged: one line each in `<cache>.failures.csv`."""

import dataclasses
from pathlib import Path
from typing import Any, cast

import numpy as np

from vidcache.cache.format import ERROR_BYTES, RECORD, Plan, Status, clip_hash_of
from vidcache.cache.validate import bounded
from vidcache.files import write_text_atomically
from vidcache.near_duplicates import perceptual_hash
from vidcache.outputs import begins
from vidcache.preprocess.video.decode import DecodedClip
from vidcache.preprocess.video.source_file import Failure
from vidcache.text import one_line, printable, to_csv


def clip_record(decoded: DecodedClip) -> np.void:
    """Return what the cache keeps of a decoded video, a scalar of dtype `RECORD`."""
    record = np.zeros((), RECORD)
    probe, clip = decoded.probe, decoded.clip
    num_frames = decoded.ledger.num_frames
    seconds = probe.duration_seconds or (num_frames / probe.fps_from_header if probe.fps_from_header else 0.0)
    values: dict[str, Any] = {
        "status": Status.DAMAGED if decoded.damage else Status.OK,
        "error": one_line(decoded.damage, ERROR_BYTES).encode(),
        "source_hash": decoded.source_hash.encode(),
        "clip_hash": clip_hash_of(clip).encode(),
        "perceptual_hash": perceptual_hash(clip[: decoded.num_real]),
        "width": probe.width,
        "height": probe.height,
        "rotation": probe.rotation,
        "fps": round(num_frames / seconds, 6) if seconds else 0.0,
        "duration_seconds": seconds,
        "num_frames": num_frames,
        "num_frames_from_header": probe.num_frames_from_header,
        "num_real": decoded.num_real,
        "codec": probe.codec.encode()[:24],
        "pixel_format": probe.pixel_format.encode()[:24],
        "transfer": probe.transfer.encode()[:16],
        "primaries": probe.primaries.encode()[:16],
        "mean_rgb": _mean_rgb(clip),
    }
    for name, value in values.items():
        record[name] = bounded(name, value)
    return cast(np.void, record[()])


def failure_record(failure: Failure) -> np.void:
    """Return what the cache keeps of a video that gave no clip, a scalar of dtype `RECORD`."""
    record = np.zeros((), RECORD)
    record["status"] = Status.FAILED
    record["error"] = one_line(str(failure), ERROR_BYTES).encode()
    record["source_hash"] = failure.source_hash.encode()
    for name in ("num_frames", "num_frames_from_header"):
        record[name] = bounded(name, getattr(failure, name))
    return cast(np.void, record[()])


def _mean_rgb(clip: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return the mean of all pixels of (T, H, W, 3), (3,) float64."""
    # In integers, since a float sum depends on the order; whole rows first, since 3 columns are 26 times as slow.
    sums = clip.reshape(-1, clip.shape[2] * 3).sum(axis=0, dtype=np.uint32)
    means: np.ndarray[Any, Any] = sums.reshape(-1, 3).sum(axis=0, dtype=np.int64) / (clip.size // 3)
    return means


_HEADER = ["path", "class", "status", "reason", "num_frames", "num_frames_from_header", "detail"]
FAILURES = begins("a list of failures", ",".join(_HEADER).encode())


@dataclasses.dataclass(frozen=True)
class Problem:
    """A video that failed or is damaged.

    Attributes:
        path: Below the raw folder.
        class_name: Its class.
        status: FAILED or DAMAGED.
        reason: The code.
        num_frames: Frames that decoded.
        num_frames_from_header: Frames that the file claims; -1 unknown.
        detail: One line: what ffmpeg said last.
    """

    path: bytes
    class_name: bytes
    status: Status
    reason: str
    num_frames: int
    num_frames_from_header: int
    detail: str


def find_problems(plan: Plan, facts: Any) -> tuple[Problem, ...]:
    """Return the videos that are not `Status.OK`, by path.

    Args:
        plan: Paths and classes.
        facts: Columns "status", "error", "num_frames" and "num_frames_from_header", (N,) each: records of
            dtype `RECORD`, or the columns of a cache.
    """
    return tuple(problem_of(plan, facts, row) for row in np.flatnonzero(facts["status"] != Status.OK).tolist())


def problem_of(plan: Plan, facts: Any, row: int) -> Problem:
    """Return what is wrong with the video of a row; arguments as those of `find_problems`."""
    reason, _, detail = facts["error"][row].decode("utf-8", "replace").partition(": ")
    return Problem(
        plan.paths[row],
        plan.classes[plan.labels[row]],
        Status(facts["status"][row]),
        reason,
        int(facts["num_frames"][row]),
        int(facts["num_frames_from_header"][row]),
        detail,
    )


def failures_path(output: Path) -> Path:
    """Return where the failures of a cache are listed: cache.h5 -> cache.failures.csv."""
    return output.with_name(f"{output.stem}.failures.csv")


def write_failures(output: Path, problems: tuple[Problem, ...], scratch: Path) -> None:
    """Write `<output>.failures.csv`; with no problems it has only its header.

    Args:
        output: The cache.
        problems: What to write.
        scratch: A folder on the same disk that is removed some day: a kill can leave half a file there.
    """
    rows = []
    for problem in problems:
        names = printable(problem.path), printable(problem.class_name), problem.status.name.lower(), problem.reason
        rows.append([*names, problem.num_frames, problem.num_frames_from_header, problem.detail])
    write_text_atomically(failures_path(output), to_csv(_HEADER, rows), scratch)
