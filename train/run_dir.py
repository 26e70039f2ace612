"""Where a run is written: best.pt where the user wants it, everything else in best.run/ beside it."""

import contextlib
import dataclasses
import fcntl
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from vidcache.cli import beside
from vidcache.errors import InputError, LockedError, VidcacheError
from vidcache.files import follow, free_bytes, read_json
from vidcache.outputs import CHECKPOINT, FEATURES, PICTURE, begins, claim, claim_folder
from vidcache.text import printable

CONFIG, RESULT, LAST, METRICS = "config.json", "result.json", "last.pt", "metrics.csv"
CURVES, TRAIN_BATCH, TENSORBOARD = "curves.png", "train_batch.png", "tensorboard"
_FILES = {
    LAST: CHECKPOINT,
    CONFIG: begins("the options of a run", b'{\n  "caches": ['),
    METRICS: begins("the metrics of a run", b"epoch,train_loss,"),
    RESULT: begins("the result of a run", b'{\n  "best_epoch": '),
    CURVES: PICTURE,
    TRAIN_BATCH: PICTURE,
}


def run_folder(out: Path) -> Path:
    """Return the folder of a run: best.pt -> best.run; of a link, the one beside its target."""
    return follow(out).with_suffix(".run")


@dataclasses.dataclass(frozen=True)
class RunDir:
    """Where a run is written: the checkpoint of the best epoch, and the folder of everything else."""

    out: Path
    folder: Path

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Make the folder, and keep other runs out of it; `LockedError` if one writes there.

        Where a file system cannot lock folders (NFS), nothing keeps a second run out.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                other = "another run is writing it. Wait for that run, or choose another --out"
                raise LockedError(f"{printable(self.out)}: {other}") from None
            except OSError:
                pass
            yield
        finally:
            os.close(descriptor)

    def check_vacant(self) -> None:
        """Raise an `InputError` that names the ways out if there is a run."""
        candidates = (self.out, *(self.folder / name for name in (LAST, METRICS, RESULT)))
        existing = [path for path in candidates if path.exists()]
        if existing:
            resume = "Continue that run with --resume, w" if (self.folder / LAST).exists() else "W"
            raise InputError(
                f"{printable(existing[0])}: belongs to an earlier run. {resume}rite this one elsewhere with --out "
                "OTHER.pt, or replace that run with --overwrite"
            )

    def leftovers(self) -> list[Path]:
        """List the files of an earlier run that a new one does not replace when it begins."""
        board = self.folder / TENSORBOARD
        logs = [] if board.is_symlink() else sorted(board.glob("events.out.tfevents.*"))
        files = (self.out, *(self.folder / name for name in (RESULT, METRICS, CURVES, TRAIN_BATCH)), *logs)
        return [path for path in files if path.is_file()]

    def check_space(self, weight_bytes: int, trained_bytes: int) -> None:
        """Raise a `VidcacheError` if the checkpoints of a run do not fit on the disk.

        For each of `trained_bytes`, those of the weights that train, Adam keeps two more.
        """
        best, last = weight_bytes, weight_bytes + 2 * trained_bytes
        present = sum(path.stat().st_size for path in (self.out, self.folder / LAST) if path.is_file())
        needed = best + 2 * last - present  # a checkpoint is written beside the one that it replaces
        free = free_bytes(self.folder)
        if needed > free:
            raise VidcacheError(
                f"{printable(self.out)}: needs {needed:,} bytes with {printable(self.folder / LAST)}, but its disk "
                f"has {free:,} free. Free some space, or choose another --out"
            )


def claim_run(out: Path, inputs: Iterable[Path], features: Path | None = None, *, resume: bool = False) -> RunDir:
    """Check that a run replaces no file that no run has written, and none that it reads.

    Args:
        out: Checkpoint of the best epoch; a link is written through.
        inputs: Files that the run reads.
        features: The feature cache, if it is used.
        resume: The run that is there continues; its checkpoints are checked elsewhere.

    Raises:
        InputError: A file or folder there is not of a run, of the run of another checkpoint, or an input; or there is
            no run to resume.
        MismatchError: Something else is where a checkpoint is to be written.
    """
    inputs, where = () if resume else tuple(inputs), printable(out)
    out = follow(out) if resume else claim(out, CHECKPOINT, inputs)
    if run_folder(out) == out:
        raise InputError(f"{where}: is the name of the folder of a run. Choose an --out like best.pt")
    place = RunDir(out, follow(run_folder(out)))
    if resume:
        last = place.folder / LAST
        if not last.exists():
            raise InputError(f"{printable(last)}: missing: there is no run to resume. Train without --resume")
        for name in _FILES.keys() - {LAST}:
            claim(place.folder / name, _FILES[name])
    else:
        claim_folder(place.folder, _FILES, inputs, neutral=TENSORBOARD)
    owner = read_json(place.folder / CONFIG).get("checkpoint")
    if type(owner) is str and owner not in ("", out.name) and run_folder(Path(owner)).name == run_folder(out).name:
        raise InputError(
            f"{where}: {printable(run_folder(out))} belongs to the run that writes {printable(owner)}. "
            "Choose an --out with another name before its ending"
        )
    if features:
        claim(features, FEATURES, [*inputs, out])
    return place


def inputs_of(caches: Iterable[Path], *weights: str | None) -> list[Path]:
    """List the files that a run reads: its caches, and the weights that are named by a path."""
    return [*caches, *(Path(name) for name in weights if name and name not in ("kinetics400", "none"))]


def feature_path(cache: Path, chosen: str | None = None) -> Path:
    """Return the path of the feature cache: as chosen, or beside the cache: cache.h5 -> cache.features.h5."""
    return follow(Path(chosen) if chosen else beside(cache, ".features.h5"))
