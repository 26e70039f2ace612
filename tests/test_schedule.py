"""The learning rate of every step."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vidcache.train.schedule import learning_rate


def test_the_default_is_constant() -> None:
    assert [learning_rate(step, 5, 0.1) for step in range(5)] == [0.1] * 5


def test_cosine_values() -> None:
    got = [learning_rate(step, 4, 2.0, "cosine") for step in range(4)]
    assert got == pytest.approx([2.0, 1 + 2**-0.5, 1.0, 1 - 2**-0.5])


def test_warm_up_then_cosine() -> None:
    got = [learning_rate(step, 6, 1.0, "cosine", 2) for step in range(6)]
    assert got == pytest.approx([0.5, 1.0, 1.0, (1 + 2**-0.5) / 2, 0.5, (1 - 2**-0.5) / 2])


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
    with pytest.raises(ValueError, match="step 3, expected 0 to 2"):
        learning_rate(3, 3, 1.0)
