"""Classes that are told apart by left and right: which names say so, and who warns."""

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tests.helpers import make_cache, tiny_models
from vidcache.cache.format import Split
from vidcache.cache.leakage import mirrored_classes, mirrored_names
from vidcache.cache.reader import CacheReader
from vidcache.cli import main as vidcache
from vidcache.train.cli import main as vidtrain


@pytest.mark.parametrize(
    ("classes", "pairs"),
    [
        (("swipe_left", "swipe_right"), [(0, 1)]),
        (("SwipeLeft", "SwipeRight"), [(0, 1)]),
        (("left turn", "no turn", "right turn"), [(0, 2)]),
        (("left-to-right", "right-to-left"), [(0, 1)]),
        (("arm l", "arm r", "arm_lr"), [(0, 1)]),
        (("turn_clockwise", "turn_counter_clockwise"), [(0, 1)]),
        (("Anticlockwise", "clockwise"), [(0, 1)]),
        (("cw", "ccw"), [(0, 1)]),
        (("west", "east"), [(0, 1)]),
        (("links abbiegen", "rechts abbiegen"), [(0, 1)]),
        (("bright", "left", "lift", "all", "arr"), []),
        (("copyleft", "copyright", "L", "R", "eastern", "western"), []),
        (("left_up", "right_down"), []),
    ],
)
def test_names_that_become_each_other(classes: tuple[str, ...], pairs: list[Any]) -> None:
    assert pairs == mirrored_names(classes)


def test_only_training_clips_are_asked(tmp_path: Path) -> None:
    with CacheReader(make_cache(tmp_path / "c.h5", {"a_l": 8, "a_r": 8, "b": 8})) as reader:
        assert "Mirroring may turn one class into another: a_l and a_r" == mirrored_classes(reader)
        reader.columns["split"][reader.labels == 1] = Split.UNUSED
        assert "" == mirrored_classes(reader)


def test_many_pairs_are_counted_not_listed(tmp_path: Path) -> None:
    counts = {f"{name}_{side}": 4 for name in "abcde" for side in ("left", "right")}
    with CacheReader(make_cache(tmp_path / "c.h5", counts)) as reader:
        assert mirrored_classes(reader).endswith("c_left and c_right, and 2 more pairs")


@pytest.mark.parametrize(("arguments", "warns"), [([], True), (["--flip", "0"], False), (["--augment", "none"], False)])
def test_a_run_that_mirrors_them_warns(tmp_path: Path, arguments: list[str], warns: bool) -> None:
    cache = make_cache(tmp_path / "c.h5", {"a_left": 8, "a_right": 8})
    quick = ["--weights", "none", "--freeze", "none", "--epochs", "1", "--amp", "off", "--device", "cpu"]

    with tiny_models():
        result = CliRunner().invoke(vidtrain, [str(cache), *quick, *arguments, "--out", str(tmp_path / "best.pt")])

    assert 0 == result.exit_code, result.stderr
    warning = "Mirroring may turn one class into another: a_left and a_right. This run mirrors 50% of the clips"
    assert warns == (warning in result.stderr)


def test_the_analysis_warns(tmp_path: Path) -> None:
    cache = make_cache(tmp_path / "c.h5", {"a_left": 8, "a_right": 8})

    result = CliRunner().invoke(vidcache, ["analyze", str(cache), "--out", str(tmp_path / "out")])

    assert 0 == result.exit_code, result.stderr
    assert "Classes are told apart by left and right" in result.output
