"""Class balance: the sampler's frequencies and the loss weights, against their definitions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.utils.class_weight import compute_class_weight

from vidcache.train.data import audit, class_weights, epoch_rows, loss_weights

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


@pytest.mark.parametrize("balance", ["loss", "none"])
def test_without_a_sampler_every_clip_comes_once(balance: str) -> None:
    rows = np.array([3, 5, 9, 20])

    order = epoch_rows(rows, np.array([0, 0, 1, 1]), balance, 4, 2)

    assert rows.tolist() == sorted(order.tolist())


@given(st.sampled_from(["both", "sampler", "loss", "none"]), st.integers(0, 2**62), st.integers(1, 99))
def test_the_draw_is_a_function_of_seed_and_epoch(balance: str, seed: int, epoch: int) -> None:
    rows, labels = np.arange(60), np.arange(60) % 4

    one = epoch_rows(rows, labels, balance, seed, epoch)

    assert (one == epoch_rows(rows, labels, balance, seed, epoch)).all()
    assert (one != epoch_rows(rows, labels, balance, seed + 1, epoch)).any()
    assert (one != epoch_rows(rows, labels, balance, seed, epoch + 1)).any()


def test_an_unknown_balance_is_refused() -> None:
    with pytest.raises(ValueError, match="balance 'all', expected one of both, sampler, loss, none"):
        epoch_rows(np.arange(3), np.zeros(3, np.int64), "all", 0, 1)


def test_the_loss_is_weighted_only_where_asked() -> None:
    labels = np.array([0, 0, 0, 1])

    for balance in ("both", "loss"):
        found = loss_weights(labels, 3, balance)
        assert found is not None
        assert found.dtype == np.float32
        assert [4 / 6, 2.0, 0.0] == pytest.approx(found.tolist())
    assert loss_weights(labels, 3, "sampler") is None
    assert loss_weights(labels, 3, "none") is None


def test_the_audit_shows_that_both_overshoot() -> None:
    """62 clips against 7: both together give the rare class 62 / 7 times the weight of the other."""
    labels = np.repeat([0, 1], [62, 7])

    ratio = {}
    for balance in ("both", "sampler", "loss", "none"):
        large, small = audit(["large", "small"], labels, balance)
        ratio[balance] = small.influence / large.influence
        assert pytest.approx(2) == small.influence + large.influence
    assert pytest.approx({"both": 62 / 7, "sampler": 1, "loss": 1, "none": 7 / 62}) == ratio


def test_the_audit_counts_draws_and_leaves_out_absent_classes() -> None:
    entries = audit(["a", "b", "c"], np.array([0, 0, 0, 2]), "sampler")

    assert [(3, 2.0, 1.0), (0, 0.0, 0.0), (1, 2.0, 1.0)] == [
        (entry.num_clips, entry.expected_draws, entry.loss_weight) for entry in entries
    ]
    assert 0 == entries[1].influence


@pytest.mark.parametrize("balance", ["sampler", "none"])
def test_the_audit_says_how_many_different_clips_an_epoch_draws(balance: str) -> None:
    labels = np.repeat([0, 1], [40, 6])

    entries = audit(["many", "few"], labels, balance)

    drawn = [np.unique(epoch_rows(np.arange(46), labels, balance, 0, epoch)) for epoch in range(1, 301)]
    means = [np.mean([(labels[rows] == label).sum() for rows in drawn]) for label in (0, 1)]
    assert pytest.approx(means, rel=0.03) == [entry.expected_distinct for entry in entries]
