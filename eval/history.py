"""How a checkpoint came to be, as its run left it in best.run/: for a reader, not for a program that trains."""

import csv
import dataclasses
import json
import math
from pathlib import Path
from typing import Any

from vidcache.checkpoint import Checkpoint

# Columns that the report draws or adds up.
USED = (
    "epoch train_loss train_accuracy val_loss val_accuracy val_balanced_accuracy seconds clips_per_second "
    "data_wait_fraction"
).split()


@dataclasses.dataclass(frozen=True)
class History:
    """The run of a checkpoint.

    Attributes:
        epochs: Rows of metrics.csv, as numbers; empty where they are not there, or of another run.
        command: What began the run; empty if unknown.
        stopped_because: Why it ended; empty if it has not, or nothing says so.
    """

    epochs: tuple[dict[str, float], ...] = ()
    command: str = ""
    stopped_because: str = ""


def read_history(ckpt: Path, checkpoint: Checkpoint) -> History:
    """Read what lies beside a checkpoint; nothing of it is needed to evaluate, so nothing of it is an error.

    A folder that is of another run is not believed: the row of the checkpoint's epoch has to have its metrics.
    """
    folder = ckpt.with_suffix(".run")
    try:
        with (folder / "metrics.csv").open(newline="") as file:
            epochs = tuple({name: float(value) for name, value in row.items()} for row in csv.DictReader(file))
        if not all(math.isfinite(row[name]) for row in epochs for name in USED):
            return History()
        own = next(row for row in epochs if row["epoch"] == checkpoint.epoch)
        if any(own[name] != value for name, value in checkpoint.metrics.items()):
            return History()
    except (OSError, ValueError, KeyError, TypeError, StopIteration, csv.Error):
        return History()
    return History(
        epochs=epochs,
        command=_text(folder / "config.json", "command"),
        stopped_because=_text(folder / "result.json", "stopped_because"),
    )


def _text(path: Path, name: str) -> str:
    try:
        values: Any = json.loads(path.read_text("utf-8", "surrogateescape"))
        return str(values[name])
    except (OSError, ValueError, KeyError, TypeError):
        return ""
