"""Class balance against its definitions; steps, parts and processes: every clip once."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.utils.class_weight import compute_class_weight

from vidcache.cache.reader import CacheReader
from vidcache.train.config import TrainConfig
from vidcache.train.data import StepPlan, TrainingData, audit, class_weights, epoch_rows

label_lists = st.lists(st.integers(0, 5), min_size=1, max_size=200)


@given(label_lists)
def test_class_weights_are_scikit_learns_balanced_ones(labels: list[int]) -> None:
    found = class_weights(np.array(labels), 6)

    present = np.unique(labels)
    assert pytest.approx(compute_class_weight("balanced", classes=present, y=labels)) == found[present]
    assert (found[np.setdiff1d(np.arange(6), present)] == 0).all()
    assert pytest.approx(len(labels)) == found[labels].sum()


def test_the_sampler_draws_every_class_equally_often() -> None:
    labels = np.repeat([0, 1, 2], [62, 7, 31])
    rows = np.arange(100, 200)
    drawn = np.concatenate([epoch_rows(rows, labels, "sampler", 0, epoch) for epoch in range(1, 201)])

    counts = np.bincount(labels[drawn - 100], minlength=3)
    assert pytest.approx(np.full(3, len(drawn) / 3), rel=0.03) == counts
    per_clip = np.bincount(drawn - 100, minlength=100)
    assert pytest.approx(np.full(7, len(drawn) / 3 / 7), rel=0.15) == per_clip[labels == 1]


@given(st.sampled_from(["both", "sampler", "loss", "none"]), st.integers(0, 2**62), st.integers(1, 99))
def test_the_draw_is_a_function_of_seed_and_epoch(balance: str, seed: int, epoch: int) -> None:
    rows, labels = np.arange(60), np.arange(60) % 4

    one = epoch_rows(rows, labels, balance, seed, epoch)

    assert (one == epoch_rows(rows, labels, balance, seed, epoch)).all()
    assert (one != epoch_rows(rows, labels, balance, seed + 1, epoch)).any()
    assert (one != epoch_rows(rows, labels, balance, seed, epoch + 1)).any()
    if balance in ("loss", "none"):  # no sampler
        assert rows.tolist() == sorted(one.tolist())


def test_an_unknown_balance_is_refused() -> None:
    with pytest.raises(ValueError, match="balance 'all', expected one of both, sampler, loss, none"):
        epoch_rows(np.arange(3), np.zeros(3, np.int64), "all", 0, 1)


def test_the_loss_is_weighted_only_where_asked(cache_file: Path) -> None:
    with CacheReader(cache_file) as reader:
        found = {
            name: TrainingData.of(reader, TrainConfig(balance=name), "cpu").class_weights
            for name in ("both", "loss", "sampler", "none")
        }
        labels = reader.labels[reader.rows("train")]

    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    for name in ("both", "loss"):
        assert pytest.approx(expected) == found[name]
        assert found[name].dtype == np.float32  # type: ignore[union-attr]
    assert found["sampler"] is None
    assert found["none"] is None


def test_the_audit_shows_that_both_overshoot() -> None:
    """62 clips against 7: both together give the rare class 62 / 7 times the weight of the other."""
    labels = np.repeat([0, 1], [62, 7])

    ratio = {}
    for balance in ("both", "sampler", "loss", "none"):
        large, small = audit(["large", "small"], labels, balance)
        ratio[balance] = small.effective_weight / large.effective_weight
        assert pytest.approx(2) == small.effective_weight + large.effective_weight
    assert pytest.approx({"both": 62 / 7, "sampler": 1, "loss": 1, "none": 7 / 62}) == ratio


def test_the_audit_counts_draws_and_leaves_out_absent_classes() -> None:
    entries = audit(["a", "b", "c"], np.array([0, 0, 0, 2]), "sampler")

    assert [(3, 2.0, 1.0), (0, 0.0, 0.0), (1, 2.0, 1.0)] == [
        (entry.num_clips, entry.expected_draws, entry.loss_weight) for entry in entries
    ]


@pytest.mark.parametrize("balance", ["sampler", "none"])
def test_the_audit_says_how_many_different_clips_an_epoch_draws(balance: str) -> None:
    labels = np.repeat([0, 1], [40, 6])

    entries = audit(["many", "few"], labels, balance)

    drawn = [np.unique(epoch_rows(np.arange(46), labels, balance, 0, epoch)) for epoch in range(1, 301)]
    means = [np.mean([(labels[rows] == label).sum() for rows in drawn]) for label in (0, 1)]
    assert pytest.approx(means, rel=0.03) == [entry.expected_distinct for entry in entries]


# --- steps -------------------------------------------------------------------------------


def plan(
    config: TrainConfig, order: Any, labels: Any, weights: Any, rank: int = 0, num_ranks: int = 1
) -> list[StepPlan]:
    data = TrainingData(None, config, None, order, labels, None, weights)  # type: ignore[arg-type]
    return data.plan(order, rank, num_ranks)


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
    config = TrainConfig(batch_size=batch_size, accumulate=accumulate)
    ranks = [plan(config, order, labels, weights, rank, num_ranks) for rank in range(num_ranks)]
    alone = plan(config, order, labels, weights)

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
    steps = plan(TrainConfig(batch_size=4), np.arange(10), np.zeros(10, np.int64), None)

    assert [4.0, 4.0, 2.0] == [step.weight for step in steps]
