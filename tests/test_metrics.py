"""Metrics against scikit-learn on random predictions, and against definitions."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, recall_score, top_k_accuracy_score

from vidcache.eval.metrics import compute_metrics, wilson_interval


def predictions(
    n: int, k: int, seed: int
) -> tuple[np.ndarray[object, np.dtype[np.int64]], np.ndarray[object, np.dtype[np.float32]]]:
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet(np.full(k, 0.5), n).astype(np.float32)
    return rng.integers(0, k, n), probabilities


@given(st.integers(1, 60), st.integers(2, 12), st.integers(0, 10**6))
def test_they_equal_scikit_learn(n: int, k: int, seed: int) -> None:
    labels, probabilities = predictions(n, k, seed)
    predicted = probabilities.argmax(1)
    present = np.unique(labels)

    found = compute_metrics(labels, probabilities, [str(c) for c in range(k)])

    assert accuracy_score(labels, predicted) == found.accuracy
    assert (
        pytest.approx(recall_score(labels, predicted, labels=present, average="macro", zero_division=0))
        == found.balanced_accuracy
    )
    if len(present) > 1 and set(predicted) <= set(present):
        assert pytest.approx(balanced_accuracy_score(labels, predicted)) == found.balanced_accuracy
    assert (
        pytest.approx(f1_score(labels, predicted, labels=present, average="macro", zero_division=0)) == found.macro_f1
    )
    if k > 5:
        expected = top_k_accuracy_score(labels, probabilities, k=5, labels=range(k))
        assert pytest.approx(expected) == found.top5_accuracy
    else:
        assert 1 == found.top5_accuracy
    assert n == found.confusion.sum() == found.num_clips
    assert (k, k) == found.confusion.shape
    for c, result in enumerate(found.per_class):
        assert ((labels == c).sum(), ((labels == c) & (predicted == c)).sum()) == (result.num_clips, result.num_correct)


@given(st.integers(1, 500), st.data())
def test_the_interval_is_wilsons(n: int, data: st.DataObject) -> None:
    correct = data.draw(st.integers(0, n))

    expected = binomtest(correct, n).proportion_ci(0.95, method="wilson")

    assert pytest.approx((expected.low, expected.high)) == wilson_interval(correct, n)


def test_the_reference_result_has_the_published_interval() -> None:
    assert pytest.approx((0.886, 0.978), abs=5e-4) == wilson_interval(93, 98)


def test_a_class_without_clips_is_not_zero_percent() -> None:
    labels, probabilities = np.array([0, 0, 2]), np.eye(3, dtype=np.float32)[[0, 2, 2]]

    found = compute_metrics(labels, probabilities, ["a", "b", "c"])

    assert math.isnan(found.per_class[1].accuracy)
    assert math.isnan(found.per_class[1].low)
    assert pytest.approx((0.5 + 1) / 2) == found.balanced_accuracy
    assert pytest.approx(2 / 3) == found.majority_fraction
    assert [[1, 0, 1], [0, 0, 0], [0, 0, 1]] == found.confusion.tolist()


def test_a_prediction_that_is_no_number_is_refused() -> None:
    probabilities = np.full((4, 3), np.nan, np.float32)
    probabilities[0] = 0.1

    with pytest.raises(ValueError, match="3 of 4 predictions are not finite, expected all"):
        compute_metrics(np.zeros(4, np.int64), probabilities, ["a", "b", "c"])


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"0 labels and probabilities \(0, 2\), expected \(n, 2\), n >= 1"):
        compute_metrics(np.zeros(0, np.int64), np.zeros((0, 2), np.float32), ["a", "b"])
    with pytest.raises(ValueError, match=r"2 labels and probabilities \(2, 3\), expected \(n, 2\)"):
        compute_metrics(np.zeros(2, np.int64), np.zeros((2, 3), np.float32), ["a", "b"])
