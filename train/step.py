"""The steps of one epoch: features, forward, backward, update; and what they add up to."""

import contextlib
import dataclasses
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import torch

from vidcache.cache.stream import Batch
from vidcache.errors import VidcacheError
from vidcache.model import R3D18
from vidcache.train.batching import StepPlan
from vidcache.train.config import TrainConfig
from vidcache.train.forward import Forward
from vidcache.train.inputs import Inputs
from vidcache.train.ranks import Ranks
from vidcache.train.results import Progress
from vidcache.train.schedule import learning_rate


@dataclasses.dataclass
class EpochSums:
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

    def progress(self, epoch: int, num_steps: int, num_clips: int) -> Progress:
        """Say how far the epoch is; `num_clips` are those that loss and hits are known of."""
        return Progress(
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
        inputs: Inputs,
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
        sums: EpochSums,
        on_step: Callable[[Progress], None],
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

    def _step(self, plan: StepPlan, batches: Iterator[Batch], epoch: int, sums: EpochSums) -> torch.Tensor:
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

    def _look(self, unchecked: list[torch.Tensor], epoch: int, plans: Sequence[StepPlan], sums: EpochSums) -> None:
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
