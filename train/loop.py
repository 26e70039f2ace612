"""The training loop, from top to bottom: build, train an epoch, validate, keep the best, stop.

`Trainer.train_step` is the whole of a step: data, forward, loss, backward, update, log. Files and the terminal are
callbacks (`vidcache.train.callbacks`); what can go wrong with a checkpoint to resume is in `vidcache.train.resume`.
"""

import contextlib
import dataclasses
import functools
import math
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from vidcache.cache.reader import Reader
from vidcache.cache.stream import Batch, rank_slice
from vidcache.checkpoint import Checkpoint
from vidcache.errors import InterruptedRunError, VidcacheError
from vidcache.eval.inference import Predictions, join_predictions, predict
from vidcache.eval.metrics import compute_metrics
from vidcache.model import R3D18, build_model, copy_to_cpu, kinetics_path, state_on_cpu
from vidcache.train.callbacks import Callback, EpochResult, RunningMetrics, RunResult
from vidcache.train.config import TrainConfig
from vidcache.train.data import ClipLoader, StepPlan, TrainingData, needed_rows
from vidcache.train.distributed import Processes, autocast, choose_precision, oom_hint, sync_batch_norm, torch_flags
from vidcache.train.feature_cache import FeatureLoader
from vidcache.train.resume import TrainingState, load_pretrained, restore
from vidcache.train.schedule import EarlyStopping, learning_rate


def train(
    reader: Reader,
    config: TrainConfig,
    callbacks: Sequence[Callback] = (),
    *,
    resume: Checkpoint | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    processes: Processes | None = None,
) -> RunResult:
    """Train a model on a cache; write no files.

    A run that is stopped and resumed ends with the same weights, bit for bit on a CPU, as one that was not: what is
    drawn is a function of seed, epoch and row, so the position in the order is all that has to be remembered.

    Args:
        reader: The cache, with training and validation clips.
        config: The options.
        callbacks: Observers; only those of the main process are called.
        resume: Checkpoint of a run with the same config on the same cache to continue; None begins a new run.
        should_stop: Called after every step and every epoch; True stops the run.
        processes: This process among several; None is the only one.

    Raises:
        InputError: The cache does not fit the config, or the weights are not usable.
        MismatchError: The checkpoint is not usable, or the processes disagree about the run.
        InterruptedRunError: `should_stop` stopped it; the callbacks have a checkpoint to resume from.
        VidcacheError: A loss is not finite, the memory of the device is full, or another process has died.
    """
    processes = processes or Processes(device=config.device)
    data = TrainingData.of(reader, config, processes.device)
    needed_rows(reader, "val")
    with (
        processes.watch(),
        oom_hint(config.batch_size, config.accumulate, processes.world_size, data.num_frames),
        torch_flags(deterministic=config.deterministic),
    ):
        trainer = Trainer(data, callbacks, resume=resume, should_stop=should_stop, processes=processes)
        return trainer.run()


class Trainer:
    """A run: model, optimizer, and how far it is. The arguments are those of `train`."""

    def __init__(
        self,
        data: TrainingData,
        callbacks: Sequence[Callback] = (),
        *,
        resume: Checkpoint | None = None,
        should_stop: Callable[[], bool] = lambda: False,
        processes: Processes | None = None,
    ) -> None:
        self.data, self.config, self.should_stop = data, data.config, should_stop
        self.processes = processes = processes or Processes(device=str(data.device))
        self.callbacks = callbacks if processes.is_main else ()
        config = self.config
        position = (resume.epoch, resume.training["sums"]["num_steps"]) if resume else None
        options, reader = dataclasses.asdict(config), data.reader
        processes.check_equal(cache=reader.fingerprint, split=reader.split_hash, options=options, position=position)
        self.model = self._build_model(resume)  # on the device
        self.precision = resume.training["precision"] if resume else choose_precision(config.amp, data.device)

        # The frozen stages give constants; the rest trains, on several processes as a DistributedDataParallel.
        if processes.world_size > 1 and data.device.type == "cuda":
            sync_batch_norm(self.model)
        frozen, head = self.model.split()
        compiled: Callable[[nn.Module], nn.Module] = torch.compile if config.compile else (lambda module: module)  # type: ignore[assignment]
        self.frozen, self.head = compiled(frozen), compiled(head)
        # Said of convolutions of 1 x 1 x 1, which have two names for one layout.
        warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
        self.ddp = DistributedDataParallel(head) if processes.world_size > 1 else None
        self.train_head = compiled(self.ddp) if self.ddp else self.head

        self.parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        # fused: one kernel for all parameters instead of a dozen for each (42 against 95 ms on a CPU).
        fused = data.device.type in ("cpu", "cuda")
        self.optimizer = torch.optim.Adam(self.parameters, config.lr, weight_decay=config.weight_decay, fused=fused)
        self.scaler = torch.amp.GradScaler(data.device.type, enabled=self.precision == "fp16")
        weights = data.class_weights
        self.class_weights = None if weights is None else torch.from_numpy(weights).to(data.device)
        self.clips = ClipLoader(data, self.run_frozen)
        self.loader = self.clips  # or a `FeatureLoader`

        self.stopping = EarlyStopping(config.min_delta, config.patience, config.min_epochs)
        self.results: list[EpochResult] = []
        self.sums = RunningMetrics()
        if resume:
            state = restore(resume, self.model, self.optimizer, self.scaler)
            self.stopping, self.results, self.sums = state.stopping, state.results, state.sums
        # Losses are read from a GPU now and then, since reading waits for it; from a CPU always.
        self.unread: list[tuple[torch.Tensor, int]] = []
        self.read_every = 1 if data.device.type == "cpu" else 25
        # Held while the state changes, and on a GPU during all steps of an epoch: `halt` finds it whole.
        self.lock = threading.RLock()
        self.is_whole = True
        self.buffers_before: dict[str, torch.Tensor] = {}
        self._clock = time.perf_counter()
        if not resume and self.callbacks and (warning := data.mirror_warning()):
            self.tell("on_note", warning, True)
        self.tell("on_setup", self)

    def run(self) -> RunResult:
        """Train all epochs that are left."""
        with contextlib.ExitStack() as opened:
            if self.config.feature_views is not None and not self.is_over():
                self.loader = opened.enter_context(contextlib.closing(FeatureLoader(self)))
            while not self.is_over():
                self.run_epoch(len(self.results) + 1)
                if self.processes.any(self.should_stop()) and not self.is_over():
                    raise InterruptedRunError(f"train: stopped after epoch {len(self.results)}")
        reason, config = f"all {self.config.epochs} epochs are done", self.config
        if self.stopping.should_stop(len(self.results)):
            reason = f"early stopping: no improvement > {config.min_delta:g} for {config.patience} epochs"
        result = RunResult(tuple(self.results), self.stopping.best_epoch, reason)
        self.tell("on_end", result)
        return result

    def run_epoch(self, epoch: int) -> None:
        """Train an epoch (from 1), validate, and report its result."""
        if epoch == 1 and not self.sums.num_steps:
            self._show_first_batch()
        lr = self.train_epoch(epoch)
        started = time.perf_counter()
        predictions = self.validate()
        loss = predictions.mean_loss
        if not math.isfinite(loss):
            raise VidcacheError(f"train: validation loss is {loss} in epoch {epoch} (learning rate {lr:g}). Lower --lr")
        metrics = compute_metrics(predictions.labels, predictions.probabilities, self.data.reader.classes)
        with self.lock:
            sums, is_best = self.sums, self.stopping.update(epoch, loss)
            seconds = sums.seconds + time.perf_counter() - started
            result = EpochResult(
                epoch, sums.mean_loss, sums.accuracy, loss, metrics.accuracy, metrics.balanced_accuracy, lr,
                seconds, sums.clips_per_second, sums.data_wait_fraction, is_best,
            )  # fmt: skip
            self.results.append(result)
            self.sums = RunningMetrics()
            self.tell("on_epoch", result, metrics, self.checkpoint)

    def train_epoch(self, epoch: int) -> float:
        """Train an epoch (from 1), or what is left of it; returns the learning rate of its last step."""
        self.model.train()
        data, processes = self.data, self.processes
        plans = data.plan(data.order(epoch), processes.rank, processes.world_size)
        first = self.sums.num_steps
        parts = [rows for plan in plans[first:] for rows in plan.parts]
        held = contextlib.nullcontext() if data.device.type == "cpu" else self.lock
        self._clock = time.perf_counter()
        with contextlib.closing(self.loader.stream(parts, epoch)) as batches, held:
            for number, plan in enumerate(plans[first:], first):
                for group in self.optimizer.param_groups:
                    group["lr"] = self._learning_rate(epoch, number, len(plans))
                stopped = self.train_step(plan, batches, epoch)
                self.tell("on_step", epoch, len(plans), self.sums)
                if stopped and number < len(plans) - 1:
                    with self.lock:
                        self.tell("on_stop", self.checkpoint(resumable=True))
                    raise InterruptedRunError(f"train: stopped in epoch {epoch}, after {number + 1} of its steps")
            with self.lock:
                self.read_losses(epoch)
        return self._learning_rate(epoch, len(plans) - 1, len(plans))

    def train_step(self, plan: StepPlan, batches: Iterator[Batch], epoch: int) -> bool:
        """Do one optimizer step of an epoch (from 1), with a batch for each part of its plan.

        Returns:
            Whether the run is to stop after it.
        """
        config, sums = self.config, self.sums
        totals = torch.zeros(2, device=self.data.device)  # loss, correct predictions
        if self.data.device.type == "cpu":  # a forward pass changes batch norm statistics: `halt` takes them back
            self.buffers_before = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
        self.optimizer.zero_grad(set_to_none=True)
        for part in range(len(plan.parts)):  # gradient accumulation
            # Data: uint8 clips on the device.
            asked = time.perf_counter()
            batch = next(batches)
            sums.waited_seconds += time.perf_counter() - asked
            # Forward: augmentation and frozen stages, then what trains. Only the last part shares its gradients.
            inputs = self.loader.inputs(batch, epoch)
            no_sync = self.ddp.no_sync if self.ddp and part < len(plan.parts) - 1 else contextlib.nullcontext
            with no_sync():
                with autocast(self.data.device, self.precision):
                    logits = self.train_head(inputs).to(torch.float32)
                # Loss: divided by the loss weights of the whole step, so that the parts of all processes add up to it.
                loss = nn.functional.cross_entropy(
                    logits, batch.labels, self.class_weights, label_smoothing=config.label_smoothing, reduction="sum"
                )
                loss = loss / plan.weight
                # Backward: gradients are averaged over the processes, but the loss is a sum over them.
                self.scaler.scale(loss * self.processes.world_size).backward()  # type: ignore[no-untyped-call]
            totals += torch.stack([loss.detach(), (logits.detach().argmax(1) == batch.labels).sum()])
        with self.lock:
            # Update.
            self.is_whole = False
            if config.clip_norm is not None:
                self.scaler.unscale_(self.optimizer)
                nn.utils.clip_grad_norm_(self.parameters, config.clip_norm)
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.buffers_before = {}
            # Log.
            sums.num_steps += 1
            sums.num_clips += plan.num_clips
            self.unread.append((totals, plan.num_clips))
            stopped = self.processes.any(self.should_stop())
            if stopped or len(self.unread) == self.read_every:
                self.read_losses(epoch)
            now = time.perf_counter()
            sums.seconds, self._clock = sums.seconds + now - self._clock, now
            self.is_whole = True
        return stopped

    def read_losses(self, epoch: int) -> None:
        """Sum the losses of the last steps over all processes and copy them to the host; each has to be finite."""
        if not self.unread:
            return
        sums, step = self.sums, self.sums.num_steps - len(self.unread)
        unread, self.unread = self.unread, []
        totals = self.processes.all_reduce_sum(torch.stack([total for total, _ in unread])).tolist()
        for (loss, num_correct), (_, num_clips) in zip(totals, unread, strict=True):
            step += 1
            if not math.isfinite(loss):
                lr = self.optimizer.param_groups[0]["lr"]
                raise VidcacheError(
                    f"train: loss is {loss} at step {step} of epoch {epoch} (learning rate {lr:g}). "
                    "Lower --lr; nothing was saved from it"
                )
            sums.loss += loss * num_clips
            sums.num_correct += num_correct
            sums.num_read += num_clips

    def validate(self) -> Predictions:
        """Predict all validation clips, each in one process; all processes get all predictions."""
        self.model.eval()
        processes, reader = self.processes, self.data.reader
        processes.share_buffers(self.head)
        rows = rank_slice(reader.rows("val"), processes.rank, processes.world_size)
        size = -(-self.config.batch_size // (self.config.accumulate * processes.world_size))
        chunks = [rows[start : start + size] for start in range(0, len(rows), size)]
        predictions = None
        if chunks:
            stream = contextlib.closing(self.loader.stream(chunks, None))
            with stream as batches, autocast(self.data.device, self.precision):
                predictions = predict(self.head, batches, functools.partial(self.loader.inputs, epoch=None))
        return join_predictions([part for part in processes.gather(predictions) if part is not None])

    def run_frozen(self, clips_BCTHW: torch.Tensor) -> torch.Tensor:
        """Run the frozen stages: from normalised clips to (B, C, T', H', W') for the part that trains, no gradient."""
        with torch.no_grad(), autocast(self.data.device, self.precision.removesuffix("-prefix")):
            return self.to_head(self.frozen(clips_BCTHW))

    def to_head(self, features: torch.Tensor) -> torch.Tensor:
        """Give features the dtype that the part that trains computes in."""
        return features if self.precision in ("bf16", "fp16") else features.to(torch.float32)

    def checkpoint(self, resumable: bool) -> Checkpoint:
        """Make the checkpoint of this moment; a resumable one has the optimizer state and all else that a run needs."""
        reader, config = self.data.reader, self.config
        state = TrainingState(self.stopping, self.results, self.sums)
        return Checkpoint(
            weights=state_on_cpu(self.model),
            classes=reader.classes,
            spec=reader.spec,
            num_frames_used=self.data.num_frames,
            fingerprint=reader.fingerprint,
            split_hash=reader.split_hash,
            config=dataclasses.asdict(config),
            epoch=len(self.results),
            metrics=self.results[-1].as_numbers() if self.results else {},
            training=state.to_dict(self.optimizer, self.scaler, self.precision) if resumable else {},
        )

    def halt(self) -> Checkpoint:
        """Stop the run for good, from another thread, and give the callbacks a checkpoint to resume from.

        A step may take minutes on a CPU. Its forward and backward passes change nothing but batch norm statistics, so
        that the state before it is still there; an update, which takes milliseconds, is waited for.

        Raises:
            VidcacheError: The run failed in the middle of an update.
        """
        self.lock.acquire()  # never released
        if not self.is_whole:
            raise VidcacheError("train: another error came in the middle of a step")
        checkpoint = self.checkpoint(resumable=True)
        checkpoint.weights.update(copy_to_cpu(self.buffers_before))
        self.tell("on_stop", checkpoint)
        return checkpoint

    def is_over(self) -> bool:
        """Whether there is no epoch left."""
        done = len(self.results)
        return done >= self.config.epochs or (done > 0 and self.stopping.should_stop(done))

    def tell(self, method: str, *arguments: Any) -> None:
        """Call a method of all callbacks."""
        for callback in self.callbacks:
            getattr(callback, method)(*arguments)

    def _build_model(self, resume: Checkpoint | None) -> R3D18:
        config, classes = self.config, self.data.reader.classes
        torch.manual_seed(config.seed)  # for the new fc layer, or with --weights none for everything
        weights = "none" if config.init or resume else config.weights
        if weights == "kinetics400":
            self.processes.run_on_main(kinetics_path)  # one process downloads them
        model = build_model(len(classes), weights, config.freeze)
        if config.init and not resume:
            self.tell("on_note", load_pretrained(model, Path(config.init), classes), False)
        model.to(self.data.device, memory_format=torch.channels_last_3d)
        return model.train()  # frozen stages stay in evaluation mode, also while their features are computed

    def _learning_rate(self, epoch: int, step: int, num_steps: int) -> float:
        config = self.config
        num_warmup_steps = round(config.warmup_epochs * num_steps)
        step += (epoch - 1) * num_steps
        return learning_rate(step, config.epochs * num_steps, config.lr, config.lr_schedule, num_warmup_steps)

    def _show_first_batch(self) -> None:
        """Give the callbacks the first batch of the run, augmented, also where features replace the clips."""
        if self.callbacks:
            rows = self.data.plan(self.data.order(1), 0, self.processes.world_size)[0].parts[0]
            with contextlib.closing(self.clips.stream([rows], 1)) as batches:
                batch = next(batches)
                self.tell("on_first_batch", self.clips.pixels(batch, 1), batch)
