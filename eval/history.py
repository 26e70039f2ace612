"""How a checkpoint came to be, as its run left it in best.run/: for a reader, not for a program that trains."""

import csv
import dataclasses
import io
from pathlib import Path
from typing import Any

from vidcache.checkpoint import Checkpoint
from vidcache.files import follow, read_json, read_small

# Columns that the report draws or adds up.
USED = (
    "epoch train_loss train_accuracy val_loss val_accuracy val_balanced_accuracy seconds clips_per_second "
    "data_wait_fraction"
).split()
_MAX_TEXT = 10_000  # letters of a command
_MAX_EPOCHS, _LARGEST = 10_000, 1e15  # what can still be drawn; NaN cannot


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
    folder = follow(ckpt).with_suffix(".run")
    try:
        lines = io.StringIO(read_small(folder / "metrics.csv").decode(), newline="")
        epochs = tuple({name: float(value) for name, value in row.items()} for row in csv.DictReader(lines))
        if len(epochs) > _MAX_EPOCHS or not all(abs(row[name]) <= _LARGEST for row in epochs for name in USED):
            return History()
        own = next(row for row in epochs if row["epoch"] == checkpoint.epoch)
        if not checkpoint.metrics or any(own[name] != value for name, value in checkpoint.metrics.items()):
            return History()
    except (OSError, ValueError, KeyError, TypeError, StopIteration, csv.Error):
        return History()
    asked, ended = read_json(folder / "config.json"), read_json(folder / "result.json")
    is_asked = (asked.get("fingerprint"), asked.get("split_hash")) == (checkpoint.fingerprint, checkpoint.split_hash)
    has_ended = ended.get("best_epoch") == min(epochs, key=lambda row: row["val_loss"])["epoch"]
    return History(
        epochs=epochs,
        command=_text(asked, "command") if is_asked else "",
        stopped_because=_text(ended, "stopped_because") if has_ended else "",
    )


def _text(values: dict[str, Any], name: str) -> str:
    found = values.get(name)
    return found if type(found) is str and len(found) <= _MAX_TEXT else ""
