"""Metrics against scikit-learn on random predictions, and against definitions."""

import re

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve
from sklearn.metrics import accuracy_score, f1_score, recall_score, top_k_accuracy_score

from vidcache.eval.inference import Predictions
from vidcache.eval.intervals import bootstrap_intervals, compare, wilson_interval
from vidcache.eval.metrics import calibrate, compute_metrics, describe_calibration


def predictions(n: int, k: int, seed: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet(np.full(k, 0.5), n).astype(np.float32)
    return rng.integers(0, k, n), probabilities


@given(st.integers(1, 60), st.integers(2, 12), st.integers(0, 10**6))
def test_they_equal_scikit_learn(n: int, k: int, seed: int) -> None:
    labels, probabilities = predictions(n, k, seed)
    predicted = probabilities.argmax(1)
    present = np.unique(labels)

    found = compute_metrics(labels, probabilities, [str(c) for c in range(k)])

    settings = {"labels": present, "average": "macro", "zero_division": 0}
    assert accuracy_score(labels, predicted) == found.accuracy
    assert pytest.approx(recall_score(labels, predicted, **settings)) == found.balanced_accuracy
    assert pytest.approx(f1_score(labels, predicted, **settings)) == found.macro_f1
    if k > 5:
        expected = top_k_accuracy_score(labels, probabilities, k=5, labels=range(k))
        assert pytest.approx(expected) == found.top5_accuracy
    else:
        assert 1 == found.top5_accuracy
    assert n == found.confusion.sum() == found.num_clips
    assert (k, k) == found.confusion.shape
    for c, result in enumerate(found.per_class):
        counts = (labels == c).sum(), ((labels == c) & (predicted == c)).sum()
        assert counts == (result["num_clips"], result["num_correct"])


def test_the_reference_result_has_the_published_interval() -> None:
    assert pytest.approx((0.886, 0.978), abs=5e-4) == wilson_interval(93, 98)


def test_a_class_without_clips_is_not_zero_percent_and_few_clips_are_too_few() -> None:
    labels, probabilities = np.array([0, 0, 2, 2, 2, 2, 2]), np.eye(3, dtype=np.float32)[[0, 2, 2, 2, 2, 2, 2]]

    found = compute_metrics(labels, probabilities, ["a", "b", "c"])

    assert (None, None) == (found.per_class[1]["accuracy"], found.per_class[1]["low"])
    assert [True, False, False] == [result["too_few_to_claim"] for result in found.per_class]
    assert pytest.approx((0.5 + 1) / 2) == found.balanced_accuracy
    assert pytest.approx(5 / 7) == found.majority_fraction
    assert [[1, 0, 1], [0, 0, 0], [0, 0, 5]] == found.confusion.tolist()


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 3), r"2 labels and probabilities \(2, 3\), expected \(n, 2\)"),
        ((0, 2), r"0 labels and probabilities \(0, 2\), expected \(n, 2\), n >= 1"),
        ((4, 2), "4 of 4 predictions are not finite"),
    ],
)
def test_what_are_no_predictions_is_refused(shape: tuple[int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compute_metrics(np.zeros(shape[0], np.int64), np.full(shape, np.nan, np.float32), ["a", "b"])


def confused(n: int, k: int, seed: int) -> npt.NDArray[np.int64]:
    labels, probabilities = predictions(n, k, seed)
    return compute_metrics(labels, probabilities, [str(c) for c in range(k)]).confusion


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
    confidence, correct = probabilities.max(1), probabilities.argmax(1) == labels

    result = calibrate(labels, probabilities)

    filled = [b for b in result["bins"] if b["num_clips"]]
    if 0 < correct.sum() < n:  # scikit-learn wants both outcomes
        accuracy, mean = calibration_curve(correct, confidence, n_bins=10, strategy="uniform")
        assert pytest.approx(accuracy) == [b["accuracy"] for b in filled]
        assert pytest.approx(mean, rel=1e-5) == [b["confidence"] for b in filled]
    assert n == sum(b["num_clips"] for b in result["bins"])
    expected = sum(b["num_clips"] * abs(b["accuracy"] - b["confidence"]) for b in filled) / n
    assert pytest.approx(expected) == result["error"]
    assert 10 == len(result["bins"])
    for b in filled:
        assert b["low"] - 1e-6 <= b["confidence"] <= b["high"] + 1e-6
        interval = wilson_interval(round(b["accuracy"] * b["num_clips"]), b["num_clips"])
        assert interval == (b["accuracy_low"], b["accuracy_high"])


@pytest.mark.parametrize(
    ("confidence", "error_rate", "verdict"),
    [
        (0.95, 0.05, "within chance for 400 clips, < 0.0"),
        (0.95, 0.4, "overconfident"),
        (0.55, 0.05, "underconfident"),
    ],
)
def test_a_miscalibrated_model_is_told_from_one_that_had_few_clips(
    confidence: float, error_rate: float, verdict: str
) -> None:
    probabilities = np.tile(np.array([[confidence, 1 - confidence]], np.float32), (400, 1))
    labels = (np.random.default_rng(0).random(400) < error_rate).astype(np.int64)

    result = calibrate(labels, probabilities)

    text = describe_calibration(result)
    assert text.startswith(f"mean confidence {confidence:.1%}, accuracy {result['accuracy']:.1%}, ECE 0.")
    assert verdict in text


def test_errors_of_both_kinds_that_cancel_are_named() -> None:
    probabilities = np.repeat(np.array([[0.6, 0.4], [0.95, 0.05]], np.float32), 500, axis=0)
    labels = np.concatenate([np.arange(500) >= 400, np.arange(500) >= 375]).astype(np.int64)  # 80 and 75 % correct

    result = calibrate(labels, probabilities)

    assert pytest.approx(0.2, abs=0.01) == result["error"]
    assert describe_calibration(result).endswith(": overconfident on some clips, underconfident on others")


def test_the_most_frequent_confusions_are_named() -> None:
    names = ["a", "b\x1b", "c"]
    labels = np.array([0, 0, 0, 0, 1, 1, 2, 2])
    guesses = np.eye(3, dtype=np.float32)[[0, 1, 1, 2, 0, 1, 2, 2]]
    metrics = compute_metrics(labels, guesses, names)

    expected = [r"a -> b\x1b: 2 of 4 clips", r"b\x1b -> a: 1 of 2 clips", "a -> c: 1 of 4 clips"]
    assert expected == metrics.top_confusions(9)
    assert expected[:1] == metrics.top_confusions(1)


# --- two models on the same clips ---------------------------------------------------------------


def predicted(labels: list[int], guesses: list[int], rows: list[int] | None = None) -> Predictions:
    probabilities = np.eye(3, dtype=np.float32)[guesses]
    return Predictions(
        np.array(rows or range(len(labels))), np.array(labels), probabilities, np.zeros(len(labels), np.float32)
    )


def test_a_comparison_counts_clips_in_pairs() -> None:
    labels = [0, 0, 1, 1, 2, 2]

    result = compare(predicted(labels, [0, 1, 1, 0, 0, 0]), predicted(labels, [0, 0, 1, 1, 1, 2]))

    names = "num_clips num_both num_only_first num_only_second num_neither num_changed".split()
    assert [6, 2, 0, 3, 1, 4] == [result[name] for name in names]
    assert 0.5 == result["difference"]
    assert result["difference_low"] < 0.5 < result["difference_high"]
    assert pytest.approx(0.25) == result["p_value"]
    assert (5 / 6, *wilson_interval(5, 6)) == tuple(result[f"second_{name}"] for name in ("accuracy", "low", "high"))


def test_the_interval_of_a_difference_is_that_of_drawing_pairs() -> None:
    rng = np.random.default_rng(2)
    labels = rng.integers(0, 3, 90)
    first, second = (np.where(rng.random(90) < p, labels, rng.integers(0, 3, 90)) for p in (0.5, 0.7))
    gain = (second == labels).astype(int) - (first == labels)
    drawn = []
    for _ in range(2000):
        rows = np.concatenate([rng.choice(own, len(own)) for own in (np.flatnonzero(labels == c) for c in range(3))])
        drawn.append(gain[rows].mean())

    result = compare(predicted(labels.tolist(), first.tolist()), predicted(labels.tolist(), second.tolist()))

    assert pytest.approx(np.percentile(drawn, [2.5, 97.5]), abs=0.02) == np.array(
        [result["difference_low"], result["difference_high"]]
    )


@pytest.mark.parametrize(
    ("lost", "won", "sentence"),
    [
        (0, 0, "A and B are correct on the same 17 of 20 clips: no difference."),
        (
            2,
            4,
            r"No significant difference between A and B on 20 clips \(\+10.0 points, 95 % CI -\d+.\d to \+\d+.\d, "
            r"McNemar p = 0.69\): 4 correct only by B, 2 only by A.",
        ),
        (1, 10, r"B is better than A on 20 clips \(\+45.0 points, .* p = 0.012\): 10 correct only by B, 1 only by A."),
        (10, 1, r"A is better than B on 20 clips \(-45.0 points, .*\): 1 correct only by B, 10 only by A."),
    ],
)
def test_the_conclusion_claims_what_the_clips_show(lost: int, won: int, sentence: str) -> None:
    first = [0] * lost + [1] * won + [2] * 3 + [0] * (17 - lost - won)
    second = [1] * lost + [0] * won + [1] * 3 + [0] * (17 - lost - won)

    result = compare(predicted([0] * 20, first), predicted([0] * 20, second), ("A", "B"))

    assert re.fullmatch(sentence, result["conclusion"])


def test_predictions_of_other_clips_are_not_compared() -> None:
    with pytest.raises(ValueError, match="predictions of 2 and 2 clips, expected of the same clips"):
        compare(predicted([0, 1], [0, 1]), predicted([0, 1], [0, 1], rows=[1, 2]))
