"""What is said to be odd about videos, and what is not."""

import dataclasses
import re
from typing import Any

import numpy as np
import pytest

from tests.made_facts import EVEN, SPLIT, make_facts, make_split, make_varied_facts, where
from vidcache.cache.format import Split, Status
from vidcache.preprocess.analysis.checks import Finding, Severity, amount, find_all, find_copies, share, some_names
from vidcache.preprocess.analysis.facts import Facts
from vidcache.preprocess.analysis.shortcuts import dependence, study_shortcuts
from vidcache.train.data import audit


def findings(facts: Facts, *, extra: tuple[Finding, ...] = ()) -> tuple[Finding, ...]:
    return find_all(facts, study_shortcuts(facts), extra)


def found(facts: Facts, title: str) -> Finding | None:
    """The one finding whose title matches, if there is one."""
    matches = [finding for finding in findings(facts) if re.search(title, finding.title)]
    assert len(matches) <= 1, matches
    return matches[0] if matches else None


# --- chance -----------------------------------------------------------------------------------


def test_dependence_is_cramers_v_beyond_chance(rng: np.random.Generator) -> None:
    assert pytest.approx(1) == dependence(np.array([20, 0]), np.array([20, 20]))
    assert pytest.approx(0.6) == dependence(np.array([40, 10]), np.array([50, 50]))
    for counts, totals in (([1, 1], [2, 2]), ([5, 5], [5, 5]), ([3], [9]), ([], []), ([3, 5], [9, 9])):
        assert 0 == dependence(np.array(counts), np.array(totals))
    assert [0] * 20 == [dependence(rng.binomial(8, 0.5, 400), np.full(400, 8)) for _ in range(20)]


# --- shortcuts --------------------------------------------------------------------------------


@pytest.mark.parametrize("counts", [{"a": 15, "b": 15}, {"a": 60, "b": 25, "c": 9}, {f"c{k}": 12 for k in range(40)}])
def test_random_labels_are_no_shortcut(counts: dict[str, int]) -> None:
    for seed in range(6):
        study = study_shortcuts(make_varied_facts(counts, seed), seed)

        assert study.together is not None
        assert not study.together.is_significant
        assert () == study.alone


@pytest.mark.parametrize("num_classes", [2, 5, 60])
def test_a_class_that_is_always_60_fps_is_a_shortcut(num_classes: int) -> None:
    counts = {f"c{k}": 16 for k in range(num_classes)}
    fps = np.random.default_rng(1).choice([24.0, 25.0, 30.0], sum(counts.values()))
    fps[16:32] = 60

    facts = make_varied_facts(counts, 1, fps=fps)
    finding = found(facts, "guessed")

    assert finding is not None
    assert Severity.WARNING is finding.severity
    assert "The class can be guessed from frame rate, without looking at the pictures" == finding.title
    others = 16 * (num_classes - 1)
    assert f"c1 by frame rate alone: 16 of 16 found, 0 of {others} others mistaken for it." in finding.detail
    assert f"{sum(counts.values()):,} videos" in finding.detail


@pytest.mark.parametrize(
    ("feature", "columns"),
    [
        ("length", {"num_frames": lambda k, _: 20 + 60 * k}),
        ("frame size", {"width": lambda k, _: 320 + 16 * k}),
        ("codec and pixel format", {"pixel_format": lambda k, _: np.array([b"yuv420p", b"yuv444p", b"nv12"])[k]}),
        ("file size per second", {"source_bytes": lambda k, n: 100_000 * (k + 1) + n}),
    ],
)
def test_each_side_effect_is_named(feature: str, columns: dict[str, Any]) -> None:
    label = np.repeat(np.arange(3), 30)
    noise = np.arange(90) % 7
    facts = make_facts(
        {"a": 30, "b": 30, "c": 30},
        **{
            "num_frames": np.full(90, 100),
            "duration_seconds": np.full(90, 4.0),
            "source_bytes": np.full(90, 90_000),
            **{name: column(label, noise) for name, column in columns.items()},
        },
    )

    study = study_shortcuts(facts)
    finding = found(facts, "guessed")

    assert (feature, 1.0) == (study.alone[0].feature, study.alone[0].accuracy)
    assert finding is not None
    assert f"{feature} alone 100%" in finding.detail
    assert "everything together 100%; guessing 33.3%" in finding.detail


def test_small_differences_of_two_side_effects_are_found_among_others_that_mean_nothing() -> None:
    """28 % against 9 % are 1080p, 24 % against 10 % yuv444p: of 300 such data sets 93 % are found at 1 %."""
    p_values = []
    for seed in range(12):
        rng = np.random.default_rng([1, seed])
        label = np.repeat([0, 1], [131, 130])
        large, dense = (rng.random(261) < np.array(shares)[label] for shares in ((0.28, 0.09), (0.24, 0.10)))
        columns = {"width": np.where(large, 1920, 1280), "height": np.where(large, 1080, 720)}
        pixel_format = np.where(dense, b"yuv444p", b"yuv420p")
        facts = make_varied_facts({"a": 131, "b": 130}, seed, **columns, pixel_format=pixel_format)
        study = study_shortcuts(facts)
        assert study.together is not None
        p_values.append(study.together.p_value)
        if study.together.p_value < 0.01:
            assert {"frame size", "codec and pixel format"} & {found.feature for found in study.alone}

    assert sum(p < 0.01 for p in p_values) >= 10


def test_cuts_of_one_recording_count_once() -> None:
    """24 recordings of 10 cuts each: the resolution of a recording says nothing about one of two classes by chance."""
    wrong = 0
    for seed in range(10):
        rng = np.random.default_rng(seed)
        height = np.repeat(rng.choice([480, 720, 1080], 24), 10)
        facts = make_facts({"a": 120, "b": 120}, height=height, width=height * 4 // 3)
        study = study_shortcuts(dataclasses.replace(facts, group=np.repeat(np.arange(24), 10)))
        wrong += bool(study.together and study.together.p_value < 0.01)
        assert 24 == study.num_videos

    assert wrong <= 1


def test_padding_alone_is_named() -> None:
    facts = make_facts(
        {"a": 30, "b": 30}, num_frames=np.full(60, 100), source_bytes=np.full(60, 9), duration_seconds=np.full(60, 4.0)
    )
    padded = dataclasses.replace(facts, num_real=np.repeat([64, 30], 30))

    assert ["padding"] == [shortcut.feature for shortcut in study_shortcuts(padded).alone]
    assert () == study_shortcuts(facts).alone
    assert study_shortcuts(facts).together is None


def test_a_weak_shortcut_is_a_note() -> None:
    rng = np.random.default_rng(3)
    label = np.repeat([0, 1], 600)
    fps = np.where(rng.random(1200) < 0.6, np.array([25.0, 30.0])[label], np.array([30.0, 25.0])[label])

    finding = found(make_facts({"a": 600, "b": 600}, fps=fps), "guessed")

    assert finding is not None
    assert Severity.NOTE is finding.severity
    assert re.search(r"frame rate alone [56]\d(\.\d)?%.*; guessing 50%", finding.detail)


def test_small_classes_and_too_many_videos_are_left_out() -> None:
    small = study_shortcuts(make_varied_facts({"a": 20, "b": 8, "c": 7, "d": 1}, 0))
    assert (28, 2, 2) == (small.num_videos, small.num_classes, small.num_classes_left_out)
    none = study_shortcuts(make_varied_facts({"a": 20, "b": 7}, 0))
    assert (1, 1, None, ()) == (none.num_classes, none.num_classes_left_out, none.together, none.alone)
    large = make_varied_facts({f"c{k}": 400 for k in range(20)}, 0)
    study = study_shortcuts(large)
    assert (5000, 20, 0) == (study.num_videos, study.num_classes, study.num_classes_left_out)
    assert study_shortcuts(large) == study
    assert study_shortcuts(large, seed=1) != study


# --- findings ---------------------------------------------------------------------------------


@pytest.mark.parametrize("facts", [make_facts(EVEN), make_facts(EVEN, split=SPLIT)])
def test_ordinary_videos_are_not_odd(facts: Facts) -> None:
    assert () == findings(facts)


def test_findings_come_worst_first_and_extra_ones_are_sorted_in() -> None:
    extra = tuple(Finding(severity, f"extra {severity}", "", "") for severity in (Severity.NOTE, Severity.PROBLEM))

    said = findings(make_facts({"a": 40, "b": 10}, skipped={"outside a class folder": 2}), extra=extra)

    assert ["problem", "warning", "note", "note", "note"] == [finding.severity.value for finding in said]
    assert ("extra problem", "extra note") == (said[0].title, said[2].title)


@pytest.mark.parametrize(
    ("counts", "severity", "ratio"),
    [
        ({"a": 79, "b": 40}, None, ""),
        ({"a": 80, "b": 40}, Severity.NOTE, "2.0"),
        ({"a": 240, "b": 40}, Severity.WARNING, "6.0"),
    ],
)
def test_imbalance(counts: dict[str, int], severity: Severity | None, ratio: str) -> None:
    finding = found(make_facts(counts), "times the smallest")

    assert severity is (finding.severity if finding else None)
    if finding:
        assert f"The largest class is {ratio} times the smallest" == finding.title
        assert finding.detail.startswith(f"a has {counts['a']} videos, b 40; the median is ")
        assert f"weighs {ratio} times as much as the largest" in finding.advice
        labels = np.repeat([0, 1], list(counts.values()))
        for balance, expected in (("both", 1 / float(ratio)), ("sampler", 1.0), ("loss", 1.0), ("none", float(ratio))):
            a, b = (row.influence for row in audit(["a", "b"], labels, balance))
            assert pytest.approx(expected) == a / b, "what the advice says of --balance"


def test_imbalance_of_a_cache_is_that_of_its_training_clips() -> None:
    counts = {"a": 60, "b": 40}

    finding = found(make_facts(counts, split=make_split(counts, test=10, val=20)), "times the smallest")

    assert finding is not None
    assert finding.detail.startswith("a has 30 training clips, b 10;")


def test_classes_too_small_to_evaluate() -> None:
    expected = found(make_facts({"a": 34, "b": 33, "c": 20}), "test clips")
    counts = {"a": 40, "b": 40, "c": 40}
    split = np.concatenate([make_split({"": 40}, test=test) for test in (5, 4, 0)])
    actual = found(make_facts(counts, split=split), "test clips")

    assert expected is not None
    assert actual is not None
    assert "2 classes have fewer than 5 test clips" == expected.title
    assert expected.detail.startswith("c (3), b (4.95), expected at 15% of their videos. With 3 clips, 3 right of 3")
    assert "from 44% to 100%" in expected.detail
    assert "1 class has fewer than 5 test clips" == actual.title
    assert actual.detail.startswith("b (4), in the test split. With 4 clips, 4 right of 4")
    assert found(make_facts({"a": 34, "b": 34}), "test clips") is None


@pytest.mark.parametrize(
    ("split", "severity"),
    [(Split.TRAIN, Severity.PROBLEM), (Split.VAL, Severity.WARNING), (Split.TEST, Severity.WARNING)],
)
def test_classes_absent_from_a_split(split: Split, severity: Severity) -> None:
    column = SPLIT.copy()
    column[(column == split) & (np.arange(120) < 40)] = (split + 1) % 3
    name = split.name.lower()

    finding = found(make_facts(EVEN, split=column), rf"no {name} clip")

    assert finding is not None
    assert (severity, f"1 class has no {name} clip") == (finding.severity, finding.title)
    assert "a (40 clips in all)." == finding.detail
    assert found(make_facts(EVEN, split=SPLIT), f"no {name} clip") is None


def test_classes_without_a_clip_and_a_single_class() -> None:
    failed = make_facts(EVEN, status=where(list(range(40)), Status.FAILED, np.zeros(120, np.uint8)))

    finding = found(failed, "no clip at all")
    single = found(make_facts({"a": 40}), "only one class")

    assert finding is not None
    assert (Severity.PROBLEM, "All videos failed of a (40 videos).") == (finding.severity, finding.detail)
    assert single is not None
    assert "All videos are in a." == single.detail
    assert found(failed, "only one class") is None


@pytest.mark.parametrize(
    ("column", "base", "value", "what", "shown"),
    [
        ("duration_seconds", 4.0, 228.0, "length", "228 s"),
        ("fps", 25.0, 120.0, "frame rate", "120 per second"),
        ("width", 320, 3200, "frame size", "768,000 pixels"),
    ],
)
def test_outliers(column: str, base: float, value: float, what: str, shown: str) -> None:
    values = np.full(120, base) * np.linspace(0.9, 1.1, 120)
    odd = where([7, 9, 11, 13], value, values)

    finding = found(make_facts(EVEN, **{column: odd.astype(type(base))}), f"far from the others in {what}")

    assert finding is not None
    assert (Severity.NOTE, f"4 videos are far from the others in {what}") == (finding.severity, finding.title)
    assert (
        f"the farthest: c0/000007.mp4 ({shown}), c0/000009.mp4 ({shown}), c0/000011.mp4 ({shown}) and 1 more"
        in finding.detail
    )
    for usual in (values, where([7], 1.9 * base, values)):
        assert found(make_facts(EVEN, **{column: usual.astype(type(base))}), "far from") is None


def test_a_wide_range_of_lengths_has_no_outliers(rng: np.random.Generator) -> None:
    seconds = np.exp(rng.normal(1, 1, 120))

    assert found(make_facts(EVEN, duration_seconds=seconds), "far from the others in length") is None
    assert found(make_facts({"a": 7}, duration_seconds=np.array([1, 1, 1, 1, 1, 1, 99.0])), "far from") is None


def test_coarse_sampling() -> None:
    long = {"num_frames": 5700, "duration_seconds": 228.0}
    usual = make_facts(EVEN)

    def facts(rows: list[int]) -> Facts:
        return make_facts(EVEN, **{name: where(rows, value, getattr(usual, name)) for name, value in long.items()})

    one, many = found(facts([3]), "fewer than 2 frames"), found(facts(list(range(13))), "fewer than 2 frames")

    assert one is not None
    assert many is not None
    assert (Severity.NOTE, "1 clip has fewer than 2 frames per second") == (one.severity, one.title)
    assert "1 of 120 (1%); the fewest: 0.28 per second, 64 frames of 228 s in c0/000003.mp4" in one.detail
    assert (Severity.WARNING, "13 clips have fewer than 2 frames per second") == (many.severity, many.title)
    slow = make_facts(EVEN, num_frames=where([3], 5, usual.num_frames), fps=where([3], 1.0, usual.fps))
    assert found(slow, "fewer than 2 frames") is None, "a padded clip has every frame there is"


def test_blank_pictures() -> None:
    yes = where([1, 2], True, np.zeros(120, bool))
    still = where([5], True, yes)
    num_frames = where([5], 1, make_facts(EVEN).num_frames)

    facts = make_facts(EVEN, split=SPLIT, black=yes, still=still, num_frames=num_frames)
    black, frozen = found(facts, "black"), found(facts, "not move")

    assert black is not None
    assert frozen is not None
    assert (Severity.WARNING, "2 clips are black") == (black.severity, black.title)
    assert "Mean brightness below 1 of 255: c0/000001.mp4, c0/000002.mp4." == black.detail
    assert "1 clip does not move" == frozen.title
    assert "no value changes by more than 10 of 255: c0/000005.mp4. Of these, 1 has a single frame." in frozen.detail


def test_copies() -> None:
    hashes = make_facts(EVEN).source_hash
    copied = where([3, 4, 5, 6], hashes[2], hashes)

    folder = found(make_facts(EVEN, source_hash=copied), "exact cop")
    cache = make_facts(
        EVEN, split=SPLIT, source_hash=where([3], hashes[2], hashes), clip_hash=where([4], hashes[3], hashes)
    )
    one_split = found(cache, "exact cop")

    assert folder is not None
    assert one_split is not None
    assert (Severity.WARNING, "4 videos are exact copies of another") == (folder.severity, folder.title)
    assert (
        "1 group of the same file or clip, in one class: c0/000002.mp4 = c0/000003.mp4 = c0/000004.mp4 = 2 more."
        == folder.detail
    )
    assert (Severity.NOTE, "2 videos are exact copies of another") == (one_split.severity, one_split.title)
    assert (
        "one class and one split: c0/000002.mp4 (train) = c0/000003.mp4 (train) = c0/000004.mp4 (train)."
        in one_split.detail
    )


def test_copies_in_two_splits_and_under_two_labels() -> None:
    hashes = make_facts(EVEN).source_hash
    leaking = make_facts(EVEN, split=SPLIT, clip_hash=where([25], hashes[2], hashes))
    clashing = make_facts(EVEN, source_hash=where([45], hashes[2], hashes))

    leak, clash = found(leaking, "more than one split"), found(clashing, "two labels")

    assert leak is not None
    assert clash is not None
    assert (Severity.PROBLEM, "1 video is in more than one split") == (leak.severity, leak.title)
    assert "different splits: c0/000002.mp4 (train) = c0/000025.mp4 (val)." in leak.detail
    assert (Severity.PROBLEM, "1 video is under two labels") == (clash.severity, clash.title)
    assert "different classes: c0/000002.mp4 = c1/000045.mp4." in clash.detail
    assert found(leaking, "two labels") is None
    assert found(leaking, "exact cop") is None
    unused = make_facts(EVEN, split=where([25], Split.UNUSED, SPLIT), clip_hash=leaking.clip_hash)
    assert found(unused, "more than one split") is None


def test_what_is_black_is_no_copy_but_by_its_file() -> None:
    hashes = make_facts(EVEN).source_hash
    black = where([2, 60], True, np.zeros(120, bool))

    facts = make_facts(EVEN, split=SPLIT, black=black, clip_hash=where([60], hashes[2], hashes))

    assert [] == find_copies(facts)
    assert [[2, 60]] == [rows.tolist() for rows in find_copies(dataclasses.replace(facts, source_hash=facts.clip_hash))]


def test_padding() -> None:
    usual = make_facts(EVEN).num_frames

    alike = found(make_facts(EVEN, num_frames=where(list(range(0, 120, 5)), 32, usual)), "padded")
    unlike = found(make_facts(EVEN, num_frames=where(list(range(36)), 32, usual)), "padded")

    assert alike is not None
    assert unlike is not None
    assert (Severity.NOTE, "24 clips are padded") == (alike.severity, alike.title)
    assert (
        "24 of 120 (20%) have fewer than 64 frames and repeat their last one; 50% of such a clip is repetition."
        == alike.detail
    )
    assert "36 clips are padded, and not alike in all classes" == unlike.title
    assert "From 0% of b to 90% of a." in unlike.detail
    assert found(make_facts(EVEN, num_frames=where([1, 2, 3, 4, 5], 32, usual)), "padded") is None


def test_failures() -> None:
    def facts(rows: list[int], status: Status, error: bytes) -> Facts:
        column = where(rows, status, np.zeros(120, np.uint8))
        return make_facts(EVEN, status=column, error=where(rows, error, np.zeros(120, "S240")))

    few = found(facts([0, 50], Status.FAILED, b"no_frames: nothing"), "failed")
    many = found(facts(list(range(13)), Status.FAILED, b"unreadable: nothing"), "failed")
    damaged = found(facts([7], Status.DAMAGED, b"decode_error: 12 packets"), "damaged")

    assert few is not None
    assert many is not None
    assert damaged is not None
    assert (Severity.WARNING, "2 videos failed") == (few.severity, few.title)
    assert "2 of 120 (2%): 2 no_frames. For example c0/000000.mp4, c1/000050.mp4." == few.detail
    assert Severity.PROBLEM is many.severity
    assert (Severity.NOTE, "1 video came out damaged") == (damaged.severity, damaged.title)
    assert "1 of 120 (1%): 1 decode_error. For example c0/000007.mp4." == damaged.detail


def test_mixtures_are_notes() -> None:
    rows = list(range(0, 120, 4))
    usual = make_facts(EVEN)
    facts = make_facts(
        EVEN,
        codec=where(rows, b"vp9", usual.codec.astype("S5")),
        fps=where(rows, 30.0, usual.fps),
        width=where(rows, 135, usual.width),
    )

    finding = found(facts, "not all of one kind")
    rare = make_facts(EVEN, codec=where([1], b"vp9", usual.codec))

    assert finding is not None
    assert Severity.NOTE is finding.severity
    assert (
        "codecs: h264 75%, vp9 25%; frame rates: 25 fps 75%, 30 fps 25%; shapes: landscape 75%, portrait 25%."
        == finding.detail
    )
    assert found(rare, "not all of one kind") is None


def test_files_outside_the_class_folders() -> None:
    finding = found(make_facts(EVEN, skipped={"outside a class folder": 2, "hidden": 5}), "outside")

    assert finding is not None
    assert (Severity.NOTE, "2 files lie outside the class folders") == (finding.severity, finding.title)
    assert found(make_facts(EVEN, skipped={"hidden": 5}), "outside") is None


def test_names_and_shares_in_words() -> None:
    assert ("a, b", "a, b, c and 9 more") == (some_names(["a", "b"], 2), some_names(["a", "b", "c", "d"], 12))
    assert ("0.281", "8.83", "768,000") == (amount(0.28125), amount(8.8345), amount(768000.0))
    assert ("0 of 9 (0%)", "1 of 1,000 (under 1%)") == (share(0, 9), share(1, 1000))
