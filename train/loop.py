"""The training loop, in reading order: draw, step, validate, keep the best, stop.

Knows nothing of terminals and files' names: what happens leaves through callbacks.
"""

import contextlib
import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from vidcache.cache.features import FeatureReader
from vidcache.cache.reader import Reader
from vidcache.cache.stream import Rows, rank_slice
from vidcache.checkpoint import Checkpoint
from vidcache.errors import InterruptedRunError, MismatchError, VidcacheError
from vidcache.eval.evaluate import Predictions, join_predictions, predict
from vidcache.eval.metrics import Metrics, compute_metrics
from vidcache.model import R3D18, build_model, copy_to_cpu, kinetics_path, load_weights, state_on_cpu
from vidcache.text import one_line
from vidcache.train.balance import audit
from vidcache.train.config import TrainConfig
from vidcache.train.device import backends, device_name, memory_advice
from vidcache.train.early_stopping import EarlyStopping
from vidcache.train.features import compute_features, in_words, open_features, plan_features
from vidcache.train.forward import Forward
from vidcache.train.initial import start_from
from vidcache.train.inputs import ClipInputs, FeatureInputs, Inputs
from vidcache.train.precision import Choice, try_precision
from vidcache.train.ranks import Ranks
from vidcache.train.results import SILENT, EpochResult, Hooks, RunResult, Setup
from vidcache.train.resumable import load_optimizer
from vidcache.train.step import EpochSums, Loss, Stepper, make_optimizer
from vidcache.train.sync_norm import synchronise_norms
from vidcache.train.task import Task, mirror_warning, needed_rows


def train(
    reader: Reader,
    config: TrainConfig,
    hooks: Hooks = SILENT,
    *,
    resume: Checkpoint | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    ranks: Ranks | None = None,
    feature_file: Path | None = None,
) -> RunResult:
    """Train a model on a cache.

    A run that is stopped and resumed ends with the same weights, bit for bit on a CPU, as one that was not: what
    is drawn is a function of seed, epoch and row, so the place in the order is all that has to be remembered.

    Args:
        reader: The cache; needs training and validation clips.
        config: What to do.
        hooks: Where to report to; those of the first process are called.
        resume: Of a run of the same config on the same cache: goes on after it.
        should_stop: Asked after every step and every epoch; once it says so, the run is stopped.
        ranks: This process among several; None is the only one.
        feature_file: Where the feature cache is, or is to be, when the config has one.

    Returns:
        All epochs, and which was the best.

    Raises:
        InputError: The cache has no training or validation clips, or the weights are not usable.
        MismatchError: The checkpoint to start from is not usable, or the processes do not mean the same run.
        InterruptedRunError: It was stopped. `hooks` has been given what a resumed run needs.
        VidcacheError: The loss is not finite (nothing of that epoch has been reported), the memory of the device is
            full, or another process has died.
        ValueError: A value of the config is none of those it can have.
    """
    ranks = ranks or Ranks(device=config.device)
    task = Task.of(reader, config, ranks.device)
    needed_rows(reader, "val")
    if ranks.is_first:
        hooks.on_setup(_setup(task, ranks, resume.epoch if resume else 0))
    with (
        ranks.watch(),
        memory_advice(config.batch_size, config.accumulate, ranks.count, task.num_frames),
        backends(deterministic=config.deterministic),
        contextlib.ExitStack() as opened,
    ):
        _check_agreement(ranks, reader, config, resume)
        run = _Run(task, hooks if ranks.is_first else SILENT, resume, ranks, should_stop)
        if config.feature_views is not None and not run.is_over():
            opened.enter_context(run.open_features(feature_file))
        return run.through()


class _Run:
    """A run from its beginning, or from where it was stopped."""

    def __init__(
        self,
        task: Task,
        hooks: Hooks,
        resume: Checkpoint | None,
        ranks: Ranks,
        should_stop: Callable[[], bool],
    ) -> None:
        self.task, self.hooks, self.ranks, self.should_stop = task, hooks, ranks, should_stop
        self.reader, self.config = task.reader, task.config
        config = task.config
        hooks.on_audit(audit(task.reader.classes, task.labels[task.rows], config.balance))
        if ranks.is_first and not resume and (warning := mirror_warning(task)):
            hooks.on_mirror(warning)
        self.model = self._build_model(resume)
        hooks.on_model(self.model)
        self.loss = Loss(task.weights_on_device(), config.label_smoothing)
        if resume:
            self.precision = Choice(resume.training["precision"], "as before it was interrupted")
        else:
            # One process measures for all; before they are tied together, so that the others may wait.
            self.precision = ranks.of_first(lambda: try_precision(task, self.model, self.loss, self._clips_at_once()))
        hooks.on_start(self.precision)
        if ranks.count > 1:
            synchronise_norms(self.model)
        self.forward = Forward(self.model, self.precision.name)
        if ranks.count > 1:
            self.forward.share_gradients()
        if config.compile:
            self.forward.compile()
        self.clips = ClipInputs(task, self.forward)
        self.inputs: Inputs = self.clips
        self.optimizer = make_optimizer(self.model, config)
        self.scaler = torch.amp.GradScaler(task.device.type, enabled=self.precision.name == "fp16")
        self.stopping = EarlyStopping(config.min_delta, config.patience, config.min_epochs)
        self.results: list[EpochResult] = []
        self.sums = EpochSums()
        if resume:
            with _usable():
                load_optimizer(self.optimizer, resume.training["optimizer"])
                self.scaler.load_state_dict(resume.training["scaler"])
            self.stopping = EarlyStopping(**resume.training["stopping"])
            self.results = [EpochResult(**fields) for fields in resume.training["results"]]
            self.sums = EpochSums(**resume.training["sums"])
        elif ranks.is_first:
            hooks.on_begin(self.checkpoint(True))
        self.stepper = self._make_stepper()
        hooks.on_haltable(self.halt)

    def open_features(self, path: Path | None) -> FeatureReader:
        """Train on features that are computed once from now on, by the first process if they are not there."""
        if path is None:
            raise ValueError("feature_file is None, expected a path: the config has feature_views")
        frozen = self.model.split()[0]
        plan, entries = plan_features(self.task, frozen, self.clips, self.forward.prefix_dtype)

        def compute() -> bool:
            found = open_features(path, plan)
            self.hooks.on_features(in_words(path, plan, is_there=found is not None))
            if found is None:
                return compute_features(path, plan, self.clips, self.config, self.hooks.on_feature, self.should_stop)
            found.close()
            return True

        if not self.ranks.of_first(compute):
            raise InterruptedRunError("train: stopped while features were computed; those that are done are kept")
        features = FeatureReader(path)
        self.inputs = FeatureInputs(features, entries, self.task)
        self.stepper = self._make_stepper()
        return features

    def through(self) -> RunResult:
        """Go through all epochs that are left."""
        stepper, guard = self.stepper, self.stepper.guard
        while not self.is_over():
            epoch = len(self.results) + 1
            self.model.train()
            plans = self.task.plan(self.task.order(epoch), self.ranks.rank, self.ranks.count)
            if self.sums.num_steps > len(plans):
                raise MismatchError(
                    f"train: {self.sums.num_steps} steps of epoch {epoch} are done, but it has {len(plans)}: not of "
                    "this run. Train again with another --out"
                )
            rest = [part for plan in plans[self.sums.num_steps :] for part in plan.parts]
            if epoch == 1 and not self.sums.num_steps:
                self._show_first(rest[0])
            with contextlib.closing(self.inputs.stream(rest, epoch)) as stream:
                is_complete = stepper.epoch(epoch, plans, stream, self.sums, self.hooks.on_step, self.should_stop)
            if not is_complete:
                if self.ranks.is_first:
                    with guard:
                        self.hooks.on_interrupt(self.checkpoint(True))
                raise InterruptedRunError(f"train: stopped in epoch {epoch}, after {self.sums.num_steps} of its steps")
            lr, start = self.optimizer.param_groups[0]["lr"], time.perf_counter()
            validated = self._validate()
            if not math.isfinite(validated.mean_loss):
                raise VidcacheError(
                    f"train: validation loss became {validated.mean_loss} in epoch {epoch} (learning rate "
                    f"{lr:g}), expected a finite number. Lower --lr"
                )
            metrics = compute_metrics(validated.labels, validated.probabilities, self.reader.classes)
            with guard:
                is_best = self.stopping.update(epoch, validated.mean_loss)
                seconds = self.sums.seconds + time.perf_counter() - start
                self.results.append(_result(epoch, self.sums, lr, validated.mean_loss, metrics, seconds, is_best))
                self.sums = EpochSums()
                self.hooks.on_validation(epoch, metrics)
                self.hooks.on_epoch(self.results[-1], self.checkpoint)
            if self.ranks.any(self.should_stop()) and not self.is_over():
                raise InterruptedRunError(f"train: stopped after epoch {epoch}")
        return RunResult(tuple(self.results), self.stopping.best_epoch, self._why_over())

    def halt(self) -> Checkpoint:
        """Stop the run where its state is whole, from another thread, and return what a resumed run needs.

        Raises:
            VidcacheError: It will not be whole any more.
        """
        self.stepper.guard.acquire()  # and never released
        if not self.stepper.is_whole:
            raise VidcacheError("train: another error came in the middle of a step")
        checkpoint, names = self.checkpoint(True), {id(buffer): name for name, buffer in self.model.named_buffers()}
        before = {names[id(buffer)]: copied for buffer, copied in self.stepper.statistics}
        return dataclasses.replace(checkpoint, weights={**checkpoint.weights, **copy_to_cpu(before)})

    def _make_stepper(self) -> Stepper:
        return Stepper(self.forward, self.loss, self.optimizer, self.scaler, self.config, self.inputs, self.ranks)

    def checkpoint(self, resumable: bool) -> Checkpoint:
        """Make the checkpoint of this moment; a resumable one has what a run needs that goes on from here."""
        reader, config = self.reader, self.config
        return Checkpoint(
            weights=state_on_cpu(self.model),
            classes=reader.classes,
            spec=reader.spec,
            num_frames_used=config.num_frames_used or reader.spec.num_frames,
            fingerprint=reader.fingerprint,
            split_hash=reader.split_hash,
            config=dataclasses.asdict(config),
            epoch=len(self.results),
            metrics=self.results[-1].as_numbers() if self.results else {},
            training=self._state() if resumable else {},
        )

    def _state(self) -> dict[str, Any]:
        return {
            "optimizer": copy_to_cpu(self.optimizer.state_dict()),
            "scaler": self.scaler.state_dict(),
            "stopping": dataclasses.asdict(self.stopping),
            "precision": self.precision.name,
            "results": [dataclasses.asdict(result) for result in self.results],
            "sums": dataclasses.asdict(self.sums),
        }

    def _build_model(self, resume: Checkpoint | None) -> R3D18:
        config = self.config
        torch.manual_seed(config.seed)  # the new fc, or with --weights none everything
        weights = "none" if config.init or resume else config.weights
        if weights == "kinetics400":
            self.ranks.of_first(kinetics_path)  # one process downloads them
        model = build_model(len(self.reader.classes), weights, config.freeze)
        if resume:
            with _usable():
                load_weights(model, resume.weights)
        elif config.init:
            self.hooks.on_init(start_from(model, Path(config.init), self.reader.classes))
        model.to(self.task.device, memory_format=torch.channels_last_3d)
        return model

    def _clips_at_once(self) -> int:
        return -(-self.config.batch_size // (self.config.accumulate * self.ranks.count))

    def _show_first(self, rows: Rows) -> None:
        """Report what the model is given first: also where its features are computed from it beforehand."""
        if self.ranks.is_first:
            with contextlib.closing(self.clips.stream([rows], 1)) as stream:
                batch = next(stream)
                self.hooks.on_inputs(self.clips.pixels(batch, 1), batch)

    def _validate(self) -> Predictions:
        """Predict all validation clips, each in one process; all get the whole."""
        self.model.eval()
        own = rank_slice(self.reader.rows("val"), self.ranks.rank, self.ranks.count)
        size = self._clips_at_once()
        chunks = [own[start : start + size] for start in range(0, len(own), size)]
        part = None
        if chunks:
            with contextlib.closing(self.inputs.stream(chunks, None)) as stream:
                part = predict(self.forward.predict, stream, functools.partial(self.inputs.features, epoch=None))
        return join_predictions([found for found in self.ranks.gather(part) if found is not None])

    def is_over(self) -> bool:
        """Whether there is no epoch left."""
        done = len(self.results)
        return done >= self.config.epochs or (done > 0 and self.stopping.should_stop(done))

    def _why_over(self) -> str:
        config = self.config
        if self.stopping.should_stop(len(self.results)):
            return f"{config.patience} epochs in a row lowered the validation loss by no more than {config.min_delta:g}"
        return f"all {config.epochs} epochs are done"


@contextlib.contextmanager
def _usable() -> Iterator[None]:
    """Say it when a checkpoint to go on from does not fit; a scaler says so with a RuntimeError."""
    try:
        yield
    except (ValueError, RuntimeError, KeyError) as error:
        reason = one_line(str(error), 200)
        raise MismatchError(f"train: no state of this run ({reason}). Train again with another --out") from None


def _check_agreement(ranks: Ranks, reader: Reader, config: TrainConfig, resume: Checkpoint | None) -> None:
    """Refuse processes that do not mean the same run: of other files, or other options."""
    place = (resume.epoch, resume.training["sums"]["num_steps"]) if resume else None
    facts = {
        "cache": reader.fingerprint,
        "split": reader.split_hash,
        "options": dataclasses.asdict(config),
        "place in the run": place,
    }
    first, *others = ranks.gather(facts)
    for number, other in enumerate(others, 1):
        for name, found in other.items():
            if found != first[name]:
                raise MismatchError(
                    f"train: {name} of process {number} is {found}, expected {first[name]} as of process 0. Give all "
                    "processes the same files and options"
                )


def _setup(task: Task, ranks: Ranks, num_epochs_done: int) -> Setup:
    reader, config = task.reader, task.config
    return Setup(
        device=str(task.device),
        device_name=device_name(str(task.device)),
        num_processes=ranks.count,
        num_clips={split: len(reader.rows(split)) for split in ("train", "val", "test")},
        num_classes=len(reader.classes),
        num_frames=task.num_frames,
        num_frames_in_cache=reader.spec.num_frames,
        height=reader.spec.height,
        width=reader.spec.width,
        batch_size=config.batch_size,
        num_epochs=config.epochs,
        num_epochs_done=num_epochs_done,
    )


def _result(
    epoch: int, sums: EpochSums, lr: float, val_loss: float, metrics: Metrics, seconds: float, is_best: bool
) -> EpochResult:
    return EpochResult(
        epoch=epoch,
        train_loss=sums.loss / sums.num_clips,
        train_accuracy=sums.num_correct / sums.num_clips,
        val_loss=val_loss,
        val_accuracy=metrics.accuracy,
        val_balanced_accuracy=metrics.balanced_accuracy,
        lr=lr,
        seconds=seconds,
        clips_per_second=sums.num_clips / sums.seconds,
        data_wait_fraction=sums.waited_seconds / sums.seconds,
        is_best=is_best,
    )
