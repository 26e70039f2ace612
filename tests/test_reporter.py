"""What a run shows: what it works on, numbers while an epoch goes on, how long it takes, the best epoch marked."""

import dataclasses
import math
import re

import pytest

from vidcache.console import SafeConsole
from vidcache.train.callbacks import Callbacks, EpochProgress, EpochResult, Reporter, Setup

SETUP = Setup("cpu", "A Fine CPU", 1, {"train": 1238, "val": 20, "test": 50}, 8, 8, 64, 112, 96, 10, 30, 0)


def result(epoch: int, loss: float, *, is_best: bool) -> EpochResult:
    return EpochResult(epoch, 0.5, 0.75, loss, 0.625, 0.5, 1e-4, 12.0, 20.5, 0.015, is_best)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def reporter(clock: Clock) -> Reporter:
    return Reporter(SafeConsole(stderr=True, width=200), clock)


@pytest.fixture
def hooks(reporter: Reporter) -> Callbacks:
    return reporter.hooks()


def finish(hooks: Callbacks, epoch: int, loss: float, *, is_best: bool) -> None:
    hooks.on_epoch(result(epoch, loss, is_best=is_best), lambda _: None)  # type: ignore[arg-type,return-value]


def test_the_numbers_of_an_epoch_are_shown(reporter: Reporter, hooks: Callbacks, clock: Clock) -> None:
    hooks.on_step(EpochProgress(1, 3, 8, math.nan, math.nan, 20.25, 0.012))
    assert "epoch 1: 3 of 8 steps, 20.2 clips/s, waiting 1.2%" == reporter.progress.line()
    clock.now = 4
    hooks.on_step(EpochProgress(1, 5, 8, 0.4321, 0.875, 20.25, 0.012))
    assert (
        "epoch 1: 5 of 8 steps, 0.5 steps/s, 6.0 s left, loss 0.4321, accuracy 87.5%, 20.2 clips/s, waiting 1.2%"
        == reporter.progress.line()
    )
    hooks.on_step(EpochProgress(1, 8, 8, 0.4321, 0.875, 20.25, 0.012))
    clock.now = 154
    assert "epoch 1: validating for 2.5 min" == reporter.progress.line()
    finish(hooks, 1, 0.9, is_best=True)
    finish(hooks, 2, 1.5, is_best=False)
    hooks.on_step(EpochProgress(3, 1, 8, 0.3, 0.9, 20.0, 0.0))
    assert reporter.progress.line().endswith(", best: epoch 1, val loss 0.9000")


def test_features_are_counted(reporter: Reporter, hooks: Callbacks) -> None:
    hooks.on_features("features: computing")
    hooks.on_feature(30, 1568)

    assert "features: 30 of 1,568 entries" == reporter.progress.line()


def test_every_epoch_is_a_line_and_the_best_is_marked(hooks: Callbacks, capsys: pytest.CaptureFixture[str]) -> None:
    finish(hooks, 1, 0.9, is_best=True)
    finish(hooks, 2, 1.5, is_best=False)

    first, second = capsys.readouterr().err.splitlines()
    assert first == (
        "epoch   1  train loss 0.5000 acc  75.0%  val loss 0.9000 acc  62.5%  20.5 clips/s  waiting 1.5%  12.0 s  best"
    )
    assert "best" not in second


def test_the_first_lines_say_what_a_run_works_on(hooks: Callbacks, capsys: pytest.CaptureFixture[str]) -> None:
    hooks.on_setup(SETUP)
    assert capsys.readouterr().err.splitlines() == [
        "device: cpu (A Fine CPU)",
        "clips: 1,238 train, 20 val, 50 test; 8 classes",
        "input: 8 of 64 frames of 96x112 pixels (width x height), batches of 10 clips, at most 30 epochs",
    ]

    hooks.on_setup(dataclasses.replace(SETUP, num_processes=2, num_frames=64, num_epochs=1))
    assert capsys.readouterr().err.splitlines() == [
        "device: cpu (A Fine CPU), 2 processes",
        "clips: 1,238 train, 20 val, 50 test; 8 classes",
        "input: 64 frames of 96x112 pixels (width x height), batches of 10 clips, at most 1 epoch",
    ]


@pytest.mark.parametrize(("epoch", "before"), [(1, 0), (21, 2)])
def test_after_the_first_steps_it_says_how_long(
    hooks: Callbacks, clock: Clock, capsys: pytest.CaptureFixture[str], epoch: int, before: int
) -> None:
    """124 steps of 6 s, and 2 batches of validation at half of that."""
    hooks.on_setup(SETUP)
    capsys.readouterr()
    for number in range(before + 1, 9):
        clock.now += 100 if number == before + 1 else 6  # the first step warms up
        hooks.on_step(EpochProgress(epoch, number, 124, 0.4, 0.8, 20.0, 0.0))

    left = 31 - epoch
    assert [
        f"about 12.5 min an epoch, at most {12.5 * left / 60:.1f} h for the {left} epochs left; early stopping can end it sooner"
    ] == capsys.readouterr().err.splitlines()


def test_short_epochs_say_it_when_the_first_is_done(hooks: Callbacks, capsys: pytest.CaptureFixture[str]) -> None:
    hooks.on_setup(dataclasses.replace(SETUP, num_epochs=2))
    hooks.on_step(EpochProgress(1, 1, 2, 0.4, 0.8, 20.0, 0.0))
    hooks.on_step(EpochProgress(1, 2, 2, 0.4, 0.8, 20.0, 0.0))
    assert "about" not in capsys.readouterr().err
    finish(hooks, 1, 0.9, is_best=True)

    assert capsys.readouterr().err.splitlines()[1:] == ["about 12 s an epoch, at most 12 s for the 1 epoch left"]


def test_a_verbose_run_has_a_line_for_every_step(capsys: pytest.CaptureFixture[str], clock: Clock) -> None:
    hooks = Reporter(SafeConsole(stderr=True, width=200, is_verbose=True), clock).hooks()
    hooks.on_step(EpochProgress(1, 1, 2, 0.4, 0.8, 20.0, 0.01))
    clock.now = 7
    hooks.on_step(EpochProgress(1, 2, 2, 0.3, 0.9, 21.0, 0.01))

    said = capsys.readouterr().err
    assert "epoch 1, step 1 of 2: loss 0.4000, accuracy 80.0%, 20.0 clips/s, waiting 1.0%\n" in said
    assert "epoch 1, step 2 of 2: loss 0.3000, accuracy 90.0%, 21.0 clips/s, waiting 1.0%\n" in said
    assert re.search(r"^epoch 1: 2 steps in 7\.0 s$", said, re.M)
