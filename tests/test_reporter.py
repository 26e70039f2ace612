"""What a run shows: numbers while an epoch goes on, the best epoch marked."""

import math
import re

import pytest
from rich.console import Console

from vidcache.train.reporter import Reporter
from vidcache.train.results import EpochResult, Progress


def result(epoch: int, loss: float, *, is_best: bool) -> EpochResult:
    return EpochResult(epoch, 0.5, 0.75, loss, 0.625, 0.5, 1e-4, 12.0, 20.5, 0.015, is_best)


def shown(console: Console, reporter: Reporter) -> str:
    with console.capture() as capture:
        console.print(reporter._bar)
    return re.sub(r"\s+", " ", capture.get())


@pytest.fixture
def console() -> Console:
    return Console(force_terminal=True, width=160, color_system=None, legacy_windows=False)


def test_a_terminal_shows_the_numbers_of_the_epoch(console: Console) -> None:
    reporter = Reporter(console)
    hooks = reporter.hooks()

    hooks.on_step(Progress(1, 3, 8, math.nan, math.nan, 20.25, 0.012))
    assert re.search(r"epoch 1 .*3/8 .*20\.2 clips/s waiting 1\.2%", shown(console, reporter))
    assert "loss" not in shown(console, reporter)
    hooks.on_step(Progress(1, 5, 8, 0.4321, 0.875, 20.25, 0.012))
    assert "loss 0.4321 acc 87.5% 20.2 clips/s" in shown(console, reporter)
    hooks.on_step(Progress(1, 8, 8, 0.4321, 0.875, 20.25, 0.012))
    assert "epoch 1: validating" in shown(console, reporter)
    with console.capture():
        hooks.on_epoch(result(1, 0.9, is_best=True), lambda _: None)  # type: ignore[arg-type,return-value]
        hooks.on_epoch(result(2, 1.5, is_best=False), lambda _: None)  # type: ignore[arg-type,return-value]
    hooks.on_step(Progress(3, 1, 8, 0.3, 0.9, 20.0, 0.0))
    assert "best: epoch 1, val loss 0.9000" in shown(console, reporter)


def test_features_are_counted(console: Console) -> None:
    reporter = Reporter(console)
    reporter.hooks().on_feature(30, 1568)

    assert re.search(r"features .*30/1568", shown(console, reporter))


def test_every_epoch_is_a_line_and_the_best_is_marked(console: Console) -> None:
    hooks = Reporter(console).hooks()
    with console.capture() as capture:
        hooks.on_epoch(result(1, 0.9, is_best=True), lambda _: None)  # type: ignore[arg-type,return-value]
        hooks.on_epoch(result(2, 1.5, is_best=False), lambda _: None)  # type: ignore[arg-type,return-value]

    first, second = capture.get().splitlines()
    assert first == (
        "epoch   1  train loss 0.5000 acc  75.0%  val loss 0.9000 acc  62.5%  20.5 clips/s  waiting 1.5%  12.0 s  best"
    )
    assert "best" not in second
