"""The split: stratified, seeded, stable."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vidcache.cache.layout import Split
from vidcache.preprocess.split import assign_splits, parse_fractions, split_counts

DEFAULT = (0.70, 0.15, 0.15)


@given(
    st.integers(0, 3000), st.sampled_from([DEFAULT, (0.8, 0.1, 0.1), (0.34, 0.33, 0.33), (0.8, 0.2, 0.0), (1, 0, 0)])
)
def test_counts_sum_up_and_are_as_near_as_whole_clips_allow(n: int, fractions: tuple[float, float, float]) -> None:
    counts = split_counts(n, fractions)

    assert n == sum(counts)
    wanted = [k for k in range(3) if fractions[k] > 0]
    if n >= len(wanted):
        assert all(counts[k] >= 1 for k in wanted)
        minimum = [k for k in wanted if counts[k] == 1 and n * fractions[k] < 1]
        for k in range(3):
            if k not in minimum and not minimum:
                assert abs(counts[k] - n * fractions[k]) < 1
    assert all(counts[k] == 0 for k in range(3) if fractions[k] == 0 and n >= len(wanted))


@pytest.mark.parametrize(
    ("n", "expected"), [(0, (0, 0, 0)), (1, (1, 0, 0)), (2, (1, 0, 1)), (3, (1, 1, 1)), (7, (5, 1, 1))]
)
def test_small_classes(n: int, expected: tuple[int, int, int]) -> None:
    assert expected == split_counts(n, DEFAULT)


def _paths(n: int) -> list[bytes]:
    return [b"c/%05d.mp4" % k for k in range(n)]


@given(st.lists(st.integers(0, 4), min_size=1, max_size=120), st.integers(0, 2**40))
def test_every_class_is_divided_by_itself(labels: list[int], seed: int) -> None:
    split = assign_splits(_paths(len(labels)), labels, [True] * len(labels), DEFAULT, seed)

    for label in set(labels):
        members = split[np.array(labels) == label]
        assert split_counts(len(members), DEFAULT) == tuple(np.bincount(members, minlength=3).tolist())


def test_another_seed_gives_another_split_and_the_same_seed_the_same() -> None:
    paths, labels, good = _paths(100), [0] * 100, [True] * 100

    first = assign_splits(paths, labels, good, DEFAULT, 0)

    assert (first == assign_splits(paths, labels, good, DEFAULT, 0)).all()
    assert (first != assign_splits(paths, labels, good, DEFAULT, 1)).any()


def test_adding_a_video_moves_few_others() -> None:
    paths = _paths(201)

    before = assign_splits(paths[:200], [0] * 200, [True] * 200, DEFAULT, 0)
    after = assign_splits(paths, [0] * 201, [True] * 201, DEFAULT, 0)

    assert (before != after[:200]).sum() <= 2


def test_failed_videos_do_not_count() -> None:
    good = np.ones(20, bool)
    good[:10] = False

    split = assign_splits(_paths(20), [0] * 20, good, DEFAULT, 0)

    assert (split[:10] == Split.TRAIN).all()
    assert split_counts(10, DEFAULT) == tuple(np.bincount(split[10:], minlength=3).tolist())


def test_fractions_are_percentages_or_shares() -> None:
    assert pytest.approx(DEFAULT) == parse_fractions("70/15/15")
    assert pytest.approx((0.8, 0.2, 0)) == parse_fractions("0.8/0.2/0")


@pytest.mark.parametrize("text", ["70/30", "70/20/20", "a/b/c", "", "-10/60/50", "0/50/50", "nan/50/50"])
def test_other_fractions_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=f"split {text!r}, expected train/val/test percentages that sum to 100"):
        parse_fractions(text)
