"""The learning rate of every step: a function of the step, so that a resumed run needs no state for it."""

import math

SCHEDULES = ("none", "cosine")


def learning_rate(step: int, num_steps: int, lr: float, schedule: str = "none", num_warmup_steps: int = 0) -> float:
    """Return the learning rate of one optimizer step.

    During warm-up it rises linearly, lr * (step + 1) / num_warmup_steps. After that it stays
    ("none") or falls along half a cosine to 0 ("cosine", Loshchilov and Hutter 2017, without restarts):
    lr * (1 + cos(pi * t)) / 2, t being the fraction of the steps after warm-up that are done.

    Args:
        step: From 0.
        num_steps: Steps of the whole run, warm-up included.
        lr: The highest learning rate.
        schedule: One of `SCHEDULES`.
        num_warmup_steps: Steps of the warm-up; 0 for none.

    Raises:
        ValueError: The schedule is none of them, or the step is not in [0, num_steps).
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule {schedule!r}, expected one of {', '.join(SCHEDULES)}")
    if not 0 <= step < num_steps:
        raise ValueError(f"step {step}, expected 0 to {num_steps - 1}")
    if step < num_warmup_steps:
        return lr * (step + 1) / num_warmup_steps
    if schedule == "none":
        return lr
    done = (step - num_warmup_steps) / (num_steps - num_warmup_steps)
    return lr * (1 + math.cos(math.pi * done)) / 2
