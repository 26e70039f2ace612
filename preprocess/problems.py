"""The videos that failed or are damaged: one line each in `<cache>.failures.csv`."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from vidcache.cache.layout import Status
from vidcache.cache.plan import Plan
from vidcache.files import write_text_atomically
from vidcache.outputs import begins
from vidcache.text import printable, to_csv

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
