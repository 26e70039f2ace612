"""A run in TensorBoard: scalars, the confusion matrix of each validation, what the model sees.

`tensorboard` is an optional dependency: it is imported when it is asked for.
"""

import contextlib
import dataclasses
import io
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from matplotlib.image import imread

from vidcache.checkpoint import Checkpoint
from vidcache.errors import InputError
from vidcache.eval.metrics import Metrics
from vidcache.eval.pictures import confusion_figure
from vidcache.figures import to_png
from vidcache.train.place import TRAIN_BATCH
from vidcache.train.results import EpochResult, Hooks

FOLDER = "tensorboard"


@contextlib.contextmanager
def board(hooks: Hooks, folder: Path, first_epoch: int) -> Iterator[Hooks]:
    """Write what is reported to a TensorBoard log as well.

    Args:
        hooks: Where else to report to.
        folder: Of the run; the log goes into `tensorboard` below it.
        first_epoch: Epochs from this one on that an earlier log has, of a run that was stopped, do not count.

    Yields:
        The hooks to call instead.

    Raises:
        InputError: TensorBoard is not installed.
    """
    try:
        from torch.utils.tensorboard.writer import SummaryWriter
    except ImportError:
        raise InputError(
            "--tensorboard: it is not installed, expected tensorboard. pip install 'vidcache[tensorboard]'"
        ) from None
    with contextlib.closing(SummaryWriter(str(folder / FOLDER), purge_step=first_epoch)) as writer:

        def on_validation(epoch: int, metrics: Metrics) -> None:
            title = f"epoch {epoch}: {metrics.num_correct} of {metrics.num_clips} validation clips right"
            drawn = io.BytesIO(to_png(confusion_figure(metrics, title), 90))
            writer.add_image("val/confusion", _pixels(drawn), epoch, dataformats="HWC")
            hooks.on_validation(epoch, metrics)

        def on_epoch(result: EpochResult, checkpoint: Callable[[bool], Checkpoint]) -> None:
            hooks.on_epoch(result, checkpoint)
            for name, value in dataclasses.asdict(result).items():
                if name not in ("epoch", "is_best"):
                    part, _, rest = name.partition("_")
                    tag = f"{part}/{rest}" if part in ("train", "val") else f"run/{name}"
                    writer.add_scalar(tag, value, result.epoch)
            if result.epoch == first_epoch and (folder / TRAIN_BATCH).exists():
                picture = _pixels(folder / TRAIN_BATCH)
                writer.add_image("train/batch", picture, result.epoch, dataformats="HWC")
            writer.flush()

        yield dataclasses.replace(hooks, on_validation=on_validation, on_epoch=on_epoch)


def _pixels(png: Path | io.BytesIO) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.asarray(imread(png)[:, :, :3] * 255, np.uint8)
