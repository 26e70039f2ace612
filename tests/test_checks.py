"""What `vidcache analyze` finds in videos, and what it does not."""

import dataclasses
import re
from typing import Any

import numpy as np
import pytest

from tests.made_facts import EVEN, SPLIT, make_facts, make_split, make_varied_facts, where
from vidcache.cache.format import Split, Status
from vidcache.preprocess.analysis.checks import Finding, Severity, amount, find_copies, join, run_checks, share
from vidcache.preprocess.analysis.facts import Facts
from vidcache.preprocess.analysis.shortcuts import find_shortcuts

PROBLEM, WARNING, NOTE = Severity
NO_STUDY: dict[str, Any] = {"results": []}
USUAL = make_facts(EVEN)
NO = np.zeros(120, bool)


def finding_of(facts: Facts, title: str, study: dict[str, Any] = NO_STUDY) -> Finding | None:
    """The one finding whose title has these words, if there is one."""
    matches = [finding for finding in run_checks(facts, study) if re.search(title, finding.title)]
    assert len(matches) <= 1, matches
    return matches[0] if matches else None


# --- shortcuts --------------------------------------------------------------------------------


@pytest.mark.parametrize("counts", [{"a": 15, "b": 15}, {"a": 60, "b": 25, "c": 9}, {f"c{k}": 12 for k in range(40)}])
def test_random_labels_are_no_shortcut(counts: dict[str, int]) -> None:
    for seed in range(3):
        (together,) = find_shortcuts(make_varied_facts(counts, seed), seed)["results"]

        assert ("everything together", False) == (together["feature"], together["is_significant"])


@pytest.mark.parametrize("num_classes", [2, pytest.param(60, marks=pytest.mark.slow)])
def test_a_class_that_is_always_60_fps_is_a_shortcut(num_classes: int) -> None:
    counts = {f"c{k}": 16 for k in range(num_classes)}
    fps = np.random.default_rng(1).choice([24.0, 25.0, 30.0], sum(counts.values()))
    facts = make_varied_facts(counts, 1, fps=where(slice(16, 32), 60, fps))

    finding = finding_of(facts, "guessed", find_shortcuts(facts))

    assert finding is not None
    assert WARNING is finding.severity
    assert "The class can be guessed from frame rate, without looking at the pictures" == finding.title
    others = 16 * (num_classes - 1)
    assert f"c1 by frame rate: 16 of 16 recognised, 0 of {others} others mistaken for it." in finding.detail
    assert f"cross-validated on {sum(counts.values()):,} videos" in finding.detail


@pytest.mark.parametrize(
    ("feature", "column", "values"),
    [
        ("length", "num_frames", [70, 130, 190]),
        ("padding", "num_real", [64, 40, 20]),
        ("frame size", "width", [320, 336, 352]),
        ("codec and pixel format", "pixel_format", [b"yuv420p", b"yuv444p", b"nv12"]),
        ("file size per second", "source_bytes", [100_000, 200_000, 300_000]),
    ],
)
def test_each_feature_is_named(feature: str, column: str, values: list[Any]) -> None:
    same = {"num_frames": np.full(90, 100), "duration_seconds": np.full(90, 4.0), "source_bytes": np.full(90, 90_000)}
    facts = make_facts({"a": 30, "b": 30, "c": 30}, **(same | {column: np.repeat(values, 30)}))

    study = find_shortcuts(facts)
    finding = finding_of(facts, "guessed", study)

    assert (feature, 1.0) == (study["results"][1]["feature"], study["results"][1]["accuracy"])
    assert finding is not None
    assert f"everything together 100.0%, {feature} 100.0%, chance 33.3%" in finding.detail


@pytest.mark.slow
def test_small_differences_of_two_features_are_found_among_others_that_mean_nothing() -> None:
    """28 % against 9 % are 1080p, 24 % against 10 % yuv444p: of 300 such data sets 93 % are found at 1 %."""
    num_found = 0
    for seed in range(12):
        rng = np.random.default_rng([1, seed])
        label = np.repeat([0, 1], [131, 130])
        large, dense = (rng.random(261) < np.array(shares)[label] for shares in ((0.28, 0.09), (0.24, 0.10)))
        columns = {"width": np.where(large, 1920, 1280), "height": np.where(large, 1080, 720)}
        pixel_format = np.where(dense, b"yuv444p", b"yuv420p")
        facts = make_varied_facts({"a": 131, "b": 130}, seed, **columns, pixel_format=pixel_format)
        together, *alone = find_shortcuts(facts)["results"]
        if together["p_value"] < 0.01:
            num_found += 1
            assert {"frame size", "codec and pixel format"} & {result["feature"] for result in alone}

    assert num_found >= 10


@pytest.mark.slow
def test_cuts_of_one_recording_count_once() -> None:
    """24 recordings of 10 cuts each: the resolution of a recording tells one of two classes only by chance."""
    num_wrong = 0
    for seed in range(10):
        height = np.repeat(np.random.default_rng(seed).choice([480, 720, 1080], 24), 10)
        facts = make_facts({"a": 120, "b": 120}, height=height, width=height * 4 // 3)
        study = find_shortcuts(dataclasses.replace(facts, group=np.repeat(np.arange(24), 10)))
        num_wrong += study["results"][0]["p_value"] < 0.01
        assert 24 == study["num_videos"]

    assert num_wrong <= 1


def test_a_weak_shortcut_is_a_note() -> None:
    rng, label = np.random.default_rng(3), np.repeat([0, 1], 300)
    fps = np.where(rng.random(600) < 0.6, np.array([25.0, 30.0])[label], np.array([30.0, 25.0])[label])
    facts = make_facts({"a": 300, "b": 300}, fps=fps)

    finding = finding_of(facts, "guessed", find_shortcuts(facts))

    assert finding is not None
    assert NOTE is finding.severity
    assert re.search(r"frame rate [56]\d\.\d%, chance 50.0%", finding.detail)


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ({"a": 20, "b": 8, "c": 7, "d": 1}, (28, 2, 2)),
        ({"a": 20, "b": 7}, (20, 1, 1)),
        pytest.param({f"c{k}": 400 for k in range(20)}, (5000, 20, 0), marks=pytest.mark.slow),
    ],
)
def test_small_classes_and_too_many_videos_are_left_out(counts: dict[str, int], expected: tuple[int, ...]) -> None:
    study = find_shortcuts(make_varied_facts(counts, 0))

    assert expected == (study["num_videos"], study["num_classes"], study["num_classes_left_out"])
    assert (study["num_classes"] < 2) == (study["results"] == [])


# --- findings ---------------------------------------------------------------------------------


@pytest.mark.parametrize("facts", [make_facts(EVEN), make_facts(EVEN, split=SPLIT)])
def test_nothing_is_found_in_ordinary_videos(facts: Facts) -> None:
    assert [] == run_checks(facts, find_shortcuts(facts))


def test_findings_come_worst_first() -> None:
    more = [Finding(severity, f"more {severity}", "", "") for severity in (NOTE, PROBLEM)]

    findings = run_checks(make_facts({"a": 40, "b": 10}, skipped={"outside a class folder": 2}), NO_STUDY, more)

    assert ["problem", "warning", "note", "note", "note"] == [finding.severity.value for finding in findings]
    assert "more problem" == findings[0].title


HASHES, SIZES = USUAL.source_hash, np.linspace(0.9, 1.1, 120)
BASE = {**vars(USUAL), "split": SPLIT, "clip_hash": HASHES, "black": NO, "still": NO, "duration_seconds": 4 * SIZES}


def odd(**cells: tuple[Any, Any]) -> dict[str, Any]:
    """Columns with another value in some rows: those of a cache, if the split is one of them."""
    return {name: where(rows, value, BASE[name]) for name, (rows, value) in cells.items()}


CASES = {
    "warning: Failed videos: 2; 2 of 120 (2%): c0/000000.mp4 (no_frames), c1/000050.mp4 (no_frames).": odd(
        status=([0, 50], Status.FAILED), error=([0, 50], b"no_frames: nothing")
    ),
    "problem: Failed videos: 13; 13 of 120 (11%): c0/000000.mp4": odd(status=(range(13), Status.FAILED)),
    "note: Damaged videos: 1; 1 of 120 (1%): c0/000007.mp4": odd(status=([7], Status.DAMAGED)),
    "problem: Classes of which all videos failed: 1; 1 of 3 (33%): a (40)": odd(status=(range(40), Status.FAILED)),
    "problem: Classes without a train clip: 1; 1 of 3 (33%): a (40).": odd(split=(range(20), Split.VAL)),
    "warning: Classes without a val clip: 1; 1 of 3 (33%): a (40).": odd(split=(range(20, 30), Split.TRAIN)),
    "warning: Classes without a test clip: 1; 1 of 3 (33%): a (40).": odd(split=(range(30, 40), Split.TRAIN)),
    "warning: Classes with fewer than 5 test clips: 1; 1 of 3 (33%): a (3)": odd(split=(range(33, 40), Split.TRAIN)),
    "warning: Black clips: 1; 1 of 120 (1%): c0/000002.mp4.": odd(split=([], 0), black=([2], True), still=([2], True)),
    "warning: Clips that do not move: 1; 1 of 120 (1%): c0/000005.mp4.": odd(split=([], 0), still=([5], True)),
    "note: Clips with fewer than 2 frames per second: 1; 1 of 120 (1%): c0/000003.mp4 (0.28 in 228 s).": odd(
        num_frames=([3], 5700), duration_seconds=([3], 228.0)
    ),
    "warning: Clips with fewer than 2 frames per second: 13; 13 of 120 (11%)": odd(duration_seconds=(range(13), 228.0)),
    "note: Clips of fewer than 64 frames, which repeat the last one: 24; 24 of 120 (20%): c0/000000.mp4 (32": odd(
        num_frames=(range(0, 120, 5), 32)
    ),
    "note: HDR videos (PQ or HLG): 1; 1 of 120 (1%): c0/000001.mp4.": odd(transfer=([1], b"arib-std-b67")),
    "note: Files outside the class folders: 2; They": {"skipped": {"outside a class folder": 2}},
    "warning: The folder can be read in another way; a; 1 link": {"notes": ("a", "1 link was not followed")},
    "warning: Groups of exact copies: 1; c0/000002.mp4 = c0/000003.mp4 = c0/000004.mp4 and 2 more.": odd(
        source_hash=([3, 4, 5, 6], HASHES[2])
    ),
    "note: Groups of exact copies: 1; c0/000002.mp4 (train) = c0/000003.mp4 (train).": odd(
        split=([], 0), clip_hash=([3], HASHES[2])
    ),
    "problem: The same video in more than one split: 1; c0/000002.mp4 (train) = c0/000025.mp4 (val).": odd(
        split=([], 0), clip_hash=([25], HASHES[2])
    ),
    "problem: The same video under two labels: 1; c0/000002.mp4 = c1/000045.mp4.": odd(source_hash=([45], HASHES[2])),
}


@pytest.mark.parametrize(("expected", "columns"), CASES.items())
def test_findings(expected: str, columns: dict[str, Any]) -> None:
    findings = run_checks(make_facts(EVEN, **columns), NO_STUDY)

    texts = [f"{finding.severity}: {finding.title}; {finding.detail}" for finding in findings]
    assert 1 == sum(text.startswith(expected) for text in texts), texts


@pytest.mark.parametrize(
    ("columns", "title"),
    [
        (odd(num_frames=([3], 5), fps=([3], 1.0)), "frames per second"),
        (odd(num_frames=(range(5), 32)), "repeat"),
        ({"skipped": {"hidden": 5}}, "outside"),
        (odd(split=([25], Split.UNUSED), clip_hash=([25], HASHES[2])), "more than one"),
        (odd(split=([], 0), black=([2, 60], True), clip_hash=([60], HASHES[2])), "two labels"),
    ],
)
def test_what_is_usual_is_no_finding(columns: dict[str, Any], title: str) -> None:
    assert finding_of(make_facts(EVEN, **columns), title) is None


@pytest.mark.parametrize(
    ("counts", "columns", "expected"),
    [
        ({"a": 79, "b": 40}, {}, None),
        ({"a": 80, "b": 40}, {}, (NOTE, "2.0", "Videos: a (80), b (40); the median is 60")),
        ({"a": 240, "b": 40}, {}, (WARNING, "6.0", "Videos: a (240), b (40)")),
        (
            {"a": 60, "b": 40},
            {"split": make_split({"a": 60, "b": 40}, test=10, val=20)},
            (NOTE, "3.0", "Training clips: a (30), b (10);"),
        ),
    ],
)
def test_imbalance(counts: dict[str, int], columns: dict[str, Any], expected: tuple[Severity, str, str] | None) -> None:
    finding = finding_of(make_facts(counts, **columns), "times the smallest")

    if expected is None or finding is None:
        assert expected is finding is None
    else:
        severity, ratio, detail = expected
        assert (severity, f"The largest class is {ratio} times the smallest") == (finding.severity, finding.title)
        assert finding.detail.startswith(detail)


def test_a_single_class_and_a_small_one() -> None:
    single = finding_of(make_facts({"a": 40}), "only one class")
    small = finding_of(make_facts({"a": 34, "b": 33, "c": 20}), "fewer than 5 test clips: 2")

    assert single is not None
    assert "All videos are in a." == single.detail
    assert small is not None
    assert "2 of 3 (67%): c (3), b (4.95)." == small.detail
    assert "3 of 3 correct can mean an accuracy of 44% (95% interval)" in small.advice


def test_black_clips_are_copies_by_their_files() -> None:
    facts = make_facts(EVEN, **odd(split=([], 0), black=([2, 60], True), source_hash=([60], HASHES[2])))

    assert [[2, 60]] == [rows.tolist() for rows in find_copies(facts)]


def test_names_and_numbers_are_short() -> None:
    assert ("a, b", "a, b, c and 1 more") == (join(["a", "b"]), join(["a", "b", "c", "d"]))
    assert ("0.281", "8.83", "768,000") == (amount(0.28125), amount(8.8345), amount(768000.0))
    assert ("0 of 9 (0%)", "1 of 1,000 (under 1%)") == (share(0, 9), share(1, 1000))
