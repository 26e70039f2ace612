"""Steps, parts and processes: every clip once, and the k-th part the same however many share it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vidcache.train.data import plan_steps


@given(
    count=st.integers(0, 60),
    batch_size=st.integers(1, 20),
    accumulate=st.integers(1, 6),
    num_ranks=st.integers(1, 5),
    seed=st.integers(0, 9),
)
def test_together_the_processes_take_every_clip_once(
    count: int, batch_size: int, accumulate: int, num_ranks: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    order, labels = rng.permutation(100)[:count], rng.integers(0, 3, 100)
    weights = np.array([0.5, 1.0, 4.0], np.float32)
    ranks = [
        plan_steps(order, labels, weights, batch_size, accumulate=accumulate, rank=rank, num_ranks=num_ranks)
        for rank in range(num_ranks)
    ]
    alone = plan_steps(order, labels, weights, batch_size, accumulate=accumulate)

    assert order.tolist() == [row for step in alone for part in step.parts for row in part.tolist()]
    for number, step in enumerate(alone):
        clips = np.concatenate(step.parts)
        assert 1 <= step.num_clips == len(clips) <= batch_size
        assert pytest.approx(weights[labels[clips]].sum()) == step.weight
        for plans in ranks:
            assert (step.num_clips, step.weight) == (plans[number].num_clips, plans[number].weight)
            assert len(step.parts) == len(plans[number].parts) <= accumulate
        for part, whole in enumerate(step.parts):
            shares = [plans[number].parts[part] for plans in ranks]
            assert sorted(whole.tolist()) == sorted(np.concatenate(shares).tolist())
            assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_without_class_weights_every_clip_counts_one() -> None:
    assert [4.0, 4.0, 2.0] == [step.weight for step in plan_steps(np.arange(10), np.zeros(10, np.int64), None, 4)]
