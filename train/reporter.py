"""Shows a run on a terminal, or as lines in a log."""

import math
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.table import Table
from rich.text import Text

from vidcache.console import SafeConsole
from vidcache.progress import Progress, in_words
from vidcache.text import plural, printable

if TYPE_CHECKING:  # torch takes 2 s to import: not for --help
    from vidcache.cache.leaks import Leaks
    from vidcache.checkpoint import Checkpoint
    from vidcache.train.balance import ClassAudit
    from vidcache.train.precision import Choice
    from vidcache.train.results import EpochResult, Hooks, Setup
    from vidcache.train.results import Progress as StepProgress

_STEPS_OF_ESTIMATE = 3  # after the first one, which warms up


class Reporter:
    """Shows a run on stderr: what it works on, how far it is, a line per epoch; a line per step if that is verbose.

    Args:
        console: That of stderr.
        clock: Seconds.
    """

    def __init__(self, console: SafeConsole, clock: Callable[[], float] = time.monotonic) -> None:
        self._console, self._clock = console, clock
        self.progress = Progress(console, "preparing", clock=clock)
        self._epoch = 0
        self._best = ""
        self._setup: Setup | None = None
        self._first_step: tuple[float, int] | None = None

    def __enter__(self) -> Self:
        self.progress.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.__exit__(kind, error, trace)

    def hooks(self) -> "Hooks":
        """Return what a run calls."""
        from vidcache.train.results import Hooks

        return Hooks(
            on_leaks=self._show_leaks,
            on_setup=self._show_setup,
            on_audit=self._show_audit,
            on_mirror=self._show_mirror,
            on_init=self._say,
            on_start=self._show_start,
            on_features=self._show_features,
            on_feature=self.progress.update,
            on_step=self._show_step,
            on_epoch=self._show_epoch,
        )

    def show_stop(self) -> None:
        """Say that the wish to stop was heard."""
        self._say("stopping after this step, or in the middle of a long one; another Ctrl-C or SIGTERM stops at once")

    def _say(self, line: str) -> None:
        self._console.print(Text(line), soft_wrap=True)

    def _show_leaks(self, leaks: "Leaks") -> None:
        advice = ": see vidcache leaks" if len(leaks.pairs) else ""
        self._say(f"leak guard: {leaks.in_words}{advice}")

    def _show_setup(self, setup: "Setup") -> None:
        self._setup = setup
        together = f", {setup.num_processes} processes" if setup.num_processes > 1 else ""
        self._say(f"device: {setup.device} ({setup.device_name}){together}")
        clips = ", ".join(f"{count:,} {split}" for split, count in setup.num_clips.items())
        self._say(f"clips: {clips}; {plural(setup.num_classes, 'class', 'classes')}")
        of_cache = f" of {setup.num_frames_in_cache}" if setup.num_frames < setup.num_frames_in_cache else ""
        self._say(
            f"input: {setup.num_frames}{of_cache} frames of {setup.width}x{setup.height} pixels (width x height), "
            f"batches of {plural(setup.batch_size, 'clip')}, at most {plural(setup.num_epochs, 'epoch')}"
        )

    def _show_audit(self, audit: "list[ClassAudit]") -> None:
        table = Table("class", "clips", "draws/epoch", "distinct", "loss weight", "influence")
        for entry in audit:
            table.add_row(
                Text(printable(entry.class_name)),
                str(entry.num_clips),
                f"{entry.expected_draws:.1f}",
                f"{entry.expected_distinct:.1f}",
                f"{entry.loss_weight:.2f}",
                f"{entry.influence:.2f}",
            )
        self._console.print(table)
        present = sorted((entry for entry in audit if entry.num_clips), key=lambda entry: entry.influence)
        least, most = present[0], present[-1]
        ratio = most.influence / least.influence
        if ratio > 2:
            self._say(
                f"{printable(most.class_name)} ({plural(most.num_clips, 'clip')}) weighs {ratio:.1f} times as much "
                f"in training as {printable(least.class_name)} ({plural(least.num_clips, 'clip')}): see --balance"
            )

    def _show_mirror(self, sentence: str) -> None:
        self._console.print(Text(f"Warning: {sentence}", style="yellow"), soft_wrap=True)

    def _show_start(self, precision: "Choice") -> None:
        self._say(f"precision: {'float32' if precision.name == 'off' else precision.name} ({precision.reason})")

    def _show_features(self, sentence: str) -> None:
        self._say(sentence)
        self.progress.start_phase("features", "entries")

    def _show_step(self, step: "StepProgress") -> None:
        if step.epoch != self._epoch:
            self._epoch, self._first_step = step.epoch, (self._clock(), step.num_done)
            self.progress.start_phase(f"epoch {step.epoch}", "steps")
        numbers = f"{step.clips_per_second:.1f} clips/s, waiting {step.data_wait_fraction:.1%}"
        if not math.isnan(step.loss):
            numbers = f"loss {step.loss:.4f}, accuracy {step.accuracy:.1%}, {numbers}"
        self.progress.update(step.num_done, step.num_steps, note=numbers + self._best)
        self._console.detail(f"epoch {step.epoch}, step {step.num_done} of {step.num_steps}: {numbers}")
        if self._setup and self._first_step and step.num_done - self._first_step[1] >= _STEPS_OF_ESTIMATE:
            started, first = self._first_step
            seconds_per_step = (self._clock() - started) / (step.num_done - first)
            validating = -(-self._setup.num_clips["val"] // self._setup.batch_size) / 2  # no backward pass
            self._show_estimate(self._setup, step.epoch, seconds_per_step * (step.num_steps + validating))
        if step.num_done == step.num_steps:
            self.progress.start_phase(f"epoch {step.epoch}: validating")

    def _show_estimate(self, setup: "Setup", epoch: int, seconds: float) -> None:
        """Say once how long it will take; an epoch that is resumed takes no longer than another."""
        left = setup.num_epochs - epoch + 1
        self._say(
            f"about {in_words(seconds)} an epoch, at most {in_words(seconds * left)} for the {plural(left, 'epoch')} "
            f"left{'; early stopping can end it sooner' if left > 1 else ''}"
        )
        self._setup = None

    def _show_epoch(self, result: "EpochResult", checkpoint: "Callable[[bool], Checkpoint]") -> None:  # noqa: ARG002
        if result.is_best:
            self._best = f", best: epoch {result.epoch}, val loss {result.val_loss:.4f}"
        self._say(
            f"epoch {result.epoch:3}  train loss {result.train_loss:.4f} acc {result.train_accuracy:6.1%}  "
            f"val loss {result.val_loss:.4f} acc {result.val_accuracy:6.1%}  "
            f"{result.clips_per_second:.1f} clips/s  "
            f"waiting {result.data_wait_fraction:.1%}  {result.seconds:.1f} s{'  best' if result.is_best else ''}"
        )
        if self._setup and result.epoch < self._setup.num_epochs:  # its steps were too few to tell
            self._show_estimate(self._setup, result.epoch + 1, result.seconds)
