"""best.pt, known by its hash: what a run says of it is true of the file that lies there."""

import os
from pathlib import Path

from vidcache.checkpoint import Checkpoint, hash_file
from vidcache.errors import InputError, MismatchError, VidcacheError
from vidcache.files import sync_folder
from vidcache.text import printable
from vidcache.train.results import EpochResult


class Best:
    """The checkpoint of the best epoch so far.

    A better one is written beside it, last.pt is given its hash, and then it takes the place: whenever a run is
    killed, the hash in last.pt is that of one of the two.

    Args:
        out: The file; written through a link.
        last: last.pt, for messages.

    Attributes:
        digest: Of the file, or of the one that is to take its place; empty where none was written.
    """

    def __init__(self, out: Path, last: Path) -> None:
        self.digest = ""
        self._out, self._last = out, last
        self._target = out.resolve()
        self._next = self._target.with_name(f".{self._target.name}.next")

    def write(self, checkpoint: Checkpoint) -> None:
        """Write a better one beside it.

        Raises:
            OSError: The disk is full or not writable.
        """
        self.digest = checkpoint.save(self._next)

    def publish(self) -> None:
        """Put what was written in its place."""
        self._next.replace(self._target)
        sync_folder(self._target.parent)

    def take_up(self, checkpoint: Checkpoint) -> None:
        """Go on with the one of the run that a resumable checkpoint is of.

        Raises:
            InputError: It is not there.
            MismatchError: It is damaged, or another file.
        """
        results = [EpochResult(**fields) for fields in checkpoint.training["results"]]
        self.digest = checkpoint.training.get("best", "")
        if self.digest and _hash_or_none(self._next) == self.digest:  # killed before it took its place
            self.publish()
        self._next.unlink(missing_ok=True)
        if results:
            self.check(results, checkpoint.training["stopping"]["best_epoch"], may_be_newer=True)

    def check(self, results: list[EpochResult], best_epoch: int, *, may_be_newer: bool = False) -> None:
        """Compare the file with what was written.

        Args:
            results: Of all epochs.
            best_epoch: The one that it is of.
            may_be_newer: Accept one of the epoch that comes next, where no hash is known: older versions of vidcache
                wrote best.pt first, and such an epoch is done again.

        Raises:
            InputError: It is not there.
            MismatchError: It is damaged, or another file.
        """
        found = _hash_or_none(self._out)
        is_it = found == self.digest if self.digest else self._is_of(results, best_epoch, may_be_newer)
        if is_it:
            return
        is_there = os.path.lexists(self._out)
        error, what = (MismatchError, "damaged, or another file") if is_there else (InputError, "not there")
        last = printable(self._last)
        raise error(
            f"{printable(self._out)}: {what}, expected what was written for epoch {best_epoch}, the best one. Put it "
            f"back; or begin a new run with the weights of epoch {len(results)}: --init {last} --out OTHER.pt"
        )

    def _is_of(self, results: list[EpochResult], best_epoch: int, may_be_newer: bool) -> bool:
        try:
            found = Checkpoint.load(self._out)
        except VidcacheError:
            return False
        if may_be_newer and found.epoch == len(results) + 1:
            return True
        return found.metrics == results[best_epoch - 1].as_numbers()


def _hash_or_none(path: Path) -> str | None:
    try:
        return hash_file(path)
    except OSError:
        return None
