"""Which frames become the clip: the formula, and what ffmpeg is told."""

import math
from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vidcache.preprocess.video.decode import select_expression
from vidcache.spec import sample_indices


@given(st.integers(1, 10**6), st.integers(2, 256))
def test_indices_follow_the_formula_exactly(n: int, t: int) -> None:
    found = sample_indices(n, t).tolist()

    expected = [min(i, n - 1) for i in range(t)] if n < t else [i * (n - 1) // (t - 1) for i in range(t)]
    assert expected == found


@given(st.integers(1, 10**6), st.integers(1, 256))
def test_indices_are_in_range_ordered_and_distinct_where_possible(n: int, t: int) -> None:
    found = sample_indices(n, t)

    assert (t,) == found.shape
    assert found.min() >= 0
    assert found.max() < n
    steps = np.diff(found)
    assert (steps >= (1 if n >= t else 0)).all()
    if n >= t > 1:
        assert (0, n - 1) == (found[0], found[-1])


def test_one_frame_is_the_first() -> None:
    assert [0] == sample_indices(100, 1).tolist()


@pytest.mark.parametrize(("n", "t"), [(0, 4), (4, 0), (-1, 4)])
def test_counts_below_one_are_refused(n: int, t: int) -> None:
    with pytest.raises(ValueError, match=f"cannot sample {t} frames from {n}: both must be >= 1"):
        sample_indices(n, t)


def _selected(expression: str, frames: Iterable[int]) -> list[int]:
    """Evaluate a select expression as ffmpeg does: doubles, frame by frame."""
    scope = {
        "lt": lambda a, b: float(a < b),
        "eq": lambda a, b: float(a == b),
        "floor": lambda x: float(math.floor(x)),
        "ceil": lambda x: float(math.ceil(x)),
    }
    code = compile(expression, "select", "eval")
    return [n for n in frames if eval(code, scope, {"n": float(n)})]


@given(st.integers(1, 3000), st.sampled_from([2, 3, 8, 16, 63, 64, 100]), st.integers(0, 50))
def test_ffmpeg_is_told_the_same_frames(n: int, t: int, more: int) -> None:
    expected = sorted(set(sample_indices(n, t).tolist()))

    assert expected == _selected(select_expression(n, t), range(n))
    assert len(_selected(select_expression(n, t), range(n + more))) <= t  # of a video that is longer than believed


@pytest.mark.parametrize("n", [10**6, 5_184_000])
def test_the_expression_is_exact_for_a_day_of_video(n: int) -> None:
    near = [int(k) + d for k in sample_indices(n, 64) for d in (-1, 0, 1) if 0 <= k + d < n]

    assert sample_indices(n, 64).tolist() == _selected(select_expression(n, 64), near)
