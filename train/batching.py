"""Which clips each optimizer step is made of, on each process: pure arithmetic."""

import dataclasses

import numpy as np
import numpy.typing as npt

from vidcache.cache.stream import Rows, rank_slice


@dataclasses.dataclass(frozen=True)
class StepPlan:
    """One optimizer step.

    Attributes:
        parts: What this process puts through the model, one part after the other; a part may be empty.
        num_clips: Of the step, in all parts of all processes.
        weight: Sum of the loss weights of these clips: what the summed loss is divided by.
    """

    parts: tuple[Rows, ...]
    num_clips: int
    weight: float


def plan_steps(
    order: Rows,
    labels: Rows,
    class_weights: npt.NDArray[np.float32] | None,
    batch_size: int,
    *,
    accumulate: int = 1,
    rank: int = 0,
    num_ranks: int = 1,
) -> list[StepPlan]:
    """Cut the order of an epoch into steps, a step into parts, and each part among the processes.

    Together the processes take every clip of the order exactly once, and the k-th parts of a step are the same clips
    however many processes there are. Every process has as many parts, so that all wait for each other equally often.

    Args:
        order: (n,) rows of an epoch.
        labels: (N,) of all rows.
        class_weights: (K,) of the loss; None for 1.
        batch_size: Clips of a step, on all processes together (B); the last step has the rest. >= 1.
        accumulate: Parts of a step; no more than B are made. >= 1.
        rank: Of this process.
        num_ranks: Processes.
    """
    steps = []
    for start in range(0, len(order), batch_size):
        clips = order[start : start + batch_size]
        parts = np.array_split(clips, min(accumulate, len(clips)))
        weight = len(clips) if class_weights is None else float(class_weights[labels[clips]].sum(dtype=np.float64))
        steps.append(StepPlan(tuple(rank_slice(part, rank, num_ranks) for part in parts), len(clips), weight))
    return steps
