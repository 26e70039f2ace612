"""The steps of one epoch: draw, augment, forward, backward, update; and what they add up to."""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from typing import Any, Self

import torch
from torch import nn

from vidcache.cache.reader import Reader
from vidcache.cache.stream import Batch
from vidcache.errors import VidcacheError
from vidcache.pixels import Workspace
from vidcache.train.augment import augment, draw
from vidcache.train.config import TrainConfig
from vidcache.train.precision import autocast
from vidcache.train.results import Hooks
from vidcache.train.schedule import learning_rate


@dataclasses.dataclass
class EpochSums:
    """What has been added up in an epoch so far.

    Attributes:
        loss: () float32 on the device: the loss of each clip, added up.
        num_correct: () float32 on the device.
        num_steps: Steps that are done.
        num_clips: Clips that were in them.
        seconds: That they took.
        waited_seconds: Of these, waiting for clips.
    """

    loss: torch.Tensor
    num_correct: torch.Tensor
    num_steps: int = 0
    num_clips: int = 0
    seconds: float = 0.0
    waited_seconds: float = 0.0

    @classmethod
    def zero(cls, device: torch.device) -> Self:
        """Return those of an epoch that has not begun."""
        return cls(torch.zeros((), device=device), torch.zeros((), device=device))

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as tensors on the CPU and numbers."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return fields | {name: fields[name].to("cpu", copy=True) for name in ("loss", "num_correct")}

    @classmethod
    def of_dict(cls, fields: dict[str, Any], device: torch.device) -> Self:
        """Build them from what `to_dict` gave."""
        tensors = {name: fields[name].to(device, copy=True) for name in ("loss", "num_correct")}
        return cls(**{**fields, **tensors})


class Stepper:
    """Everything that one optimizer step needs."""

    def __init__(
        self,
        forward: Callable[[torch.Tensor], torch.Tensor],
        criterion: nn.Module,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        precision: str,
        config: TrainConfig,
        reader: Reader,
        device: torch.device,
    ) -> None:
        self.forward, self.criterion, self.optimizer, self.scaler = forward, criterion, optimizer, scaler
        self.precision, self.config, self.reader, self.device = precision, config, reader, device
        self.on_inputs: Callable[[torch.Tensor, Batch], None] | None = None  # called once
        self._workspace = Workspace()
        # Looking at a loss waits for the device; on a CPU there is nothing to wait for.
        self.check_every = 1 if device.type == "cpu" else 25

    def epoch(
        self,
        epoch: int,
        num_rows: int,
        batches: Iterator[Batch],
        sums: EpochSums,
        hooks: Hooks,
        should_stop: Callable[[], bool],
    ) -> bool:
        """Step through one epoch, or what is left of it; sums stay on the device.

        Args:
            epoch: From 1.
            num_rows: Clips that the whole epoch draws.
            batches: Of the steps that are not done yet.
            sums: Of the steps that are; added to.
            hooks: Where to report to.
            should_stop: Asked after every step.

        Returns:
            Whether the epoch is complete.

        Raises:
            VidcacheError: A loss is not finite.
        """
        num_steps = math.ceil(num_rows / self.config.batch_size)
        unchecked: list[torch.Tensor] = []
        asked = start = time.perf_counter()
        for batch in batches:
            sums.waited_seconds += time.perf_counter() - asked
            self._set_learning_rate(epoch, sums.num_steps, num_steps)
            loss, logits = self._step(batch, epoch)
            unchecked.append(loss)
            sums.loss += loss * len(batch.rows)
            sums.num_correct += (logits.argmax(1) == batch.labels).sum()
            sums.num_clips += len(batch.rows)
            sums.num_steps += 1
            done, stopped = sums.num_steps == num_steps, should_stop()
            if done or stopped or len(unchecked) == self.check_every:
                self._check(torch.stack(unchecked), epoch, (epoch - 1) * num_steps + sums.num_steps - len(unchecked))
                unchecked.clear()
            hooks.on_step(epoch, sums.num_steps, num_steps)
            if stopped and not done:
                sums.seconds += time.perf_counter() - start
                return False
            asked = time.perf_counter()
        if sums.num_clips != num_rows:
            raise VidcacheError(
                f"train: {sums.num_clips} clips came in epoch {epoch}, expected {num_rows}. Report this"
            )
        sums.seconds += time.perf_counter() - start
        return True

    def _set_learning_rate(self, epoch: int, step: int, num_steps: int) -> None:
        config = self.config
        warmup = round(config.warmup_epochs * num_steps)
        number = (epoch - 1) * num_steps + step
        lr = learning_rate(number, config.epochs * num_steps, config.lr, config.lr_schedule, warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = lr

    def _step(self, batch: Batch, epoch: int) -> tuple[torch.Tensor, torch.Tensor]:
        config = self.config
        draws = draw(batch.rows, config.strength, config.seed, epoch)
        inputs = augment(
            batch.clips, draws, config.augment, self.reader.columns["mean_rgb"][batch.rows], self._workspace
        )
        if self.on_inputs:
            self.on_inputs(inputs, batch)
            self.on_inputs = None
        with autocast(self.precision, self.device):
            logits = self.forward(inputs)
            loss = self.criterion(logits, batch.labels)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        if config.clip_norm is not None:
            self.scaler.unscale_(self.optimizer)
            parameters = (parameter for group in self.optimizer.param_groups for parameter in group["params"])
            torch.nn.utils.clip_grad_norm_(parameters, config.clip_norm)  # stays on the device
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss.detach(), logits.detach()

    def _check(self, losses: torch.Tensor, epoch: int, num_before: int) -> None:
        bad = ~torch.isfinite(losses)
        if bool(bad.any()):
            step = int(bad.nonzero()[0, 0])
            raise VidcacheError(
                f"train: loss became {float(losses[step])} at step {num_before + step + 1} "
                f"(epoch {epoch}, learning rate {self.optimizer.param_groups[0]['lr']:g}), expected a finite number. "
                "Lower --lr; nothing was saved from it"
            )
