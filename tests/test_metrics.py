"""Metrics against scikit-learn on random predictions, and against definitions."""

import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn.calibration import calibration_curve
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, recall_score, top_k_accuracy_score

from vidcache.eval.inference import Predictions
from vidcache.eval.intervals import bootstrap_intervals, compare, mcnemar, wilson_interval
from vidcache.eval.metrics import calibrate, compute_metrics


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


def confused(n: int, k: int, seed: int) -> np.ndarray[object, np.dtype[np.int64]]:
    labels, probabilities = predictions(n, k, seed)
    return compute_metrics(labels, probabilities, [str(c) for c in range(k)]).confusion


@pytest.mark.parametrize(("n", "k", "seed"), [(300, 3, 0), (400, 4, 1)])
def test_with_many_clips_the_bootstrap_is_that_of_drawing_clips_class_by_class(n: int, k: int, seed: int) -> None:
    """Against the slow way, with scikit-learn on the clips that were drawn."""
    labels, probabilities = predictions(n, k, seed)
    predicted = probabilities.argmax(1)
    confusion = compute_metrics(labels, probabilities, [str(c) for c in range(k)]).confusion
    rng = np.random.default_rng(9)
    drawn: list[tuple[float, float]] = []
    for _ in range(400):
        rows = np.concatenate([rng.choice(own, len(own)) for own in (np.flatnonzero(labels == c) for c in range(k))])
        recall = recall_score(labels[rows], predicted[rows], labels=np.unique(labels), average="macro", zero_division=0)
        f1 = f1_score(labels[rows], predicted[rows], labels=np.unique(labels), average="macro", zero_division=0)
        drawn.append((float(recall), float(f1)))

    found = bootstrap_intervals(confusion)

    for values, ends in zip(np.array(drawn).T, found, strict=True):
        assert pytest.approx(np.percentile(values, [2.5, 97.5]), abs=0.02) == np.array(ends)


def test_intervals_contain_the_number_repeat_and_depend_on_the_seed() -> None:
    confusion = confused(60, 4, 3)
    recall = confusion.diagonal() / confusion.sum(1)

    (low, high), _ = bootstrap_intervals(confusion)
    perfect = bootstrap_intervals(np.diag([4, 4, 4]))

    assert low < recall.mean() < high
    for low, high in perfect:  # errors that were never made are possible all the same
        assert low < 0.9 < high == 1
    assert bootstrap_intervals(confusion) == bootstrap_intervals(confusion)
    assert bootstrap_intervals(confusion) != bootstrap_intervals(confusion, seed=1)


@pytest.mark.parametrize(
    ("num_clips", "num_classes", "skill"), [(50, 3, 0.6), (3, 5, 0.95), (3, 20, 0.9), (6, 8, 0.94), (5, 22, 0.7)]
)
def test_intervals_hold_the_truth_about_as_often_as_they_say(num_clips: int, num_classes: int, skill: float) -> None:
    """Also with few clips of each class, of which a plain bootstrap holds in 47 to 89 %."""
    rng, inside, tries = np.random.default_rng(0), np.zeros(2), 200
    truth = np.full((num_classes, num_classes), (1 - skill) / (num_classes - 1))
    np.fill_diagonal(truth, skill)
    f1 = (2 * truth.diagonal() / (1 + truth.sum(axis=0))).mean()
    for seed in range(tries):
        confusion = np.array([rng.multinomial(num_clips, row) for row in truth])
        found = bootstrap_intervals(confusion, resamples=300, seed=seed)
        inside += [low <= value <= high for value, (low, high) in zip((skill, f1), found, strict=True)]
    assert (inside / tries > 0.86).all()


def test_classes_without_clips_take_no_part_in_the_bootstrap() -> None:
    confusion = np.array([[3, 1, 0], [0, 0, 0], [1, 0, 4]])
    smaller = np.array([[3, 1], [1, 4]])

    assert 0 < bootstrap_intervals(confusion)[0][0] < bootstrap_intervals(confusion)[0][1] <= 1
    assert pytest.approx(bootstrap_intervals(smaller)[0], abs=0.1) == bootstrap_intervals(confusion)[0]


@given(st.integers(1, 80), st.integers(2, 9), st.integers(0, 10**6))
def test_bins_equal_those_of_scikit_learn(n: int, k: int, seed: int) -> None:
    labels, probabilities = predictions(n, k, seed)
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels

    found = calibrate(labels, probabilities)

    filled = [b for b in found.bins if b.num_clips]
    if 0 < right.sum() < n:  # scikit-learn wants both outcomes
        accuracy, mean = calibration_curve(right, confidence, n_bins=10, strategy="uniform")
        assert pytest.approx(accuracy) == [b.accuracy for b in filled]
        assert pytest.approx(mean, rel=1e-5) == [b.confidence for b in filled]
    assert n == sum(b.num_clips for b in found.bins)
    expected = sum(b.num_clips * abs(b.accuracy - b.confidence) for b in filled) / n
    assert pytest.approx(expected) == found.error
    assert 10 == len(found.bins)
    for b in filled:
        assert b.low - 1e-6 <= b.confidence <= b.high + 1e-6
        assert wilson_interval(round(b.accuracy * b.num_clips), b.num_clips) == (b.accuracy_low, b.accuracy_high)


def test_a_model_that_is_too_sure_is_told_from_one_that_had_few_clips() -> None:
    sure = np.tile(np.array([[0.95, 0.05]], np.float32), (400, 1))
    rng = np.random.default_rng(0)
    as_said, too_sure = (rng.random(400) < 0.05).astype(np.int64), (rng.random(400) < 0.4).astype(np.int64)
    shy = np.tile(np.array([[0.55, 0.45]], np.float32), (400, 1))

    honest, wrong, timid = calibrate(as_said, sure), calibrate(too_sure, sure), calibrate(as_said, shy)

    assert re.fullmatch(
        r"95.0% sure on average, 9\d.\d% right; expected calibration error 0.0\d\d, as a calibrated model may have "
        r"with [\d,]+ clips \(up to 0.02\d\)",
        honest.in_words,
    )
    assert re.fullmatch(
        r"95.0% sure on average, \d\d.\d% right; expected calibration error 0.3\d\d, more than chance explains "
        r"\(0.02\d\): too sure",
        wrong.in_words,
    )
    assert timid.in_words.endswith(": not sure enough")
    assert calibrate(as_said, sure, seed=1).error_by_chance != honest.error_by_chance


def test_errors_of_both_kinds_that_cancel_are_said() -> None:
    probabilities = np.repeat(np.array([[0.6, 0.4], [0.95, 0.05]], np.float32), 500, axis=0)
    labels = np.concatenate([np.arange(500) >= 400, np.arange(500) >= 375]).astype(np.int64)  # 80 and 75 % right

    found = calibrate(labels, probabilities)

    assert pytest.approx(0.2, abs=0.01) == found.error
    assert found.in_words.endswith(": too sure of some clips, not sure enough of others")


def test_the_most_frequent_confusions_come_in_words() -> None:
    names = ["a", "b\x1b", "c"]
    labels = np.array([0, 0, 0, 0, 1, 1, 2, 2])
    guesses = np.eye(3, dtype=np.float32)[[0, 1, 1, 2, 0, 1, 2, 2]]
    found = compute_metrics(labels, guesses, names)

    assert [
        r"2 of 4 clips of a are taken for b\x1b",
        r"1 of 2 clips of b\x1b is taken for a",
        "1 of 4 clips of a is taken for c",
    ] == [mistake.in_words(names) for mistake in found.mistakes(9)]
    assert 1 == len(found.mistakes(1))


def test_classes_with_fewer_than_5_clips_are_too_few() -> None:
    labels = np.repeat([0, 1], [4, 5])
    found = compute_metrics(labels, np.eye(3, dtype=np.float32)[labels], ["a", "b", "c"])

    assert [True, False, False] == [result.is_too_few for result in found.per_class]


# --- two models on the same clips ---------------------------------------------------------------


@given(st.integers(0, 300), st.integers(0, 300))
def test_mcnemar_is_the_binomial_test_of_the_clips_they_differ_on(lost: int, won: int) -> None:
    expected = binomtest(lost, lost + won, 0.5).pvalue if lost + won else 1

    assert pytest.approx(expected) == mcnemar(lost, won)


def found_by(labels: list[int], guesses: list[int], rows: list[int] | None = None) -> Predictions:
    probabilities = np.eye(3, dtype=np.float32)[guesses]
    return Predictions(
        np.array(rows or range(len(labels))), np.array(labels), probabilities, np.zeros(len(labels), np.float32)
    )


def test_a_comparison_counts_clips_in_pairs() -> None:
    labels = [0, 0, 1, 1, 2, 2]

    found = compare(found_by(labels, [0, 1, 1, 0, 0, 0]), found_by(labels, [0, 0, 1, 1, 1, 2]))

    assert (6, 2, 0, 3, 1, 4) == (
        found.num_clips,
        found.num_both,
        found.num_only_first,
        found.num_only_second,
        found.num_neither,
        found.num_changed,
    )
    assert 0.5 == found.difference
    assert found.difference_low < 0.5 < found.difference_high
    assert pytest.approx(0.25) == found.p_value


def test_the_interval_of_a_difference_is_that_of_drawing_pairs() -> None:
    rng = np.random.default_rng(2)
    labels = rng.integers(0, 3, 90)
    first, second = (np.where(rng.random(90) < p, labels, rng.integers(0, 3, 90)) for p in (0.5, 0.7))
    gain = (second == labels).astype(int) - (first == labels)
    drawn = []
    for _ in range(2000):
        rows = np.concatenate([rng.choice(own, len(own)) for own in (np.flatnonzero(labels == c) for c in range(3))])
        drawn.append(gain[rows].mean())

    found = compare(found_by(labels.tolist(), first.tolist()), found_by(labels.tolist(), second.tolist()))

    assert pytest.approx(np.percentile(drawn, [2.5, 97.5]), abs=0.02) == np.array(
        [found.difference_low, found.difference_high]
    )


@pytest.mark.parametrize(
    ("lost", "won", "sentence"),
    [
        (0, 0, "A and B have the same 17 of 20 clips right: nothing here tells them apart."),
        (
            2,
            4,
            "These 20 clips do not tell A and B apart: 4 that only B has right, 2 that only A has, a difference of "
            r"\+10.0 points \(95 % interval -\d+.\d to \+\d+.\d\) that two equally good models would reach or exceed with a "
            "probability of 0.69; that is no proof that they are equally good.",
        ),
        (
            1,
            10,
            "B is the better of the two on clips like these 20: 10 that only B has right, 1 that only A has, a "
            r"difference of \+45.0 points \(95 % interval \+\d+.\d to \+\d+.\d\) that two equally good models would reach or exceed "
            "with a probability of 0.012; of other seeds and other data it says nothing.",
        ),
        (10, 1, "A is the better of the two on clips like these 20: 1 that only B has right, 10 that only A has, .*"),
    ],
)
def test_the_conclusion_claims_what_the_clips_show(lost: int, won: int, sentence: str) -> None:
    first = [0] * lost + [1] * won + [2] * 3 + [0] * (17 - lost - won)
    second = [1] * lost + [0] * won + [1] * 3 + [0] * (17 - lost - won)

    found = compare(found_by([0] * 20, first), found_by([0] * 20, second))

    assert re.fullmatch(sentence, found.conclude("A", "B"))


def test_predictions_of_other_clips_are_not_compared() -> None:
    with pytest.raises(ValueError, match="predictions of 2 and 2 clips, expected of the same ones"):
        compare(found_by([0, 1], [0, 1]), found_by([0, 1], [0, 1], rows=[1, 2]))
