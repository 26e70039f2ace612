"""The learning rate of every step, and early stopping on scripted losses."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vidcache.train.schedule import EarlyStopping, learning_rate


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((5, 0.1), [0.1] * 5),
        ((4, 2.0, "cosine"), [2.0, 1 + 2**-0.5, 1.0, 1 - 2**-0.5]),
        ((6, 1.0, "cosine", 2), [0.5, 1.0, 1.0, (1 + 2**-0.5) / 2, 0.5, (1 - 2**-0.5) / 2]),
    ],
)
def test_rates_of_a_run(arguments: tuple[Any, ...], expected: list[float]) -> None:
    assert pytest.approx(expected) == [learning_rate(step, *arguments) for step in range(arguments[0])]


@given(num_steps=st.integers(2, 300), warmup=st.integers(0, 300), schedule=st.sampled_from(["none", "cosine"]))
def test_it_rises_to_lr_and_never_rises_again(num_steps: int, warmup: int, schedule: str) -> None:
    rates = [learning_rate(step, num_steps, 1.0, schedule, warmup) for step in range(num_steps)]
    assert all(0 < rate <= 1 for rate in rates)
    peak = min(max(warmup - 1, 0), num_steps - 1)
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)


def test_what_it_refuses() -> None:
    with pytest.raises(ValueError, match="schedule 'step', expected one of none, cosine"):
        learning_rate(0, 1, 1.0, "step")


# --- early stopping -----------------------------------------------------------------


def run(losses: list[float], **settings: float) -> tuple[int, int]:
    """Feed losses until it stops; returns (last epoch, best epoch)."""
    stopping = EarlyStopping(**settings)  # type: ignore[arg-type]
    for epoch, loss in enumerate(losses, 1):
        is_best = stopping.update(epoch, loss)
        assert is_best == (stopping.best_epoch == epoch)
        if stopping.should_stop(epoch):
            return epoch, stopping.best_epoch
    return len(losses), stopping.best_epoch


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        # Falls all the time: never stops.
        ([1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4], (7, 7)),
        # Best in the first epoch, no progress for 3: but not before epoch 5.
        ([0.5, 0.6, 0.7, 0.8, 0.9, 1.0], (5, 1)),
        # Progress in 5, then three epochs without.
        ([1.0, 0.9, 0.8, 0.7, 0.5, 0.6, 0.6, 0.6, 0.1], (8, 5)),
        # Better by less than min_delta is no progress, but it is the best.
        ([1.0, 0.5, 0.495, 0.494, 0.493, 0.492], (5, 5)),
        # Small steps add up to progress: 0.491 is more than 0.01 below 0.502.
        ([1.0, 0.502, 0.497, 0.494, 0.491, 0.489, 0.488, 0.487], (8, 8)),
        # Equal loss: the first of the two is the best.
        ([0.5, 0.4, 0.4, 0.4, 0.4], (5, 2)),
        # Exactly min_delta below is not below by more than it.
        ([0.75, 0.74, 0.74, 0.74, 0.74], (5, 2)),
    ],
)
def test_scripted_losses(losses: list[float], expected: tuple[int, int]) -> None:
    assert expected == run(losses)


def test_before_the_first_epoch_there_is_no_best() -> None:
    stopping = EarlyStopping(min_epochs=0, patience=0)

    assert (0, math.inf) == (stopping.best_epoch, stopping.best_loss)
    assert stopping.should_stop(0)
    assert not EarlyStopping(min_epochs=0, patience=1).should_stop(0)


def test_every_setting_changes_the_end() -> None:
    losses = [1.0, 0.9, 0.95, 0.85, 0.95, 0.95, 0.95, 0.95, 0.95, 0.95]

    assert (7, 4) == run(losses)
    assert (5, 4) == run(losses, patience=1)
    assert (9, 4) == run(losses, min_epochs=9)
    assert (5, 4) == run(losses, min_delta=0.2)
    assert (3, 2) == run(losses, patience=1, min_epochs=1)


@given(st.lists(st.floats(0, 10), min_size=1, max_size=40))
def test_the_best_epoch_is_the_first_with_the_lowest_loss(losses: list[float]) -> None:
    last, best = run(losses)

    assert losses.index(min(losses[:last])) + 1 == best
    assert last >= min(5, len(losses))


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_no_number_is_refused(loss: float) -> None:
    with pytest.raises(ValueError, match=f"epoch 3: validation loss is {loss}, expected a finite number"):
        EarlyStopping().update(3, loss)
