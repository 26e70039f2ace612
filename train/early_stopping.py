"""When to stop, and which epoch was the best. Pure arithmetic on validation losses."""

import dataclasses
import math


@dataclasses.dataclass
class EarlyStopping:
    """Watches the validation loss.

    The best epoch is the one with the lowest loss, by however little, from the first one on.
    Patience is another question: an epoch is progress when its loss is below that of the last
    progress by more than `min_delta`; `patience` epochs in a row without progress end the run, but
    never before `min_epochs`.

    Attributes:
        min_delta: Loss that counts as progress.
        patience: Epochs without progress.
        min_epochs: The earliest epoch that can be the last.
    """

    min_delta: float = 1e-2
    patience: int = 3
    min_epochs: int = 5
    best_loss: float = math.inf
    best_epoch: int = 0
    progress_loss: float = math.inf
    num_without_progress: int = 0

    def update(self, epoch: int, loss: float) -> bool:
        """Take in an epoch.

        Args:
            epoch: From 1, one more each time.
            loss: Of the validation split; finite.

        Returns:
            Whether this epoch is the best so far.

        Raises:
            ValueError: The loss is not finite: comparing with it would go wrong silently.
        """
        if not math.isfinite(loss):
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
        """Whether the epoch that was taken in last is to be the last one."""
        return epoch >= self.min_epochs and self.num_without_progress >= self.patience
