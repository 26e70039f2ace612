"""Shows a run on a terminal, or as lines in a log."""

import math
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from vidcache.console import SafeConsole
from vidcache.text import plural, printable

if TYPE_CHECKING:  # torch takes 2 s to import: not for --help
    from vidcache.cache.leaks import Leaks
    from vidcache.checkpoint import Checkpoint
    from vidcache.train.balance import ClassAudit
    from vidcache.train.precision import Choice
    from vidcache.train.results import EpochResult, Hooks
    from vidcache.train.results import Progress as StepProgress


class Reporter:
    """Shows a run on stderr: the audit, a bar per epoch on a terminal, a line per epoch anywhere."""

    def __init__(self, console: SafeConsole) -> None:
        self._console = console
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[numbers]}"),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._task = self._bar.add_task("starting", total=None, numbers="")
        self._best = ""

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def hooks(self) -> "Hooks":
        """Return what a run calls."""
        from vidcache.train.results import Hooks

        return Hooks(
            on_leaks=self._show_leaks,
            on_audit=self._show_audit,
            on_mirror=self._show_mirror,
            on_init=self._show_init,
            on_start=self._show_start,
            on_features=self._show_features,
            on_feature=self._show_feature,
            on_step=self._show_step,
            on_epoch=self._show_epoch,
        )

    def show_stop(self) -> None:
        """Say that the wish to stop was heard: a step may take minutes."""
        self._console.print("stopping after this step; another Ctrl-C or SIGTERM stops at once", soft_wrap=True)

    def _show_leaks(self, leaks: "Leaks") -> None:
        advice = ": see vidcache leaks" if len(leaks.pairs) else ""
        self._console.print(f"leak guard: {leaks.in_words}{advice}", soft_wrap=True)

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
            self._console.print(
                Text(
                    f"{printable(most.class_name)} ({plural(most.num_clips, 'clip')}) weighs {ratio:.1f} times as much "
                    f"in training as {printable(least.class_name)} ({plural(least.num_clips, 'clip')}): see --balance"
                ),
                soft_wrap=True,
            )

    def _show_mirror(self, sentence: str) -> None:
        self._console.print(Text(f"Warning: {sentence}", style="yellow"), soft_wrap=True)

    def _show_init(self, sentence: str) -> None:
        self._console.print(Text(sentence), soft_wrap=True)

    def _show_start(self, precision: "Choice") -> None:
        self._console.print(
            f"precision: {'float32' if precision.name == 'off' else precision.name} ({precision.reason})",
            soft_wrap=True,
        )

    def _show_features(self, sentence: str) -> None:
        self._console.print(Text(sentence), soft_wrap=True)

    def _show_feature(self, done: int, total: int) -> None:
        self._bar.update(self._task, description="features", completed=done, total=total)

    def _show_step(self, step: "StepProgress") -> None:
        numbers = f"{step.clips_per_second:.1f} clips/s  waiting {step.data_wait_fraction:.1%}{self._best}"
        if not math.isnan(step.loss):
            numbers = f"loss {step.loss:.4f}  acc {step.accuracy:.1%}  {numbers}"
        description = f"epoch {step.epoch}" if step.num_done < step.num_steps else f"epoch {step.epoch}: validating"
        self._bar.update(
            self._task, description=description, completed=step.num_done, total=step.num_steps, numbers=numbers
        )

    def _show_epoch(self, result: "EpochResult", checkpoint: "Callable[[bool], Checkpoint]") -> None:  # noqa: ARG002
        if result.is_best:
            self._best = f"  best: epoch {result.epoch}, val loss {result.val_loss:.4f}"
        self._console.print(
            Text(
                f"epoch {result.epoch:3}  train loss {result.train_loss:.4f} acc {result.train_accuracy:6.1%}  "
                f"val loss {result.val_loss:.4f} acc {result.val_accuracy:6.1%}  "
                f"{result.clips_per_second:.1f} clips/s  "
                f"waiting {result.data_wait_fraction:.1%}  {result.seconds:.1f} s{'  best' if result.is_best else ''}"
            ),
            soft_wrap=True,
        )
