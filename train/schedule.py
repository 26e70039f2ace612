"""The learning rate of each step, and when to stop. Pure arithmetic."""

import dataclasses
import math

SCHEDULES = ("none", "cosine")


def learning_rate(step: int, num_steps: int, lr: float, schedule: str = "none", num_warmup_steps: int = 0) -> float:
    """Return the learning rate of one optimizer step.

    During warm-up it rises linearly, lr * (step + 1) / num_warmup_steps. After that it stays
    ("none") or falls along half a cosine to 0 ("cosine", Loshchilov and Hutter 2017, without restarts):
    lr * (1 + cos(pi * t)) / 2, where t is the fraction of the steps after warm-up that are done.

    Args:
        step: Step of the run, from 0.
        num_steps: Steps of the whole run, warm-up included.
        lr: Peak learning rate.
        schedule: One of `SCHEDULES`; else `ValueError`.
        num_warmup_steps: Steps of the warm-up; 0 for none.
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule {schedule!r}, expected one of {', '.join(SCHEDULES)}")
    if step < num_warmup_steps:
        return lr * (step + 1) / num_warmup_steps
    if schedule == "none":
        return lr
    done = (step - num_warmup_steps) / (num_steps - num_warmup_steps)
    return lr * (1 + math.cos(math.pi * done)) / 2


@dataclasses.dataclass
class EarlyStopping:
    """Early stopping on the validation loss. Field names are those of checkpoints.

    The best epoch is the one with the lowest loss, by however little, from the first epoch on. An epoch is an
    improvement when its loss is below that of the last improvement by more than `min_delta`; `patience` epochs in a
    row without improvement end the run, but never before `min_epochs`.
    """

    min_delta: float = 1e-2
    patience: int = 3
    min_epochs: int = 5
    best_loss: float = math.inf
    best_epoch: int = 0  # from 1; 0 before the first epoch
    progress_loss: float = math.inf  # of the last improvement
    num_without_progress: int = 0  # epochs since then

    def update(self, epoch: int, loss: float) -> bool:
        """Take in the finite validation loss of an epoch (from 1); returns whether it is the best so far."""
        if not math.isfinite(loss):  # comparing with it would go wrong silently
            raise ValueError(f"epoch {epoch}: validation loss is {loss}, expected a finite number")
        is_best = loss < self.best_loss
        if is_best:
            self.best_loss, self.best_epoch = loss, epoch
        if loss < self.progress_loss - self.min_delta:
            self.progress_loss, self.num_without_progress = loss, 0
        else:
            self.num_without_progress += 1
        return is_best

    def should_stop(self, epoch: int) -> bool:
        """Whether the run ends after this epoch, the last one that `update` took in."""
        return epoch >= self.min_epochs and self.num_without_progress >= self.patience
