"""A run with its files: begun, observed, resumed."""

import contextlib
import csv
import dataclasses
import io
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from vidcache.cache.leakage import find_leaks
from vidcache.cache.reader import Reader, open_caches
from vidcache.cache.stream import Batch
from vidcache.checkpoint import Checkpoint, hash_file
from vidcache.cli import choose_device
from vidcache.errors import InputError, MismatchError
from vidcache.eval.inference import check_match
from vidcache.eval.metrics import Metrics
from vidcache.eval.report.plots import draw_curves
from vidcache.files import read_json, sync_folder, write_text_atomically
from vidcache.plotting import draw_filmstrips
from vidcache.text import printable
from vidcache.train import loop
from vidcache.train.callbacks import Callback, EpochResult, RunResult, TensorBoard, batch_strips
from vidcache.train.config import TrainConfig
from vidcache.train.data import check_config
from vidcache.train.distributed import Processes
from vidcache.train.resume import TrainingState
from vidcache.train.run_dir import (
    CONFIG,
    CURVES,
    LAST,
    METRICS,
    RESULT,
    TRAIN_BATCH,
    RunDir,
    claim_run,
    feature_path,
    inputs_of,
)

# Options that may change when a run is resumed; on another device it is not the same bit for bit.
FREE = {"reader_threads", "verify", "device", "feature_file"}


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """What a run does beside training."""

    resume: bool = False  # continue the run of last.pt
    overwrite: bool = False  # replace a run; it is untouched until the model of this one is ready to train
    fail_on_leaks: bool = False  # refuse a cache whose splits share near-duplicate clips
    tensorboard: bool = False  # write a TensorBoard log too
    command: str = ""  # of the user, for config.json
    should_stop: Callable[[], bool] = lambda: False  # called after every step; True writes last.pt and stops the run


def run_training(
    cache: str | Path | Sequence[str | Path],
    out: str | Path = "best.pt",
    config: TrainConfig | None = None,
    callbacks: Sequence[Callback] = (),
    *,
    processes: Processes | None = None,
    **options: Any,
) -> RunResult:
    """Fine-tune a model on a cache, as `vidtrain` does: this is `vidcache.train`.

    Writes the checkpoint of the epoch with the lowest validation loss to `out`, and metrics.csv, curves.png, last.pt
    and the rest into the folder beside it (best.pt -> best.run/).

    Args:
        cache: The cache, or several of the same shape and classes that are used as one.
        out: Checkpoint to write.
        config: The options; None makes them of `options`. To resume, those of `resumed_config`.
        callbacks: Observers, called after the files are written.
        processes: This process among several, of which only the main one writes; None is the only one.
        options: Fields of `RunOptions`; without a config also those of `TrainConfig` and `Strength`: `epochs=5`,
            `lr=3e-4`, `weights="none"`, `flip=0`, ... The device is cuda if there is one, else cpu.

    Returns:
        The results of all epochs, and which was the best.

    Raises:
        CacheError: The cache cannot be used.
        InputError: An option does not fit the cache, or what is there is not to be replaced (`overwrite=True`).
        TypeError: There is no such option.
        LockedError: Another run is writing there.
        InterruptedRunError: It was stopped; `resume=True` continues it.
        MismatchError: The last.pt to resume from is damaged, or of another cache or split.
        VidcacheError: The loss is not finite, or memory or disk are full.

    >>> import vidcache
    >>> result = vidcache.train("cache.h5", "best.pt", epochs=2, weights="none")  # doctest: +SKIP
    >>> result.best_epoch, result.best.val_accuracy  # doctest: +SKIP
    (2, 0.875)
    """
    caches = [Path(path) for path in ([cache] if isinstance(cache, str | Path) else cache)]
    run = RunOptions(**{field.name: options.pop(field.name, field.default) for field in dataclasses.fields(RunOptions)})
    if config is None:
        config = TrainConfig.from_options(options, choose_device(options.pop("device", None)))
    elif options:
        raise TypeError(f"train() got a config and its option {next(iter(options))}: give one of them")
    processes = processes or Processes(device=config.device)
    out = Path(out)
    features = None if config.feature_views is None else feature_path(caches[0], config.feature_file)
    place = claim_run(out, inputs_of(caches, config.weights, config.init), features, resume=run.resume)
    with open_caches(caches) as reader, processes.watch(), contextlib.ExitStack() as opened:
        check_config(reader, config)  # before anything is written
        if config.init and not run.resume:
            Checkpoint.load(Path(config.init))
        note = processes.run_on_main(lambda: _check_leaks(reader, run.fail_on_leaks))
        for callback in callbacks if processes.is_main else ():
            callback.on_note(note, False)

        def begin() -> None:
            opened.enter_context(place.lock())
            if not run.resume and not run.overwrite:
                place.check_vacant()

        processes.run_on_main(begin)
        last = _last_checkpoint(place.folder / LAST, reader, config) if run.resume else None
        files = RunFiles(place, reader, caches, run.command, last)
        processes.run_on_main(lambda: files.find_best() if last else None)
        observers: list[Callback] = [files, *callbacks]
        if processes.is_main and run.tensorboard:
            board = TensorBoard(place.folder, 1 + (last.epoch if last else 0))
            opened.callback(board.close)
            observers.append(board)
        return loop.train(reader, config, observers, resume=last, should_stop=run.should_stop, processes=processes)


def _check_leaks(reader: Reader, fail: bool) -> str:
    """Return a line about near-duplicates in different splits; with `fail`, some are an `InputError`."""
    leaks = find_leaks(reader)
    if fail and len(leaks.pairs):
        raise InputError(
            f"{reader.name}: {leaks.in_words} (--fail-on-leaks). List them: vidcache leaks CACHE; keep them together: "
            "vidcache split CACHE --near-duplicates group"
        )
    return f"duplicate check: {leaks.in_words}{': see vidcache leaks' if len(leaks.pairs) else ''}"


class RunFiles(Callback):
    """Writes the files of a run.

    A new best.pt is written beside the old one, last.pt is given its hash, and then it takes the place: whenever a run
    is killed, the hash in last.pt is that of one of the two.
    """

    def __init__(
        self, place: RunDir, reader: Reader, caches: Sequence[Path], command: str, last: Checkpoint | None
    ) -> None:
        super().__init__()
        self._place, self._reader, self._is_new, self._folder = place, reader, last is None, place.folder
        self._results = [EpochResult(**fields) for fields in last.training["results"]] if last else []
        self._best_hash = last.training.get("best", "") if last else ""
        self._best = place.out.resolve()
        self._next_best = self._best.with_name(f".{self._best.name}.next")
        if last:  # a resumed run keeps the command of its beginning
            earlier = read_json(self._folder / CONFIG).get("command")
            command = earlier if type(earlier) is str else ""
        self._facts = {
            "caches": [str(path) for path in caches],
            "checkpoint": place.out.name,
            "fingerprint": reader.fingerprint,
            "split_hash": reader.split_hash,
            "command": command,
        }

    def find_best(self) -> None:
        """Find the best.pt of a run that is resumed."""
        if self._best_hash and _hash_or_none(self._next_best) == self._best_hash:  # killed before it took its place
            self._publish_best()
        self._next_best.unlink(missing_ok=True)
        self._check_best()

    def on_setup(self, trainer: "loop.Trainer") -> None:
        """Put the run in the place of an earlier one, now that its model is ready to train."""
        weights = sum(tensor.nbytes for tensor in trainer.model.state_dict().values())
        self._place.check_space(weights, sum(parameter.nbytes for parameter in trainer.parameters))
        text = json.dumps({**self._facts, "config": dataclasses.asdict(trainer.config)}, indent=2) + "\n"
        if self._is_new:
            leftovers = self._place.leftovers()
            self.on_stop(trainer.checkpoint(True))
            for path in leftovers:
                path.unlink(missing_ok=True)
        elif self._results:
            self._write_results()  # the run may have been killed between two files
        write_text_atomically(self._folder / CONFIG, text)
        (self._folder / RESULT).unlink(missing_ok=True)

    def on_first_batch(self, inputs_BCTHW: torch.Tensor, batch: Batch) -> None:
        """Draw train_batch.png."""
        draw_filmstrips(batch_strips(self._reader, batch, inputs_BCTHW), self._folder / TRAIN_BATCH)

    def on_epoch(self, result: EpochResult, metrics: Metrics, checkpoint: Callable[[bool], Checkpoint]) -> None:  # noqa: ARG002
        """Write the checkpoints first: metrics.csv never names a best epoch that best.pt does not hold."""
        self._results.append(result)
        if result.is_best:
            self._best_hash = checkpoint(False).save(self._next_best)
        self.on_stop(checkpoint(True))
        if result.is_best:
            self._publish_best()
        self._write_results()

    def on_stop(self, checkpoint: Checkpoint) -> None:
        """Write last.pt."""
        training = {**checkpoint.training, "best": self._best_hash}
        dataclasses.replace(checkpoint, training=training).save(self._folder / LAST)

    def on_end(self, result: RunResult) -> None:
        """Write result.json, and check that best.pt is still there."""
        facts = {"best_epoch": result.best_epoch, "stopped_because": result.stopped_because}
        write_text_atomically(self._folder / RESULT, json.dumps(facts, indent=2) + "\n")
        self._check_best()

    def _publish_best(self) -> None:
        self._next_best.replace(self._best)
        sync_folder(self._best.parent)

    def _check_best(self) -> None:
        if not self._results or _hash_or_none(self._place.out) == self._best_hash:
            return
        is_there = os.path.lexists(self._place.out)
        error, what = (MismatchError, "damaged, or another file") if is_there else (InputError, "missing")
        epoch = max(result.epoch for result in self._results if result.is_best)
        raise error(
            f"{printable(self._place.out)}: {what}: not the checkpoint of epoch {epoch}, the best one. Put it back; or "
            f"begin a new run with the weights of epoch {len(self._results)}: "
            f"--init {printable(self._folder / LAST)} --out OTHER.pt"
        )

    def _write_results(self) -> None:
        results, text = [dataclasses.asdict(result) for result in self._results], io.StringIO()
        table = csv.DictWriter(text, [field.name for field in dataclasses.fields(EpochResult)], lineterminator="\n")
        table.writeheader()
        table.writerows({**result, "is_best": int(result["is_best"])} for result in results)
        write_text_atomically(self._folder / METRICS, text.getvalue())
        draw_curves(results, self._folder / CURVES)


def _hash_or_none(path: Path) -> str | None:
    try:
        return hash_file(path)
    except OSError:
        return None


def resumed_config(out: Path) -> TrainConfig:
    """Return the config of the run that can be resumed; InputError if there is none, MismatchError if it is damaged."""
    return load_run(claim_run(out, (), resume=True).folder / LAST)[1]


def load_run(path: Path) -> tuple[Checkpoint, TrainConfig]:
    """Load a checkpoint and the config of its run; MismatchError if it is damaged or has unknown options."""
    checkpoint = Checkpoint.load(path)
    try:
        return checkpoint, TrainConfig.from_dict(checkpoint.config)
    except ValueError as error:
        raise MismatchError(
            f"{printable(path)}: options of another version of vidcache ({error}). Use the vidcache that made it, or "
            "train again with another --out"
        ) from None


def _last_checkpoint(path: Path, reader: Reader, config: TrainConfig) -> Checkpoint:
    """Load last.pt, and check that it is of this cache and these options."""
    last, saved = load_run(path)
    check_match(last, reader, printable(path), advice="Continue with its own cache, or use another --out")
    before, now = dataclasses.asdict(saved), dataclasses.asdict(config)
    for name in now.keys() - FREE:
        if before[name] != now[name]:
            raise InputError(
                f"{printable(path)}: its run has {name} {before[name]}, not {now[name]}. Use another --out"
            )
    try:
        TrainingState.from_checkpoint(last)
    except ValueError as error:
        raise MismatchError(
            f"{printable(path)}: not the state of a run ({error}). Train again with another --out"
        ) from None
    return last
