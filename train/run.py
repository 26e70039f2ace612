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

from vidcache.cache.joined import open_caches
from vidcache.cache.leaks import find_leaks
from vidcache.cache.reader import Reader
from vidcache.cache.stream import Batch
from vidcache.checkpoint import Checkpoint
from vidcache.errors import InputError, MismatchError
from vidcache.eval.curves import draw_curves
from vidcache.eval.loading import check_match
from vidcache.files import read_json, write_text_atomically
from vidcache.filmstrip import draw_filmstrips
from vidcache.text import printable
from vidcache.train.best import Best
from vidcache.train.board import board
from vidcache.train.config import TrainConfig
from vidcache.train.loop import train
from vidcache.train.place import (
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
from vidcache.train.preview import batch_strips
from vidcache.train.ranks import Ranks
from vidcache.train.results import SILENT, EpochResult, Hooks, RunResult
from vidcache.train.resumable import check_state
from vidcache.train.task import check_config

# What a resumed run may do otherwise; on another device it is not the same bit for bit.
FREE = {"reader_threads", "verify", "device", "feature_file"}
_SHOWN = 16  # clips in train_batch.png


def run_training(
    caches: Sequence[Path],
    out: Path,
    config: TrainConfig,
    hooks: Hooks,
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


def _check_splits(reader: Reader, hooks: Hooks, strict_splits: bool) -> None:
    leaks = find_leaks(reader)
    hooks.on_leaks(leaks)
    if strict_splits and len(leaks.pairs):
        raise InputError(
            f"{reader.name}: {leaks.in_words}, expected none with --strict-splits. See them: vidcache leaks CACHE; "
            "keep them together: vidcache split CACHE --near-duplicates group"
        )


def _write_begin(hooks: Hooks, place: Place, config: str, earlier: list[Path]) -> Hooks:
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


def _write_files(hooks: Hooks, place: Place, best: Best, reader: Reader, last: Checkpoint | None) -> Hooks:
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
