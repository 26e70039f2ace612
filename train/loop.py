"""The training loop, in reading order: draw, step, validate, keep the best, stop.

Knows nothing of terminals and files' names: what happens leaves through callbacks.
"""

import contextlib
import dataclasses
import functools
import math
import os
import platform
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vidcache.cache.reader import Reader
from vidcache.cache.stream import Batch, Rows, rank_slice
from vidcache.checkpoint import Checkpoint, are_tensors
from vidcache.errors import InterruptedRunError, MismatchError, VidcacheError
from vidcache.eval.inference import Predictions, join_predictions, predict
from vidcache.eval.metrics import Metrics, compute_metrics
from vidcache.model import R3D18, build_model, copy_to_cpu, kinetics_path, load_weights, state_on_cpu
from vidcache.text import brief, one_line, plural, printable
from vidcache.train.backbone import PRECISIONS, Forward
from vidcache.train.callbacks import SILENT, Callbacks, EpochProgress, EpochResult, RunResult, Setup
from vidcache.train.config import TrainConfig
from vidcache.train.data import (
    ClipLoader,
    FeatureLoader,
    Loader,
    StepPlan,
    TrainingData,
    audit,
    mirror_warning,
    needed_rows,
)
from vidcache.train.distributed import Ranks, synchronise_norms
from vidcache.train.feature_cache import FeatureReader
from vidcache.train.features import compute_features, in_words, open_features, plan_features
from vidcache.train.precision import Choice, try_precision
from vidcache.train.schedule import EarlyStopping, learning_rate
from vidcache.untrusted import NUMBER, Rule, build, check, table, text


def device_name(device: str) -> str:
    """Return what a GPU or the processor calls itself."""
    if torch.device(device).type == "cuda":
        return str(torch.cuda.get_device_name(device))
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


@contextlib.contextmanager
def backends(*, deterministic: bool) -> Iterator[None]:
    """Set torch's switches for a run, and set them back.

    Float32 matrix products and convolutions use TF32 where a GPU has it (10 bits of mantissa, as in bf16's products
    but with float32's range). Convolutions on a GPU are measured once per shape (cudnn.benchmark), unless the run is to
    be the same again: then only deterministic algorithms are used, and an operation that has none is an error.

    Args:
        deterministic: The same seed gives the same bits on the same GPU. On a CPU it always does.
    """
    before = (
        torch.backends.cudnn.benchmark,
        torch.backends.cuda.matmul.allow_tf32,
        torch.backends.cudnn.allow_tf32,
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it is first used
        torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = not deterministic
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before[0]
        torch.backends.cuda.matmul.allow_tf32 = before[1]
        torch.backends.cudnn.allow_tf32 = before[2]
        torch.use_deterministic_algorithms(before[3], warn_only=before[4])


@contextlib.contextmanager
def oom_hint(batch_size: int, accumulate: int, num_ranks: int, num_frames: int) -> Iterator[None]:
    """Say what to try when the memory of the device is full.

    Args:
        batch_size: Clips per step.
        accumulate: Parts of a step.
        num_ranks: Processes that share a part.
        num_frames: Frames of each clip.

    Raises:
        VidcacheError: Instead of what torch raises.
    """
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "DefaultCPUAllocator" not in str(error):
            raise
        at_once = -(-batch_size // (accumulate * num_ranks))
        if at_once > 1:
            half = at_once // 2 * num_ranks
            advice = (
                f"Try --batch-size {half * accumulate}, or --grad-accum-steps {-(-batch_size // half)}, which keeps "
                f"{batch_size} clips to a step"
            )
        else:
            advice = "Try fewer --num-frames, or a cache of smaller pictures"
        raise VidcacheError(
            f"train: out of memory with {at_once} clips of {num_frames} frames at once "
            f"({' '.join(str(error).split())[:120]}), expected them to fit. {advice}"
        ) from None


def start_from(model: nn.Module, path: Path, classes: tuple[str, ...]) -> str:
    """Give a new model the weights of a checkpoint; with other classes it keeps its own, new head.

    Args:
        model: Of `vidcache.model.R3D18`; changed.
        path: A checkpoint of vidcache.
        classes: Of the new run, in the order of the outputs.

    Returns:
        What was done, in words.

    Raises:
        MismatchError: The file is missing, damaged, no checkpoint, or of another model.
    """
    checkpoint = Checkpoint.load(path)
    where, state = printable(path), dict(checkpoint.weights)
    same = checkpoint.classes == classes
    if not same:
        state |= {name: tensor for name, tensor in model.state_dict().items() if name.startswith("fc.")}
    try:
        load_weights(model, state)
    except ValueError as error:
        raise MismatchError(f"{where}: {error}: not the weights of an R3D-18. Start without --init") from None
    before = plural(len(checkpoint.classes), "class", "classes")
    said = f"starting from {where} (epoch {checkpoint.epoch})"
    if same:
        return f"{said}, with its {before}"
    return f"{said}; its {before} are not the {len(classes)} of this cache: the head is new"


@dataclasses.dataclass
class RunningMetrics:
    """What has been added up in an epoch so far, over all processes.

    Attributes:
        loss: Of each step, times its clips.
        num_correct: Clips that were recognised.
        num_steps: Steps that are done.
        num_clips: Clips that were in them.
        seconds: That they took.
        waited_seconds: Of these, waiting for clips.
    """

    loss: float = 0.0
    num_correct: float = 0.0
    num_steps: int = 0
    num_clips: int = 0
    seconds: float = 0.0
    waited_seconds: float = 0.0

    def progress(self, epoch: int, num_steps: int, num_clips: int) -> EpochProgress:
        """Say how far the epoch is; `num_clips` are those that loss and hits are known of."""
        return EpochProgress(
            epoch=epoch,
            num_done=self.num_steps,
            num_steps=num_steps,
            loss=self.loss / num_clips if num_clips else math.nan,
            accuracy=self.num_correct / num_clips if num_clips else math.nan,
            clips_per_second=self.num_clips / self.seconds if self.seconds else math.nan,
            data_wait_fraction=self.waited_seconds / self.seconds if self.seconds else math.nan,
        )


class Loss:
    """Cross-entropy with class weights and label smoothing, divided by the weights of a whole step.

    As `torch.nn.CrossEntropyLoss`, whose mean divides by the weights of what it is given: with clips in parts and on
    several processes, the parts of a step add up to the loss of the step.

    Args:
        class_weights: (K,) float32 on the device; None for 1.
        label_smoothing: Share of the target that is spread over all classes.
    """

    def __init__(self, class_weights: torch.Tensor | None, label_smoothing: float) -> None:
        self._weights, self._smoothing = class_weights, label_smoothing

    def __call__(self, logits: torch.Tensor, labels: torch.Tensor, weight: float) -> torch.Tensor:
        """Return the loss of some clips, divided by the loss weights of all clips of their step."""
        total = torch.nn.functional.cross_entropy(
            logits, labels, self._weights, label_smoothing=self._smoothing, reduction="sum"
        )
        return total / weight


def make_optimizer(model: R3D18, config: TrainConfig) -> torch.optim.Optimizer:
    """Make an Adam for what trains, where the model is."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    # fused: one kernel for all parameters instead of a dozen for each (42 against 95 ms here).
    fused = trainable[0].device.type in ("cpu", "cuda")
    return torch.optim.Adam(trainable, lr=config.lr, weight_decay=config.weight_decay, fused=fused)


class Stepper:
    """Everything that one optimizer step needs."""

    def __init__(
        self,
        forward: Forward,
        loss: Loss,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        config: TrainConfig,
        inputs: Loader,
        ranks: Ranks,
    ) -> None:
        self.forward, self.loss, self.optimizer, self.scaler = forward, loss, optimizer, scaler
        self.config, self.inputs, self.ranks = config, inputs, ranks
        # Held while the state of the run changes: who takes it finds it whole. On a GPU, where losses are looked at
        # later and no step is long, it is held during all steps.
        self.guard = threading.RLock()
        self.is_whole = True  # not after an error in the middle of a change
        # What batch norm had counted before a step, whose forward pass changes it: (buffer, copy) each.
        self.statistics: list[tuple[torch.Tensor, torch.Tensor]] = []
        # Looking at a loss waits for the device; on a CPU there is nothing to wait for.
        self.check_every = 1 if torch.device(ranks.device).type == "cpu" else 25

    def epoch(
        self,
        epoch: int,
        plans: Sequence[StepPlan],
        batches: Iterator[Batch],
        sums: RunningMetrics,
        on_step: Callable[[EpochProgress], None],
        should_stop: Callable[[], bool],
    ) -> bool:
        """Step through one epoch, or what is left of it.

        Args:
            epoch: From 1.
            plans: All steps of the epoch.
            batches: One for each part of the steps that are not done yet.
            sums: Of the steps that are done; added to.
            on_step: Told after every step; loss and accuracy are those of the last look at the device.
            should_stop: Asked after every step.

        Returns:
            Whether the epoch is complete.

        Raises:
            VidcacheError: A loss is not finite; on all processes.
        """
        unchecked: list[torch.Tensor] = []
        known_clips, before, start = sums.num_clips, sums.seconds, time.perf_counter()
        if sums.num_steps == len(plans):  # it was halted while it was validated; the rate is part of its result
            self._set_learning_rate(epoch, len(plans) - 1, len(plans))
        with self.guard if self.check_every > 1 else contextlib.nullcontext():
            for number in range(sums.num_steps, len(plans)):
                plan = plans[number]
                self._set_learning_rate(epoch, number, len(plans))
                self.statistics = [(buffer, buffer.clone()) for buffer in self.forward.buffers()]
                unchecked.append(self._step(plan, batches, epoch, sums))
                with self.guard:
                    self.is_whole = False
                    self._update()
                    self.statistics = []
                    sums.num_clips += plan.num_clips
                    sums.num_steps += 1
                    done, stopped = sums.num_steps == len(plans), self.ranks.any(should_stop())
                    if done or stopped or len(unchecked) == self.check_every:
                        self._look(unchecked, epoch, plans, sums)
                        known_clips = sums.num_clips
                        unchecked.clear()
                    sums.seconds = before + time.perf_counter() - start
                    self.is_whole = True
                on_step(sums.progress(epoch, len(plans), known_clips))
                if stopped and not done:
                    return False
        return True

    def _set_learning_rate(self, epoch: int, step: int, num_steps: int) -> None:
        config = self.config
        warmup = round(config.warmup_epochs * num_steps)
        number = (epoch - 1) * num_steps + step
        lr = learning_rate(number, config.epochs * num_steps, config.lr, config.lr_schedule, warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = lr

    def _step(self, plan: StepPlan, batches: Iterator[Batch], epoch: int, sums: RunningMetrics) -> torch.Tensor:
        """Find the gradients of a step; (2,) on the device: this process's part of its loss, and clips recognised."""
        found = torch.zeros(2, device=self.ranks.device)
        self.optimizer.zero_grad(set_to_none=True)
        for part, rows in enumerate(plan.parts):
            asked = time.perf_counter()
            batch = next(batches)
            sums.waited_seconds += time.perf_counter() - asked
            if len(batch.rows) != len(rows):
                raise VidcacheError(f"train: {len(batch.rows)} clips came, expected {len(rows)}. Report this")
            features = self.inputs.features(batch, epoch)
            with self.forward.sharing(is_last=part == len(plan.parts) - 1):
                logits = self.forward.rest(features)
                loss = self.loss(logits, batch.labels, plan.weight)
                # Gradients are averaged over the processes, but the loss is a sum over them.
                self.scaler.scale(loss * self.ranks.count).backward()  # type: ignore[no-untyped-call]
            correct = (logits.detach().argmax(1) == batch.labels).sum()
            found += torch.stack([loss.detach(), correct])
        return found

    def _update(self) -> None:
        """Move the weights by the gradients."""
        if self.config.clip_norm is not None:
            self.scaler.unscale_(self.optimizer)
            parameters = (parameter for group in self.optimizer.param_groups for parameter in group["params"])
            torch.nn.utils.clip_grad_norm_(parameters, self.config.clip_norm)  # stays on the device
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def _look(self, unchecked: list[torch.Tensor], epoch: int, plans: Sequence[StepPlan], sums: RunningMetrics) -> None:
        """Add up over all processes what the last steps gave, and take it to the host: all see the same."""
        first = sums.num_steps - len(unchecked)
        for number, (loss, correct) in enumerate(self.ranks.add_up(torch.stack(unchecked)).tolist(), first):
            if not math.isfinite(loss):
                raise VidcacheError(
                    f"train: loss became {loss} at step {(epoch - 1) * len(plans) + number + 1} "
                    f"(epoch {epoch}, learning rate {self.optimizer.param_groups[0]['lr']:g}), expected a finite "
                    "number. Lower --lr; nothing was saved from it"
                )
            sums.loss += loss * plans[number].num_clips
            sums.num_correct += correct


_MAX_EPOCHS = 100_000
_FIELDS = Rule(lambda value: type(value) is dict, "fields")
_RULES = {
    "optimizer": Rule(
        lambda value: type(value) is dict and type(value.get("state")) is dict and "param_groups" in value,
        "the state of an optimizer",
    ),
    "scaler": table(NUMBER, 10),
    "stopping": _FIELDS,
    "precision": Rule(lambda value: type(value) is str and value in PRECISIONS, f"one of {', '.join(PRECISIONS)}"),
    "results": Rule(lambda value: type(value) is list and len(value) <= _MAX_EPOCHS, "a list"),
    "sums": _FIELDS,
    "best": text(32),
}


def check_state(last: Checkpoint) -> None:
    """Check everything but the optimizer's tensors, whose shapes are the model's question.

    Raises:
        ValueError: It holds no state of a run, or one that no run can have.
    """
    check(last.training, _RULES, frozenset(["best"]))
    results = [build(EpochResult, fields) for fields in last.training["results"]]
    if [result.epoch for result in results] != list(range(1, last.epoch + 1)):
        raise ValueError(f"results are not those of {last.epoch} epochs")
    stopping = build(EarlyStopping, last.training["stopping"], finite=False)
    if not min(last.epoch, 1) <= stopping.best_epoch <= last.epoch:
        raise ValueError(f"the best epoch is {stopping.best_epoch} of {last.epoch}")
    sums = build(RunningMetrics, last.training["sums"])
    if sums.num_steps < 0 or (sums.num_steps and (sums.num_clips < 1 or sums.seconds <= 0)):
        raise ValueError("sums are not those of an epoch")


def load_optimizer(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Give an optimizer the state of another one, but not its options: those are of the run.

    Args:
        optimizer: Adam, new.
        saved: What `state_dict` of it gave.

    Raises:
        ValueError: It is not the state of an Adam of these parameters.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for number, state in saved["state"].items():
        if type(number) is not int or not 0 <= number < len(parameters):
            raise ValueError(f"the optimizer has {brief(number)} of {len(parameters)} parameters")
        shape = parameters[number].shape
        shapes = {"step": torch.Size(), "exp_avg": shape, "exp_avg_sq": shape}
        if not are_tensors(state) or {name: tensor.shape for name, tensor in state.items()} != shapes:
            raise ValueError(f"the optimizer's state of parameter {number} is not that of an Adam")
        if state["step"] < 0 or state["exp_avg_sq"].min() < 0:
            raise ValueError(f"the optimizer's state of parameter {number} is negative")
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": copy_to_cpu(saved["state"]), "param_groups": groups})


def train(
    reader: Reader,
    config: TrainConfig,
    hooks: Callbacks = SILENT,
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
    task = TrainingData.of(reader, config, ranks.device)
    needed_rows(reader, "val")
    if ranks.is_first:
        hooks.on_setup(_setup(task, ranks, resume.epoch if resume else 0))
    with (
        ranks.watch(),
        oom_hint(config.batch_size, config.accumulate, ranks.count, task.num_frames),
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
        task: TrainingData,
        hooks: Callbacks,
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
        self.clips = ClipLoader(task, self.forward)
        self.inputs: Loader = self.clips
        self.optimizer = make_optimizer(self.model, config)
        self.scaler = torch.amp.GradScaler(task.device.type, enabled=self.precision.name == "fp16")
        self.stopping = EarlyStopping(config.min_delta, config.patience, config.min_epochs)
        self.results: list[EpochResult] = []
        self.sums = RunningMetrics()
        if resume:
            with _usable():
                load_optimizer(self.optimizer, resume.training["optimizer"])
                self.scaler.load_state_dict(resume.training["scaler"])
            self.stopping = EarlyStopping(**resume.training["stopping"])
            self.results = [EpochResult(**fields) for fields in resume.training["results"]]
            self.sums = RunningMetrics(**resume.training["sums"])
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
        self.inputs = FeatureLoader(features, entries, self.task)
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
                self.sums = RunningMetrics()
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


def _setup(task: TrainingData, ranks: Ranks, num_epochs_done: int) -> Setup:
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
    epoch: int, sums: RunningMetrics, lr: float, val_loss: float, metrics: Metrics, seconds: float, is_best: bool
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
