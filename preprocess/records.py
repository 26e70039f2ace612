"""What the cache keeps of each video, and the list of those that failed or are damaged: `<cache>.failures.csv`."""

import dataclasses
from pathlib import Path
from typing import Any, cast

import numpy as np

from vidcache.cache.builds import Manifest
from vidcache.cache.format import ERROR_BYTES, RECORD, Status, clip_hash_of
from vidcache.cache.validate import bounded
from vidcache.files import write_text_atomically
from vidcache.near_duplicates import perceptual_hash
from vidcache.outputs import begins
from vidcache.preprocess.video.decode import DecodedClip
from vidcache.preprocess.video.probe import Probe
from vidcache.preprocess.video.source_file import Failure
from vidcache.text import one_line, printable, to_csv


def clip_record(decoded: DecodedClip) -> np.void:
    """Return what the cache keeps of a decoded video, a scalar of dtype `RECORD`."""
    return video_record(
        decoded.probe,
        decoded.stats.num_frames,
        decoded.num_real,
        decoded.damage,
        source_hash=decoded.source_hash.encode(),
        clip_hash=clip_hash_of(decoded.clip).encode(),
        perceptual_hash=perceptual_hash(decoded.clip[: decoded.num_real]),
        mean_rgb=_mean_rgb(decoded.clip),
    )


def video_record(probe: Probe, num_frames: int, num_real: int, damage: str, **more: Any) -> np.void:
    """Return what the cache keeps of a video as far as its header and numbers of frames tell, and `more` columns."""
    seconds = probe.duration_seconds or (num_frames / probe.fps_from_header if probe.fps_from_header else 0.0)
    return _record(
        status=Status.DAMAGED if damage else Status.OK,
        error=one_line(damage, ERROR_BYTES).encode(),
        width=probe.width,
        height=probe.height,
        rotation=probe.rotation,
        fps=round(num_frames / seconds, 6) if seconds else 0.0,
        duration_seconds=seconds,
        num_frames=num_frames,
        num_frames_from_header=probe.num_frames_from_header,
        num_real=num_real,
        codec=probe.codec.encode()[:24],
        pixel_format=probe.pixel_format.encode()[:24],
        transfer=probe.transfer.encode()[:16],
        primaries=probe.primaries.encode()[:16],
        **more,
    )


def failure_record(failure: Failure) -> np.void:
    """Return what the cache keeps of a video that gave no clip, a scalar of dtype `RECORD`."""
    return _record(
        status=Status.FAILED,
        error=one_line(str(failure), ERROR_BYTES).encode(),
        source_hash=failure.source_hash.encode(),
        num_frames=failure.num_frames,
        num_frames_from_header=failure.num_frames_from_header,
    )


def _record(**values: Any) -> np.void:
    record = np.zeros((), RECORD)
    for name, value in values.items():
        record[name] = bounded(name, value)
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
    """A video that failed or is damaged."""

    path: bytes  # below the raw folder
    class_name: bytes
    status: Status  # FAILED or DAMAGED
    reason: str  # the code
    num_frames: int  # that decoded
    num_frames_from_header: int  # that the file claims; -1 unknown
    detail: str  # one line for people

    def __str__(self) -> str:
        return f"{printable(self.path)}: {self.detail}"


def find_problems(plan: Manifest, facts: Any) -> tuple[Problem, ...]:
    """Return the videos that are not `Status.OK`, by path; `facts`: records, or the columns of a cache."""
    return tuple(problem_of(plan, facts, row) for row in np.flatnonzero(facts["status"] != Status.OK).tolist())


def problem_of(plan: Manifest, facts: Any, row: int) -> Problem:
    """Return what is wrong with the video of a row."""
    reason, _, detail = facts["error"][row].decode("utf-8", "replace").partition(": ")
    status, class_name = Status(facts["status"][row]), plan.classes[plan.labels[row]]
    num_frames, claimed = int(facts["num_frames"][row]), int(facts["num_frames_from_header"][row])
    return Problem(plan.paths[row], class_name, status, reason, num_frames, claimed, detail)


def failures_path(output: Path) -> Path:
    """Return where the failures of a cache are listed: cache.h5 -> cache.failures.csv."""
    return output.with_name(f"{output.stem}.failures.csv")


def write_failures(output: Path, problems: tuple[Problem, ...], scratch: Path) -> None:
    """Write `<output>.failures.csv`; a kill can leave half a file in `scratch`, on the same disk, removed some day."""
    rows = []
    for problem in problems:
        names = printable(problem.path), printable(problem.class_name), problem.status.name.lower(), problem.reason
        rows.append([*names, problem.num_frames, problem.num_frames_from_header, problem.detail])
    write_text_atomically(failures_path(output), to_csv(_HEADER, rows), scratch)
