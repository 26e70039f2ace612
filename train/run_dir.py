"""The place that a run is written to: best.pt where the user wants it, everything else in best.run/ beside it."""

import dataclasses
import fcntl
import os
from collections.abc import Iterable
from pathlib import Path

from vidcache.cli import beside
from vidcache.errors import InputError, LockedError, VidcacheError
from vidcache.files import follow, free_bytes, read_json
from vidcache.outputs import CHECKPOINT, FEATURES, PICTURE, begins, claim, claim_folder
from vidcache.text import printable

CONFIG, RESULT, LAST, METRICS, CURVES, TRAIN_BATCH = (
    "config.json",
    "result.json",
    "last.pt",
    "metrics.csv",
    "curves.png",
    "train_batch.png",
)
TENSORBOARD = "tensorboard"
_PNG = begins("a picture", b"\x89PNG\r\n\x1a\n")  # older versions left no mark in theirs
_FILES = {
    LAST: CHECKPOINT,
    CONFIG: begins("the options of a run", b'{\n  "caches": ['),
    METRICS: begins("the metrics of a run", b"epoch,train_loss,"),
    RESULT: begins("the result of a run", b'{\n  "best_epoch": '),
    CURVES: PICTURE,
    TRAIN_BATCH: PICTURE,
}


def run_folder(out: Path) -> Path:
    """Return the folder of a run: best.pt -> best.run; of a link, the one beside what it leads to."""
    return follow(out).with_suffix(".run")


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a run is written to.

    Attributes:
        out: Checkpoint of the best epoch.
        folder: Everything else.
    """

    out: Path
    folder: Path

    def lock(self) -> int:
        """Make the folder, and this process the only one that writes a run there, until the descriptor is closed.

        Where a file system cannot lock folders (NFS), nothing keeps a second run out.

        Raises:
            LockedError: Another process does.
            OSError: The folder cannot be made.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise LockedError(
                f"{printable(self.out)}: another run is writing it. Wait for that run, or choose another --out"
            ) from None
        except OSError:
            pass
        return descriptor

    def check_alone(self) -> None:
        """Say it at once if another process writes a run there.

        Raises:
            LockedError: Another process does.
        """
        if self.folder.exists():
            os.close(self.lock())

    def check_vacant(self) -> None:
        """Refuse to begin a run where there is one.

        Raises:
            InputError: There is one. Names the ways out.
        """
        found = [
            path for path in (self.out, *(self.folder / name for name in (LAST, METRICS, RESULT))) if path.exists()
        ]
        if found:
            resume = "Continue that run with --resume, w" if (self.folder / LAST).exists() else "W"
            raise InputError(
                f"{printable(found[0])}: belongs to an earlier run. {resume}rite this one elsewhere with --out "
                "OTHER.pt, or replace that run with --overwrite"
            )

    def of_run(self) -> list[Path]:
        """List what an earlier run has left that the next one does not replace when it begins."""
        board = self.folder / TENSORBOARD
        logs = [] if board.is_symlink() else sorted(board.glob("events.out.tfevents.*"))
        files = (self.out, *(self.folder / name for name in (RESULT, METRICS, CURVES, TRAIN_BATCH)), *logs)
        return [path for path in files if path.is_file()]

    def check_space(self, weight_bytes: int, trained_bytes: int) -> None:
        """Refuse to train what the disk has no room for.

        Args:
            weight_bytes: Of all weights of the model.
            trained_bytes: Of those that are trained; Adam remembers two numbers for each.

        Raises:
            VidcacheError: Fewer bytes are free than are needed.
        """
        best, last = weight_bytes, weight_bytes + 2 * trained_bytes
        there = sum(path.stat().st_size for path in (self.out, self.folder / LAST) if path.is_file())
        needed = best + 2 * last - there  # a checkpoint is written beside the one that it replaces
        free = free_bytes(self.folder)
        if needed > free:
            raise VidcacheError(
                f"{printable(self.out)}: needs {needed:,} bytes with {printable(self.folder / LAST)}, but its disk "
                f"has {free:,} free. Free some space, or choose another --out"
            )


def claim_place(out: Path, inputs: Iterable[Path], features: Path | None = None, *, resume: bool = False) -> Place:
    """Check that nothing is replaced that no run has written, and nothing that this one reads.

    Args:
        out: Checkpoint of the best epoch; a link is written through.
        inputs: What the run reads.
        features: The feature cache, if it is used.
        resume: The run that is there goes on; whether its checkpoints are what they were is not asked here.

    Raises:
        InputError: A file or a folder is there that is none of a run, of the run of another checkpoint, or an input.
        MismatchError: Something else is where a checkpoint is to be written.
    """
    inputs, where = () if resume else tuple(inputs), printable(out)
    out = follow(out) if resume else claim(out, CHECKPOINT, inputs)
    if run_folder(out) == out:
        raise InputError(f"{where}: is the name of the folder of a run. Choose an --out like best.pt")
    place = Place(out, follow(run_folder(out)))
    if resume:
        for name in _FILES.keys() - {LAST}:
            claim(place.folder / name, _PNG if _FILES[name] is PICTURE else _FILES[name])
    else:
        claim_folder(place.folder, _FILES, inputs, neutral=TENSORBOARD)
    owner = _owner(place.folder)
    if owner and owner != out.name and run_folder(Path(owner)).name == run_folder(out).name:
        raise InputError(
            f"{where}: {printable(run_folder(out))} is of the run that writes {printable(owner)}. "
            "Choose an --out with another name before its ending"
        )
    if features:
        claim(features, FEATURES, [*inputs, out])
    return place


def inputs_of(caches: Iterable[Path], *weights: str | None) -> list[Path]:
    """List the files that a run reads: its caches, and the weights that are named by a path."""
    return [*caches, *(Path(name) for name in weights if name and name not in ("kinetics400", "none"))]


def feature_path(cache: Path, chosen: str | None = None) -> Path:
    """Return the file of features of a run: as chosen, or beside its cache: cache.h5 -> cache.features.h5."""
    return follow(Path(chosen) if chosen else beside(cache, ".features.h5"))


def _owner(folder: Path) -> str:
    """Return the name of the checkpoint that the run of a folder writes; "" where nothing says it."""
    name = read_json(folder / CONFIG).get("checkpoint")
    return name if type(name) is str else ""
