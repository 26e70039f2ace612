"""One run on disk: what it writes when, and how it goes on."""

import contextlib
import csv
import dataclasses
import io
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn

from vidcache.cache.leakage import find_leaks
from vidcache.cache.reader import Reader, open_caches
from vidcache.cache.stream import Batch
from vidcache.checkpoint import Checkpoint, hash_file
from vidcache.errors import InputError, MismatchError, VidcacheError
from vidcache.eval.inference import check_match
from vidcache.eval.report.plots import draw_curves
from vidcache.files import read_json, sync_folder, write_text_atomically
from vidcache.plotting import draw_filmstrips
from vidcache.text import printable
from vidcache.train.callbacks import SILENT, Callbacks, EpochResult, RunResult, batch_strips, board
from vidcache.train.config import TrainConfig
from vidcache.train.data import check_config
from vidcache.train.distributed import Ranks
from vidcache.train.loop import check_state, train
from vidcache.train.run_dir import (
    CONFIG,
    CURVES,
    LAST,
    METRICS,
    RESULT,
    TRAIN_BATCH,
    Place,
    claim_place,
    feature_path,
    inputs_of,
    run_folder,
)


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


# What a resumed run may do otherwise; on another device it is not the same bit for bit.
FREE = {"reader_threads", "verify", "device", "feature_file"}
_SHOWN = 16  # clips in train_batch.png


def run_training(
    caches: Sequence[Path],
    out: Path,
    config: TrainConfig,
    hooks: Callbacks,
    *,
    strict_splits: bool = False,
    resume: bool = False,
    overwrite: bool = False,
    should_stop: Callable[[], bool] = lambda: False,
    ranks: Ranks | None = None,
    tensorboard: bool = False,
    command: str = "",
) -> RunResult:
    """Train, and write what happens as it happens; of several processes, only the first one writes.

    `out` is the epoch with the lowest validation loss so far; the folder beside it gets `config.json`,
    `metrics.csv`, `curves.png` and `last.pt`, with everything that a resumed run needs, `train_batch.png`: what
    the model sees first, and in the end `result.json`: why it ended.

    Args:
        caches: The cache, or several of the same shape and classes that are used as one.
        out: Checkpoint to write.
        config: What to do.
        hooks: Where else to report to.
        strict_splits: Refuse a cache in which clips look like clips of another split.
        resume: Go on with the run that `last.pt` is of; `config` is to be that of `resumed_config`.
        overwrite: Replace the run that is there; it is untouched until the model of this one is ready to train.
        should_stop: Asked after every step; once it says so, `last.pt` is written and the run is stopped.
        ranks: This process among several; None is the only one.
        tensorboard: Write a TensorBoard log into the folder as well.
        command: What the user typed, for config.json.

    Returns:
        How it ended.

    Raises:
        CacheError: The cache cannot be used.
        InputError: It is not what the config or `strict_splits` needs, there is nothing to resume, or no TensorBoard;
            or what is there already is not to be replaced.
        LockedError: Another run is writing there.
        InterruptedRunError: It was stopped; the same call with `resume` goes on.
        MismatchError: `last.pt` is of another cache or split.
        VidcacheError: The disk has no room for the checkpoints.
        OSError: The disk is full or not writable; the last good checkpoint is untouched.
    """
    ranks = ranks or Ranks(device=config.device)
    features = None if config.feature_views is None else feature_path(caches[0], config.feature_file)
    place = claim_place(out, inputs_of(caches, config.weights, config.init), features, resume=resume)
    with open_caches(caches) as reader, ranks.watch(), contextlib.ExitStack() as opened:
        check_config(reader, config)  # before anything is written
        if config.init and not resume:
            Checkpoint.load(Path(config.init))
        ranks.of_first(lambda: _check_splits(reader, hooks, strict_splits))
        lock = ranks.of_first(lambda: _begin(place, resume=resume, overwrite=overwrite))
        if ranks.is_first and lock is not None:
            opened.callback(os.close, lock)
        last, best = None, Best(place.out, place.folder / LAST)
        if resume:
            last = found = _last_checkpoint(place.folder / LAST, reader, config)
            ranks.of_first(lambda: best.take_up(found))
        if not ranks.is_first:
            hooks = SILENT
        else:
            facts = {
                "caches": [str(path) for path in caches],
                "checkpoint": place.out.name,
                "fingerprint": reader.fingerprint,
                "split_hash": reader.split_hash,
                "command": _first_command(place.folder) if resume else command,
            }
            text = json.dumps({**facts, "config": dataclasses.asdict(config)}, indent=2) + "\n"
            earlier = [] if resume else place.of_run()
            if tensorboard:
                first_epoch = 1 + (last.epoch if last else 0)
                hooks = opened.enter_context(board(hooks, place.folder, first_epoch))
            hooks = _write_files(hooks, place, best, reader, last)
            hooks = _write_begin(hooks, place, text, earlier)
            if resume:
                write_text_atomically(place.folder / CONFIG, text)
                (place.folder / RESULT).unlink(missing_ok=True)
        result = train(reader, config, hooks, resume=last, should_stop=should_stop, ranks=ranks, feature_file=features)
        if ranks.is_first:
            said = {"best_epoch": result.best_epoch, "stopped_because": result.stopped_because}
            write_text_atomically(place.folder / RESULT, json.dumps(said, indent=2) + "\n")
            best.check(list(result.epochs), result.best_epoch)  # before anybody says that it is there
        return result


def _first_command(folder: Path) -> str:
    """Return what began a run; what resumes it does not repeat its options."""
    command = read_json(folder / CONFIG).get("command")
    return command if type(command) is str else ""


def _check_splits(reader: Reader, hooks: Callbacks, strict_splits: bool) -> None:
    leaks = find_leaks(reader)
    hooks.on_leaks(leaks)
    if strict_splits and len(leaks.pairs):
        raise InputError(
            f"{reader.name}: {leaks.in_words}, expected none with --fail-on-leaks. See them: vidcache leaks CACHE; "
            "keep them together: vidcache split CACHE --near-duplicates group"
        )


def _write_begin(hooks: Callbacks, place: Place, config: str, earlier: list[Path]) -> Callbacks:
    """Return hooks that put a new run in the place of an earlier one once its model is ready to train.

    Args:
        hooks: Where to report to.
        place: Of the run.
        config: Content of config.json.
        earlier: Files of the earlier run: none may look like one of the new run.
    """

    def on_model(model: nn.Module) -> None:
        trained = sum(weight.nbytes for weight in model.parameters() if weight.requires_grad)
        place.check_space(sum(weight.nbytes for weight in model.state_dict().values()), trained)
        hooks.on_model(model)

    def on_begin(checkpoint: Checkpoint) -> None:
        hooks.on_begin(checkpoint)
        for path in earlier:
            path.unlink(missing_ok=True)
        write_text_atomically(place.folder / CONFIG, config)

    return dataclasses.replace(hooks, on_model=on_model, on_begin=on_begin)


def _write_files(hooks: Callbacks, place: Place, best: Best, reader: Reader, last: Checkpoint | None) -> Callbacks:
    """Return hooks that write the files of a run before they report."""
    folder = place.folder
    results = [EpochResult(**fields) for fields in last.training["results"]] if last else []

    def save_last(checkpoint: Checkpoint) -> None:
        training = {**checkpoint.training, "best": best.digest}
        dataclasses.replace(checkpoint, training=training).save(folder / LAST)

    def show_results() -> None:
        write_text_atomically(folder / METRICS, metrics_csv(results))
        draw_curves([dataclasses.asdict(result) for result in results], folder / CURVES)

    if results:  # the run may have been killed between two files
        show_results()

    def on_epoch(result: EpochResult, checkpoint: Callable[[bool], Checkpoint]) -> None:
        results.append(result)
        # The checkpoint first: metrics.csv never names a best epoch that best.pt does not hold.
        if result.is_best:
            best.write(checkpoint(False))
        save_last(checkpoint(True))
        if result.is_best:
            best.publish()
        show_results()
        hooks.on_epoch(result, checkpoint)

    def on_begin(checkpoint: Checkpoint) -> None:
        save_last(checkpoint)
        hooks.on_begin(checkpoint)

    def on_interrupt(checkpoint: Checkpoint) -> None:
        save_last(checkpoint)
        hooks.on_interrupt(checkpoint)

    def on_haltable(halt: Callable[[], Checkpoint]) -> None:
        def halt_and_save() -> Checkpoint:
            checkpoint = halt()
            save_last(checkpoint)
            return checkpoint

        hooks.on_haltable(halt_and_save)

    def on_inputs(inputs: torch.Tensor, batch: Batch) -> None:
        shown = Batch(batch.clips[:_SHOWN], batch.labels[:_SHOWN], batch.rows[:_SHOWN])
        draw_filmstrips(batch_strips(reader, shown, inputs[:_SHOWN]), folder / TRAIN_BATCH)
        hooks.on_inputs(inputs, batch)

    return dataclasses.replace(
        hooks,
        on_begin=on_begin,
        on_epoch=on_epoch,
        on_interrupt=on_interrupt,
        on_haltable=on_haltable,
        on_inputs=on_inputs,
    )


def _begin(place: Place, *, resume: bool, overwrite: bool) -> int | None:
    """Take the lock of a run; None where there is nothing to resume."""
    if resume and not place.folder.exists():
        return None
    lock = place.lock()
    try:
        if not resume and not overwrite:
            place.check_vacant()
    except BaseException:
        os.close(lock)
        raise
    return lock


def resumed_config(out: Path) -> TrainConfig:
    """Return the config of the run that can be resumed.

    Raises:
        InputError: There is none.
        MismatchError: Its checkpoint is damaged, or no checkpoint.
    """
    path = run_folder(out) / LAST
    return _config_of(_load_last(path), path)


def _config_of(last: Checkpoint, path: Path) -> TrainConfig:
    try:
        return TrainConfig.from_dict(last.config)
    except ValueError as error:
        raise MismatchError(
            f"{printable(path)}: options of another version of vidcache ({error}), expected those of this one. Use the "
            "vidcache that made it, or train again with another --out"
        ) from None


def _load_last(path: Path) -> Checkpoint:
    if not path.exists():
        raise InputError(f"{printable(path)}: not there, expected the last checkpoint of a run. Train without --resume")
    return Checkpoint.load(path)


def _last_checkpoint(path: Path, reader: Reader, config: TrainConfig) -> Checkpoint:
    last = _load_last(path)
    check_match(last, reader, printable(path), advice="Go on with its own cache, or train anew with another --out")
    for name, there in dataclasses.asdict(_config_of(last, path)).items():
        here = dataclasses.asdict(config)[name]
        if there != here and name not in FREE:
            raise InputError(
                f"{printable(path)}: its run has {name} {there}, expected {here}. Train anew with another --out"
            )
    try:
        check_state(last)
    except ValueError as error:
        raise MismatchError(
            f"{printable(path)}: holds no state of a run ({error}), expected one. Train again with another --out"
        ) from None
    return last


def metrics_csv(results: list[EpochResult]) -> str:
    """Return metrics.csv: one line per epoch, the fields of `EpochResult`."""
    text = io.StringIO()
    table = csv.DictWriter(text, [field.name for field in dataclasses.fields(EpochResult)], lineterminator="\n")
    table.writeheader()
    for result in results:
        row = dataclasses.asdict(result)
        table.writerow({name: int(value) if name == "is_best" else value for name, value in row.items()})
    return text.getvalue()
